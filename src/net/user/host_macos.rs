//! What macOS wants for datagrams of any size, and how it hands echo replies over.

use std::io;
use std::net::UdpSocket;

use rustix::net::sockopt::set_socket_send_buffer_size;

use super::frame::IPV4;
use super::host::Failure;

/// Makes room for the largest datagram.
pub fn prepare(socket: &UdpSocket) -> io::Result<()> {
    Ok(set_socket_send_buffer_size(socket, 1 << 18)?)
}

/// The next error that was kept: none is, without a connected socket.
pub fn failure(_socket: &UdpSocket) -> Option<Failure> {
    None
}

/// The ICMP message in what an echo socket received: IPv4's come with their IP header.
pub fn echo(bytes: &[u8]) -> &[u8] {
    match bytes.first() {
        Some(first) if first >> 4 == 4 => {
            let header = usize::from(first & 15) * 4;
            bytes.get(header.max(IPV4)..).unwrap_or_default()
        }
        _ => bytes,
    }
}
