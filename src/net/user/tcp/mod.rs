//! TCP between the guest and the host's sockets.
//!
//! Every connection of the guest ends here and goes on as a socket of the host; connections of the host go on as
//! connections to the guest. The link to the guest loses nothing by itself and has no bandwidth to share, so there is
//! no congestion control; but the guest may drop what it has no room for, so there is flow control both ways, and
//! what is not acknowledged is sent again.

mod flow;
mod host;
mod inbound;
mod input;
mod output;
mod ring;
mod segment;
mod table;
#[cfg(test)]
mod tests;
mod types;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Instant;

use mio::Interest;

use self::flow::{Flow, Phase, Shared, Verdict};
use self::host::Host;
use self::output::Frame;
use self::ring::Pool;
use self::segment::{ACK, FIN, Key, MAX_HEADERS, RST, SYN, Say, Segment, Shape};
use self::table::{Age, Table};
pub(super) use self::types::{Config, HostStream, Link, Route, TcpCounters, Unreachable};
use crate::memory::{BufferList, Buffers};
use crate::net::{Header, Offloads};
use crate::virtio::{HostEvent, Sources};

/// Resets for the guest that wait for room: more are not sent.
const MAX_REPLIES: usize = 256;
/// Connections that could not be made and that wait to be asked about: more are forgotten.
const MAX_UNREACHABLE: usize = 64;
/// How many of the oldest connections are looked at for one that can make room.
const CANDIDATES: usize = 16;

/// A segment for the guest that belongs to no connection.
struct Reply {
    key: Key,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
}

/// The connections of one guest.
pub(super) struct Tcp {
    shared: Shared,
    table: Table,
    replies: VecDeque<Reply>,
    unreachable: VecDeque<Unreachable>,
    /// What initial sequence numbers are made of, with the time.
    secret: RandomState,
    epoch: Instant,
}

impl Tcp {
    /// Without any connection. Host descriptors are registered under `first_token` to `first_token + 0x3fff_ffff`.
    pub fn new(config: Config, first_token: u32) -> Self {
        Self {
            shared: Shared {
                offloads: Offloads::default(),
                pool: Pool::new(config.memory),
                counters: TcpCounters::default(),
                room: BufferList::default(),
                config,
            },
            table: Table::new(first_token),
            replies: VecDeque::new(),
            unreachable: VecDeque::new(),
            secret: RandomState::new(),
            epoch: Instant::now(),
        }
    }

    /// What the driver has negotiated.
    pub fn offloads(&mut self, offloads: Offloads) {
        self.shared.offloads = offloads;
    }

    /// Takes a packet from the guest: `packet` begins with the TCP header, which has the ports, and its checksum is
    /// good. `route` is asked for new connections only, with `source` and `destination`.
    pub fn packet(
        &mut self,
        mut source: SocketAddr,
        mut destination: SocketAddr,
        packet: Buffers<'_>,
        route: &mut dyn FnMut(SocketAddr, SocketAddr) -> Route,
        sources: Sources<'_>,
    ) {
        let Some(segment) = Segment::parse(packet) else {
            self.shared.counters.dropped += 1;
            return;
        };
        source.set_port(segment.source);
        destination.set_port(segment.destination);
        let key = Key { guest: source, remote: destination };
        let now = Instant::now();
        if let Some(index) = self.table.find(&key) {
            if self.is_succeeded(index, &segment) {
                self.settle(index, Verdict::AbortHost, now, sources);
            } else if let Some(flow) = self.table.get(index) {
                let verdict = flow.segment(&segment, packet, now, &mut self.shared);
                let age = flow.age();
                self.table.touch(index, age);
                self.settle(index, verdict, now, sources);
                return;
            }
        }
        if segment.flags & (SYN | ACK | RST | FIN) == SYN {
            match route(source, destination) {
                Route::Drop => self.shared.counters.dropped += 1,
                Route::Refuse => self.refuse(key, segment.sequence),
                Route::Host(to) => self.open(key, &segment, || Host::connect(to), now, sources),
                Route::Unix(path) => {
                    self.open(key, &segment, || Host::connect_unix(&path), now, sources);
                }
                Route::Stream(stream) => {
                    let adopt = || Host::adopt(HostStream::Unix(stream));
                    self.open(key, &segment, adopt, now, sources);
                }
            }
        } else if !segment.has(RST) {
            self.shared.counters.dropped += 1;
            self.reply(match segment.has(ACK) {
                true => Reply { key, sequence: segment.acknowledged, acknowledged: 0, flags: RST },
                false => Reply {
                    key,
                    sequence: 0,
                    acknowledged: segment.sequence.wrapping_add(segment.span()),
                    flags: RST | ACK,
                },
            });
        }
    }

