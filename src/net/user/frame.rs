//! Ethernet frames and the IP packets in them: taken apart when the guest sends them, put together for it.
//!
//! Only headers are read in guest memory, once, into a copy; everything after that works on the copy. What is put
//! together goes through the [`Outbox`], which is bounded: a guest that does not take its frames loses them.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet,
    UdpPacket, UdpRepr,
};

use crate::memory::Buffers;
use crate::net::{Header, MacAddr};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6: usize = 40;
/// Bytes of a UDP header.
pub const UDP: usize = 8;
/// As much of a frame as its headers may take.
pub const HEAD: usize = 256;
/// The most that a UDP datagram may carry.
pub const LARGEST_DATAGRAM: usize = 65507;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
pub const NEEDS_CSUM: u8 = 1;

/// Why a frame from the guest goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its lengths, its version, or its chain of headers are wrong.
    Malformed,
    /// A checksum is wrong.
    Checksum,
}

/// One part of a packet that was sent in several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What the parts of a packet have in common.
    pub ident: u32,
    /// Where the payload belongs.
    pub offset: usize,
    /// Whether more follows behind.
    pub more: bool,
}

/// What an IP header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Whom it says it is from.
    pub source: IpAddr,
    /// Whom it is for.
    pub destination: IpAddr,
    /// What is in it.
    pub protocol: IpProtocol,
    /// How far it may go.
    pub hops: u8,
    /// Whether it must not be sent in parts.
    pub whole: bool,
    /// Which part of a packet this is, if it is only a part.
    pub part: Option<Part>,
    /// Bytes of the IP headers.
    pub header: usize,
    /// Bytes behind them.
    pub payload: usize,
}

impl Packet {
    /// Reads the header of the `total` bytes that begin with `head`.
    pub fn ipv4(head: &[u8], total: usize) -> Result<Self, Fault> {
        let head = head.get(..total.min(head.len())).unwrap_or_default();
        if head.len() < IPV4 {
            return Err(Fault::Malformed);
        }
        let packet = Ipv4Packet::new_unchecked(head);
        let (header, length) = (usize::from(packet.header_len()), usize::from(packet.total_len()));
        if packet.version() != 4 || header < IPV4 || header > head.len() {
            return Err(Fault::Malformed);
        }
        if length < header || length > total {
            return Err(Fault::Malformed);
        }
        if !packet.verify_checksum() {
            return Err(Fault::Checksum);
        }
        let (offset, more) = (usize::from(packet.frag_offset()), packet.more_frags());
        let part =
            (offset > 0 || more).then(|| Part { ident: packet.ident().into(), offset, more });
        Ok(Self {
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            protocol: packet.next_header(),
            hops: packet.hop_limit(),
            whole: packet.dont_frag(),
            part,
            header,
            payload: length - header,
        })
    }

    /// Reads the headers of the `total` bytes that begin with `head`.
    pub fn ipv6(head: &[u8], total: usize) -> Result<Self, Fault> {
        let head = head.get(..total.min(head.len())).unwrap_or_default();
        if head.len() < IPV6 {
            return Err(Fault::Malformed);
        }
        let packet = Ipv6Packet::new_unchecked(head);
        let end = packet.total_len();
        if packet.version() != 6 || end > total {
            return Err(Fault::Malformed);
        }
        let mut protocol = packet.next_header();
        let mut header = IPV6;
        let mut part = None;
        // Each turn goes on by 8 bytes at least, and there are only HEAD of them.
        loop {
            let extension = || head.get(header..).and_then(|rest| rest.first_chunk::<8>());
            match protocol {
                IpProtocol::HopByHop | IpProtocol::Ipv6Opts if part.is_none() => {
                    let [next, length, ..] = *extension().ok_or(Fault::Malformed)?;
                    protocol = next.into();
                    header += 8 + 8 * usize::from(length);
                }
                IpProtocol::Ipv6Frag if part.is_none() => {
                    let [next, _, a, b, c, d, e, f] = *extension().ok_or(Fault::Malformed)?;
                    let place = u16::from_be_bytes([a, b]);
                    protocol = next.into();
                    header += 8;
                    part = Some(Part {
                        ident: u32::from_be_bytes([c, d, e, f]),
                        offset: usize::from(place & !7),
                        more: place & 1 != 0,
                    });
                }
                _ => break,
            }
        }
        let payload = end.checked_sub(header).ok_or(Fault::Malformed)?;
        // A packet in one part is one (RFC 6946).
        let part = part.filter(|part| part.offset > 0 || part.more);
        Ok(Self {
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            protocol,
            hops: packet.hop_limit(),
            whole: part.is_none(),
            part,
            header,
            payload,
        })
    }
}

