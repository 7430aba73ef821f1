//! What a socket did not take yet: the bytes of a stream, or whole messages.
//!
//! In nearly all cases it is empty, and the data of a stream goes from guest memory to the socket without being copied
//! in between. Messages are put together here, as the socket takes them only whole.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use super::super::buffer::Reader;
use crate::memory::BufferList;
use crate::sys::socket;

/// Data on its way to the host.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    /// How many of them are gone.
    gone: usize,
    /// Lengths of the whole messages in there.
    messages: VecDeque<u32>,
    /// Bytes behind these: a part of a message, whose end is still to come.
    part: usize,
}

impl Backlog {
    /// Whether nothing waits for the socket.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() - self.gone == self.part
    }

    /// Forgets everything, and tells how many bytes that was.
    pub fn discard(&mut self) -> usize {
        let old = std::mem::take(self);
        old.bytes.len() - old.gone
    }

    /// Sends `len` bytes of `data`, keeps what the socket does not take, and tells how many it took.
    pub fn take_stream(
        &mut self,
        socket: &OwnedFd,
        mut data: Reader<'_>,
        len: usize,
        room: &mut BufferList<'static>,
    ) -> io::Result<usize> {
        let mut sent = 0;
        if self.is_empty() && len > 0 {
            let mut list = std::mem::take(room).recycle();
            let mut ahead = data.clone();
            let mut left = len;
            while let Some(slice) = ahead.next_slice(left) {
                left -= slice.len();
                list.push(slice);
            }
            let outcome = socket::send_buffers(socket, list.all());
            *room = list.recycle();
            sent = or_none(outcome)?;
        }
        data.skip(sent);
        self.keep(data, len - sent);
        Ok(sent)
    }

    /// Adds `len` bytes of `data` to the message that is under way, and sends it if they are its `last`. Tells how many
    /// bytes the socket took, of messages that waited too.
    pub fn take_message(
        &mut self,
        socket: &OwnedFd,
        data: Reader<'_>,
        len: usize,
        last: bool,
    ) -> io::Result<usize> {
        self.keep(data, len);
        self.part += len;
        // An empty message would look like the end.
        if !last || self.part == 0 {
            return Ok(0);
        }
        self.messages.push_back(std::mem::take(&mut self.part) as u32);
        // Where others wait, this one does too.
        if self.messages.len() > 1 { Ok(0) } else { self.flush(socket) }
    }

    /// Sends what waits, and tells how many bytes the socket took.
    pub fn flush(&mut self, socket: &OwnedFd) -> io::Result<usize> {
        let mut sent = 0;
        while !self.is_empty() {
            let waiting = self.bytes.get(self.gone..).unwrap_or_default();
            let next = self.messages.front().map_or(waiting.len(), |&len| len as usize);
            let next = waiting.get(..next).unwrap_or_default();
            let count = or_none(socket::send_bytes(socket, next))?;
            if count == 0 {
                break;
            }
            self.messages.pop_front();
            sent += count;
            self.gone += count;
        }
        self.tidy();
        Ok(sent)
    }

    /// Copies `len` bytes of `data`.
    fn keep(&mut self, mut data: Reader<'_>, len: usize) {
        if len == 0 {
            return;
        }
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        data.read(self.bytes.get_mut(start..).unwrap_or_default());
    }

    /// Gives back the room of what is gone, in steps that are worth the copying.
    fn tidy(&mut self) {
        if self.gone == self.bytes.len() {
            // Not kept: a connection that is held up is an exception, and there may be thousands.
            (self.bytes, self.gone) = (Vec::new(), 0);
        } else if self.gone > self.bytes.len() / 2 {
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
    }
}

/// A socket that is full takes nothing.
fn or_none(outcome: io::Result<usize>) -> io::Result<usize> {
    match outcome {
        Err(error) if is_full(&error) => Ok(0),
        outcome => outcome,
    }
}

/// Whether a socket takes nothing now, and will later.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || socket::is_short_of_memory(error)
}
