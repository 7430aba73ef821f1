//! A socket device: sequences of packets, most of which make sense, and programs of the host that answer, stall, end one
//! direction, or leave.
//!
//! What a program reads must be what the guest sent on that connection, from its beginning on; and what the guest gets
//! must be what the program wrote, and no more than the guest said it has room for.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use hyperkit::virtio::testing::{Buffer, Guest, RAM, Ring};
use hyperkit::virtio::vsock::{F_SEQPACKET, F_STREAM, SocketDevice};
use hyperkit::vsock::{Vsock, VsockHandle, VsockListener, VsockSeqPacket, VsockStream};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vm_memory::{Bytes, GuestAddress};

use crate::ops::parse;
use crate::packet::{DATA, HOST, Header, REQUEST, RESPONSE, recover};
use crate::ring::{Descriptor, RawRing};
use crate::{fields, operations, packet};

fields! {
    /// The start of an input.
    pub struct Head {
        /// The size of the queues, as a power of two.
        pub size: u8,
        /// So many connections there may be.
        pub connections: u8,
        /// Bit 0: the driver knows no messages.
        pub how: u8,
    }
}

operations! {
    /// What a driver, programs of the host and the owner do.
    pub enum Op(12) {
        /// `count` receive buffers of `len` bytes.
        0 => Post { count: u8, len: u16 },
        /// A packet of a connection, between one of a few ports each, with `len` bytes of data if it has any. If `lie` is
        /// below 100 they are no more than there is credit for; up to 200 what is said of the guest's credit is true.
        1 => Send { ports: u8, op: u8, flags: u8, len: u16, lie: u8 },
        /// The same with one field of the header, by number, that is this.
        2 => Bend { ports: u8, op: u8, len: u16, field: u8, value: u64 },
        /// The guest answers the last call of the host: yes, if `how` is even.
        3 => Answer { how: u8 },
        /// A program takes what waits for it.
        4 => Accept {},
        /// One of the programs 0 reads, 1 writes, 2 ends its direction, 3 stops reading, 4 leaves.
        5 => Host { which: u8, what: u8, len: u16 },
        /// The host connects to a port of the guest.
        6 => Call { port: u8 },
        /// Kicks, and waits until that has been seen to.
        7 => Settle {},
        /// An entry of a descriptor table.
        8 => Describe { queue: u8, index: u8, address: u32, len: u32, flags: u8, next: u8 },
        /// A head, made available, or an available index.
        9 => Offer { queue: u8, head: u16, index: u8 },
        /// 0 pauses, 1 resumes, 2 resets the transport, 3 closes the listeners and opens others.
        10 => Owner { what: u8 },
        /// Reset, and set up again.
        11 => Restart { how: u8 },
    }
}

/// Ports of the host with listeners: of streams, and of messages.
const STREAMS: u32 = 1024;
const MESSAGES: u32 = 1025;
const MOST_CONNECTIONS: usize = 8;
/// Enough for windows of that size.
const BUFFER: u32 = 16 << 10;
const MEMORY: usize = 2 << 20;
/// Calls of the host in one input, and how long each waits.
const MOST_CALLS: usize = 4;
const CALL: Duration = Duration::from_millis(30);
/// Bytes of a place for a packet.
const PLACE: usize = 0x2000;

/// A pair of ports, the guest's first.
type Ports = (u32, u32);

/// What the guest remembers of a pair of ports.
#[derive(Default)]
struct Memory {
    /// All bytes of data that were sent, ever.
    sent: Vec<u8>,
    /// Where connections begin in there, and messages end.
    starts: Vec<usize>,
    ends: BTreeSet<usize>,
    /// Data was sent that may count or not.
    unsure: bool,
    /// Bytes that came on the latest connection, and how many may.
    got: usize,
    room: usize,
    /// What the device said of its credit last.
    credit: [u32; 2],
}

