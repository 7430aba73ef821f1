//! A guest that writes packets by hand, and looks closely at those that it gets.

use std::collections::HashMap;
use std::io::Read;
use std::time::{Duration, Instant};

use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::super::packet::{HEADER, Header, Op, Ports};
use super::super::{FEATURES, SocketDevice};
pub use crate::random::Random;
use crate::virtio::feature;
use crate::virtio::testing::{Buffer, Guest, PATIENCE, Ring};
use crate::vsock::{Vsock, VsockHandle, VsockListener, VsockStream};

pub const CID: u64 = 3;
pub const HOST: u64 = 2;
/// A port of the host that tests listen on, and one of the guest that they connect from, and to.
pub const SERVICE: u32 = 1024;
pub const CLIENT: u32 = 50_000;
pub const PORTS: Ports = Ports { host: SERVICE, guest: CLIENT };

pub const STREAM: u16 = 1;
pub const SEQPACKET: u16 = 2;

/// The guest's buffer for a connection, unless said otherwise.
pub const ROOM: u32 = 64 << 10;
/// Bytes of a receive buffer, as in Linux.
const PAGE: u32 = 4096;
/// Receive buffers of a guest.
const BUFFERS: usize = 64;
/// Where the guest's packets are, before they are taken: the longest, and many short ones.
const LONGEST: usize = 128 << 10;
const SHORT: usize = 64;
/// A byte that nobody writes.
const GUARD: u8 = 0xee;

/// A packet, either way.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    pub from: u64,
    pub to: u64,
    pub ports: Ports,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
    /// What the header says of the data.
    pub len: u32,
    pub data: Vec<u8>,
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let op = Op::from_number(self.op);
        write!(f, "{op:?} ({}) {}->{} {:?}", self.op, self.from, self.to, self.ports)?;
        write!(f, " kind {} flags {}", self.kind, self.flags)?;
        write!(f, " credit {}/{} len {}", self.buf_alloc, self.fwd_cnt, self.len)
    }
}

impl Packet {
    /// One from the guest.
    pub fn new(ports: Ports, op: Op) -> Self {
        let (kind, op) = (STREAM, op.number());
        let (from, to, data) = (CID, HOST, Vec::new());
        Self { from, to, ports, kind, op, flags: 0, buf_alloc: ROOM, fwd_cnt: 0, len: 0, data }
    }

    pub fn with(self, data: &[u8]) -> Self {
        Self { len: data.len() as u32, data: data.to_vec(), ..self }
    }

    pub fn flags(self, flags: u32) -> Self {
        Self { flags, ..self }
    }

    pub fn credit(self, buf_alloc: u32, fwd_cnt: u32) -> Self {
        Self { buf_alloc, fwd_cnt, ..self }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let header = Header {
            src_cid: self.from.into(),
            dst_cid: self.to.into(),
            src_port: self.ports.guest.into(),
            dst_port: self.ports.host.into(),
            len: self.len.into(),
            kind: self.kind.into(),
            op: self.op.into(),
            flags: self.flags.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.fwd_cnt.into(),
        };
        [header.as_slice(), &self.data].concat()
    }

    /// One to the guest.
    fn parse(bytes: &[u8]) -> Self {
        let mut header = Header::default();
        header.as_mut_slice().copy_from_slice(&bytes[..HEADER]);
        let ports = Ports { host: header.src_port.into(), guest: header.dst_port.into() };
        let packet = Self {
            from: header.src_cid.into(),
            to: header.dst_cid.into(),
            ports,
            kind: header.kind.into(),
            op: header.op.into(),
            flags: header.flags.into(),
            buf_alloc: header.buf_alloc.into(),
            fwd_cnt: header.fwd_cnt.into(),
            len: header.len.into(),
            data: bytes[HEADER..].to_vec(),
        };
        assert_eq!(packet.to, CID);
        assert_eq!(packet.len as usize, packet.data.len(), "{packet:?}");
        let op = Op::from_number(packet.op).expect("an operation that there is");
        assert!(op == Op::Data || packet.data.is_empty(), "{packet:?}");
        packet
    }

    pub fn is(&self, op: Op) -> bool {
        self.op == op.number()
    }

    /// The same, if it is about this.
    #[track_caller]
    pub fn expect(self, ports: Ports, op: Op) -> Self {
        assert!(self.ports == ports && self.is(op), "not {op:?} of {ports:?}: {self:?}");
        self
    }
}

/// The guest's end of a connection.
#[derive(Debug, Clone)]
pub struct Conn {
    pub ports: Ports,
    pub kind: u16,
    pub buf_alloc: u32,
    /// Bytes that came and were taken.
    pub fwd_cnt: u32,
    /// What the host said of itself last, and bytes sent to it.
    pub peer: (u32, u32),
    pub sent: u32,
}

