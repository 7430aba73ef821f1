//! Frames from the guest into the user-mode network: good ones of every sort, with changes, in any order, while the
//! host answers.
//!
//! Nothing leaves the process: a policy sends every flow to sockets of this target. Whatever comes back is an Ethernet
//! frame whose lengths and IP checksum are right. At the end the driver goes and comes back, and a datagram is answered.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use hyperkit::memory::BufferList;
use hyperkit::net::user::{Flow, Protocol, Target, User, UserNet, Verdict};
use hyperkit::net::{Header, NetBackend, Offloads};
use hyperkit::virtio::Sources;
use mio::{Events, Poll};

use crate::ops::parse;
use crate::{fields, operations};

fields! {
    /// The start of an input.
    pub struct Head {
        /// What the driver has negotiated.
        pub offloads: u16,
    }
}

operations! {
    /// What happens at both ends.
    pub enum Op(11) {
        /// The next frame is a good one.
        0 => Good { kind: u8 },
        /// A number in it is changed: `len` bytes of it.
        1 => Patch { at: u16, len: u8, value: u64 },
        /// It ends here, or goes on in zeros.
        2 => Length { length: u16 },
        /// Its checksums become right again, as far as it has any.
        3 => Seal {},
        /// It is sent so many times.
        4 => Send { times: u8, flags: u8 },
        /// A TCP segment is sent, as far from where the connection is.
        5 => Segment { flags: u8, sequence: u16, acknowledged: u16, window: u16, length: u16 },
        /// A part of a datagram is sent.
        6 => Part { ident: u8, offset: u16, length: u16, more: u8 },
        /// The guest takes frames into buffers of so many bytes.
        7 => Receive { count: u8, space: u16 },
        /// The host's sockets answer: so many bytes, and the connections end, or not.
        8 => Host { length: u16, end: u8 },
        /// What the host has for the guest is looked at.
        9 => Turn {},
        /// The driver goes and comes back.
        10 => Reset {},
    }
}

/// Who is who, in IPv4 and IPv6.
const GUEST: [u8; 4] = [192, 168, 65, 3];
const GATEWAY: [u8; 4] = [192, 168, 65, 1];
pub(crate) const FAR: [u8; 4] = [203, 0, 113, 7];
const NETWORK6: [u8; 8] = [0xfd, 0x68, 0x6b, 0x6e, 0x65, 0x74, 0, 0x41];
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const GATEWAY_MAC: [u8; 6] = [0xf6, 0x16, 0x36, 0xbc, 0xf9, 0xc6];
/// No frame is larger.
const MOST: usize = 65_600;
/// How long loopback may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A network and its host.
pub struct Session {
    user: User,
    poll: Poll,
    events: Events,
    datagrams: UdpSocket,
    listener: TcpListener,
    streams: Vec<TcpStream>,
    frame: Vec<u8>,
    /// What the guest acknowledges next.
    seen: u32,
    /// Frames that the guest has taken.
    pub taken: Vec<Vec<u8>>,
}

/// Carries out an input.
pub fn run(data: &[u8]) {
    let (head, ops): (Head, Vec<Op>) = parse(data);
    let mut session = Session::new(Offloads::from_bits_truncate(head.offloads.into()));
    for op in ops {
        session.apply(op);
    }
    session.apply(Op::Reset {});
    session.works();
}

