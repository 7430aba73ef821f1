//! Frames put together and taken apart by hand.

use std::net::{IpAddr, SocketAddr};

use hyperkit::net::user::GATEWAY_MAC;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::*;

use crate::guest::MAC;

/// An Ethernet frame from the guest.
pub fn ethernet(kind: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14 + payload.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_src_addr(EthernetAddress(MAC.0));
    frame.set_dst_addr(EthernetAddress(GATEWAY_MAC.0));
    frame.set_ethertype(kind);
    frame.payload_mut().copy_from_slice(payload);
    bytes
}

/// An IP packet in a frame.
pub fn ip(source: IpAddr, destination: IpAddr, kind: IpProtocol, hops: u8, data: &[u8]) -> Vec<u8> {
    let repr = IpRepr::new(source.into(), destination.into(), kind, data.len(), hops);
    let mut bytes = vec![0; repr.header_len() + data.len()];
    repr.emit(&mut bytes[..], &ChecksumCapabilities::default());
    bytes[repr.header_len()..].copy_from_slice(data);
    let kind = if source.is_ipv4() { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 };
    ethernet(kind, &bytes)
}

/// A UDP datagram, without an IP header.
pub fn datagram(source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port: source.port(), dst_port: destination.port() };
    let mut bytes = vec![0; 8 + data.len()];
    repr.emit(
        &mut UdpPacket::new_unchecked(&mut bytes[..]),
        &source.ip().into(),
        &destination.ip().into(),
        data.len(),
        |room| room.copy_from_slice(data),
        &ChecksumCapabilities::default(),
    );
    bytes
}

/// A UDP datagram, in as many frames as it takes.
pub fn udp(source: SocketAddr, destination: SocketAddr, ident: u16, data: &[u8]) -> Vec<Vec<u8>> {
    parts(
        source.ip(),
        destination.ip(),
        IpProtocol::Udp,
        ident,
        1500,
        &datagram(source, destination, data),
    )
}

/// A packet, in as many frames as it takes.
pub fn parts(
    source: IpAddr,
    destination: IpAddr,
    kind: IpProtocol,
    ident: u16,
    mtu: usize,
    data: &[u8],
) -> Vec<Vec<u8>> {
    let header = if source.is_ipv4() { 20 } else { 40 };
    if header + data.len() <= mtu {
        return vec![ip(source, destination, kind, 64, data)];
    }
    let step = (mtu - header - if source.is_ipv4() { 0 } else { 8 }) & !7;
    let count = data.len().div_ceil(step);
    let part = |(n, part): (usize, &[u8])| {
        let (offset, more) = (n * step, n + 1 < count);
        if source.is_ipv4() {
            let mut frame = ip(source, destination, kind, 64, part);
            let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
            packet.set_dont_frag(false);
            packet.set_ident(ident);
            packet.set_more_frags(more);
            packet.set_frag_offset(offset as u16);
            packet.fill_checksum();
            return frame;
        }
        let [a, b] = (offset as u16 | u16::from(more)).to_be_bytes();
        let [c, d] = ident.to_be_bytes();
        let mut bytes = vec![kind.into(), 0, a, b, 0, 0, c, d];
        bytes.extend_from_slice(part);
        ip(source, destination, IpProtocol::Ipv6Frag, 64, &bytes)
    };
    data.chunks(step).enumerate().map(part).collect()
}

/// What is in a frame for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub kind: IpProtocol,
    pub hops: u8,
    pub data: Vec<u8>,
}

/// Puts packets in parts together, which come in order.
#[derive(Default)]
pub struct Reader {
    bytes: Vec<u8>,
}

impl Reader {
    /// The packet that is whole with this frame.
    pub fn read(&mut self, frame: &[u8]) -> Option<Seen> {
        let ethernet = EthernetFrame::new_checked(frame).unwrap();
        assert_eq!(ethernet.src_addr().0, GATEWAY_MAC.0);
        let (offset, more, mut seen) = match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => {
                let packet = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
                assert!(packet.verify_checksum());
                let seen = Seen {
                    source: packet.src_addr().into(),
                    destination: packet.dst_addr().into(),
                    kind: packet.next_header(),
                    hops: packet.hop_limit(),
                    data: packet.payload().to_vec(),
                };
                (usize::from(packet.frag_offset()), packet.more_frags(), seen)
            }
            EthernetProtocol::Ipv6 => {
                let packet = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
                let mut seen = Seen {
                    source: packet.src_addr().into(),
                    destination: packet.dst_addr().into(),
                    kind: packet.next_header(),
                    hops: packet.hop_limit(),
                    data: packet.payload().to_vec(),
                };
                let (mut offset, mut more) = (0, false);
                if seen.kind == IpProtocol::Ipv6Frag {
                    let place = u16::from_be_bytes([seen.data[2], seen.data[3]]);
                    (offset, more) = (usize::from(place & !7), place & 1 != 0);
                    seen.kind = seen.data[0].into();
                    seen.data.drain(..8);
                }
                (offset, more, seen)
            }
            _ => return None,
        };
        if offset == 0 {
            self.bytes.clear();
        }
        assert_eq!(offset, self.bytes.len(), "a part is missing");
        self.bytes.append(&mut seen.data);
        (!more).then(|| Seen { data: std::mem::take(&mut self.bytes), ..seen })
    }
}

impl Seen {
    /// The UDP datagram in it: from, to, data.
    pub fn udp(&self) -> Option<(SocketAddr, SocketAddr, &[u8])> {
        if self.kind != IpProtocol::Udp {
            return None;
        }
        let packet = UdpPacket::new_checked(&self.data[..]).unwrap();
        assert!(packet.verify_checksum(&self.source.into(), &self.destination.into()));
        let from = SocketAddr::new(self.source, packet.src_port());
        let to = SocketAddr::new(self.destination, packet.dst_port());
        Some((from, to, packet.payload()))
    }

    /// The type and code of the ICMP message in it.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let icmp = [IpProtocol::Icmp, IpProtocol::Icmpv6].contains(&self.kind);
        icmp.then(|| (self.data[0], self.data[1]))
    }
}
