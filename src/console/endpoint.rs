//! File descriptors that input comes from and output goes to.
//!
//! The event loop must never block, and yet it must not make a descriptor non-blocking that other processes share,
//! as they share standard output: the flag belongs to the open file, not to the descriptor. So a [`Sink`] knows how
//! much it may write to a descriptor that `poll` calls writable.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, read, write};
use rustix::net::{SendFlags, send};
use rustix::pipe::PIPE_BUF;
use rustix::termios::isatty;

use super::port::Shared;
use super::queue::Queue;
use crate::sys::{Silent, terminal};

/// How much is moved at once.
const CHUNK: usize = 16 << 10;

/// A key that the host keeps for itself.
pub(super) struct Escape {
    pub key: u8,
    pub call: Box<dyn FnMut() + Send>,
}

/// Where input comes from. Read only after `poll` called it readable, so it may be blocking.
pub(super) struct Source {
    fd: Arc<OwnedFd>,
    /// It is a terminal, and may change its size.
    terminal: bool,
    escape: Option<Escape>,
}

impl Source {
    pub fn new(fd: Arc<OwnedFd>, escape: Option<Escape>) -> Self {
        let terminal = isatty(&fd);
        Self { fd, terminal, escape: escape.filter(|_| terminal) }
    }

    /// Moves what is there to the device, `room` bytes at most. `false` at the end of input.
    pub fn pump(&mut self, shared: &Shared, room: usize) -> bool {
        if room == 0 {
            return true;
        }
        let mut buffer = [0; CHUNK];
        let room = room.min(CHUNK);
        let bytes = match read(&self.fd, &mut buffer[..room]) {
            Ok(0) => return false,
            Ok(count) => &buffer[..count],
            Err(Errno::INTR | Errno::AGAIN) => return true,
            Err(_) => return false,
        };
        if self.terminal
            && let Some(size) = terminal::size(&self.fd)
        {
            shared.set_size(size);
        }
        match &mut self.escape {
            None => shared.push_input(bytes),
            Some(escape) => {
                let key = escape.key;
                for (count, piece) in bytes.split(|&byte| byte == key).enumerate() {
                    if count > 0 {
                        (escape.call)();
                    }
                    shared.push_input(piece);
                }
            }
        }
        true
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where output goes.
pub(super) struct Sink {
    _silent: Silent,
    fd: Arc<OwnedFd>,
    queue: Arc<Queue>,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// `write` of this many bytes cannot block: `poll` promises as much.
    Write(usize),
    /// `send` can be told not to block.
    Send,
}

impl Sink {
    /// An open file that is ours alone, and non-blocking if it is a kind that can block.
    pub fn owned(fd: Arc<OwnedFd>, queue: Arc<Queue>) -> Self {
        Self::new(fd, queue, How::Write(CHUNK))
    }

    /// An open file that others may share.
    pub fn shared(fd: OwnedFd, queue: Arc<Queue>) -> io::Result<Self> {
        if isatty(&fd) {
            // A terminal with any room at all is writable, and there is no telling how much it has. So take an
            // open file of our own; where that is not permitted, go byte by byte.
            return Ok(match terminal::reopen_for_output(&fd) {
                Ok(ours) => Self::owned(Arc::new(ours.into()), queue),
                Err(_) => Self::new(Arc::new(fd), queue, How::Write(1)),
            });
        }
        let how = match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::Socket => How::Send,
            FileType::RegularFile => How::Write(CHUNK),
            _ => How::Write(PIPE_BUF),
        };
        Ok(Self::new(Arc::new(fd), queue, how))
    }

    fn new(fd: Arc<OwnedFd>, queue: Arc<Queue>, how: How) -> Self {
        Self { _silent: Silent::new(&fd), fd, queue, how }
    }

    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Writes some of what waits; tells whether any was taken. A descriptor that fails is never written again.
    pub fn pump(&self) -> bool {
        let mut buffer = [0; CHUNK];
        let most = match self.how {
            How::Write(most) => most,
            How::Send => CHUNK,
        };
        let count = self.queue.peek(&mut buffer[..most]);
        let bytes = &buffer[..count];
        let written = match self.how {
            How::Write(_) => write(&self.fd, bytes),
            How::Send => send(&self.fd, bytes, SendFlags::DONTWAIT),
        };
        match written {
            Ok(count) => {
                self.queue.consume(count);
                count > 0
            }
            Err(Errno::INTR | Errno::AGAIN) => false,
            Err(error) => {
                self.queue.fail(&error.into());
                false
            }
        }
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