impl Memory {
    /// Bytes that may be sent.
    fn left(&self) -> u32 {
        let [buf_alloc, fwd_cnt] = self.credit;
        let sent = self.sent.len() - self.starts.last().unwrap_or(&0);
        buf_alloc.saturating_sub((sent as u32).wrapping_sub(fwd_cnt))
    }
}

enum Socket {
    Stream(VsockStream),
    Messages(VsockSeqPacket),
}

/// A program of the host.
struct Program {
    socket: Socket,
    ports: Ports,
    read: Vec<u8>,
    written: usize,
}

struct Run {
    guest: Guest,
    handle: VsockHandle,
    rings: Vec<Ring>,
    size: u16,
    /// Where packets go, and come from.
    room: u64,
    out: u64,
    /// Packets under way, to the guest and from it.
    posted: u16,
    offered: u16,
    memory: HashMap<Ports, Memory>,
    /// Calls of the host that the guest has not answered.
    asked: Vec<Ports>,
    listeners: Option<(VsockListener, VsockListener<VsockSeqPacket>)>,
    programs: Vec<Program>,
    calls: Vec<JoinHandle<()>>,
    called: (Sender<VsockStream>, Receiver<VsockStream>),
    /// How many of them there have been.
    taken: u64,
    /// Rings were written to without any care: anything may be in them now.
    wild: bool,
    limit: u64,
}

/// Byte `n` of what a program writes.
fn written(n: usize) -> u8 {
    (n.wrapping_mul(167) >> 3) as u8
}

/// Carries out an input.
pub fn run(data: &[u8]) {
    let (Head { size, connections, how }, ops) = parse(data);
    let connections = usize::from(connections) % MOST_CONNECTIONS + 1;
    let vsock = Vsock::new().connections(connections).buffer(BUFFER).memory(MEMORY);
    let host = vsock.open().expect("the host side opens");
    let handle = host.handle();
    let mut run = Run {
        guest: Guest::new(SocketDevice::new(host)),
        handle,
        rings: Vec::new(),
        size: 1 << (size % 7),
        room: 0,
        out: 0,
        posted: 0,
        offered: 0,
        memory: HashMap::new(),
        asked: Vec::new(),
        listeners: None,
        programs: Vec::new(),
        calls: Vec::new(),
        called: channel(),
        taken: 0,
        wild: false,
        limit: connections as u64,
    };
    run.listen();
    run.start(how);
    for op in ops {
        run.step(op);
    }
    run.finish();
}

impl Run {
    fn start(&mut self, how: u8) {
        self.guest.reset();
        let features = if how & 1 == 0 { F_STREAM | F_SEQPACKET } else { F_STREAM };
        self.rings = self.guest.start(features, self.size);
        self.size = self.rings[0].layout().size as u16;
        self.room = self.guest.alloc(usize::from(self.size) * PLACE);
        self.out = self.guest.alloc(usize::from(self.size) * PLACE);
        (self.posted, self.offered, self.wild) = (0, 0, false);
        // A call that was answered before this may be taken after it, and never has the ports of another.
        self.memory.retain(|ports, _| ports.1 > MESSAGES);
        self.memory.values_mut().for_each(|memory| memory.unsure = true);
        self.asked.clear();
        self.programs.clear();
        // What nobody has accepted belongs to the driver before this one.
        self.listen();
    }

