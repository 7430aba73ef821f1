//! What macOS has for sockets: no peeking at an offset.

use std::io;
use std::os::fd::OwnedFd;

/// There is nothing like it.
pub(in super::super) fn peek_from(_: &OwnedFd, _: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// There is nothing like it: nothing is dropped.
pub(in super::super) fn discard(_: &OwnedFd, _: usize) -> isize {
    0
}
