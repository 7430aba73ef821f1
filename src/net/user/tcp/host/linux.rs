//! What Linux has for sockets: peeking at an offset (for TCP since version 6.9), and dropping bytes unseen.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Sets where `MSG_PEEK` begins.
pub(in super::super) fn peek_from(fd: &OwnedFd, offset: usize) -> io::Result<()> {
    let offset = libc::c_int::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the value is an integer of the size that is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const offset).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Drops up to `count` bytes; the result is that of `recv`.
pub(in super::super) fn discard(fd: &OwnedFd, count: usize) -> isize {
    // SAFETY: with `MSG_TRUNC`, a TCP socket writes nothing.
    unsafe { libc::recv(fd.as_raw_fd(), std::ptr::null_mut(), count, libc::MSG_TRUNC) }
}