    /// Whether the segment opens a connection in the place of one that the guest knows to be over.
    fn is_succeeded(&mut self, index: u32, segment: &Segment) -> bool {
        let Some(flow) = self.table.get(index) else { return false };
        let is_syn = segment.flags & (SYN | ACK | RST | FIN) == SYN;
        let ahead = segment.sequence.wrapping_sub(flow.expected) as i32;
        match flow.phase {
            Phase::TimeWait => is_syn && ahead > 0,
            Phase::Connecting => is_syn && segment.sequence != flow.initial,
            _ => false,
        }
    }

    /// Opens a connection of the guest.
    fn open(
        &mut self,
        key: Key,
        syn: &Segment,
        connect: impl FnOnce() -> io::Result<Host>,
        now: Instant,
        sources: Sources<'_>,
    ) {
        let Some(token) = self.make_room(now, sources) else {
            self.shared.counters.refused += 1;
            return;
        };
        let host = match connect() {
            Ok(host) => host,
            Err(error) => return self.failed(key, syn.sequence, &error, now, sources),
        };
        if let Err(error) = sources.add(&host, token, Interest::READABLE | Interest::WRITABLE) {
            return self.failed(key, syn.sequence, &error, now, sources);
        }
        self.shared.counters.opened += 1;
        let initial = self.initial(&key, now);
        let flow = Flow::from_guest(key, syn, host, initial, now, &self.shared.config);
        self.insert(flow, now, sources);
    }

    /// Carries a connection of the host to `to` in the guest, where it appears to come from `from`; `false`, and the
    /// connection is reset, if there is one between these two already, or no room.
    pub fn accept(
        &mut self,
        stream: HostStream,
        from: SocketAddr,
        to: SocketAddr,
        sources: Sources<'_>,
    ) -> bool {
        let now = Instant::now();
        let key = Key { guest: to, remote: from };
        let Ok(host) = Host::adopt(stream) else { return false };
        if let Some(index) = self.table.find(&key)
            && self.table.get(index).is_some_and(|flow| flow.phase == Phase::TimeWait)
        {
            self.settle(index, Verdict::Done, now, sources);
        }
        let token = match self.table.find(&key) {
            Some(_) => None,
            None => self.make_room(now, sources),
        };
        let interest = Interest::READABLE | Interest::WRITABLE;
        if token.is_none_or(|token| sources.add(&host, token, interest).is_err()) {
            host.reset_on_close();
            self.shared.counters.refused += 1;
            return false;
        }
        self.shared.counters.accepted += 1;
        let initial = self.initial(&key, now);
        self.insert(Flow::from_host(key, host, initial, now), now, sources);
        true
    }

    fn insert(&mut self, flow: Flow, now: Instant, sources: Sources<'_>) {
        let key = flow.key;
        self.table.insert(flow);
        if let Some(index) = self.table.find(&key) {
            self.settle(index, Verdict::Keep, now, sources);
        }
    }

    /// The token for another connection. Others may have to give way.
    fn make_room(&mut self, now: Instant, sources: Sources<'_>) -> Option<u32> {
        let config = &self.shared.config;
        let max = config.max_flows.min(Table::MAX);
        if self.table.half_open() >= config.max_half_open.max(1) {
            let (oldest, _) = self.table.oldest(Age::HalfOpen).next()?;
            self.evict(oldest, now, sources);
        }
        if self.table.len() >= max && !self.evict_quiet(now, sources) {
            return None;
        }
        self.table.next().map(|(_, token)| token)
    }

