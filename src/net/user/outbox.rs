//! Small frames for the guest, which wait until it takes them.
//!
//! There is room for few: a guest that does not take its frames loses them.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{EthernetProtocol, IpProtocol, Ipv4Packet, UdpPacket, UdpRepr};

use super::frame::{
    ETHERNET, IPV4, IPV6, LARGEST_DATAGRAM, UDP, copy, ethernet, ipv4, ipv6, pseudo_header,
};
use crate::net::{Header, MacAddr};

/// Who is on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The guest's address, as last seen.
    pub guest: MacAddr,
    /// Ours.
    pub gateway: MacAddr,
    /// The largest packet.
    pub mtu: u16,
    /// Whether the guest takes packets whose checksum is not complete.
    pub partial: bool,
}

/// A frame for the guest.
#[derive(Debug, Default)]
pub struct Frame {
    /// What goes before it.
    pub header: Header,
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
}

/// Frames that wait for the guest to take them.
#[derive(Debug)]
pub struct Outbox {
    frames: VecDeque<Frame>,
    /// Bytes in them.
    bytes: usize,
    /// Empty ones, to be used again.
    spare: Vec<Vec<u8>>,
    /// The next packet that is sent in parts has this number.
    ident: u32,
    /// Frames that were not kept.
    pub dropped: u64,
}

/// As many frames wait, at most.
const FRAMES: usize = 512;
/// And as many bytes: a few datagrams of the largest size.
const BYTES: usize = 1 << 20;
/// Empty buffers that are kept.
const SPARE: usize = 16;

impl Outbox {
    /// An empty one.
    pub fn new() -> Self {
        let ident = uuid::Uuid::new_v4().as_u128() as u32;
        Self { frames: VecDeque::new(), bytes: 0, spare: Vec::new(), ident, dropped: 0 }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The next frame.
    pub fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.bytes.len();
        Some(frame)
    }

    /// Takes the room of a frame back.
    pub fn recycle(&mut self, mut bytes: Vec<u8>) {
        if self.spare.len() < SPARE {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// Forgets what is in it, and the room that it takes.
    pub fn clear(&mut self) {
        self.frames = VecDeque::new();
        self.spare = Vec::new();
        self.bytes = 0;
    }

    /// Adds a frame of `length` bytes, of zeros until `fill` has filled it.
    pub fn frame(&mut self, length: usize, fill: impl FnOnce(&mut [u8], &mut Header)) -> bool {
        if self.frames.len() >= FRAMES || self.bytes + length > BYTES {
            self.dropped += 1;
            return false;
        }
        let mut frame =
            Frame { header: Header::default(), bytes: self.spare.pop().unwrap_or_default() };
        frame.bytes.resize(length, 0);
        fill(&mut frame.bytes, &mut frame.header);
        self.bytes += length;
        self.frames.push_back(frame);
        true
    }

    /// Adds an Ethernet frame that holds `payload`.
    pub fn ethernet(&mut self, ends: &Ends, to: MacAddr, kind: EthernetProtocol, payload: &[u8]) {
        self.frame(ETHERNET + payload.len(), |bytes, _| {
            ethernet(bytes, ends.gateway, to, kind);
            copy(bytes, ETHERNET, payload);
        });
    }

    /// Adds an IP packet, in parts if it is too large.
    pub fn ip(
        &mut self,
        ends: &Ends,
        (source, destination): (IpAddr, IpAddr),
        protocol: IpProtocol,
        hops: u8,
        payload: &[u8],
    ) {
        let to = destination_mac(ends, destination);
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let addresses = (source, destination);
                self.ipv4(ends, to, addresses, protocol, hops, payload);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let addresses = (source, destination);
                self.ipv6(ends, to, addresses, protocol, hops, payload);
            }
            _ => self.dropped += 1,
        }
    }

    fn ipv4(
        &mut self,
        ends: &Ends,
        to: MacAddr,
        (source, destination): (Ipv4Addr, Ipv4Addr),
        protocol: IpProtocol,
        hops: u8,
        payload: &[u8],
    ) {
        let room = usize::from(ends.mtu).saturating_sub(IPV4);
        let (step, ident) = self.parts(payload.len(), room);
        let mut offset = 0;
        loop {
            let rest = payload.get(offset..).unwrap_or_default();
            let piece = rest.get(..step).unwrap_or(rest);
            let more = piece.len() < rest.len();
            let kept = self.frame(ETHERNET + IPV4 + piece.len(), |bytes, _| {
                ethernet(bytes, ends.gateway, to, EthernetProtocol::Ipv4);
                let (_, bytes) = bytes.split_at_mut(ETHERNET);
                let length = (IPV4 + piece.len()) as u16;
                ipv4(bytes, source, destination, protocol, hops, length);
                if more || offset > 0 {
                    let mut packet = Ipv4Packet::new_unchecked(&mut *bytes);
                    packet.set_ident(ident as u16);
                    packet.set_dont_frag(false);
                    packet.set_more_frags(more);
                    packet.set_frag_offset(offset as u16);
                    packet.fill_checksum();
                }
                copy(bytes, IPV4, piece);
            });
            if !more || !kept {
                return;
            }
            offset += step;
        }
    }

