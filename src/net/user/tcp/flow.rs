//! One connection: its state on both sides, and when it wants to be looked at.
//!
//! What arrives from the guest is in `input.rs`, what goes to it in `output.rs`.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::host::Host;
use super::inbound::Inbound;
use super::ring::{Pool, Ring};
use super::segment::{ACK, Key, SYN, Segment};
use super::table::Age;
use super::{Config, TcpCounters};
use crate::memory::BufferList;
use crate::net::Offloads;

/// How long to wait for an acknowledgement at first. The guest may take 200 ms to decide to send one.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long to wait at most.
const MAX_PATIENCE: Duration = Duration::from_secs(60);
/// How often to try in vain.
const TRIES: u32 = 12;
/// How often to try in vain to open a connection to the guest.
const SYN_TRIES: u32 = 6;
/// How long to wait for memory.
const MEMORY_PAUSE: Duration = Duration::from_millis(50);
/// For how long a connection that is over is remembered, in case that the guest has not heard our last word.
const TIME_WAIT: Duration = Duration::from_secs(1);
/// No time-out is longer than this, so that it can be told when it is over: ten years.
const MAX_SILENCE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Our windows are shifted by this much, if the guest can do that.
pub(super) const SCALE: u8 = 4;
/// The least that a guest can ask for as its largest segment.
const MIN_MSS: u16 = 48;

/// What all connections share.
pub(super) struct Shared {
    pub config: Config,
    pub offloads: Offloads,
    pub pool: Pool,
    pub counters: TcpCounters,
    /// For lists of pieces.
    pub room: BufferList<'static>,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest has sent a SYN, and the host is connecting.
    Connecting,
    /// The host has connected, and the guest has to acknowledge our SYN.
    SynReceived,
    /// The host wants to connect to the guest, which has to answer our SYN.
    SynSent,
    /// Both sides are there; either may have ended its stream.
    Open,
    /// Both sides have ended.
    TimeWait,
}

/// What is to become of a connection.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It goes on.
    Keep,
    /// It is over, and both sides know.
    Done,
    /// It is reset on both sides.
    Abort,
    /// The same, because nothing was heard for too long.
    Silent,
    /// The guest has reset it.
    AbortHost,
    /// It goes on, but this segment is answered with a reset from this sequence number.
    Answer(u32),
    /// The host could not connect.
    Refused(io::Error),
}

/// A connection.
pub(super) struct Flow {
    pub key: Key,
    pub phase: Phase,
    /// Gone in [`Phase::TimeWait`].
    pub host: Option<Host>,
    /// When the guest was last heard of, or the host.
    pub last: Instant,

    // To the guest.
    pub inbound: Inbound,
    /// Where the end of the stream is, once it is known: the sequence number of our FIN.
    pub end: Option<u32>,
    /// The first byte that is not acknowledged.
    pub unacked: u32,
    /// What is to be sent next, which is less than `sent` when sending again.
    pub next: u32,
    /// Behind all that was ever sent.
    pub sent: u32,
    /// The guest's window, its largest so far, and its shift.
    pub window: u32,
    pub max_window: u32,
    pub scale: u8,
    pub mss: u16,
    /// Acknowledgements in a row that say nothing new.
    pub duplicates: u8,
    /// Until this is acknowledged, each acknowledgement asks for the next piece that was lost.
    pub recover: Option<u32>,

    // From the guest.
    pub initial: u32,
    /// What is expected next.
    pub expected: u32,
    /// Behind the last byte that the guest may send.
    pub edge: u32,
    /// The guest takes windows that are shifted.
    pub scaled: bool,
    /// What the host's socket has not taken.
    pub outbound: Option<Ring>,
    /// The guest has ended its stream.
    pub guest_ended: bool,
    /// The host's socket takes nothing any more: what it has sent is still read.
    pub host_deaf: bool,

    // What there is to do.
    pub readable: bool,
    pub ack: bool,
    /// How often to say again what is expected: three times make the guest send it at once.
    pub repeat: u8,
    /// Send the first piece again, or the SYN.
    pub resend: bool,
    pub probe: bool,
    /// Waiting for memory.
    pub starved: bool,
    /// When to try again.
    pub retry: Option<Instant>,
    pub tries: u32,
}

impl Flow {
    /// A connection of the guest, by its SYN.
    pub fn from_guest(
        key: Key,
        syn: &Segment,
        host: Host,
        initial: u32,
        now: Instant,
        config: &Config,
    ) -> Self {
        let mut flow = Self::new(key, Phase::Connecting, host, initial, now);
        flow.greeted(syn, config);
        flow
    }

    /// A connection of the host.
    pub fn from_host(key: Key, host: Host, initial: u32, now: Instant) -> Self {
        let mut flow = Self::new(key, Phase::SynSent, host, initial, now);
        flow.readable = true;
        flow.resend = true;
        flow
    }