    /// Ends the connection that was idle longest.
    fn evict_quiet(&mut self, now: Instant, sources: Sources<'_>) -> bool {
        let mut oldest = self.table.oldest(Age::Settled).take(CANDIDATES);
        let quiet = oldest.find(|(_, flow)| flow.is_quiet()).map(|(index, _)| index);
        drop(oldest);
        let half_open = || self.table.oldest(Age::HalfOpen).next().map(|(index, _)| index);
        let Some(index) = quiet.or_else(half_open) else { return false };
        self.evict(index, now, sources);
        true
    }

    fn evict(&mut self, index: u32, now: Instant, sources: Sources<'_>) {
        let over = self.table.get(index).is_some_and(|flow| flow.phase == Phase::TimeWait);
        if over {
            self.settle(index, Verdict::Done, now, sources);
        } else {
            self.shared.counters.evicted += 1;
            self.settle(index, Verdict::Abort, now, sources);
        }
    }

    /// An initial sequence number (RFC 6528).
    fn initial(&self, key: &Key, now: Instant) -> u32 {
        let clock = now.saturating_duration_since(self.epoch).as_micros() / 4;
        (self.secret.hash_one(key) as u32).wrapping_add(clock as u32)
    }

    /// Puts the next frame for the guest into `space`, the Ethernet header first, if there is one.
    pub fn receive(
        &mut self,
        link: &Link,
        header: &mut Header,
        space: Buffers<'_>,
        sources: Sources<'_>,
    ) -> Option<usize> {
        if space.total() < MAX_HEADERS + 1 {
            return None;
        }
        if let Some(reply) = self.replies.pop_front() {
            let say = Say {
                sequence: reply.sequence,
                acknowledged: reply.acknowledged,
                flags: reply.flags,
                ..Say::default()
            };
            let partial = self.shared.offloads.contains(Offloads::GUEST_CSUM);
            let shape = Shape { payload: 0, partial, mss: u16::MAX };
            return Some(segment::frame(link, &reply.key, &say, shape, header, space));
        }
        let now = Instant::now();
        // Once round: one that has nothing after all may stay in the queue.
        for _ in 0..self.table.ready() {
            let index = self.table.dequeue()?;
            let Some(flow) = self.table.get(index) else { continue };
            let frame = Frame { link, header: &mut *header, space };
            let made = flow.produce(frame, now, &mut self.shared);
            let (made, verdict) = match made {
                Ok(made) => (made, Verdict::Keep),
                Err(verdict) => (None, verdict),
            };
            self.settle(index, verdict, now, sources);
            if made.is_some() {
                return made;
            }
        }
        None
    }

    /// Whether [`receive`](Self::receive) may have a frame.
    pub fn has_frames(&self) -> bool {
        !self.replies.is_empty() || self.table.ready() > 0
    }

    /// A host descriptor may be ready; tells whether there may be frames now.
    pub fn host_ready(&mut self, event: HostEvent, sources: Sources<'_>) -> bool {
        if let Some(index) = self.table.by_token(event.source)
            && let Some(flow) = self.table.get(index)
        {
            let now = Instant::now();
            let verdict = flow.host_ready(event.readable, event.writable, now, &mut self.shared);
            self.settle(index, verdict, now, sources);
        }
        self.has_frames()
    }

    /// When [`timer`](Self::timer) is to be called, if at all.
    pub fn deadline(&self) -> Option<Instant> {
        self.table.earliest()
    }

    /// It is `now`, and the deadline may have passed; tells whether there may be frames now.
    pub fn timer(&mut self, now: Instant, sources: Sources<'_>) -> bool {
        while let Some(index) = self.table.expired(now) {
            if let Some(flow) = self.table.get(index) {
                let verdict = flow.timer(now, &mut self.shared);
                self.settle(index, verdict, now, sources);
            }
        }
        self.has_frames()
    }

    /// The next connection of the guest that the host's network could not make. The guest hears of it from whoever
    /// takes it from here, or tries again by itself.
    pub fn unreachable(&mut self) -> Option<Unreachable> {
        self.unreachable.pop_front()
    }