    fn ipv6(
        &mut self,
        ends: &Ends,
        to: MacAddr,
        (source, destination): (Ipv6Addr, Ipv6Addr),
        protocol: IpProtocol,
        hops: u8,
        payload: &[u8],
    ) {
        let room = usize::from(ends.mtu).saturating_sub(IPV6);
        if payload.len() <= room {
            self.frame(ETHERNET + IPV6 + payload.len(), |bytes, _| {
                ethernet(bytes, ends.gateway, to, EthernetProtocol::Ipv6);
                let (_, bytes) = bytes.split_at_mut(ETHERNET);
                ipv6(bytes, source, destination, protocol, hops, payload.len() as u16);
                copy(bytes, IPV6, payload);
            });
            return;
        }
        let (step, ident) = self.parts(payload.len(), room.saturating_sub(8));
        let mut offset = 0;
        loop {
            let rest = payload.get(offset..).unwrap_or_default();
            let piece = rest.get(..step).unwrap_or(rest);
            let more = piece.len() < rest.len();
            let kept = self.frame(ETHERNET + IPV6 + 8 + piece.len(), |bytes, _| {
                ethernet(bytes, ends.gateway, to, EthernetProtocol::Ipv6);
                let (_, bytes) = bytes.split_at_mut(ETHERNET);
                let length = (8 + piece.len()) as u16;
                ipv6(bytes, source, destination, IpProtocol::Ipv6Frag, hops, length);
                let [a, b] = (offset as u16 | u16::from(more)).to_be_bytes();
                let [c, d, e, f] = ident.to_be_bytes();
                copy(bytes, IPV6, &[protocol.into(), 0, a, b, c, d, e, f]);
                copy(bytes, IPV6 + 8, piece);
            });
            if !more || !kept {
                return;
            }
            offset += step;
        }
    }

    /// How much of a payload goes into a packet, and under which number.
    fn parts(&mut self, payload: usize, room: usize) -> (usize, u32) {
        if payload <= room {
            return (room, 0);
        }
        self.ident = self.ident.wrapping_add(1);
        ((room & !7).max(8), self.ident)
    }

    /// Adds a UDP datagram.
    pub fn udp(&mut self, ends: &Ends, from: SocketAddr, to: SocketAddr, data: &[u8]) {
        let whole = match from.ip() {
            IpAddr::V4(_) => IPV4,
            IpAddr::V6(_) => IPV6,
        } + UDP
            + data.len();
        if data.len() > LARGEST_DATAGRAM {
            self.dropped += 1;
            return;
        }
        if ends.partial && whole <= usize::from(ends.mtu) && from.is_ipv4() == to.is_ipv4() {
            self.partial_udp(ends, from, to, data, whole);
            return;
        }
        let repr = UdpRepr { src_port: from.port(), dst_port: to.port() };
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.resize(UDP + data.len(), 0);
        repr.emit(
            &mut UdpPacket::new_unchecked(&mut bytes[..]),
            &from.ip().into(),
            &to.ip().into(),
            data.len(),
            |room| copy(room, 0, data),
            &ChecksumCapabilities::default(),
        );
        self.ip(ends, (from.ip(), to.ip()), IpProtocol::Udp, 64, &bytes);
        self.recycle(bytes);
    }

    /// A datagram whose checksum the guest need not look at, since it never left this machine's memory.
    fn partial_udp(
        &mut self,
        ends: &Ends,
        from: SocketAddr,
        to: SocketAddr,
        data: &[u8],
        whole: usize,
    ) {
        self.frame(ETHERNET + whole, |bytes, header| {
            let (mac, length) = (destination_mac(ends, to.ip()), (UDP + data.len()) as u16);
            let start = match (from.ip(), to.ip()) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    ethernet(bytes, ends.gateway, mac, EthernetProtocol::Ipv4);
                    let (_, bytes) = bytes.split_at_mut(ETHERNET);
                    ipv4(bytes, source, destination, IpProtocol::Udp, 64, whole as u16);
                    ETHERNET + IPV4
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    ethernet(bytes, ends.gateway, mac, EthernetProtocol::Ipv6);
                    let (_, bytes) = bytes.split_at_mut(ETHERNET);
                    ipv6(bytes, source, destination, IpProtocol::Udp, 64, length);
                    ETHERNET + IPV6
                }
                _ => return,
            };
            let pseudo = pseudo_header((from.ip(), to.ip()), IpProtocol::Udp, length.into());
            let ([a, b], [c, d]) = (from.port().to_be_bytes(), to.port().to_be_bytes());
            let ([e, f], [g, h]) = (length.to_be_bytes(), pseudo.to_be_bytes());
            copy(bytes, start, &[a, b, c, d, e, f, g, h]);
            copy(bytes, start + UDP, data);
            header.flags = Header::NEEDS_CSUM;
            header.csum_start = start as u16;
            header.csum_offset = 6;
        });
    }
}

/// Whom a packet goes to on the link.
fn destination_mac(ends: &Ends, destination: IpAddr) -> MacAddr {
    match destination {
        IpAddr::V4(address) if address.is_broadcast() => MacAddr::BROADCAST,
        IpAddr::V6(address) if address.is_multicast() => {
            let [.., a, b, c, d] = address.octets();
            MacAddr([0x33, 0x33, a, b, c, d])
        }
        _ => ends.guest,
    }
}
