//! The user-mode network's TCP: any segments from the guest, while the host's sockets write, read, stall, end and reset.
//!
//! Every byte of a stream is made of its sequence number, or of its place in what the host writes, so that both sides
//! can tell what they should see, however segments overlap and whichever of several openings counted. The host reads
//! what the guest has sent, from the first byte on and without a gap; the guest is sent what the host has written, no
//! further than its largest window, and is told that something has arrived only if it was sent. Segments with a wrong
//! checksum have other bytes, which nobody ever sees. There are never more connections than allowed, none once the
//! driver has gone, and the next driver can make a good one.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hyperkit::memory::BufferList;
use hyperkit::net::user::{Flow, Forward, Protocol, Target, User, UserHandle, UserNet, Verdict};
use hyperkit::net::{Header, NetBackend, Offloads};
use hyperkit::virtio::{HostEvent, Sources};
use mio::{Events, Poll};
use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};

use crate::ops::parse;
use crate::user_frames::{FAR, ipv4, ipv6, seal};
use crate::{fields, operations};

fields! {
    /// The start of an input.
    pub struct Head {
        /// What the driver has negotiated.
        pub offloads: u16,
        /// The guest's first sequence number: around zero if it is small or large.
        pub initial: u32,
        /// One bit for each of three connections: to a unix socket; then how many there may be at a time.
        pub mode: u8,
    }
}

operations! {
    /// What happens at both ends. A connection's number is 0 to 2 for the guest's, 3 for the host's.
    pub enum Op(9) {
        /// The guest sends a segment, as far from where it is; `how` is made of the constants below.
        0 => Segment {
            lane: u8, flags: u8, how: u8, sequence: u16, acknowledged: u16, window: u16, length: u16,
        },
        /// The guest takes frames into buffers of so many bytes.
        1 => Receive { count: u8, space: u16 },
        /// The host writes.
        2 => Write { lane: u8, length: u16 },
        /// The host reads.
        3 => Read { lane: u8, length: u16 },
        /// The host ends its stream, stops reading, closes, or resets the connection.
        4 => End { lane: u8, how: u8 },
        /// The host connects to the guest.
        5 => Dial {},
        /// The network's event loop turns once.
        6 => Turn {},
        /// The driver goes and comes back.
        7 => Reset {},
        /// The guest acknowledges all it has, with the largest window.
        8 => Acknowledge { lane: u8 },
    }
}

/// The guest goes on from behind this segment.
pub const ADVANCE: u8 = 1;
/// The checksum is wrong.
pub const WRONG: u8 = 2;
/// The checksum is left to the host.
pub const PARTIAL: u8 = 4;
/// The sequence number is half of all numbers away.
pub const FAR_OFF: u8 = 8;
/// The acknowledgement is half of all numbers away.
pub const FAR_ACK: u8 = 16;
/// What the options are, in the upper bits.
const OPTIONS: u32 = 5;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Connections of the guest, and after them those of the host.
const LANES: usize = 4;
const DIALED: usize = 3;
/// The ports that the guest connects from.
const FIRST_PORT: u16 = 4000;
/// The guest's port that the host connects to.
const PORT: u16 = 22;
/// By how much the guest's windows are shifted, for each lane.
const SCALES: [u8; LANES] = [0, 7, 14, 3];
/// No frame is larger.
const MOST: usize = 65_600;
/// Streams of the host that are kept for each lane.
const STREAMS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(10);

/// What the guest sends under a sequence number.
fn outward(lane: usize, sequence: u32) -> u8 {
    (sequence.wrapping_add(lane as u32).wrapping_mul(0x9e37_79b1) >> 24) as u8
}

/// What the host writes at a place in its stream.
fn inward(lane: usize, place: u32) -> u8 {
    (place.wrapping_add(lane as u32).wrapping_mul(0x85eb_ca6b) >> 24) as u8
}

