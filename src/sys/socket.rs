//! Sockets that never block and never raise a signal, and frames that go from guest memory to a socket and back.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, sockopt};

use crate::memory::Buffers;

#[cfg(target_os = "linux")]
use super::socket_linux as system;
#[cfg(target_os = "macos")]
use super::socket_macos as system;

pub(crate) use system::{HAS_SEQPACKET, make_silent};

/// Room asked for in each direction. Where the system's own idea is a few KiB, bursts would not get through, and
/// large datagrams not at all.
const SEND_ROOM: usize = 1 << 20;
const RECEIVE_ROOM: usize = 4 << 20;

/// Pieces of a frame that are sent from where they are; more are gathered first.
pub(crate) const PIECES: usize = 32;

/// How far connecting has come.
pub(crate) enum Connect {
    Done(OwnedFd),
    /// The socket becomes writable once it is known.
    UnderWay(OwnedFd),
}

/// What was received.
pub(crate) struct Received {
    pub len: usize,
    /// It is a datagram that there was not room for.
    pub cut: bool,
}

/// Connects to a unix socket.
pub(crate) fn connect_unix(path: &Path) -> io::Result<Connect> {
    let socket = system::socket(AddressFamily::UNIX, SocketType::STREAM)?;
    make_room(&socket);
    connect(socket, |socket| rustix::net::connect(socket, &SocketAddrUnix::new(path)?))
}

/// Connects to a TCP port.
pub(crate) fn connect_tcp(address: &SocketAddr) -> io::Result<Connect> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = system::socket(family, SocketType::STREAM)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    connect(socket, |socket| rustix::net::connect(socket, address))
}

fn connect(
    socket: OwnedFd,
    connect: impl FnOnce(&OwnedFd) -> rustix::io::Result<()>,
) -> io::Result<Connect> {
    match connect(&socket) {
        Ok(()) => Ok(Connect::Done(socket)),
        Err(Errno::INPROGRESS | Errno::INTR) => Ok(Connect::UnderWay(socket)),
        Err(error) => Err(error.into()),
    }
}

/// Whether a socket that was under way has arrived.
pub(crate) fn connected(socket: &OwnedFd) -> io::Result<bool> {
    sockopt::socket_error(socket)??;
    match rustix::net::getpeername(socket) {
        Ok(_) => Ok(true),
        Err(Errno::NOTCONN | Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a TCP socket has met itself: connecting again and again to a local port that nobody listens on gets that
/// very port as its own one day.
pub(crate) fn met_itself(socket: &OwnedFd) -> bool {
    let ends = (rustix::net::getsockname(socket), rustix::net::getpeername(socket));
    matches!(ends, (Ok(ours), Ok(Some(theirs))) if ours == theirs)
}

/// A datagram socket that is bound to `path`.
pub(crate) fn bind_datagram(path: &Path) -> io::Result<OwnedFd> {
    let socket = system::socket(AddressFamily::UNIX, SocketType::DGRAM)?;
    make_room(&socket);
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Makes a caller's descriptor one of ours, if it is a socket of this kind.
pub(crate) fn adopt(socket: &OwnedFd, kind: SocketType) -> io::Result<()> {
    if sockopt::socket_type(socket)? != kind {
        let wanted = if kind == SocketType::STREAM { "stream" } else { "datagram" };
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("not a {wanted} socket")));
    }
    make_silent(socket)?;
    rustix::io::ioctl_fionbio(socket, true)?;
    make_room(socket);
    Ok(())
}

fn make_room(socket: &OwnedFd) {
    // As much as the system allows: with less it is slower, no more than that.
    let _ = sockopt::set_socket_send_buffer_size(socket, SEND_ROOM);
    let _ = sockopt::set_socket_recv_buffer_size(socket, RECEIVE_ROOM);
}

/// Sends `head`, `frame` and `tail` in one call, and tells how many bytes of them went. The frame has at most
/// [`PIECES`] pieces.
pub(crate) fn send(
    socket: &OwnedFd,
    head: &[u8],
    frame: Buffers<'_>,
    tail: &[u8],
) -> io::Result<usize> {
    let mut pieces = [const { piece(&[]) }; PIECES + 2];
    let all = [piece(head)].into_iter().chain(frame.iovecs().iter().copied()).chain([piece(tail)]);
    let mut count = 0;
    for (place, piece) in pieces.iter_mut().zip(all) {
        *place = piece;
        count += 1;
    }
    let pieces = pieces.get(..count).unwrap_or_default();
    // SAFETY: each piece is of `head`, `tail`, or `frame`, all of which live during the call.
    unsafe { send_pieces(socket.as_fd(), pieces) }
}

/// Sends `frame` in one call, as far as a call goes, and tells how many bytes of it went.
pub(crate) fn send_buffers(socket: &OwnedFd, frame: Buffers<'_>) -> io::Result<usize> {
    // SAFETY: the pieces are of `frame`, which lives during the call.
    unsafe { send_pieces(socket.as_fd(), frame.first_iovecs()) }
}

/// Sends a frame as one datagram.
pub(crate) fn send_datagram(socket: &OwnedFd, frame: Buffers<'_>) -> io::Result<()> {
    // SAFETY: the pieces are of `frame`, which lives during the call.
    unsafe { send_pieces(socket.as_fd(), frame.iovecs()) }.map(drop)
}

/// Sends bytes, and tells how many went.
pub(crate) fn send_bytes(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the piece is of `bytes`, which live during the call.
    unsafe { send_pieces(socket.as_fd(), &[piece(bytes)]) }
}

const fn piece(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

/// Sends once, and tells how many bytes went.
///
/// # Safety
///
/// Each piece is memory that may be read during the call.
unsafe fn send_pieces(socket: BorrowedFd<'_>, pieces: &[libc::iovec]) -> io::Result<usize> {
    let message = message(pieces);
    // SAFETY: the message has no address and no control data, and its pieces are readable; the call only reads.
    retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &message, system::SEND_FLAGS) })
}

/// Receives once: a datagram, or what there is of a stream, nothing of which is its end.
pub(crate) fn receive(
    socket: &OwnedFd,
    space: Buffers<'_>,
    flags: libc::c_int,
) -> io::Result<Received> {
    let mut message = message(space.first_iovecs());
    // SAFETY: the message has no address and no control data, and its pieces may be written: they are of `space`,
    // which lives during the call.
    let len = retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) })?;
    Ok(Received { len, cut: message.msg_flags & libc::MSG_TRUNC != 0 })
}

fn message(pieces: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: a message header is numbers and pointers, all of which may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_ptr().cast_mut();
    message.msg_iovlen = pieces.len() as _;
    message
}

/// Makes a system call until no signal interrupts it.
pub(crate) fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()).map_err(|_| io::Error::last_os_error()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Whether an error means that the system is short of memory for a moment, rather than that the peer has gone.
pub(crate) fn is_short_of_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

/// Whether an error is about the size of the frame.
pub(crate) fn is_too_large(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}
