//! Writing to what nobody reads any more, on macOS: the signal that says so is the process's, whatever the writing
//! thread blocks. An open file can be told to raise none, for all who share it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// `sys/fcntl.h`; the libc crate does not have it.
const F_GETNOSIGPIPE: libc::c_int = 74;

/// Has an open file raise no signals, until this is dropped.
#[derive(Debug)]
pub(crate) struct Silent(Option<OwnedFd>);

impl Silent {
    pub fn new(fd: &impl AsFd) -> Self {
        let fd = fd.as_fd();
        // SAFETY: the command takes no argument.
        let before = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETNOSIGPIPE) };
        if before != 0 {
            return Self(None);
        }
        // Without a descriptor to undo it with, it stays.
        let undo = fd.try_clone_to_owned().ok();
        set(fd, true);
        Self(undo)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        if let Some(fd) = &self.0 {
            set(fd, false);
        }
    }
}

fn set(fd: impl AsFd, silent: bool) {
    // A socket whose peer has gone takes no options any more: then it is as it is.
    // SAFETY: the command takes a number.
    unsafe {
        libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETNOSIGPIPE, libc::c_int::from(silent));
    }
}
