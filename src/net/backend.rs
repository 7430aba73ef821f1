//! What a network card asks of the host side behind it.
//!
//! A [`NetBackend`] lives on the card's own thread and never blocks: what it cannot take or give now it answers with
//! [`io::ErrorKind::WouldBlock`], and says later, through a [`Wake`], that trying again is worth it. Frames stay in
//! guest memory: they are sent from there, and received into it.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Instant;

use virtio_bindings::virtio_net::*;

use crate::memory::Buffers;
use crate::virtio::{HostEvent, Sources};

bitflags::bitflags! {
    /// What a host side can do for the card, or the driver for the host side, beyond moving whole frames.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Offloads: u32 {
        /// Frames may be sent with a checksum that is not complete (VIRTIO_NET_F_CSUM).
        const CSUM = 1 << 0;
        /// TCP over IPv4 may be sent in pieces larger than the MTU (VIRTIO_NET_F_HOST_TSO4).
        const TSO4 = 1 << 1;
        /// The same over IPv6 (VIRTIO_NET_F_HOST_TSO6).
        const TSO6 = 1 << 2;
        /// The same for UDP (VIRTIO_NET_F_HOST_USO).
        const USO = 1 << 3;
        /// Frames may be received with a checksum that is not complete (VIRTIO_NET_F_GUEST_CSUM).
        const GUEST_CSUM = 1 << 4;
        /// TCP over IPv4 may be received in pieces larger than the MTU (VIRTIO_NET_F_GUEST_TSO4).
        const GUEST_TSO4 = 1 << 5;
        /// The same over IPv6 (VIRTIO_NET_F_GUEST_TSO6).
        const GUEST_TSO6 = 1 << 6;
        /// The same for UDP over IPv4 (VIRTIO_NET_F_GUEST_USO4).
        const GUEST_USO4 = 1 << 7;
        /// The same for UDP over IPv6 (VIRTIO_NET_F_GUEST_USO6).
        const GUEST_USO6 = 1 << 8;
    }
}

/// What goes before a frame (struct virtio_net_hdr, §5.1.6), without `num_buffers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// [`NEEDS_CSUM`](Self::NEEDS_CSUM) and its like.
    pub flags: u8,
    /// [`GSO_NONE`](Self::GSO_NONE) and its like.
    pub gso_type: u8,
    /// How long the headers are that each piece of a large packet begins with.
    pub hdr_len: u16,
    /// How much data each of these pieces has.
    pub gso_size: u16,
    /// From where on the checksum is to be computed …
    pub csum_start: u16,
    /// … and how far behind that it is to be put.
    pub csum_offset: u16,
}

impl Header {
    /// Bytes of it.
    pub const LEN: usize = 10;
    /// Of the flags: the checksum is to be computed.
    pub const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    /// Of the flags: the checksum is known to be right.
    pub const DATA_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
    /// The frame is a packet as it is.
    pub const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
    /// It is TCP over IPv4, to be cut into pieces.
    pub const GSO_TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
    /// The same over IPv6.
    pub const GSO_TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
    /// The same for UDP.
    pub const GSO_UDP: u8 = VIRTIO_NET_HDR_GSO_UDP_L4 as u8;

    /// As a driver, or a tap, has it in memory.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([a, b]),
            gso_size: u16::from_le_bytes([c, d]),
            csum_start: u16::from_le_bytes([e, f]),
            csum_offset: u16::from_le_bytes([g, h]),
        }
    }

    /// As a driver, or a tap, has it in memory.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let [a, b] = self.hdr_len.to_le_bytes();
        let [c, d] = self.gso_size.to_le_bytes();
        let [e, f] = self.csum_start.to_le_bytes();
        let [g, h] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The address of everybody.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it stands for a group.
    pub fn is_multicast(self) -> bool {
        let Self([first, ..]) = self;
        first & 1 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([a, b, c, d, e, f]) = self;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for MacAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is no Ethernet address like 52:54:00:12:34:56");
        let mut bytes = [0; 6];
        let mut words = text.split(':');
        for byte in &mut bytes {
            let word =
                words.next().filter(|word| (1..=2).contains(&word.len())).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(word, 16).map_err(|_| wrong())?;
        }
        if words.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

/// What does not change while a host side is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Properties {
    /// The address that the guest is to have, if the host side has a say in it.
    pub mac: Option<MacAddr>,
    /// The largest packet, in bytes, that a frame may hold.
    pub mtu: u16,
    /// What it can keep.
    pub offloads: Offloads,
    /// Pairs of queues.
    pub queues: u16,
}

/// What has become possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wake {
    /// [`NetBackend::receive`] may have a frame.
    pub receive: bool,
    /// [`NetBackend::send`] may take one.
    pub send: bool,
    /// [`NetBackend::link`], or the MAC address in its properties, may have changed.
    pub link: bool,
}

/// The host side of a network card.
///
/// After the card has sent something it asks for frames at once, and after it has received some it tries again to send:
/// a host side that only answers needs no [`Wake`].
pub trait NetBackend: Send {
    /// A word for messages, such as `tap`.
    fn name(&self) -> &str;

    /// What the card may tell its driver.
    fn properties(&self) -> Properties;

    /// Registers host descriptors, under any name but `u32::MAX`, which is the card's. Called once, before anything
    /// else but `properties`.
    fn start(&mut self, sources: Sources<'_>) -> io::Result<()>;

    /// A driver is ready, or has changed its mind; `offloads` are those of the properties that it wants from now on.
    fn activate(&mut self, offloads: Offloads) -> io::Result<()> {
        let _ = offloads;
        Ok(())
    }

    /// Sends a frame from the guest, the Ethernet header first, without a check sequence: all of it, or nothing with
    /// [`io::ErrorKind::WouldBlock`]. With any other error the frame is lost, and nothing else.
    fn send(
        &mut self,
        queue: u16,
        header: &Header,
        frame: Buffers<'_>,
        sources: Sources<'_>,
    ) -> io::Result<()>;

    /// Puts the next frame for the guest into `space`, and returns how long it is;
    /// [`io::ErrorKind::WouldBlock`] if there is none. A frame that does not fit is lost, which is some other error.
    fn receive(
        &mut self,
        queue: u16,
        header: &mut Header,
        space: Buffers<'_>,
        sources: Sources<'_>,
    ) -> io::Result<usize>;

    /// A host descriptor may be ready: to be worked until it would block.
    fn host_ready(&mut self, event: HostEvent, sources: Sources<'_>) -> Wake;

    /// When [`timer`](Self::timer) is to be called, if at all. Asked anew after every call.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed.
    fn timer(&mut self, sources: Sources<'_>) -> Wake {
        let _ = sources;
        Wake::default()
    }

    /// Whether there is somebody on the other side.
    fn link(&self) -> bool {
        true
    }

    /// The driver has gone. What it had in flight is of no interest any more.
    fn reset(&mut self) {}
}
