//! What macOS has for sockets: no signal where nobody reads any more, but no peeking at an offset.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// How to send.
pub(in super::super) const SEND: libc::c_int = 0;

/// Makes a socket fit for use: sending is never to raise a signal.
pub(in super::super) fn prepare(fd: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value is an integer of the size that is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NOSIGPIPE,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// There is nothing like it.
pub(in super::super) fn peek_from(_: &OwnedFd, _: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// There is nothing like it: nothing is dropped.
pub(in super::super) fn discard(_: &OwnedFd, _: usize) -> isize {
    0
}