    fn listen(&mut self) {
        self.listeners = None;
        let streams = self.handle.listen(STREAMS).expect("the port is free");
        let messages = self.handle.listen_seqpacket(MESSAGES).expect("the port is free");
        streams.set_nonblocking(true);
        messages.set_nonblocking(true);
        self.listeners = Some((streams, messages));
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Post { count, len } => {
                let len = u32::from(len) % PLACE as u32 + 1;
                for _ in 0..count {
                    if self.posted == self.size {
                        break;
                    }
                    // Descriptors are taken in turn.
                    let at =
                        self.room + u64::from(self.rings[0].available % self.size) * PLACE as u64;
                    self.rings[0].request(&[Buffer::In(at, len)]);
                    self.posted += 1;
                }
            }
            Op::Send { ports, op, flags, len, lie } => {
                let ports = self.ports(ports);
                let mut header = self.header(ports, op, len);
                header.flags = u32::from(flags);
                if lie < 100 {
                    let left = self.memory.get(&ports).map_or(0, Memory::left);
                    header.len = header.len.min(left);
                }
                if lie > 200 {
                    header.credit = [u32::from(lie) - 201, u32::from(flags)];
                }
                self.send(header, true);
            }
            Op::Bend { ports, op, len, field, value } => {
                let ports = self.ports(ports);
                let mut header = self.header(ports, op, len);
                match field % 10 {
                    0 => header.cids[0] = value,
                    1 => header.cids[1] = value,
                    2 => header.ports[0] = value as u32,
                    3 => header.ports[1] = value as u32,
                    4 => header.len = value as u32,
                    5 => header.kind = value as u16,
                    6 => header.op = value as u16,
                    7 => header.flags = value as u32,
                    8 => header.credit[0] = value as u32,
                    _ => header.credit[1] = value as u32,
                }
                self.send(header, false);
            }
            Op::Answer { how } => {
                if let Some((guest, host)) = self.asked.pop() {
                    let op = if how & 1 == 0 { RESPONSE } else { packet::RESET };
                    self.send(Header::new(guest, host, op), true);
                }
            }
            Op::Accept {} => self.accept(),
            Op::Host { which, what, len } => self.host(which, what, len),
            Op::Call { port } => self.call(port),
            Op::Settle {} => self.settle(),
            Op::Describe { queue, index, address, len, flags, next } => {
                self.wild = true;
                let address = u64::from(address) % (RAM[1].0 + RAM[1].1 as u64 + 0x1000);
                let ring = self.raw(queue);
                let descriptor =
                    Descriptor { address, len, flags: flags.into(), next: next.into() };
                ring.describe(ring.layout.descriptors, index.into(), descriptor);
            }
            Op::Offer { queue, head, index } => {
                self.wild = true;
                match index {
                    0 => self.raw(queue).index(head),
                    _ => self.raw(queue).offer(head),
                }
            }
            Op::Owner { what } => match what % 4 {
                0 => self.guest.transport.pause(),
                1 => self.guest.transport.resume(),
                2 => self.handle.reset_transport(),
                _ => self.listen(),
            },
            Op::Restart { how } => self.start(how),
        }
    }

    fn raw(&self, queue: u8) -> RawRing<'_> {
        let ring = &self.rings[usize::from(queue) % self.rings.len()];
        RawRing { memory: &self.guest.memory, layout: ring.layout() }
    }

    /// One of a few pairs of ports, or one that the host has made.
    fn ports(&self, number: u8) -> Ports {
        let host = match number >> 2 & 7 {
            0..=3 => STREAMS,
            4..=5 => MESSAGES,
            6 => 1,
            _ => {
                let made = self.memory.keys().filter(|(_, host)| *host > MESSAGES).max();
                return made.copied().unwrap_or((80, 1 << 30));
            }
        };
        (u32::from(number & 3), host)
    }

    /// A header that makes sense.
    fn header(&self, ports: Ports, op: u8, len: u16) -> Header {
        let mut header = Header::new(ports.0, ports.1, u16::from(op % 8));
        header.kind = if ports.1 == MESSAGES { 2 } else { 1 };
        if header.op == DATA {
            header.len = u32::from(len) % (PLACE - Header::LEN) as u32;
        }
        if let Some(memory) = self.memory.get(&ports)
            && header.op != REQUEST
        {
            header.credit[1] = memory.got as u32;
        }
        header
    }

    /// Sends a packet, with as much data as there is room for; one that is not `plain` may be any.
    fn send(&mut self, header: Header, plain: bool) {
        if self.offered == self.size {
            self.settle();
        }
        if self.offered == self.size {
            return;
        }
        let len =
            if header.op == DATA { header.len as usize % (PLACE - Header::LEN + 1) } else { 0 };
        let ports = (header.ports[0], header.ports[1]);
        let [buf_alloc, fwd_cnt] = header.credit.map(|count| count as usize);
        let memory = self.memory.entry(ports).or_default();
        let from = memory.sent.len();
        let data: Vec<u8> =
            (from..from + len).map(|n| ((n * 131) >> 4) as u8 ^ ports.0 as u8).collect();
        memory.sent.extend(&data);
        if matches!(header.op, REQUEST | RESPONSE) {
            memory.starts.push(memory.sent.len());
        }
        if header.op == DATA && header.flags & 1 != 0 {
            memory.ends.insert(memory.sent.len());
        }
        memory.room = memory.room.max(buf_alloc.saturating_add(fwd_cnt));
        if !plain && header.op == DATA {
            memory.unsure = true;
        }
        let at = self.out + u64::from(self.rings[1].available % self.size) * PLACE as u64;
        let bytes = [&header.bytes()[..], &data].concat();
        self.raw(1).write(at, &bytes);
        self.rings[1].request(&[Buffer::Out(at, bytes.len() as u32)]);
        self.offered += 1;
    }

    /// Has the device see to everything, and the guest to what came of it.
    fn settle(&mut self) {
        for queue in 0..self.rings.len() as u32 {
            self.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue);
        }
        self.guest.transport.resume();
        self.guest.settle();
        assert!(self.handle.counters().open <= self.limit, "more connections than there may be");
        if self.wild {
            return;
        }
        while self.rings[1].used().is_some() {
            self.offered -= 1;
        }
        while let Some((head, len)) = self.rings[0].used() {
            self.posted -= 1;
            let mut bytes = vec![0; len as usize];
            let at = self.room + u64::from(head) * PLACE as u64;
            self.guest.memory.read_slice(&mut bytes, GuestAddress(at)).expect("it is in RAM");
            self.hear(&bytes);
        }
    }

    /// The guest gets a packet.
    fn hear(&mut self, bytes: &[u8]) {
        let (header, data) = bytes.split_first_chunk().expect("a packet has a header");
        let header = Header::parse(header);
        assert_eq!(header.cids[1], packet::CID, "{header:?}");
        assert_eq!(header.len as usize, data.len(), "{header:?}");
        assert!((1..=7).contains(&header.op), "{header:?}");
        assert!(header.op == DATA || data.is_empty(), "{header:?}");
        assert!(header.cids[0] == HOST || header.op == packet::RESET, "{header:?}");
        assert!(header.credit[0] <= BUFFER, "{header:?}");
        let ports = (header.ports[1], header.ports[0]);
        let memory = self.memory.entry(ports).or_default();
        memory.credit = header.credit;
        match header.op {
            REQUEST => {
                // What room the guest has told of stays: it may have answered before this is looked at.
                memory.got = 0;
                self.asked.push(ports);
            }
            RESPONSE => memory.got = 0,
            DATA => {
                for (n, &byte) in (memory.got..).zip(data) {
                    assert_eq!(byte, written(n), "byte {n} of {ports:?}");
                }
                memory.got += data.len();
                assert!(memory.got <= memory.room, "{} bytes for {}", memory.got, memory.room);
            }
            _ => {}
        }
    }

    fn accept(&mut self) {
        let Some((streams, messages)) = &self.listeners else { return };
        let took = std::iter::from_fn(|| streams.accept().ok())
            .map(|(stream, from)| (Socket::Stream(stream), (from, STREAMS)));
        let mut sockets: Vec<_> = took.collect();
        let took = std::iter::from_fn(|| messages.accept().ok())
            .map(|(socket, from)| (Socket::Messages(socket), (from, MESSAGES)));
        sockets.extend(took);
        // What the guest has accepted is here, or on its way.
        let made = self.handle.counters().to_guest;
        let called = (self.taken..made).map_while(|_| self.called.1.recv_timeout(CALL).ok());
        self.taken = made;
        sockets.extend(called.map(|stream| {
            let ports = (stream.peer_port(), stream.local_port());
            (Socket::Stream(stream), ports)
        }));
        for (socket, ports) in sockets {
            match &socket {
                Socket::Stream(stream) => stream.set_nonblocking(true),
                Socket::Messages(socket) => socket.set_nonblocking(true),
            }
            .expect("a socket need not block");
            self.programs.push(Program { socket, ports, read: Vec::new(), written: 0 });
        }
    }

    fn host(&mut self, which: u8, what: u8, len: u16) {
        let count = self.programs.len().max(1);
        let which = usize::from(which) % count;
        let Some(program) = self.programs.get_mut(which) else { return };
        match what % 5 {
            0 => {
                if let Ok(bytes) = program.read(usize::from(len) + 1) {
                    program.read.extend(bytes);
                    let known = self.memory.get(&program.ports).filter(|_| !self.wild);
                    let agrees = known.is_none_or(|memory| program.agrees(memory));
                    assert!(agrees, "what {:?} read was not sent", program.ports);
                }
            }
            1 => {
                let from = program.written;
                let bytes: Vec<u8> = (from..from + usize::from(len)).map(written).collect();
                // What an end or a full socket does not take was not written.
                program.written += program.write(&bytes).unwrap_or(0);
            }
            2 => program.shutdown(Shutdown::Write),
            3 => program.shutdown(Shutdown::Read),
            _ => drop(self.programs.swap_remove(which)),
        }
    }

    fn call(&mut self, port: u8) {
        if self.calls.len() == MOST_CALLS {
            return;
        }
        let (handle, called) = (self.handle.clone(), self.called.0.clone());
        let before = self.handle.counters().open;
        let call = std::thread::spawn(move || {
            if let Ok(stream) = handle.connect_timeout(u32::from(port) % 4, CALL) {
                // At the end nobody wants it.
                let _ = called.send(stream);
            }
        });
        // The device knows of it, or it has failed.
        while self.handle.counters().open == before && !call.is_finished() {
            std::thread::yield_now();
        }
        self.calls.push(call);
    }

    /// Resets the device; a connection must carry bytes there and back then.
    fn finish(mut self) {
        self.guest.transport.resume();
        self.programs.clear();
        self.listeners = None;
        self.calls.drain(..).for_each(|call| call.join().expect("a call does not panic"));
        self.guest.reset();
        // Without a driver a call fails at once, after all that was wanted before it, such as a reset of the transport.
        assert!(self.handle.connect(1).is_err(), "a connection without a driver");
        assert_eq!(self.handle.counters().open, 0);
        let rings = &mut self.guest.start(F_STREAM, 64);
        recover(&mut self.guest, rings, &self.handle);
        assert_eq!(self.guest.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    }
}