    /// The guest has gone: all connections are reset.
    pub fn reset(&mut self, sources: Sources<'_>) {
        let now = Instant::now();
        while let Some(index) = self.table.any() {
            self.settle(index, Verdict::AbortHost, now, sources);
        }
        while self.table.dequeue().is_some() {}
        self.replies.clear();
        self.unreachable.clear();
    }

    /// What has happened so far.
    pub fn counters(&self) -> TcpCounters {
        TcpCounters { flows: self.table.len(), ..self.shared.counters }
    }

    /// Carries out what is to become of a connection.
    fn settle(&mut self, index: u32, verdict: Verdict, now: Instant, sources: Sources<'_>) {
        let Some(flow) = self.table.get(index) else { return };
        let reset = Reply {
            key: flow.key,
            sequence: flow.sent,
            acknowledged: flow.expected,
            flags: RST | ACK,
        };
        let (key, initial) = (flow.key, flow.initial);
        // Before our SYN is out, the guest knows none of our sequence numbers: what it gets is a refusal.
        let reset = match flow.phase {
            Phase::SynSent if !flow.in_flight() => None,
            Phase::SynSent => Some(Reply { acknowledged: 0, flags: RST, ..reset }),
            Phase::Connecting => Some(Reply { sequence: 0, ..reset }),
            _ => Some(reset),
        };
        match verdict {
            Verdict::Keep | Verdict::Answer(_) => {
                if flow.phase == Phase::TimeWait
                    && let Some(host) = flow.host.take()
                {
                    close(&host, sources);
                }
                let (wants, due) = (flow.wants(), flow.due(&self.shared.config));
                if wants {
                    self.table.enqueue(index);
                }
                self.table.schedule(index, due);
                if let Verdict::Answer(sequence) = verdict {
                    self.reply(Reply { key, sequence, acknowledged: 0, flags: RST });
                }
            }
            Verdict::Done => self.remove(index, false, sources),
            Verdict::Abort | Verdict::Silent | Verdict::AbortHost => {
                match verdict {
                    Verdict::Silent => self.shared.counters.timed_out += 1,
                    _ => self.shared.counters.reset += 1,
                }
                self.remove(index, true, sources);
                if let Some(reset) = reset
                    && !matches!(verdict, Verdict::AbortHost)
                {
                    self.reply(reset);
                }
            }
            Verdict::Refused(error) => {
                self.remove(index, true, sources);
                self.failed(key, initial, &error, now, sources);
            }
        }
    }

    /// Removes a connection, and closes its socket.
    fn remove(&mut self, index: u32, reset: bool, sources: Sources<'_>) {
        let Some(mut flow) = self.table.remove(index) else { return };
        flow.close(&mut self.shared.pool);
        if let Some(host) = flow.host.take() {
            if reset {
                host.reset_on_close();
            }
            close(&host, sources);
        }
    }

    /// The host could not connect.
    fn failed(
        &mut self,
        key: Key,
        sequence: u32,
        error: &io::Error,
        now: Instant,
        sources: Sources<'_>,
    ) {
        let kind = error.kind();
        match kind {
            ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::AddrNotAvailable => {
                self.shared.counters.refused += 1;
                if self.unreachable.len() < MAX_UNREACHABLE {
                    let Key { guest, remote } = key;
                    self.unreachable.push_back(Unreachable { guest, remote, sequence, kind });
                }
            }
            _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                // The guest will try again, and then there may be a descriptor.
                self.shared.counters.refused += 1;
                self.evict_quiet(now, sources);
            }
            _ => self.refuse(key, sequence),
        }
    }

    /// Tells the guest that nobody is there for its SYN.
    fn refuse(&mut self, key: Key, sequence: u32) {
        self.shared.counters.refused += 1;
        let acknowledged = sequence.wrapping_add(1);
        self.reply(Reply { key, sequence: 0, acknowledged, flags: RST | ACK });
    }

    fn reply(&mut self, reply: Reply) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(reply);
        }
    }
}

fn close(host: &Host, sources: Sources<'_>) {
    // What was never registered, or is gone already, needs no more.
    let _ = sources.remove(host);
}