    fn new(key: Key, phase: Phase, host: Host, initial: u32, now: Instant) -> Self {
        Self {
            key,
            phase,
            inbound: Inbound::new(&host),
            host: Some(host),
            last: now,
            end: None,
            unacked: initial,
            next: initial,
            sent: initial,
            window: 0,
            max_window: 0,
            scale: 0,
            mss: MIN_MSS,
            duplicates: 0,
            recover: None,
            initial: 0,
            expected: 0,
            edge: 0,
            scaled: false,
            outbound: None,
            guest_ended: false,
            host_deaf: false,
            readable: false,
            ack: false,
            repeat: 0,
            resend: false,
            probe: false,
            starved: false,
            retry: None,
            tries: 0,
        }
    }

    /// Takes what the guest's SYN says.
    pub fn greeted(&mut self, syn: &Segment, config: &Config) {
        let default = if self.key.remote.is_ipv4() { 536 } else { 1220 };
        self.mss = syn.mss.unwrap_or(default).min(self.own_mss(config)).max(MIN_MSS);
        self.scaled = syn.scale.is_some();
        self.scale = syn.scale.unwrap_or(0);
        // The window of a SYN is not shifted.
        self.window = syn.window.into();
        self.max_window = self.window;
        self.initial = syn.sequence;
        self.expected = syn.sequence.wrapping_add(1);
        self.edge = self.expected;
    }

    /// The largest segment that the guest may send.
    pub fn own_mss(&self, config: &Config) -> u16 {
        config.mtu.saturating_sub(self.key.ip_header() as u16 + 20).max(MIN_MSS)
    }

    /// By how much our windows are shifted.
    pub fn own_scale(&self) -> u8 {
        if self.scaled { SCALE } else { 0 }
    }

    /// How much more the guest takes now.
    pub fn usable(&self) -> usize {
        let used = self.next.wrapping_sub(self.unacked);
        self.window.saturating_sub(used) as usize
    }

    /// Where in what is not acknowledged the next byte is.
    pub fn offset(&self) -> usize {
        self.next.wrapping_sub(self.unacked) as usize
    }

    /// Something has been sent and not been acknowledged.
    pub fn in_flight(&self) -> bool {
        self.unacked != self.sent
    }

    fn outbound_is_empty(&self) -> bool {
        self.outbound.is_none()
    }

    /// Room for what the guest sends.
    pub fn room(&self, pool: &Pool) -> usize {
        match &self.outbound {
            Some(ring) => Ring::SIZE.saturating_sub(ring.len()),
            None if pool.has_any() => Ring::SIZE,
            // The host's socket may take it, and if not, the guest can send it again.
            None => usize::from(u16::MAX),
        }
    }

    /// There may be data, or an end, to be sent to the guest, and the guest takes it.
    fn can_send(&self) -> bool {
        if self.end == Some(self.next) {
            return true;
        }
        let usable = self.usable();
        // Not in small pieces while a larger one may become possible.
        let worthwhile = usable >= usize::from(self.mss)
            || usable >= self.max_window as usize / 2
            || self.next == self.unacked;
        usable > 0 && worthwhile && self.has_more()
    }

    /// There may be data to be sent to the guest, whether it takes it or not.
    fn has_more(&self) -> bool {
        match self.end {
            Some(end) => (end.wrapping_sub(self.next) as i32) > 0,
            None => {
                self.next != self.sent
                    || (!self.starved && self.inbound.may_have(self.offset(), self.readable))
            }
        }
    }

    /// There may be a frame for the guest.
    pub fn wants(&self) -> bool {
        match self.phase {
            Phase::Connecting => false,
            Phase::SynReceived | Phase::SynSent => self.resend,
            Phase::TimeWait => self.ack,
            Phase::Open => {
                self.ack || self.repeat > 0 || self.resend || self.probe || self.can_send()
            }
        }
    }

    /// Which list it belongs to.
    pub fn age(&self) -> Age {
        match self.phase {
            Phase::Connecting | Phase::SynReceived | Phase::SynSent => Age::HalfOpen,
            Phase::Open | Phase::TimeWait => Age::Settled,
        }
    }

    /// Nothing is under way.
    pub fn is_quiet(&self) -> bool {
        match self.phase {
            Phase::TimeWait => true,
            Phase::Open => !self.in_flight() && self.outbound_is_empty() && !self.readable,
            _ => false,
        }
    }

    /// When [`timer`](Self::timer) is due.
    pub fn due(&self, config: &Config) -> Instant {
        let silent = self.last + self.silence(config);
        self.retry.map_or(silent, |retry| retry.min(silent))
    }

    /// For how long nothing may be heard.
    fn silence(&self, config: &Config) -> Duration {
        let silence = match self.phase {
            Phase::Connecting | Phase::SynReceived | Phase::SynSent => config.half_open,
            Phase::TimeWait => TIME_WAIT,
            Phase::Open if self.guest_ended || self.end.is_some() => config.half_closed,
            Phase::Open => config.idle,
        };
        silence.min(MAX_SILENCE)
    }

    /// How long to wait for the guest's answer.
    fn patience(&self) -> Duration {
        PATIENCE.saturating_mul(1 << self.tries.min(16)).min(MAX_PATIENCE)
    }