impl Conn {
    pub fn new(ports: Ports, kind: u16) -> Self {
        Self { ports, kind, buf_alloc: ROOM, fwd_cnt: 0, peer: (0, 0), sent: 0 }
    }

    pub fn packet(&self, op: Op) -> Packet {
        let packet = Packet::new(self.ports, op).credit(self.buf_alloc, self.fwd_cnt);
        Packet { kind: self.kind, ..packet }
    }

    /// Bytes that may be sent.
    pub fn credit(&self) -> u32 {
        self.peer.0 - self.sent.wrapping_sub(self.peer.1)
    }

    /// Takes a packet, and its data.
    #[track_caller]
    pub fn take(&mut self, packet: &Packet) {
        assert_eq!((packet.ports, packet.kind), (self.ports, self.kind), "{packet:?}");
        self.peer = (packet.buf_alloc, packet.fwd_cnt);
        assert!(packet.len <= self.buf_alloc, "more than there is room for");
        self.fwd_cnt = self.fwd_cnt.wrapping_add(packet.len);
    }
}

/// A guest with a socket device.
pub struct Machine {
    pub guest: Guest,
    pub handle: VsockHandle,
    pub rings: Vec<Ring>,
    posted: HashMap<u16, Vec<(u64, u32)>>,
    /// Receive buffers are given back.
    pub gives: bool,
    /// Where packets are sent from, and how many have been.
    out: u64,
    turn: usize,
    inbox: u64,
}

impl Machine {
    pub fn new(vsock: Vsock) -> Self {
        let mut machine = Self::off(vsock);
        machine.start(FEATURES);
        machine
    }

    /// Without a driver.
    pub fn off(vsock: Vsock) -> Self {
        let host = vsock.open().unwrap();
        let handle = host.handle();
        let guest = Guest::new(SocketDevice::new(host));
        let (rings, posted) = (Vec::new(), HashMap::new());
        Self { guest, handle, rings, posted, gives: true, out: 0, turn: 0, inbox: 0 }
    }

    /// Resets the device, and gives it a new driver with these features, and with receive buffers.
    pub fn start(&mut self, features: u64) {
        self.start_without_buffers(features);
        for _ in 0..BUFFERS {
            self.post(&[PAGE]);
        }
        self.guest.kick(&mut self.rings[0]);
    }

    pub fn start_without_buffers(&mut self, features: u64) {
        self.guest.reset();
        self.posted.clear();
        let transport = feature::INDIRECT_DESC | feature::EVENT_IDX;
        self.rings = self.guest.start(features | transport, 256);
        self.rings.iter_mut().for_each(|ring| ring.event_idx = true);
        (self.out, self.turn) = (self.guest.alloc(LONGEST), 0);
        self.inbox = self.guest.alloc(4096);
    }

    /// Gives the device a buffer that is cut so, without a kick.
    pub fn post(&mut self, cut: &[u32]) {
        let alloc = |&len: &u32| (self.guest.alloc(len as usize + 16), len);
        let pieces: Vec<_> = cut.iter().map(alloc).collect();
        self.post_at(pieces);
    }

    fn post_at(&mut self, pieces: Vec<(u64, u32)>) {
        for &(at, len) in &pieces {
            let guard = vec![GUARD; len as usize + 16];
            self.guest.memory.write_slice(&guard, GuestAddress(at)).unwrap();
        }
        let buffers: Vec<_> = pieces.iter().map(|&(at, len)| Buffer::In(at, len)).collect();
        let head = self.rings[0].request(&buffers);
        assert!(self.posted.insert(head, pieces).is_none());
    }

    /// The next packet, which there must be.
    #[track_caller]
    pub fn next(&mut self) -> Packet {
        let (head, len) = self.guest.wait(&mut self.rings[0]);
        self.got(head, len)
    }

    /// The next packet that is about this; others are passed over.
    #[track_caller]
    pub fn next_of(&mut self, ports: Ports) -> Packet {
        loop {
            let packet = self.next();
            if packet.ports == ports {
                return packet;
            }
        }
    }

    /// The next packet, if there is one.
    pub fn poll(&mut self) -> Option<Packet> {
        let (head, len) = self.rings[0].used()?;
        Some(self.got(head, len))
    }

    /// Fails if there is a packet, now that the device has had its time.
    #[track_caller]
    pub fn quiet(&mut self) {
        self.guest.settle();
        if let Some(packet) = self.poll() {
            panic!("an unexpected {packet:?}");
        }
    }

    fn got(&mut self, head: u16, len: u32) -> Packet {
        let pieces = self.posted.remove(&head).expect("it was posted");
        let mut left = len as usize;
        let mut all = Vec::new();
        for &(at, len) in &pieces {
            let mut bytes = vec![0; len as usize + 16];
            self.guest.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            let here = left.min(len as usize);
            assert_eq!(bytes[len as usize..], [GUARD; 16], "written behind the end");
            all.extend_from_slice(&bytes[..here]);
            left -= here;
        }
        assert_eq!(left, 0, "more used than there is");
        if self.gives {
            self.post_at(pieces);
            self.guest.kick(&mut self.rings[0]);
        }
        Packet::parse(&all)
    }

