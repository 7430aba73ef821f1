//! Sockets on macOS.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, RenameFlags, renameat_with};
use rustix::io::{FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Sockets are told once not to raise signals.
pub(crate) const SEND_FLAGS: libc::c_int = 0;

/// Unix sockets carry no messages over connections.
pub(crate) const HAS_SEQPACKET: bool = false;

/// A socket that does not block.
pub(crate) fn socket(family: AddressFamily, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(family, kind, None)?;
    prepare(&socket)?;
    ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// Makes a socket silent whose sends would raise signals. One whose peer has gone takes no options any more; if it was
/// accepted it has this one from its listener.
pub(crate) fn make_silent(socket: &OwnedFd) -> io::Result<()> {
    match sockopt::socket_nosigpipe(socket)? {
        true => Ok(()),
        false => Ok(sockopt::set_socket_nosigpipe(socket, true)?),
    }
}

/// The next connection, as a socket that does not block.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let socket = rustix::net::accept(listener)?;
    // A listener that raises signals is not ours, and its connections can be told only while there is a peer.
    prepare(&socket).map_err(|_| io::ErrorKind::ConnectionAborted)?;
    ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// Two unix sockets that are connected to each other, and block.
pub(crate) fn pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) =
        rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::empty(), None)?;
    prepare(&one)?;
    prepare(&other)?;
    Ok((one, other))
}

fn prepare(socket: &OwnedFd) -> io::Result<()> {
    fcntl_setfd(socket, FdFlags::CLOEXEC)?;
    make_silent(socket)
}

/// A socket has no mode of its own here, only its file has.
pub(crate) fn set_mode(_: &OwnedFd, _: Mode) -> io::Result<()> {
    Ok(())
}

/// Another name, unless something has it: that a socket may have two is not said anywhere.
pub(crate) fn name(file: &Path, name: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, file, CWD, name, RenameFlags::NOREPLACE)?)
}