impl Program {
    /// Reads up to `len` bytes, or a message.
    fn read(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 64 << 10];
        let count = match &mut self.socket {
            Socket::Stream(stream) => stream.read(&mut bytes[..len])?,
            Socket::Messages(socket) => socket.recv(&mut bytes)?,
        };
        bytes.truncate(count);
        Ok(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.socket {
            Socket::Stream(stream) => stream.write(bytes),
            Socket::Messages(socket) => socket.send(bytes).map(|()| bytes.len()),
        }
    }

    fn shutdown(&self, how: Shutdown) {
        // Of what has ended already nothing ends.
        let _ = match &self.socket {
            Socket::Stream(stream) => stream.shutdown(how),
            Socket::Messages(socket) => socket.shutdown(how),
        };
    }

    /// Whether what was read is what the guest sent on one of the connections between these ports.
    fn agrees(&self, memory: &Memory) -> bool {
        let Memory { sent, starts, ends, unsure, .. } = memory;
        let whole = |end: usize| matches!(self.socket, Socket::Stream(_)) || ends.contains(&end);
        let agrees = |&start: &usize| {
            sent[start..].starts_with(&self.read)
                && (self.read.is_empty() || whole(start + self.read.len()))
        };
        *unsure || starts.iter().any(agrees)
    }
}
