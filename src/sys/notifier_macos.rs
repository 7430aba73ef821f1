//! [`Notifier`](super::Notifier) on macOS: a pipe, because kqueue's user events cannot be shared between queues.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};

#[derive(Debug)]
pub(super) struct Inner {
    read: OwnedFd,
    write: OwnedFd,
}

impl Inner {
    pub fn new() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe()?;
        for fd in [&read, &write] {
            fcntl_setfd(fd, FdFlags::CLOEXEC)?;
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        Ok(Self { read, write })
    }

    pub fn notify(&self) {
        // A full pipe is a set flag.
        let _ = rustix::io::write(&self.write, &[1]);
    }

    pub fn clear(&self) -> bool {
        let mut buffer = [0u8; 512];
        let mut set = false;
        while rustix::io::read(&self.read, &mut buffer).is_ok_and(|n| n > 0) {
            set = true;
        }
        set
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { read: self.read.try_clone()?, write: self.write.try_clone()? })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}
