//! Sockets on macOS.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::{FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::net::{AddressFamily, SocketType, sockopt};

/// Sockets are told once not to raise signals.
pub(crate) const SEND_FLAGS: libc::c_int = 0;

/// A socket that does not block.
pub(crate) fn socket(family: AddressFamily, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(family, kind, None)?;
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    ioctl_fionbio(&socket, true)?;
    make_silent(&socket)?;
    Ok(socket)
}

/// Makes a socket silent whose sends would raise signals.
pub(crate) fn make_silent(socket: &OwnedFd) -> io::Result<()> {
    Ok(sockopt::set_socket_nosigpipe(socket, true)?)
}
