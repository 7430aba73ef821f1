//! Sockets on Linux.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// A peer that has gone is an error, not a signal.
pub(crate) const SEND_FLAGS: libc::c_int = libc::MSG_NOSIGNAL;

/// A socket that does not block.
pub(crate) fn socket(family: AddressFamily, kind: SocketType) -> io::Result<OwnedFd> {
    Ok(socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?)
}

/// Makes a socket silent whose sends would raise signals: here each send says so itself.
pub(crate) fn make_silent(_: &OwnedFd) -> io::Result<()> {
    Ok(())
}
