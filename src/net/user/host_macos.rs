//! What macOS wants for datagrams of any size, and how it hands echo replies over.

use std::io;
use std::net::UdpSocket;

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

use super::host::Failure;

/// Makes room for the largest datagram, and for bursts.
pub fn prepare(socket: &UdpSocket) -> io::Result<()> {
    set_socket_send_buffer_size(socket, 1 << 18)?;
    Ok(set_socket_recv_buffer_size(socket, 1 << 20)?)
}

/// The next error that was kept: none is, without a connected socket.
pub fn failure(_socket: &UdpSocket) -> Option<Failure> {
    None
}

/// Whether an echo socket has received what answers its own requests, which have this identifier: each gets what comes
/// for all of the host's.
pub fn is_answer(message: &[u8], identifier: u16) -> bool {
    message.get(4..6) == Some(&identifier.to_be_bytes())
}
