//! Ethernet frames and the IP packets in them: taken apart when the guest sends them, put together for it.
//!
//! Only headers are read in guest memory, once, into a copy; everything after that works on the copy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, checksum,
};
use vm_memory::VolatileSlice;

use crate::memory::Buffers;
use crate::net::MacAddr;

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

/// The ones' complement sum of pieces of guest memory, folded to 16 bits (RFC 1071).
pub fn sum<'a>(memory: impl Iterator<Item = VolatileSlice<'a>>) -> u16 {
    let mut bytes = [0; 1024];
    let (mut sum, mut odd) = (0u64, false);
    for mut slice in memory {
        while !slice.is_empty() {
            let count = slice.copy_to(&mut bytes[..]);
            let part = checksum::data(bytes.get(..count).unwrap_or_default());
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
    let ends = (packet.source, packet.destination);
    let pseudo = pseudo_header(ends, packet.protocol, packet.payload as u32);
    checksum::combine(&[pseudo, sum(payload.slices())]) == !0
}

/// The sum over what stands for the IP header in the checksum of `length` bytes in it.
pub fn pseudo_header((from, to): (IpAddr, IpAddr), protocol: IpProtocol, length: u32) -> u16 {
    // There are no packets between the families, nor sums for them.
    if from.is_ipv4() != to.is_ipv4() {
        return 0;
    }
    checksum::pseudo_header(&from.into(), &to.into(), protocol, length)
}

/// Copies `from` into `bytes`, as much of it as fits behind `at`.
pub fn copy(bytes: &mut [u8], at: usize, from: &[u8]) {
    let room = bytes.get_mut(at..).unwrap_or_default();
    let count = room.len().min(from.len());
    if let (Some(room), Some(from)) = (room.get_mut(..count), from.get(..count)) {
        room.copy_from_slice(from);
    }
}

/// Writes an Ethernet header.
pub fn ethernet(bytes: &mut [u8], from: MacAddr, to: MacAddr, kind: EthernetProtocol) {
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

/// Writes an IPv4 header, without options.
pub fn ipv4(
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

/// Writes an IPv6 header.
pub fn ipv6(
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
