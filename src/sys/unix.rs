//! Unix sockets that have a name, and pairs that have none.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, sockopt};

#[cfg(target_os = "linux")]
use super::socket_linux as system;
#[cfg(target_os = "macos")]
use super::socket_macos as system;

/// Room asked for in each direction: with less, a peer that is not scheduled at once costs more turns.
const ROOM: usize = 256 << 10;

/// The longest path of a socket, in bytes: what is left of the address is a NUL.
pub(crate) const LONGEST_PATH: usize =
    size_of::<libc::sockaddr_un>() - std::mem::offset_of!(libc::sockaddr_un, sun_path) - 1;

/// Connects to whoever listens at `path`, without waiting. The socket does not block.
pub(crate) fn connect(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = system::socket(AddressFamily::UNIX, kind)?;
    make_room(&socket);
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        // A connection that is under way is one that can be written to a little later.
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// A socket at `path`, where nothing may be, that nobody can connect to before it listens. On Linux its file is from
/// the beginning on for its owner only, less what the umask forbids.
pub(crate) fn bind(path: &Path) -> io::Result<OwnedFd> {
    let socket = system::socket(AddressFamily::UNIX, SocketType::STREAM)?;
    system::set_mode(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Gives the file of a socket the name `name` as well, or instead, unless something has it.
pub(crate) fn name(file: &Path, name: &Path) -> io::Result<()> {
    system::name(file, name)
}

/// The next connection, as a socket that does not block.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let socket = system::accept(listener)?;
    make_room(&socket);
    Ok(socket)
}

/// Two ends of a connection, the first of which does not block.
pub(crate) fn pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = system::pair(kind)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    make_room(&ours);
    make_room(&theirs);
    Ok((ours, theirs))
}

fn make_room(socket: &OwnedFd) {
    // As much as the system allows: with less it is slower, no more than that.
    let _ = sockopt::set_socket_send_buffer_size(socket, ROOM);
    let _ = sockopt::set_socket_recv_buffer_size(socket, ROOM);
}
