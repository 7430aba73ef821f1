//! ICMP and ICMPv6: echo requests, and what the guest is told about packets that go nowhere.
//!
//! Echo requests to us are answered here; those to others go through [`Flows`](super::udp::Flows), on sockets that
//! need no privilege where the host allows it.

use std::io;
use std::net::IpAddr;

use smoltcp::wire::{IpProtocol, checksum};

use super::frame::{IPV4, Packet, copy};
use super::host::Failure;
use super::wire::Wire;

/// Bytes of an ICMP header.
pub const HEADER: usize = 8;

/// Type numbers of echo requests and replies.
pub const ECHO: (u8, u8) = (8, 0);
/// Those of ICMPv6.
pub const ECHO6: (u8, u8) = (128, 129);

/// A packet of the guest, as an ICMP message quotes it.
#[derive(Debug, Clone, Copy)]
pub struct Quote<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: IpProtocol,
    pub hops: u8,
    /// The beginning of what was in it …
    pub payload: &'a [u8],
    /// … and all its length.
    pub length: usize,
}

impl<'a> Quote<'a> {
    /// Of a packet with `payload` in it.
    pub fn new(packet: &Packet, payload: &'a [u8]) -> Self {
        let Packet { source, destination, protocol, hops, .. } = *packet;
        Self { source, destination, protocol, hops, payload, length: packet.payload }
    }
}

/// Why a packet goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody listens at the port.
    Port,
    /// The host is not there.
    Host,
    /// There is no way to the network.
    Network,
    /// It is not allowed.
    Denied,
    /// It should be no larger than this.
    TooLarge(u32),
    /// It has gone as far as it may.
    Hops,
    /// A message as the host got it: type, code, and the rest of the header.
    Message(u8, u8, u32),
}

impl Trouble {
    fn numbers(self, v6: bool) -> (u8, u8, u32) {
        match (self, v6) {
            (Self::Port, false) => (3, 3, 0),
            (Self::Port, true) => (1, 4, 0),
            (Self::Host, false) => (3, 1, 0),
            (Self::Host, true) => (1, 3, 0),
            (Self::Network, false) => (3, 0, 0),
            (Self::Network, true) => (1, 0, 0),
            (Self::Denied, false) => (3, 13, 0),
            (Self::Denied, true) => (1, 1, 0),
            (Self::TooLarge(mtu), false) => (3, 4, mtu & 0xffff),
            (Self::TooLarge(mtu), true) => (2, 0, mtu),
            (Self::Hops, false) => (11, 0, 0),
            (Self::Hops, true) => (3, 0, 0),
            (Self::Message(kind, code, rest), _) => (kind, code, rest),
        }
    }

    /// What an error of the host's means for the guest, if it is news for it.
    pub fn of(error: &io::Error) -> Option<Self> {
        Some(match error.raw_os_error()? {
            libc::ECONNREFUSED => Self::Port,
            libc::EHOSTUNREACH | libc::EHOSTDOWN => Self::Host,
            libc::ENETUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT => {
                Self::Network
            }
            libc::EACCES | libc::EPERM => Self::Denied,
            _ => return None,
        })
    }

    /// The same for an error that came with an ICMP message, of which only what guests expect is passed on.
    pub fn of_failure(failure: &Failure) -> Option<Self> {
        let Some((kind, code)) = failure.kind else {
            return match failure.errno {
                libc::EMSGSIZE => Some(Self::TooLarge(failure.info)),
                errno => Self::of(&io::Error::from_raw_os_error(errno)),
            };
        };
        match (failure.destination.is_ipv6(), kind, code) {
            (false, 3, 4) | (true, 2, _) => Some(Self::TooLarge(failure.info)),
            (false, 3 | 11, _) | (true, 1 | 3, _) => Some(Self::Message(kind, code, 0)),
            _ => None,
        }
    }
}

/// Tells the guest what has become of a packet.
pub fn trouble(wire: &mut Wire, from: IpAddr, quote: &Quote<'_>, trouble: Trouble) {
    let v6 = quote.source.is_ipv6();
    let (header, room, protocol) = match v6 {
        false => (20, 576 - 20 - 20 - HEADER, IpProtocol::Icmp),
        true => (40, 1280 - 40 - 40 - HEADER, IpProtocol::Icmpv6),
    };
    let quoted = quote.payload.get(..room).unwrap_or(quote.payload);
    let mut message = vec![0; HEADER + header + quoted.len()];
    let (kind, code, rest) = trouble.numbers(v6);
    let [a, b, c, d] = rest.to_be_bytes();
    copy(&mut message, 0, &[kind, code, 0, 0, a, b, c, d]);
    if let Some(packet) = message.get_mut(HEADER..) {
        let length = quote.length.min(usize::from(u16::MAX) - header) as u16;
        let Quote { source, destination, protocol, hops, .. } = *quote;
        super::frame::ip_header(packet, (source, destination), protocol, hops, length);
        copy(packet, header, quoted);
    }
    seal(&mut message, from, quote.source);
    wire.ip((from, quote.source), protocol, 64, &message);
}

/// Puts the right checksum into an ICMP message.
pub fn seal(message: &mut [u8], from: IpAddr, to: IpAddr) {
    copy(message, 2, &[0, 0]);
    let sum = checksum::combine(&[pseudo(from, to, message.len()), checksum::data(message)]);
    copy(message, 2, &(!sum).to_be_bytes());
}

/// Whether the checksum of an ICMP message is right.
pub fn verify(message: &[u8], from: IpAddr, to: IpAddr) -> bool {
    checksum::combine(&[pseudo(from, to, message.len()), checksum::data(message)]) == !0
}

/// Only ICMPv6 looks at the addresses.
fn pseudo(from: IpAddr, to: IpAddr, length: usize) -> u16 {
    match from {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => {
            checksum::pseudo_header(&from.into(), &to.into(), IpProtocol::Icmpv6, length as u32)
        }
    }
}

/// The ICMP message in what the host hands over; some hosts have IPv4's header before it.
pub fn message(bytes: &[u8]) -> &[u8] {
    match bytes.first() {
        Some(first) if first >> 4 == 4 => {
            let header = usize::from(first & 15) * 4;
            bytes.get(header.max(IPV4)..).unwrap_or_default()
        }
        _ => bytes,
    }
}

/// Answers an echo request to one of our addresses.
pub fn answer(wire: &mut Wire, packet: &Packet, message: &[u8]) {
    let (reply, protocol) = match packet.destination {
        IpAddr::V4(_) => (ECHO.1, IpProtocol::Icmp),
        IpAddr::V6(_) => (ECHO6.1, IpProtocol::Icmpv6),
    };
    let mut message = message.to_vec();
    copy(&mut message, 0, &[reply]);
    seal(&mut message, packet.destination, packet.source);
    wire.ip((packet.destination, packet.source), protocol, 64, &message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ip_header_before_a_message_is_left_out() {
        let reply = [ECHO.1, 0, 1, 2, 3, 4, 5, 6, b'x'];
        let reply6 = [ECHO6.1, 0, 1, 2, 3, 4, 5, 6, b'x'];
        for (header, first) in [(20, 0x45), (24, 0x46), (60, 0x4f), (20, 0x40)] {
            let mut bytes = vec![0; header];
            bytes[0] = first;
            bytes.extend(reply);
            assert_eq!(message(&bytes), reply);
        }
        for whole in [&reply[..], &reply6, &[]] {
            assert_eq!(message(whole), whole);
        }
        assert_eq!(message(&[0x4f; 59]), b"");
    }
}