/// The host's side of a connection.
struct Stream {
    fd: OwnedFd,
    is_tcp: bool,
    written: u32,
    /// What was read, and where in the guest's numbers it may begin: known once there is something.
    read: u32,
    starts: Option<Vec<u32>>,
    /// The host has said that it will not read on.
    deaf: bool,
    over: bool,
}

impl Stream {
    fn new(fd: impl Into<OwnedFd>, is_tcp: bool) -> Self {
        Self { fd: fd.into(), is_tcp, written: 0, read: 0, starts: None, deaf: false, over: false }
    }
}

/// A connection as the guest has it.
#[derive(Default)]
struct Lane {
    /// The other side's port.
    remote: u16,
    /// Its address, if it is the host that has connected.
    from: [u8; 4],
    /// What the guest sends next.
    next: u32,
    /// The sequence numbers of its SYNs, and the largest window in one.
    syns: Vec<u32>,
    syn_window: u16,
    /// What it has sent: where, and how much.
    sent: Vec<(u32, u32)>,
    ended: bool,
    /// The other side's first sequence number, and behind the last that has come.
    first: Option<u32>,
    seen: u32,
    /// Behind the last byte that the guest has ever had room for.
    edge: u32,
    /// The most that the host has written into one stream.
    written: u32,
    streams: Vec<Stream>,
}

impl Lane {
    /// How much of what the guest has sent comes after `start` without a gap.
    fn reach(&self, start: u32) -> u32 {
        let mut reach = 0;
        loop {
            let further = |(at, len): &(u32, u32)| {
                let known = start.wrapping_add(reach).wrapping_sub(*at);
                (known < *len).then(|| len - known)
            };
            match self.sent.iter().filter_map(further).max() {
                Some(more) => reach += more,
                None => return reach,
            }
        }
    }

    /// The host has read `bytes` of what the guest has sent.
    fn check(&self, index: usize, stream: &mut Stream, bytes: &[u8]) {
        let starts = stream.starts.get_or_insert_with(|| self.syns.clone());
        let count = bytes.len() as u32;
        let read = stream.read;
        starts.retain(|syn| {
            let start = syn.wrapping_add(1);
            let at = start.wrapping_add(read);
            let same =
                (0..).zip(bytes).all(|(n, byte)| *byte == outward(index, at.wrapping_add(n)));
            same && self.reach(start) >= read + count
        });
        assert!(!starts.is_empty(), "{count} bytes at {read} that were not sent like this");
        stream.read += count;
    }

    /// Takes the beginning of a stream.
    fn greeted(&mut self, sequence: u32) {
        if self.first != Some(sequence) {
            self.first = Some(sequence);
            self.seen = sequence.wrapping_add(1);
            self.edge = self.seen.wrapping_add(self.syn_window.into());
        }
    }
}

/// A network, its guest and its host.
struct Session {
    user: User,
    handle: UserHandle,
    poll: Poll,
    events: Events,
    listeners: [Listener; DIALED],
    paths: [PathBuf; LANES],
    limit: u64,
    initial: u32,
    lanes: [Lane; LANES],
}

