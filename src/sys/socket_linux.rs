//! Sockets on Linux.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// A peer that has gone is an error, not a signal.
pub(crate) const SEND_FLAGS: libc::c_int = libc::MSG_NOSIGNAL;

/// Unix sockets carry messages over connections (SOCK_SEQPACKET).
pub(crate) const HAS_SEQPACKET: bool = true;

/// A socket that does not block.
pub(crate) fn socket(family: AddressFamily, kind: SocketType) -> io::Result<OwnedFd> {
    Ok(socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?)
}

/// Makes a socket silent whose sends would raise signals: here each send says so itself.
pub(crate) fn make_silent(_: &OwnedFd) -> io::Result<()> {
    Ok(())
}

/// The next connection, as a socket that does not block.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?)
}

/// Two unix sockets that are connected to each other, and block.
pub(crate) fn pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

/// Gives the file that a unix socket will be bound to a mode from its first moment on, as far as the umask allows.
pub(crate) fn set_mode(socket: &OwnedFd, mode: Mode) -> io::Result<()> {
    Ok(fchmod(socket, mode)?)
}

/// A second name, unless something has it: every file system where sockets can be has that.
pub(crate) fn name(file: &Path, name: &Path) -> io::Result<()> {
    std::fs::hard_link(file, name)
}