impl Session {
    /// One with a driver.
    pub fn new(offloads: Offloads) -> Self {
        let datagrams = UdpSocket::bind("127.0.0.1:0").expect("there are ports");
        let listener = TcpListener::bind("127.0.0.1:0").expect("there are ports");
        datagrams.set_nonblocking(true).expect("a socket can be told not to block");
        listener.set_nonblocking(true).expect("a socket can be told not to block");
        let udp = datagrams.local_addr().expect("it is bound");
        let tcp = listener.local_addr().expect("it is bound");
        let policy = move |flow: &Flow<'_>| match flow.protocol {
            Protocol::Tcp => Verdict::Redirect(Target::Address(tcp)),
            Protocol::Dns if flow.name == Some("host.internal") => Verdict::Allow,
            // There is nothing on IPv6's loopback, and families do not mix.
            Protocol::Udp | Protocol::Dns => Verdict::Redirect(Target::Address(udp)),
            _ => Verdict::Refuse,
        };
        let config = UserNet::new()
            .dns_servers([udp])
            .udp_limits(8, Duration::from_secs(60))
            .tcp_limits(8, Duration::from_secs(60))
            .policy(policy);
        let mut user = config.open().expect("nothing is wrong with it");
        let poll = Poll::new().expect("there is an epoll");
        user.start(Sources::new(poll.registry())).expect("there is room in it");
        user.activate(offloads & user.properties().offloads).expect("nothing can fail");
        let events = Events::with_capacity(16);
        let frame = good(0);
        let (streams, taken) = (Vec::new(), Vec::new());
        Self { user, poll, events, datagrams, listener, streams, frame, seen: 0, taken }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Good { kind } => self.frame = good(kind),
            Op::Patch { at, len, value } => {
                let at = usize::from(at) % self.frame.len().max(1);
                let bytes = value.to_be_bytes();
                let bytes = &bytes[7 - usize::from(len % 8)..];
                for (to, from) in self.frame.iter_mut().skip(at).zip(bytes) {
                    *to = *from;
                }
            }
            Op::Length { length } => self.frame.resize(length.into(), 0),
            Op::Seal {} => seal(&mut self.frame),
            Op::Send { times, flags } => {
                let frame = self.frame.clone();
                for _ in 0..=times % 32 {
                    self.send(&frame, flags);
                }
            }
            Op::Segment { flags, sequence, acknowledged, window, length } => {
                let mut segment = [15, 160, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags].to_vec();
                let sequence = 1000u32.wrapping_add_signed(i32::from(sequence as i16));
                let acknowledged = self.seen.wrapping_add_signed(i32::from(acknowledged as i16));
                segment[4..8].copy_from_slice(&sequence.to_be_bytes());
                segment[8..12].copy_from_slice(&acknowledged.to_be_bytes());
                segment.extend(window.to_be_bytes());
                segment.resize(20 + usize::from(length % 1461), 5);
                let mut frame = ipv4(6, FAR, &segment);
                seal(&mut frame);
                self.send(&frame, 0);
            }
            Op::Part { ident, offset, length, more } => {
                let mut frame = ipv4(17, FAR, &vec![3; usize::from(length % 1481)]);
                frame[18..20].copy_from_slice(&[0, ident]);
                let place = offset & 0x1fff | u16::from(more & 1) << 13;
                frame[20..22].copy_from_slice(&place.to_be_bytes());
                seal(&mut frame);
                self.send(&frame, 0);
            }
            Op::Receive { count, space } => self.receive(count.into(), space.into()),
            Op::Host { length, end } => self.host(length.into(), end),
            Op::Turn {} => self.turn(),
            Op::Reset {} => {
                self.user.reset();
                self.turn();
                self.user.activate(Offloads::empty()).expect("nothing can fail");
                self.turn();
            }
        }
    }

    /// The guest sends a frame.
    pub fn send(&mut self, frame: &[u8], flags: u8) {
        let mut frame = frame.to_vec();
        let half = frame.len() / 2 + 1;
        let list: BufferList<'_> = frame.chunks_mut(half).map(Into::into).collect();
        let header = Header { flags, ..Header::default() };
        let sources = Sources::new(self.poll.registry());
        let result = self.user.send(0, &header, list.all(), sources);
        result.expect("a frame that is not good is dropped");
    }

    fn receive(&mut self, count: usize, space: usize) {
        let mut buffer = vec![0; space];
        for _ in 0..count {
            let mut header = Header::default();
            let list = BufferList::from(&mut buffer[..]);
            let sources = Sources::new(self.poll.registry());
            match self.user.receive(0, &mut header, list.all(), sources) {
                Ok(length) => {
                    assert!(length <= space && length <= MOST, "a frame of {length} bytes");
                    self.check(&buffer[..length]);
                    self.taken.push(buffer[..length].to_vec());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => assert!(space < MOST, "there was room"),
            }
        }
    }

    fn check(&mut self, frame: &[u8]) {
        assert_eq!(frame[6..12], GATEWAY_MAC, "whose frame is this?");
        match frame[12..14] {
            [8, 0] => {
                let packet = &frame[14..];
                let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                assert_eq!(length, packet.len(), "an IPv4 packet of another length");
                assert_eq!(sum(&packet[..20], 0), 0xffff, "a wrong checksum");
                if packet[9] == 6 && packet.len() >= 40 {
                    let sequence = u32::from_be_bytes(packet[24..28].try_into().expect("four"));
                    let syn_or_fin = u32::from(packet[33] & 3 != 0);
                    let header = 20 + usize::from(packet[32] >> 4) * 4;
                    let data = packet.len().saturating_sub(header) as u32;
                    self.seen = sequence.wrapping_add(data).wrapping_add(syn_or_fin);
                }
            }
            [0x86, 0xdd] => {
                let packet = &frame[14..];
                let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
                assert_eq!(length + 40, packet.len(), "an IPv6 packet of another length");
            }
            [8, 6] => assert_eq!(frame.len(), 42, "an ARP packet of another length"),
            _ => panic!("a frame of no known sort"),
        }
    }

    fn host(&mut self, length: usize, end: u8) {
        if let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true).expect("a socket can be told not to block");
            self.streams.push(stream);
        }
        let data = vec![7; length];
        for stream in &mut self.streams {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write(&data);
        }
        if end & 1 != 0 {
            self.streams.pop();
        }
        let mut buffer = [0; 2048];
        while let Ok((count, from)) = self.datagrams.recv_from(&mut buffer) {
            // A question becomes a reply.
            if end & 2 != 0 && count > 2 {
                buffer[2] |= 0x80;
            }
            let count = if end & 4 != 0 { length } else { count };
            let _ = self.datagrams.send_to(&buffer[..count.min(2048)], from);
        }
        self.turn();
    }

    /// The question that the host's server was asked last, and by whom.
    pub fn question(&mut self) -> Option<(Vec<u8>, SocketAddr)> {
        let mut buffer = [0; 4096];
        let end = Instant::now() + PATIENCE;
        loop {
            match self.datagrams.recv_from(&mut buffer) {
                Ok((count, from)) => return Some((buffer[..count].to_vec(), from)),
                // Where the kernel's threads carry loopback's packets they may take a while.
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                    std::thread::yield_now();
                }
                Err(_) => return None,
            }
        }
    }

    /// The server answers.
    pub fn answer(&mut self, bytes: &[u8], to: SocketAddr) {
        let _ = self.datagrams.send_to(bytes, to);
    }

    /// The network's event loop turns once.
    pub fn turn(&mut self) {
        self.poll.poll(&mut self.events, Some(Duration::ZERO)).expect("an epoll can be asked");
        let sources = Sources::new(self.poll.registry());
        for event in &self.events {
            self.user.host_ready(event.into(), sources);
        }
        if self.user.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            self.user.timer(sources);
        }
    }

    /// The name server answers a good question.
    pub fn works(&mut self) {
        self.receive(usize::MAX, MOST);
        self.taken.clear();
        self.send(&good(QUESTION), 0);
        self.receive(usize::MAX, MOST);
        let answer = self.taken.iter().any(|frame| frame.get(14 + 28..14 + 30) == Some(&[0, 9]));
        assert!(answer, "a good question has no answer");
    }
}