/// The ones' complement sum of pieces of guest memory, folded to 16 bits.
pub fn sum(buffers: Buffers<'_>) -> u16 {
    let mut bytes = [0; 1024];
    let (mut sum, mut odd) = (0u64, false);
    for mut slice in buffers.slices() {
        while !slice.is_empty() {
            let count = slice.copy_to(&mut bytes[..]);
            let part = smoltcp::wire::checksum::data(bytes.get(..count).unwrap_or_default());
            sum += u64::from(if odd { part.swap_bytes() } else { part });
            odd ^= count % 2 == 1;
            match slice.offset(count) {
                Ok(rest) => slice = rest,
                Err(_) => break,
            }
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Whether the checksum of what a TCP or UDP packet carries is right.
pub fn verify(packet: &Packet, payload: Buffers<'_>) -> bool {
    let length = packet.payload as u32;
    let pseudo = smoltcp::wire::checksum::pseudo_header(
        &packet.source.into(),
        &packet.destination.into(),
        packet.protocol,
        length,
    );
    smoltcp::wire::checksum::combine(&[pseudo, sum(payload)]) == !0
}

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
            let pseudo = smoltcp::wire::checksum::pseudo_header(
                &from.ip().into(),
                &to.ip().into(),
                IpProtocol::Udp,
                length.into(),
            );
            let ([a, b], [c, d]) = (from.port().to_be_bytes(), to.port().to_be_bytes());
            let ([e, f], [g, h]) = (length.to_be_bytes(), pseudo.to_be_bytes());
            copy(bytes, start, &[a, b, c, d, e, f, g, h]);
            copy(bytes, start + UDP, data);
            header.flags = NEEDS_CSUM;
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

/// Copies `from` into `bytes`, as much of it as fits behind `at`.
pub fn copy(bytes: &mut [u8], at: usize, from: &[u8]) {
    let room = bytes.get_mut(at..).unwrap_or_default();
    let count = room.len().min(from.len());
    if let (Some(room), Some(from)) = (room.get_mut(..count), from.get(..count)) {
        room.copy_from_slice(from);
    }
}

fn ethernet(bytes: &mut [u8], from: MacAddr, to: MacAddr, kind: EthernetProtocol) {
    let mut frame = EthernetFrame::new_unchecked(bytes);
    frame.set_src_addr(EthernetAddress(from.0));
    frame.set_dst_addr(EthernetAddress(to.0));
    frame.set_ethertype(kind);
}

/// Writes an IP header before `length` bytes of payload.
pub fn ip_header(
    bytes: &mut [u8],
    addresses: (IpAddr, IpAddr),
    protocol: IpProtocol,
    hops: u8,
    length: u16,
) {
    match addresses {
        (IpAddr::V4(source), IpAddr::V4(destination)) if bytes.len() >= IPV4 => {
            let length = length.saturating_add(IPV4 as u16);
            ipv4(bytes, source, destination, protocol, hops, length);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) if bytes.len() >= IPV6 => {
            ipv6(bytes, source, destination, protocol, hops, length);
        }
        _ => {}
    }
}

fn ipv4(
    bytes: &mut [u8],
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: IpProtocol,
    hops: u8,
    length: u16,
) {
    let mut packet = Ipv4Packet::new_unchecked(bytes);
    packet.set_version(4);
    packet.set_header_len(IPV4 as u8);
    packet.set_dscp(0);
    packet.set_ecn(0);
    packet.set_total_len(length);
    packet.set_ident(0);
    packet.clear_flags();
    packet.set_dont_frag(true);
    packet.set_frag_offset(0);
    packet.set_hop_limit(hops);
    packet.set_next_header(protocol);
    packet.set_src_addr(source);
    packet.set_dst_addr(destination);
    packet.fill_checksum();
}

fn ipv6(
    bytes: &mut [u8],
    source: Ipv6Addr,
    destination: Ipv6Addr,
    protocol: IpProtocol,
    hops: u8,
    length: u16,
) {
    let mut packet = Ipv6Packet::new_unchecked(bytes);
    packet.set_version(6);
    packet.set_traffic_class(0);
    packet.set_flow_label(0);
    packet.set_payload_len(length);
    packet.set_next_header(protocol);
    packet.set_hop_limit(hops);
    packet.set_src_addr(source);
    packet.set_dst_addr(destination);
}