impl Drop for Session {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Carries out an input.
pub fn run(data: &[u8]) {
    let (head, ops): (Head, Vec<Op>) = parse(data);
    let mut session = Session::new(head);
    for op in ops {
        session.apply(op);
        let flows = session.handle.counters().tcp_flows;
        assert!(flows <= session.limit, "{flows} connections, and {} are allowed", session.limit);
    }
    session.turn();
    for lane in 0..LANES {
        session.read(lane, usize::MAX);
    }
    session.reset();
    session.works();
}

impl Session {
    fn new(head: Head) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let paths: [PathBuf; LANES] = std::array::from_fn(|lane| {
            let name = format!("fuzz-user-tcp-{}-{number}-{lane}", std::process::id());
            let path = std::env::temp_dir().join(name);
            // One of a process that failed and had the same number.
            let _ = std::fs::remove_file(&path);
            path
        });
        let (listeners, targets): (Vec<_>, Vec<_>) =
            (0..DIALED).map(|lane| listen(head.mode >> lane & 1 != 0, &paths[lane])).unzip();
        let policy = move |flow: &Flow<'_>| {
            let lane = flow.source.port().wrapping_sub(FIRST_PORT);
            match (flow.protocol, targets.get(usize::from(lane))) {
                (Protocol::Tcp, Some(target)) => Verdict::Redirect(target.clone()),
                _ => Verdict::Refuse,
            }
        };
        let limit = u64::from(head.mode >> 6) + 1;
        let mut user = UserNet::new()
            .dns_servers([])
            .tcp_limits(limit as usize, Duration::from_secs(60))
            .forward(Forward::unix(&paths[DIALED], PORT))
            .policy(policy)
            .open()
            .expect("nothing is wrong with it");
        let handle = user.handle();
        let poll = Poll::new().expect("there is an epoll");
        user.start(Sources::new(poll.registry())).expect("there is room in it");
        let offloads = Offloads::from_bits_truncate(head.offloads.into());
        user.activate(offloads & user.properties().offloads).expect("nothing can fail");
        let events = Events::with_capacity(16);
        let mut session = Self {
            user,
            handle,
            poll,
            events,
            listeners: listeners.try_into().ok().expect("one for each"),
            paths,
            limit,
            initial: head.initial,
            lanes: Default::default(),
        };
        session.begin();
        session
    }

    /// A guest that has no connection yet.
    fn begin(&mut self) {
        self.lanes = Default::default();
        for lane in &mut self.lanes {
            (lane.next, lane.remote) = (self.initial, 80);
        }
        self.turn();
    }

    fn apply(&mut self, op: Op) {
        let number = |lane: u8| usize::from(lane) % LANES;
        match op {
            Op::Segment { lane, flags, how, sequence, acknowledged, window, length } => {
                let lane = number(lane);
                let half = |bit: u8| if how & bit != 0 { 1 << 31 } else { 0_u32 };
                let Lane { next, seen, .. } = self.lanes[lane];
                let at = next.wrapping_add_signed(i32::from(sequence as i16));
                let acknowledged = seen.wrapping_add_signed(i32::from(acknowledged as i16));
                let numbers = [at.wrapping_add(half(FAR_OFF)), acknowledged ^ half(FAR_ACK)];
                self.segment(lane, flags, how, numbers, window, usize::from(length) % 16_385);
            }
            Op::Receive { count, space } => {
                for _ in 0..count {
                    if !self.receive(space.into()) {
                        break;
                    }
                }
            }
            Op::Write { lane, length } => self.write(number(lane), length.into()),
            Op::Read { lane, length } => self.read(number(lane), length.into()),
            Op::End { lane, how } => self.end(number(lane), how),
            Op::Dial {} => {
                let lane = &mut self.lanes[DIALED];
                if lane.streams.len() < STREAMS {
                    let stream = UnixStream::connect(&self.paths[DIALED]);
                    lane.streams.push(Stream::new(stream.expect("somebody listens"), false));
                }
            }
            Op::Turn {} => self.turn(),
            Op::Reset {} => self.reset(),
            Op::Acknowledge { lane } => {
                let lane = number(lane);
                let Lane { next, seen, .. } = self.lanes[lane];
                self.segment(lane, ACK, 0, [next, seen], u16::MAX, 0);
            }
        }
    }

    /// The guest sends a segment.
    fn segment(
        &mut self,
        index: usize,
        flags: u8,
        how: u8,
        [sequence, acknowledged]: [u32; 2],
        window: u16,
        length: usize,
    ) {
        let lane = &mut self.lanes[index];
        let port = if index == DIALED { PORT } else { FIRST_PORT + index as u16 };
        let options = options(how >> OPTIONS, SCALES[index]);
        let mut tcp = [port.to_be_bytes(), lane.remote.to_be_bytes()].concat();
        tcp.extend(sequence.to_be_bytes());
        tcp.extend(acknowledged.to_be_bytes());
        tcp.extend([(5 + options.len() as u8 / 4) << 4, flags]);
        tcp.extend(window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(options);
        let header = tcp.len();
        let start = sequence.wrapping_add(u32::from(flags & SYN != 0));
        tcp.extend((0..length as u32).map(|at| outward(index, start.wrapping_add(at))));
        let is_wrong = how & WRONG != 0 && how & PARTIAL == 0;
        if is_wrong {
            tcp[header..].fill(0x55);
        }
        let mut frame = match index {
            2 => ipv6(6, 2, &tcp),
            DIALED => ipv4(6, lane.from, &tcp),
            _ => ipv4(6, FAR, &tcp),
        };
        seal(&mut frame);
        let ip = frame.len() - tcp.len();
        if is_wrong {
            frame[ip + 16] ^= 0x10;
        } else {
            let end = u32::from(flags & FIN != 0);
            lane.ended |= end != 0;
            lane.sent.push((start, length as u32 + end));
            if flags & SYN != 0 {
                lane.syns.push(sequence);
                lane.syn_window = lane.syn_window.max(window);
            }
            let room = u32::from(window) << SCALES[index];
            let edge = acknowledged.wrapping_add(room);
            // What is acknowledged ahead of time says nothing.
            if let Some(first) = lane.first
                && flags & ACK != 0
                && acknowledged.wrapping_sub(first) <= lane.seen.wrapping_sub(first)
                && (edge.wrapping_sub(lane.edge) as i32) > 0
            {
                lane.edge = edge;
            }
        }
        if how & ADVANCE != 0 {
            let span = length as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
            lane.next = sequence.wrapping_add(span);
        }
        let half = frame.len() / 2 + 1;
        let list: BufferList<'_> = frame.chunks_mut(half).map(Into::into).collect();
        let mut header = Header::default();
        if how & PARTIAL != 0 {
            (header.flags, header.csum_start, header.csum_offset) = (1, ip as u16, 16);
        }
        let sources = Sources::new(self.poll.registry());
        let result = self.user.send(0, &header, list.all(), sources);
        result.expect("a frame that is not good is dropped");
    }

    /// The guest takes a frame, if there is one.
    fn receive(&mut self, space: usize) -> bool {
        let mut buffer = vec![0; space];
        let mut header = Header::default();
        let list = BufferList::from(&mut buffer[..]);
        let sources = Sources::new(self.poll.registry());
        let result = self.user.receive(0, &mut header, list.all(), sources);
        drop(list);
        match result {
            Ok(length) => {
                assert!(length <= space, "a frame of {length} bytes in {space}");
                self.frame(&buffer[..length], &header);
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(_) => {
                assert!(space < MOST, "there was room");
                true
            }
        }
    }

    /// A frame has come to the guest.
    fn frame(&mut self, frame: &[u8], header: &Header) {
        let (ip, is_tcp) = match frame[12..14] {
            [8, 0] => (34, frame[23] == 6),
            [0x86, 0xdd] => (54, frame[20] == 6),
            _ => return,
        };
        if !is_tcp {
            return;
        }
        if header.flags == 0 {
            let mut sealed = frame.to_vec();
            seal(&mut sealed);
            assert_eq!(sealed, frame, "a wrong checksum");
        }
        let word = |at: usize| {
            u32::from_be_bytes(frame[ip + at..ip + at + 4].try_into().expect("four bytes"))
        };
        let (ports, sequence, acknowledged) = (word(0), word(4), word(8));
        let flags = frame[ip + 13];
        let data = &frame[ip + usize::from(frame[ip + 12] >> 4) * 4..];
        let (remote, own) = ((ports >> 16) as u16, ports as u16);
        let index = if own == PORT { DIALED } else { usize::from(own - FIRST_PORT) };
        let lane = &mut self.lanes[index];
        if index == DIALED && flags & (SYN | RST) == SYN {
            lane.remote = remote;
            lane.from = frame[26..30].try_into().expect("four bytes");
        }
        if flags & RST != 0 {
            return assert!(data.is_empty(), "a reset with data");
        }
        // Only the latest of those that the host has opened is looked at.
        if lane.remote != remote {
            return;
        }
        if flags & ACK != 0 {
            let arrived = |syn: &u32| {
                let start = syn.wrapping_add(1);
                acknowledged.wrapping_sub(start) <= lane.reach(start)
            };
            assert!(lane.syns.iter().any(arrived), "{acknowledged} was never sent");
        }
        if flags & SYN != 0 {
            assert!(data.is_empty(), "a beginning with data");
            return lane.greeted(sequence);
        }
        let first = lane.first.expect("nothing comes before the beginning");
        let place = sequence.wrapping_sub(first.wrapping_add(1));
        let end = sequence.wrapping_add(data.len() as u32);
        if !data.is_empty() {
            let within = place.saturating_add(data.len() as u32) <= lane.written;
            assert!(within, "{} bytes at {place}, and {} were written", data.len(), lane.written);
            for (at, byte) in (place..).zip(data) {
                assert_eq!(*byte, inward(index, at), "another byte than was written at {at}");
            }
            assert!((end.wrapping_sub(lane.edge) as i32) <= 0, "more than the guest has room for");
        }
        let end = end.wrapping_add(u32::from(flags & FIN != 0));
        if (end.wrapping_sub(lane.seen) as i32) > 0 {
            lane.seen = end;
        }
    }

    fn write(&mut self, index: usize, length: usize) {
        self.accept();
        let lane = &mut self.lanes[index];
        for stream in &mut lane.streams {
            let bytes: Vec<u8> =
                (stream.written..).take(length).map(|n| inward(index, n)).collect();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&stream.fd, &bytes, flags) {
                Ok(count) => {
                    stream.written += count as u32;
                    lane.written = lane.written.max(stream.written);
                }
                Err(rustix::io::Errno::AGAIN) => {}
                // Why it is over was said with this, and is not said again to who reads.
                Err(_) => stream.over = true,
            }
        }
        self.turn();
    }

    fn read(&mut self, index: usize, length: usize) {
        self.accept();
        self.turn();
        let lane = &mut self.lanes[index];
        let mut streams = std::mem::take(&mut lane.streams);
        for stream in &mut streams {
            let mut left = length;
            let mut buffer = [0; 1 << 15];
            while left > 0 && !stream.over {
                let room = &mut buffer[..left.min(1 << 15)];
                match rustix::net::recv(&stream.fd, room, RecvFlags::DONTWAIT) {
                    Ok((0, _)) => {
                        stream.over = true;
                        let fair = lane.ended || stream.deaf || !stream.is_tcp;
                        assert!(fair, "an end that the guest has not sent");
                    }
                    Ok((count, _)) => {
                        left -= count;
                        lane.check(index, stream, &buffer[..count]);
                    }
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(_) => stream.over = true,
                }
            }
        }
        lane.streams = streams;
        self.turn();
    }

    fn end(&mut self, index: usize, how: u8) {
        self.accept();
        let lane = &mut self.lanes[index];
        let Some(stream) = lane.streams.first_mut() else { return };
        match how % 4 {
            0 => drop(rustix::net::shutdown(&stream.fd, Shutdown::Write)),
            1 => {
                stream.deaf = true;
                let _ = rustix::net::shutdown(&stream.fd, Shutdown::Read);
            }
            2 => drop(lane.streams.remove(0)),
            _ => {
                if stream.is_tcp {
                    let _ = sockopt::set_socket_linger(&stream.fd, Some(Duration::ZERO));
                }
                drop(lane.streams.remove(0));
            }
        }
        self.turn();
    }

    /// Takes what the network has connected to.
    fn accept(&mut self) {
        self.turn();
        for (lane, listener) in self.lanes.iter_mut().zip(&self.listeners) {
            while let Some(stream) = listener.accept() {
                if lane.streams.len() == STREAMS {
                    lane.streams.remove(0);
                }
                lane.streams.push(stream);
            }
        }
    }

    /// The network's event loop turns once.
    fn turn(&mut self) {
        self.poll.poll(&mut self.events, Some(Duration::ZERO)).expect("an epoll can be asked");
        let sources = Sources::new(self.poll.registry());
        for event in &self.events {
            let event = HostEvent {
                source: event.token().0 as u32,
                readable: event.is_readable() || event.is_read_closed() || event.is_error(),
                writable: event.is_writable() || event.is_write_closed() || event.is_error(),
            };
            self.user.host_ready(event, sources);
        }
        if self.user.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            self.user.timer(sources);
        }
    }

    /// The driver goes and comes back, to a host that has forgotten everything too.
    fn reset(&mut self) {
        self.accept();
        self.user.reset();
        self.turn();
        let flows = self.handle.counters().tcp_flows;
        assert_eq!(flows, 0, "connections of a guest that has gone");
        self.user.activate(Offloads::empty()).expect("nothing can fail");
        self.begin();
    }

    /// A good guest makes a connection, and bytes go both ways.
    fn works(&mut self) {
        let good = |session: &mut Self, flags, length| {
            let Lane { next, seen, .. } = session.lanes[0];
            session.segment(0, flags, ADVANCE, [next, seen], u16::MAX, length);
        };
        good(self, SYN, 0);
        self.until(|session| session.lanes[0].first.is_some());
        good(self, ACK, 100);
        self.until(|session| {
            session.read(0, MOST);
            session.lanes[0].streams.iter().any(|stream| stream.read == 100)
        });
        self.write(0, 100);
        let all = |session: &Self| {
            let Lane { first, seen, .. } = session.lanes[0];
            first.is_some_and(|first| seen == first.wrapping_add(101))
        };
        self.until(|session| all(session));
    }

    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let (begun, mut turns) = (Instant::now(), 0);
        while !done(self) {
            // The process may have stood still meanwhile: it has its turns all the same.
            assert!(turns < 1000 || begun.elapsed() < PATIENCE, "a good guest is not served");
            turns += 1;
            while self.receive(MOST) {}
            self.turn();
        }
    }
}

