//! The host's datagram sockets: how they are made, and what they tell.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

#[cfg(target_os = "linux")]
pub use super::host_linux::{failure, is_answer, prepare};
#[cfg(target_os = "macos")]
pub use super::host_macos::{failure, is_answer, prepare};

/// Why a datagram did not arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Where it went to.
    pub destination: SocketAddr,
    /// The type and code of the ICMP message, if there was one.
    pub kind: Option<(u8, u8)>,
    /// The error.
    pub errno: i32,
    /// More about it: the MTU, if it was too large.
    pub info: u32,
    /// Who said so.
    pub offender: Option<IpAddr>,
    /// The beginning of the datagram: of what was in it for UDP, of the ICMP message for an echo request.
    pub data: Vec<u8>,
}

/// A socket for datagrams to anywhere.
pub fn udp(v6: bool) -> io::Result<UdpSocket> {
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    ready(UdpSocket::bind((any, 0))?)
}

/// A socket for echo requests, for which the host may want a privilege.
pub fn ping(v6: bool) -> io::Result<UdpSocket> {
    let (family, protocol) = match v6 {
        false => (AddressFamily::INET, ipproto::ICMP),
        true => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket =
        rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::empty(), Some(protocol))?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    ready(socket.into())
}

fn ready(socket: UdpSocket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    prepare(&socket)?;
    Ok(socket)
}

/// How far what is sent from now on may go.
pub fn set_hops(socket: &UdpSocket, v6: bool, hops: u8) -> io::Result<()> {
    match v6 {
        false => sockopt::set_ip_ttl(socket, hops.into())?,
        true => sockopt::set_ipv6_unicast_hops(socket, Some(hops))?,
    }
    Ok(())
}