/// The number of a question for a name that the network knows.
pub const QUESTION: u8 = 4;

/// Good frames.
pub fn good(kind: u8) -> Vec<u8> {
    let mut frame = match kind % 12 {
        0 => {
            let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
            arp.extend(GUEST_MAC);
            arp.extend(GUEST);
            arp.extend([0; 6]);
            arp.extend(GATEWAY);
            ethernet([8, 6], &arp)
        }
        1 => udp(FAR, 99, b"a datagram"),
        2 => udp(FAR, 99, &[1; 1400]),
        3 => udp(GATEWAY, 9, b"nobody"),
        QUESTION => udp(GATEWAY, 53, &question(b"\x04host\x08internal")),
        5 => udp(GATEWAY, 53, &question(b"\x07example\x03org")),
        6 => ipv4(1, GATEWAY, &[8, 0, 0, 0, 1, 2, 0, 1, 9, 9, 9, 9]),
        7 => udp(GATEWAY, 67, &dhcp(1)),
        8 => {
            let mut target = vec![135, 0, 0, 0, 0, 0, 0, 0];
            target.extend(NETWORK6);
            target.extend([0, 0, 0, 0, 0, 0, 0, 1, 1, 1]);
            target.extend(GUEST_MAC);
            ipv6(58, 1, &target)
        }
        9 => ipv6(17, 1, &[15, 160, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]),
        10 => ipv6(17, 1, &[2, 34, 2, 35, 0, 18, 0, 0, 11, 1, 2, 3, 0, 1, 0, 2, 7, 7]),
        _ => ipv6(58, 2, &[128, 0, 0, 0, 1, 2, 0, 1, 9, 9, 9, 9]),
    };
    seal(&mut frame);
    frame
}

