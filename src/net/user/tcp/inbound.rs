//! What the host has sent, kept until the guest has acknowledged it.
//!
//! Where the host can peek at any offset, the bytes stay in the socket, and each frame is read from there straight into
//! guest memory. Elsewhere they are kept in a ring.

use std::io::{self, ErrorKind};

use super::host::Host;
use super::ring::{Pool, Ring};
use crate::memory::Buffers;

/// Bytes acknowledged that may be left in the socket, to be taken out of it in one go.
const LAZY: usize = 64 << 10;
/// Bytes that are read into a ring at a time: they should be still in the cache when they are copied.
const CHUNK: usize = 64 << 10;

/// Bytes from the host. Offsets count from the first one that is not acknowledged.
pub(super) enum Inbound {
    /// They are in the socket.
    Socket {
        /// Acknowledged, but not taken out of the socket.
        stale: usize,
        /// Where the next peek begins.
        at: usize,
    },
    /// They are here.
    Ring {
        ring: Option<Ring>,
        /// What comes after them: the end of the stream, or a failure.
        end: Option<io::Result<()>>,
    },
}

impl Inbound {
    pub fn new(host: &Host) -> Self {
        match host.can_peek_anywhere() {
            true => Self::Socket { stale: 0, at: 0 },
            false => Self::Ring { ring: None, end: None },
        }
    }

    /// Whether there may be anything at `offset`, given that the socket has more or has not.
    pub fn may_have(&self, offset: usize, readable: bool) -> bool {
        match self {
            Self::Socket { .. } => readable,
            Self::Ring { ring, end } => {
                let state = ring.as_ref().map(|ring| (ring.len(), ring.is_crowded()));
                let (len, crowded) = state.unwrap_or_default();
                len > offset || end.is_some() || (readable && !crowded)
            }
        }
    }

    /// Reads from `offset` on. Clears `readable` when the socket has no more; 0 bytes are the end, and
    /// [`ErrorKind::OutOfMemory`] means that there is no room now.
    pub fn read(
        &mut self,
        host: &Host,
        offset: usize,
        into: Buffers<'_>,
        readable: &mut bool,
        pool: &mut Pool,
    ) -> io::Result<usize> {
        match self {
            Self::Socket { stale, at } => {
                let wanted = *stale + offset;
                if *at != wanted {
                    host.peek_from(wanted)?;
                    *at = wanted;
                }
                let result = host.peek(into);
                match &result {
                    Ok(count) => *at += count,
                    Err(error) => *readable &= error.kind() != ErrorKind::WouldBlock,
                }
                result
            }
            Self::Ring { ring: place, end } => {
                let mut ring = match place.take() {
                    Some(ring) => ring,
                    None => pool.take().ok_or(ErrorKind::OutOfMemory)?,
                };
                let wanted = into.total();
                let enough = offset.saturating_add(wanted);
                while *readable && end.is_none() && ring.len() < enough && !ring.is_crowded() {
                    let spare = ring.spare();
                    let most = spare.len().min(CHUNK);
                    let Some(room @ [_, ..]) = spare.get_mut(..most) else { break };
                    match host.receive(room) {
                        Ok(0) => *end = Some(Ok(())),
                        Ok(count) => ring.filled(count),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => *readable = false,
                        Err(error) => *end = Some(Err(error)),
                    }
                }
                let count = copy(&ring, offset, into);
                match ring.len() {
                    0 => pool.give(ring),
                    _ => *place = Some(ring),
                }
                match end {
                    _ if count > 0 => Ok(count),
                    None => Err(ErrorKind::WouldBlock.into()),
                    Some(Ok(())) => Ok(0),
                    Some(Err(error)) => Err(error.kind().into()),
                }
            }
        }
    }

    /// The guest has acknowledged `count` bytes; if `all` it has nothing left to acknowledge.
    pub fn acknowledged(
        &mut self,
        host: &Host,
        count: usize,
        all: bool,
        pool: &mut Pool,
    ) -> io::Result<()> {
        match self {
            Self::Socket { stale, at } => {
                *stale += count;
                if *stale >= LAZY || (all && *stale > 0) {
                    host.discard(*stale)?;
                    *at = at.saturating_sub(*stale);
                    *stale = 0;
                }
            }
            Self::Ring { ring: place, .. } => {
                if let Some(mut ring) = place.take() {
                    ring.consume(count);
                    match ring.len() {
                        0 => pool.give(ring),
                        _ => *place = Some(ring),
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives back what memory there is.
    pub fn close(&mut self, pool: &mut Pool) {
        if let Self::Ring { ring, .. } = self
            && let Some(ring) = ring.take()
        {
            pool.give(ring);
        }
    }
}

fn copy(ring: &Ring, offset: usize, into: Buffers<'_>) -> usize {
    let mut done = 0;
    for slice in into.slices() {
        let mut at = 0;
        while at < slice.len() {
            let bytes = ring.from(offset + done);
            let count = bytes.len().min(slice.len() - at);
            let (Some(bytes @ [_, ..]), Ok(place)) = (bytes.get(..count), slice.offset(at)) else {
                return done;
            };
            place.copy_from(bytes);
            at += count;
            done += count;
        }
    }
    done
}