    /// Sees to it that there is a time to try again, if there is something to wait for.
    pub fn arm(&mut self, now: Instant) {
        if self.retry.is_some() {
            return;
        }
        let waits = match self.phase {
            Phase::Connecting | Phase::TimeWait => false,
            Phase::SynReceived | Phase::SynSent => true,
            Phase::Open => self.in_flight() || (self.usable() == 0 && self.has_more()),
        };
        if waits {
            self.retry = Some(now + self.patience());
        } else if self.starved {
            self.retry = Some(now + MEMORY_PAUSE);
        }
    }

    /// The time has come, or not yet.
    pub fn timer(&mut self, now: Instant, shared: &mut Shared) -> Verdict {
        if now >= self.last + self.silence(&shared.config) {
            return match self.phase {
                Phase::TimeWait => Verdict::Done,
                Phase::Connecting => Verdict::Refused(ErrorKind::TimedOut.into()),
                _ => Verdict::Silent,
            };
        }
        if self.retry.is_none_or(|retry| now < retry) {
            return Verdict::Keep;
        }
        self.retry = None;
        if std::mem::take(&mut self.starved) && !self.in_flight() {
            return Verdict::Keep;
        }
        self.tries += 1;
        let limit = if self.phase == Phase::Open { TRIES } else { SYN_TRIES };
        if self.tries > limit {
            return Verdict::Silent;
        }
        match self.phase {
            Phase::SynReceived | Phase::SynSent => self.resend = true,
            Phase::Open if self.in_flight() => {
                // All of it again, from the first byte that is missing.
                self.next = self.unacked;
                self.recover = None;
                self.duplicates = 0;
                self.probe = self.usable() == 0;
                shared.counters.retransmitted += 1;
            }
            Phase::Open => self.probe = true,
            Phase::Connecting | Phase::TimeWait => {}
        }
        Verdict::Keep
    }

    /// The host's socket may be ready.
    pub fn host_ready(
        &mut self,
        readable: bool,
        writable: bool,
        now: Instant,
        shared: &mut Shared,
    ) -> Verdict {
        let Some(host) = &self.host else { return Verdict::Keep };
        if self.phase == Phase::Connecting {
            match host.connected() {
                Ok(false) => return Verdict::Keep,
                Err(error) => return Verdict::Refused(error),
                Ok(true) => {
                    self.phase = Phase::SynReceived;
                    self.readable = true;
                    self.resend = true;
                    self.last = now;
                    self.arm(now);
                }
            }
            return Verdict::Keep;
        }
        self.readable |= readable;
        if writable && self.outbound.is_some() {
            self.flush(shared);
            self.last = now;
        }
        let verdict = self.finished();
        self.arm(now);
        verdict
    }

    /// Gives the host's socket what it has not taken before.
    fn flush(&mut self, shared: &mut Shared) {
        let (Some(host), Some(mut ring)) = (&self.host, self.outbound.take()) else { return };
        let mut deaf = self.host_deaf;
        while ring.len() > 0 && !deaf {
            match host.send_bytes(ring.from(0)) {
                Ok(count) => {
                    ring.consume(count);
                    shared.counters.bytes_out += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => deaf = true,
            }
        }
        if deaf {
            self.deafen();
        }
        if ring.len() > 0 && !deaf {
            self.outbound = Some(ring);
        } else {
            shared.pool.give(ring);
            self.end_host();
        }
        self.offer(shared);
    }

    /// The host's socket takes nothing any more. What it has sent before is read, and then the guest hears of it.
    pub fn deafen(&mut self) {
        self.host_deaf = true;
        self.readable = true;
    }

    /// Tells the host that the guest has ended its stream, when the host has all of it.
    pub fn end_host(&mut self) {
        if self.guest_ended
            && self.outbound_is_empty()
            && let Some(host) = &self.host
        {
            host.shut();
        }
    }

    /// Tells the guest about room that has come up, if it is worth a frame.
    fn offer(&mut self, shared: &Shared) {
        let room = self.room(&shared.pool);
        let offered = self.edge.wrapping_sub(self.expected) as usize;
        let worth = (2 * usize::from(self.own_mss(&shared.config))).min(Ring::SIZE / 2);
        if !self.guest_ended && room >= offered.saturating_add(worth) {
            self.ack = true;
        }
    }

    /// What is to become of it when both sides may have ended.
    pub fn finished(&mut self) -> Verdict {
        let ended = self.end.is_some_and(|end| self.unacked == end.wrapping_add(1));
        if self.phase != Phase::Open || !ended || !self.guest_ended || !self.outbound_is_empty() {
            return Verdict::Keep;
        }
        if self.ack {
            // The guest ended last, and waits for our word.
            self.phase = Phase::TimeWait;
            self.retry = None;
            Verdict::Keep
        } else {
            Verdict::Done
        }
    }

    /// Gives back what memory there is.
    pub fn close(&mut self, pool: &mut Pool) {
        self.inbound.close(pool);
        if let Some(ring) = self.outbound.take() {
            pool.give(ring);
        }
    }

    /// The flags that our SYN has.
    pub fn syn_flags(&self) -> u8 {
        if self.phase == Phase::SynSent { SYN } else { SYN | ACK }
    }
}