/// A DHCP message of a kind.
pub fn dhcp(kind: u8) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 0, 0, 0, 7];
    message.resize(28, 0);
    message.extend(GUEST_MAC);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind, 50, 4]);
    message.extend(GUEST);
    message.extend([55, 6, 1, 3, 6, 15, 119, 121, 255]);
    message
}

/// A question for the addresses of a name.
pub fn question(name: &[u8]) -> Vec<u8> {
    [&[0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name, &[0, 0, 1, 0, 1]].concat()
}

/// A UDP datagram from the guest, whose checksum is not there yet.
pub fn udp(to: [u8; 4], port: u16, data: &[u8]) -> Vec<u8> {
    let from: u16 = if port == 67 { 68 } else { 4000 };
    let mut bytes = from.to_be_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    bytes.extend((8 + data.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend_from_slice(data);
    ipv4(17, to, &bytes)
}

fn ethernet(kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&GATEWAY_MAC[..], &GUEST_MAC, &kind, payload].concat()
}

pub(crate) fn ipv4(protocol: u8, to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let [a, b] = (20 + payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, a, b, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(GUEST);
    packet.extend(to);
    packet.extend_from_slice(payload);
    ethernet([8, 0], &packet)
}

pub(crate) fn ipv6(protocol: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let [a, b] = (payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, a, b, protocol, 255];
    for host in [3, to] {
        packet.extend(NETWORK6);
        packet.extend([0, 0, 0, 0, 0, 0, 0, host]);
    }
    packet.extend_from_slice(payload);
    ethernet([0x86, 0xdd], &packet)
}

/// Puts right checksums into a frame, as far as it looks like one.
pub fn seal(frame: &mut [u8]) {
    let Some((head, packet)) = frame.split_at_mut_checked(14) else { return };
    let (header, protocol, pseudo) = match (&head[12..], packet.first()) {
        ([8, 0], Some(first)) if packet.len() >= 20 => {
            let header = usize::from(first & 15) * 4;
            if header < 20 || header > packet.len() {
                return;
            }
            packet[10..12].fill(0);
            let check = !sum(&packet[..header], 0);
            packet[10..12].copy_from_slice(&check.to_be_bytes());
            (header, packet[9], sum(&packet[12..20], 0))
        }
        ([0x86, 0xdd], Some(_)) if packet.len() >= 40 => (40, packet[6], sum(&packet[8..40], 0)),
        _ => return,
    };
    let (at, pseudo) = match protocol {
        1 => (2, 0),
        6 => (16, pseudo),
        17 => (6, pseudo),
        58 => (2, pseudo),
        _ => return,
    };
    let payload = &mut packet[header..];
    if payload.len() < at + 2 {
        return;
    }
    payload[at..at + 2].fill(0);
    let extra = if pseudo == 0 { 0 } else { payload.len() as u32 + u32::from(protocol) };
    let check = !sum(payload, u32::from(pseudo) + extra);
    payload[at..at + 2].copy_from_slice(&check.to_be_bytes());
}

/// The ones' complement sum of bytes.
fn sum(bytes: &[u8], first: u32) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from));
    let mut sum = words.fold(u64::from(first), |sum, word| sum + u64::from(word));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