    /// Sends a packet, and waits until it was taken.
    #[track_caller]
    pub fn send(&mut self, packet: &Packet) {
        self.send_cut(&packet.bytes(), &[HEADER]);
    }

    /// Sends bytes, cut so; what is left is the last piece.
    #[track_caller]
    pub fn send_cut(&mut self, bytes: &[u8], cut: &[usize]) {
        assert!(bytes.len() <= LONGEST);
        self.guest.memory.write_slice(bytes, GuestAddress(self.out)).unwrap();
        let mut at = 0;
        let mut buffers = Vec::new();
        for len in cut.iter().copied().chain([usize::MAX]) {
            let len = len.min(bytes.len() - at);
            if len > 0 {
                buffers.push(Buffer::Out(self.out + at as u64, len as u32));
            }
            at += len;
        }
        self.rings[1].request(&buffers);
        self.guest.kick(&mut self.rings[1]);
        assert_eq!(self.guest.wait(&mut self.rings[1]).1, 0);
    }

    /// Makes a short packet available, and no more.
    pub fn offer(&mut self, packet: &Packet) {
        let at = self.out + (self.turn % (LONGEST / SHORT) * SHORT) as u64;
        self.turn += 1;
        let bytes = packet.bytes();
        assert!(bytes.len() <= SHORT);
        self.guest.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        self.rings[1].request(&[Buffer::Out(at, bytes.len() as u32)]);
    }

    /// Connects to a listener.
    #[track_caller]
    pub fn open(&mut self, listener: &VsockListener, guest: u32) -> (Conn, VsockStream) {
        let conn = self.request(Ports { host: listener.local_port(), guest }, STREAM);
        let (stream, from) = listener.accept().unwrap();
        assert_eq!((from, stream.peer_port()), (guest, guest));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        (conn, stream)
    }

    /// Connects to whoever listens.
    #[track_caller]
    pub fn request(&mut self, ports: Ports, kind: u16) -> Conn {
        let mut conn = Conn::new(ports, kind);
        self.send(&conn.packet(Op::Request));
        let answer = self.next().expect(ports, Op::Response);
        conn.take(&answer);
        conn
    }

    /// Has the host connect to a port of the guest, which takes it.
    #[track_caller]
    pub fn call(&mut self, port: u32) -> (Conn, VsockStream) {
        let handle = self.handle.clone();
        let caller = std::thread::spawn(move || handle.connect(port));
        let request = self.next();
        assert!(request.is(Op::Request), "{request:?}");
        assert_eq!((request.from, request.kind, request.ports.guest), (HOST, STREAM, port));
        let mut conn = Conn::new(request.ports, STREAM);
        conn.take(&request);
        self.send(&conn.packet(Op::Response));
        let stream = caller.join().unwrap().unwrap();
        assert_eq!((stream.local_port(), stream.peer_port()), (conn.ports.host, port));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        (conn, stream)
    }

    /// Sends data.
    #[track_caller]
    pub fn data(&mut self, conn: &mut Conn, data: &[u8]) {
        assert!(data.len() <= conn.credit() as usize, "no credit: {conn:?}");
        self.send(&conn.packet(Op::Data).with(data));
        conn.sent = conn.sent.wrapping_add(data.len() as u32);
    }

    /// The next packet, which must be data of this connection; the guest takes it.
    #[track_caller]
    pub fn receive(&mut self, conn: &mut Conn) -> Vec<u8> {
        let packet = self.next().expect(conn.ports, Op::Data);
        conn.take(&packet);
        packet.data
    }

    /// Waits until something holds.
    #[track_caller]
    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Bytes of the guest's memory that device events may be written to.
    pub fn inbox(&self) -> u64 {
        self.inbox
    }

    /// A connection works, in both directions.
    #[track_caller]
    pub fn works(&mut self) {
        let listener = self.handle.listen(77).unwrap();
        let (mut conn, mut stream) = self.open(&listener, 77);
        self.data(&mut conn, b"there");
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"there");
        std::io::Write::write_all(&mut stream, b"and back").unwrap();
        assert_eq!(self.receive(&mut conn), b"and back");
        self.send(&conn.packet(Op::Reset));
        assert_eq!(stream.read(&mut bytes).unwrap(), 0);
    }
}

/// Bytes `at` and following of a stream in which nothing repeats soon.
pub fn pattern(at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(|n| ((n as u32).wrapping_mul(2_654_435_761) >> 23) as u8).collect()
}

/// A number below `end`.
pub fn below(random: &mut Random, end: usize) -> usize {
    random.below(end as u64) as usize
}
