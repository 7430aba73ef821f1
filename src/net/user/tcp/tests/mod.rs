//! Tests with a guest on one side and sockets of loopback on the other.
//!
//! The guest is smoltcp in [`stack`], for what a guest should do, and hand-made segments in [`peer`], for the rest.

mod limits;
mod peer;
mod segments;
mod stack;
mod streams;
mod wakeups;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use mio::{Events, Poll};
use vm_memory::VolatileSlice;

use super::segment::Key;
use super::{Config, Link, Route, Tcp};
use crate::memory::BufferList;
use crate::net::{Header, MacAddr, Offloads};
use crate::virtio::Sources;

const LINK: Link = Link { ours: MacAddr([2, 0, 0, 0, 0, 1]), guest: MacAddr([2, 0, 0, 0, 0, 2]) };
const GUEST4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15));
const GUEST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x15));
/// What the guest believes to talk to.
const REMOTE4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
const REMOTE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7));
const FIRST_TOKEN: u32 = 1000;
const ALL: Offloads = Offloads::all();
const PATIENCE: Duration = Duration::from_secs(30);

impl Clone for Route {
    fn clone(&self) -> Self {
        match self {
            Self::Host(to) => Self::Host(*to),
            Self::Unix(path) => Self::Unix(path.clone()),
            Self::Stream(stream) => Self::Stream(stream.try_clone().unwrap()),
            Self::Refuse => Self::Refuse,
            Self::Drop => Self::Drop,
        }
    }
}

/// The engine, and the event loop around it.
struct Lab {
    tcp: Tcp,
    poll: Poll,
    events: Events,
    route: Route,
    routed: Vec<(SocketAddr, SocketAddr)>,
    offloads: Offloads,
    space: Vec<Vec<u8>>,
    /// The latest header before a frame.
    header: Header,
}

impl Lab {
    fn new(config: Config, offloads: Offloads, route: Route) -> Self {
        let mut tcp = Tcp::new(config, FIRST_TOKEN);
        tcp.offloads(offloads);
        // Pieces of odd lengths, for the worst.
        let space = [30, 25, 1, 100, 1461, 70_000].map(|len| vec![0; len]).to_vec();
        Self {
            tcp,
            poll: Poll::new().unwrap(),
            events: Events::with_capacity(64),
            route,
            routed: Vec::new(),
            offloads,
            space,
            header: Header::default(),
        }
    }

    /// To a listener.
    fn to(listener: &TcpListener) -> Self {
        let to = listener.local_addr().unwrap();
        Self::new(Config::default(), ALL, Route::Host(to))
    }

    /// A TCP packet from the guest.
    fn input(&mut self, guest: IpAddr, remote: IpAddr, packet: &[u8]) {
        let mut copy = packet.to_vec();
        // In pieces, too.
        let (front, back) = copy.split_at_mut(packet.len().min(33));
        let list = BufferList::from_iter([VolatileSlice::from(front), VolatileSlice::from(back)]);
        let (route, routed) = (self.route.clone(), &mut self.routed);
        let mut choose = |source, destination| {
            routed.push((source, destination));
            route.clone()
        };
        let sources = Sources::new(self.poll.registry());
        let (source, destination) = (SocketAddr::new(guest, 0), SocketAddr::new(remote, 0));
        self.tcp.packet(source, destination, list.all(), &mut choose, sources);
    }

    /// The next frame for the guest, as an IP packet whose checksums are complete.
    fn output(&mut self) -> Option<Vec<u8>> {
        let mut space = std::mem::take(&mut self.space);
        let list = BufferList::from_iter(space.iter_mut().map(|s| VolatileSlice::from(&mut s[..])));
        let mut header = Header::default();
        let sources = Sources::new(self.poll.registry());
        let len = self.tcp.receive(&LINK, &mut header, list.all(), sources);
        let frame = len.map(|len| {
            let mut frame = vec![0; len];
            assert_eq!(list.all().copy_to(&mut frame), len);
            frame
        });
        drop(list);
        self.space = space;
        self.header = header;
        Some(self.checked(frame?))
    }

    fn checked(&self, mut frame: Vec<u8>) -> Vec<u8> {
        assert_eq!(frame[..6], LINK.guest.0);
        assert_eq!(frame[6..12], LINK.ours.0);
        let is_v4 = frame[12..14] == [8, 0];
        let start = if is_v4 { 34 } else { 54 };
        let header = self.header;
        if header.flags != 0 {
            assert!(self.offloads.contains(Offloads::GUEST_CSUM));
            assert_eq!((header.csum_start, header.csum_offset), (start, 16));
            let sum = !sum(&frame[usize::from(start)..]);
            frame[usize::from(start) + 16..][..2].copy_from_slice(&sum.to_be_bytes());
        }
        let data =
            frame.len() - usize::from(start) - usize::from(frame[usize::from(start) + 12] >> 4) * 4;
        if header.gso_type != 0 {
            assert_eq!(header.gso_type, if is_v4 { 1 } else { 4 });
            assert!(data > usize::from(header.gso_size));
            assert_eq!(usize::from(header.hdr_len), frame.len() - data);
        }
        let mut packet = frame.split_off(14);
        if is_v4 {
            assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
            assert_eq!(sum(&packet[..20]), 0xffff);
        } else {
            assert_eq!(&frame[12..], [0x86, 0xdd]);
            assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])), packet.len() - 40);
        }
        // The whole checksum, with the pseudo header.
        let (addresses, tcp) = if is_v4 { (12..20, 20) } else { (8..40, 40) };
        let mut pseudo = packet[addresses].to_vec();
        pseudo.extend(((packet.len() - tcp) as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, 6]);
        pseudo.extend(&packet[tcp..]);
        assert_eq!(sum(&pseudo), 0xffff);
        packet.shrink_to_fit();
        packet
    }

    /// Lets the host's side go on, for `patience` at most if nothing is ready.
    fn host(&mut self, patience: Duration) {
        self.ready(patience);
        if self.tcp.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            self.tcp.timer(Instant::now(), Sources::new(self.poll.registry()));
        }
    }

    /// The same, but no time passes.
    fn ready(&mut self, patience: Duration) {
        self.poll.poll(&mut self.events, Some(patience)).unwrap();
        let sources = Sources::new(self.poll.registry());
        for event in &self.events {
            self.tcp.host_ready(event.into(), sources);
        }
        if self.tcp.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            self.tcp.timer(Instant::now(), sources);
        }
    }

    /// Lets time pass until the next deadline.
    fn pass(&mut self) {
        let deadline = self.tcp.deadline().unwrap();
        let sources = Sources::new(self.poll.registry());
        self.tcp.timer(deadline, sources);
    }

    fn flows(&self) -> usize {
        self.tcp.counters().flows
    }
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| match *word {
        [a, b] => u32::from(u16::from_be_bytes([a, b])),
        [a] => u32::from(a) << 8,
        _ => 0,
    });
    let mut sum: u64 = words.map(u64::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

fn key(guest_port: u16, remote_port: u16) -> Key {
    Key {
        guest: SocketAddr::new(GUEST4, guest_port),
        remote: SocketAddr::new(REMOTE4, remote_port),
    }
}

/// Packets on their way to the guest.
type Packets = VecDeque<Vec<u8>>;