/// Where connections of the guest go.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn accept(&self) -> Option<Stream> {
        Some(match self {
            Self::Tcp(listener) => Stream::new(listener.accept().ok()?.0, true),
            Self::Unix(listener) => Stream::new(listener.accept().ok()?.0, false),
        })
    }
}

/// A place for connections of the guest to go.
fn listen(is_unix: bool, path: &Path) -> (Listener, Target) {
    if is_unix {
        let listener = UnixListener::bind(path).expect("a socket can have a path");
        listener.set_nonblocking(true).expect("a socket can be told not to block");
        return (Listener::Unix(listener), Target::Unix(path.to_owned()));
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("there are ports");
    listener.set_nonblocking(true).expect("a socket can be told not to block");
    let address = listener.local_addr().expect("it is bound");
    (Listener::Tcp(listener), Target::Address(address))
}

/// Options for a header, a multiple of four bytes. Windows are shifted by `scale`, or not at all.
fn options(kind: u8, scale: u8) -> Vec<u8> {
    match kind % 8 {
        0 => vec![],
        1 => vec![2, 4, 5, 0xb4, 1, 3, 3, scale],
        // The smallest segments that can be, and selective acknowledgements.
        2 => vec![2, 4, 0, 0, 4, 2, 3, 3, scale, 0, 0, 0],
        3 => vec![1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9],
        // Time stamps.
        4 => vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 2, 4, 0xff, 0xff],
        // Lengths that are none, or too large.
        5 => vec![2, 0, 3, 0],
        6 => vec![2, 4, 2, 24, 3, 40, 3, 3],
        _ => vec![0xfe; 40],
    }
}
