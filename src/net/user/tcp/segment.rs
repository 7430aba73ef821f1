//! TCP segments: what the guest's say, and the frames that carry ours.

use std::net::SocketAddr;

use smoltcp::wire::{EthernetProtocol, IpProtocol, checksum};

use super::super::frame::{ETHERNET, IPV4, IPV6, copy, ethernet, ip_header, pseudo_header, sum};
use super::Link;
use crate::memory::Buffers;
use crate::net::Header;

pub(super) const FIN: u8 = 1 << 0;
pub(super) const SYN: u8 = 1 << 1;
pub(super) const RST: u8 = 1 << 2;
pub(super) const PSH: u8 = 1 << 3;
pub(super) const ACK: u8 = 1 << 4;

/// The shortest TCP header.
const TCP: usize = 20;
/// Ethernet, IPv6, TCP, and the options of a SYN.
pub(super) const MAX_HEADERS: usize = ETHERNET + IPV6 + TCP + 8;

/// What the header of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    pub window: u16,
    /// Bytes before the data …
    pub header: usize,
    /// … and of the data.
    pub len: usize,
    /// The largest segment that the sender takes.
    pub mss: Option<u16>,
    /// By how much its windows are to be shifted.
    pub scale: Option<u8>,
}

impl Segment {
    /// `None` if it is no TCP header.
    pub fn parse(packet: Buffers<'_>) -> Option<Self> {
        let mut bytes = [0; 60];
        let have = packet.copy_to(&mut bytes);
        let (fixed, options) = bytes.get(..have)?.split_first_chunk::<TCP>()?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, offset, flags, m, n, ..] = *fixed;
        let header = usize::from(offset >> 4) * 4;
        let options = options.get(..header.checked_sub(TCP)?)?;
        let mut segment = Self {
            source: u16::from_be_bytes([a, b]),
            destination: u16::from_be_bytes([c, d]),
            sequence: u32::from_be_bytes([e, f, g, h]),
            acknowledged: u32::from_be_bytes([i, j, k, l]),
            flags,
            window: u16::from_be_bytes([m, n]),
            header,
            len: packet.total().checked_sub(header)?,
            mss: None,
            scale: None,
        };
        if segment.has(SYN) {
            segment.options(options);
        }
        Some(segment)
    }

    fn options(&mut self, mut options: &[u8]) {
        while let [kind, rest @ ..] = options {
            let len = match (kind, rest) {
                (0, _) => return,
                (1, _) => 1,
                (_, [len, ..]) if *len >= 2 => usize::from(*len),
                _ => return,
            };
            let Some((option, rest)) = options.split_at_checked(len) else { return };
            match *option {
                [2, 4, a, b] => self.mss = Some(u16::from_be_bytes([a, b])),
                // RFC 7323, section 2.3: more than 14 counts as 14.
                [3, 3, shift] => self.scale = Some(shift.min(14)),
                _ => {}
            }
            options = rest;
        }
    }

    /// Whether any of `flags` is set.
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// How much of the space of sequence numbers it takes.
    pub fn span(&self) -> u32 {
        u32::from(self.has(SYN)) + u32::from(self.has(FIN)) + self.len as u32
    }
}

/// A connection, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub guest: SocketAddr,
    pub remote: SocketAddr,
}

impl Key {
    /// Bytes of an IP header.
    pub fn ip_header(&self) -> usize {
        if self.remote.is_ipv4() { IPV4 } else { IPV6 }
    }

    /// Bytes before the data of a segment without options.
    pub fn headers(&self) -> usize {
        ETHERNET + self.ip_header() + TCP
    }

    /// The most data that an IP packet can hold: in one of IPv6 only what comes after the header is counted.
    pub fn max_payload(&self) -> usize {
        let ip = if self.remote.is_ipv4() { IPV4 } else { 0 };
        usize::from(u16::MAX) - ip - TCP
    }
}

/// What the header of a segment to the guest is to say.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Say {
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    pub window: u16,
    /// In a SYN only.
    pub mss: Option<u16>,
    /// In a SYN only.
    pub scale: Option<u8>,
}

/// How a frame is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Bytes of data, which are in their place already.
    pub payload: usize,
    /// The guest may be left to compute the checksum.
    pub partial: bool,
    /// The largest data of a segment: if there is more, the guest is left to cut it up.
    pub mss: u16,
}

/// Puts the headers of a segment from `key.remote` to `key.guest` before the data in `space`, which must hold both.
/// Returns the length of the frame.
pub(super) fn frame(
    link: &Link,
    key: &Key,
    say: &Say,
    shape: Shape,
    header: &mut Header,
    space: Buffers<'_>,
) -> usize {
    let mut options = [0; 8];
    let mut option_bytes = 0;
    if let Some(mss) = say.mss {
        let [a, b] = mss.to_be_bytes();
        options = [2, 4, a, b, 1, 3, 3, say.scale.unwrap_or_default()];
        option_bytes = if say.scale.is_some() { 8 } else { 4 };
    }
    let tcp_header = TCP + option_bytes;
    let tcp_len = tcp_header + shape.payload;
    let start = ETHERNET + key.ip_header();
    let mut bytes = [0; MAX_HEADERS];
    let is_v4 = key.remote.is_ipv4();
    let kind = if is_v4 { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 };
    ethernet(&mut bytes, link.ours, link.guest, kind);
    let (_, packet) = bytes.split_at_mut(ETHERNET);
    let ends = (key.remote.ip(), key.guest.ip());
    ip_header(packet, ends, IpProtocol::Tcp, 64, tcp_len.min(u16::MAX.into()) as u16);
    let mut at = start;
    let mut put = |part: &[u8]| {
        copy(&mut bytes, at, part);
        at += part.len();
    };
    put(&key.remote.port().to_be_bytes());
    put(&key.guest.port().to_be_bytes());
    put(&say.sequence.to_be_bytes());
    put(&say.acknowledged.to_be_bytes());
    put(&[(tcp_header as u8 / 4) << 4, say.flags]);
    put(&say.window.to_be_bytes());
    // The checksum is to come, and there is no urgent data.
    put(&[0; 4]);
    put(options.get(..option_bytes).unwrap_or_default());
    let headers = start + tcp_header;
    *header = Header::default();
    let pseudo = pseudo_header(ends, IpProtocol::Tcp, tcp_len as u32);
    let checksum = if shape.partial {
        header.flags = Header::NEEDS_CSUM;
        header.csum_start = start as u16;
        header.csum_offset = 16;
        if shape.payload > usize::from(shape.mss) {
            header.gso_type = if is_v4 { Header::GSO_TCPV4 } else { Header::GSO_TCPV6 };
            header.gso_size = shape.mss;
            header.hdr_len = headers as u16;
        }
        pseudo
    } else {
        let head = checksum::data(bytes.get(start..headers).unwrap_or_default());
        !checksum::combine(&[pseudo, head, sum(space.part(headers, shape.payload))])
    };
    copy(&mut bytes, start + 16, &checksum.to_be_bytes());
    space.fill_from(bytes.get(..headers).unwrap_or_default());
    headers + shape.payload
}
