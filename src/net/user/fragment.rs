//! Packets that the guest sends in parts.
//!
//! Few are put together at a time, each of bounded size and for a bounded time. Parts that overlap are an attack, or
//! an error: the packet is given up (RFC 5722, here for IPv4 as well). A part that comes twice does no harm.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::wire::IpProtocol;

use super::frame::{Packet, Part};

/// Packets at a time.
const PACKETS: usize = 16;
/// Parts of a packet. The smallest MTU that IPv4 knows needs more, but nobody uses that.
const PARTS: usize = 256;
/// How large a payload may be.
const LARGEST: usize = 65535;
/// How long parts may be missing.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
    ident: u32,
}

#[derive(Debug)]
struct Incomplete {
    key: Key,
    until: Instant,
    bytes: Vec<u8>,
    /// Where the parts begin and end that are there, in order.
    parts: Vec<(usize, usize)>,
    /// How long it will be, once the last part is there.
    length: Option<usize>,
    /// Nothing more is taken; parts that are still under way shall not begin anew.
    spoilt: bool,
}

/// What a part leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is the whole payload.
    Whole(Vec<u8>),
    /// Others are missing.
    Missing,
    /// It cannot be used. So many packets failed by it.
    Failed(u64),
}

/// Packets of which parts are missing.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    packets: Vec<Incomplete>,
}

impl Reassembly {
    /// Takes a part.
    pub fn add(&mut self, packet: &Packet, part: Part, payload: &[u8], now: Instant) -> Outcome {
        let end = part.offset.saturating_add(payload.len());
        // All parts but the last have a length that is a multiple of 8.
        if payload.is_empty() || end > LARGEST || part.more && !payload.len().is_multiple_of(8) {
            return Outcome::Failed(1);
        }
        let Packet { source, destination, protocol, .. } = *packet;
        let key = Key { source, destination, protocol, ident: part.ident };
        let (index, failed) = match self.packets.iter().position(|packet| packet.key == key) {
            Some(index) => (index, 0),
            None => {
                let failed = self.make_room();
                let until = now + PATIENCE;
                let (bytes, parts) = (Vec::new(), Vec::new());
                self.packets.push(Incomplete {
                    key,
                    until,
                    bytes,
                    parts,
                    length: None,
                    spoilt: false,
                });
                (self.packets.len() - 1, failed)
            }
        };
        let Some(packet) = self.packets.get_mut(index) else { return Outcome::Failed(failed) };
        if packet.spoilt {
            return Outcome::Failed(failed);
        }
        match packet.add(part.offset, end, part.more, payload) {
            Err(()) => {
                (packet.bytes, packet.parts) = (Vec::new(), Vec::new());
                packet.spoilt = true;
                Outcome::Failed(failed + 1)
            }
            Ok(true) => Outcome::Whole(self.packets.swap_remove(index).bytes),
            Ok(false) if failed > 0 => Outcome::Failed(failed),
            Ok(false) => Outcome::Missing,
        }
    }

    /// Gives up the oldest packet if there are too many, and tells how many were given up.
    fn make_room(&mut self) -> u64 {
        if self.packets.len() < PACKETS {
            return 0;
        }
        let oldest = self.packets.iter().enumerate().min_by_key(|(_, packet)| packet.until);
        match oldest.map(|(index, _)| index) {
            Some(index) => u64::from(!self.packets.swap_remove(index).spoilt),
            None => 0,
        }
    }

    /// When [`expire`](Self::expire) is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.packets.iter().map(|packet| packet.until).min()
    }

    /// Gives up what took too long, and tells how many packets that are.
    pub fn expire(&mut self, now: Instant) -> u64 {
        let mut failed = 0;
        self.packets.retain(|packet| {
            let keep = packet.until > now;
            failed += u64::from(!keep && !packet.spoilt);
            keep
        });
        failed
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.packets = Vec::new();
    }
}

impl Incomplete {
    /// Adds a part, and tells whether it was the last one missing.
    fn add(&mut self, start: usize, end: usize, more: bool, payload: &[u8]) -> Result<bool, ()> {
        let index = self.parts.partition_point(|part| part.0 < start);
        if self.parts.get(index) == Some(&(start, end)) {
            return Ok(false);
        }
        let before = index.checked_sub(1).and_then(|index| self.parts.get(index));
        let overlaps = before.is_some_and(|part| part.1 > start)
            || self.parts.get(index).is_some_and(|part| part.0 < end);
        if overlaps || self.parts.len() >= PARTS {
            return Err(());
        }
        if !more && self.length.replace(end).is_some() {
            return Err(());
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        if self.length.is_some_and(|length| self.bytes.len() > length) {
            return Err(());
        }
        super::frame::copy(&mut self.bytes, start, payload);
        self.parts.insert(index, (start, end));
        // They do not overlap, so they are all there when they are as long as the whole.
        let there: usize = self.parts.iter().map(|part| part.1 - part.0).sum();
        Ok(self.length == Some(there))
    }
}
