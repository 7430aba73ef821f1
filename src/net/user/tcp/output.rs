//! The next frame of a connection for the guest.

use std::io::ErrorKind;
use std::time::Instant;

use super::Link;
use super::flow::{Flow, Phase, Shared, Verdict};
use super::segment::{self, ACK, FIN, PSH, Say, Shape};
use crate::memory::Buffers;
use crate::net::{Header, Offloads};

/// Where a frame goes.
pub(super) struct Frame<'a, 'b> {
    pub link: &'a Link,
    pub header: &'a mut Header,
    pub space: Buffers<'b>,
}

/// What there was to be read.
enum Data {
    Some(usize),
    None,
    End,
}

impl Flow {
    /// Makes the next frame, if there is one, and tells how long it is.
    pub fn produce(
        &mut self,
        frame: Frame<'_, '_>,
        now: Instant,
        shared: &mut Shared,
    ) -> Result<Option<usize>, Verdict> {
        let made = match self.phase {
            Phase::Connecting => None,
            Phase::SynReceived | Phase::SynSent => self.produce_syn(frame, shared),
            Phase::Open => self.produce_open(frame, now, shared)?,
            Phase::TimeWait => self.ack.then(|| self.say(frame, ACK, self.next, 0, shared)),
        };
        self.arm(now);
        Ok(made)
    }

    fn produce_syn(&mut self, frame: Frame<'_, '_>, shared: &mut Shared) -> Option<usize> {
        if !std::mem::take(&mut self.resend) {
            return None;
        }
        if self.in_flight() {
            shared.counters.retransmitted += 1;
        }
        self.sent = self.unacked.wrapping_add(1);
        self.next = self.sent;
        Some(self.say(frame, self.syn_flags(), self.unacked, 0, shared))
    }

    fn produce_open(
        &mut self,
        frame: Frame<'_, '_>,
        now: Instant,
        shared: &mut Shared,
    ) -> Result<Option<usize>, Verdict> {
        if std::mem::take(&mut self.probe) {
            // As a keep-alive does: what the guest has already, which it answers with its window.
            let before = self.unacked.wrapping_sub(1);
            return Ok(Some(self.say(frame, ACK, before, 0, shared)));
        }
        if std::mem::take(&mut self.resend) && self.in_flight() {
            shared.counters.retransmitted += 1;
            let next = std::mem::replace(&mut self.next, self.unacked);
            let limit = self.sent.wrapping_sub(self.unacked) as usize;
            let made = self.produce_next(frame, limit, now, shared);
            // Further only if the guest has not got that far.
            if (next.wrapping_sub(self.next) as i32) > 0 {
                self.next = next;
            }
            return made;
        }
        let usable = self.usable();
        self.produce_next(frame, usable, now, shared)
    }

    /// A frame from `next` on, with at most `limit` bytes of data.
    fn produce_next(
        &mut self,
        frame: Frame<'_, '_>,
        limit: usize,
        now: Instant,
        shared: &mut Shared,
    ) -> Result<Option<usize>, Verdict> {
        let sequence = self.next;
        let mut flags = ACK;
        let mut payload = 0;
        match self.read(&frame, limit, shared)? {
            Data::Some(count) => {
                flags |= PSH;
                payload = count;
                self.last = now;
            }
            Data::None if self.ack => {}
            Data::None if self.repeat > 0 => self.repeat -= 1,
            Data::None => return Ok(None),
            Data::End => flags |= FIN,
        }
        let span = payload as u32 + u32::from(flags & FIN != 0);
        self.next = self.next.wrapping_add(span);
        if (self.next.wrapping_sub(self.sent) as i32) > 0 {
            self.sent = self.next;
        }
        Ok(Some(self.say(frame, flags, sequence, payload, shared)))
    }

    /// Reads what comes next to where it belongs in the frame.
    fn read(
        &mut self,
        frame: &Frame<'_, '_>,
        limit: usize,
        shared: &mut Shared,
    ) -> Result<Data, Verdict> {
        if self.end == Some(self.next) {
            return Ok(Data::End);
        }
        let offset = self.offset();
        let headers = self.key.headers();
        let mss = usize::from(self.mss);
        let wanted = if self.key.remote.is_ipv4() {
            Offloads::GUEST_CSUM | Offloads::GUEST_TSO4
        } else {
            Offloads::GUEST_CSUM | Offloads::GUEST_TSO6
        };
        let most = match shared.offloads.contains(wanted) {
            true => self.key.max_payload(),
            false => mss,
        };
        let mut limit = limit.min(most).min(frame.space.total().saturating_sub(headers));
        match self.end {
            Some(end) => {
                let left = end.wrapping_sub(self.next);
                limit = limit.min(if left as i32 > 0 { left as usize } else { 0 });
            }
            None if self.next != self.sent => {}
            None if self.starved || !self.inbound.may_have(offset, self.readable) => {
                return Ok(Data::None);
            }
            None => {}
        }
        if limit > mss {
            limit -= limit % mss.max(1);
        }
        let Some(host) = self.host.as_ref().filter(|_| limit > 0) else { return Ok(Data::None) };
        let list = std::mem::take(&mut shared.room).refill(frame.space, headers, limit);
        let (readable, pool) = (&mut self.readable, &mut shared.pool);
        let result = self.inbound.read(host, offset, list.all(), readable, pool);
        shared.room = list.recycle();
        match result {
            // The host is gone for good if it takes nothing either.
            Ok(0) if self.host_deaf => Err(Verdict::Abort),
            Ok(0) => {
                self.end = Some(self.next);
                self.readable = false;
                Ok(Data::End)
            }
            Ok(count) => Ok(Data::Some(count)),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => Ok(Data::None),
                ErrorKind::OutOfMemory => {
                    self.starved = true;
                    Ok(Data::None)
                }
                _ => Err(Verdict::Abort),
            },
        }
    }

    /// Puts the headers before `payload` bytes of data.
    fn say(
        &mut self,
        frame: Frame<'_, '_>,
        flags: u8,
        sequence: u32,
        payload: usize,
        shared: &Shared,
    ) -> usize {
        let syn = flags & segment::SYN != 0;
        let scale = if syn { 0 } else { self.own_scale() };
        let room = if self.guest_ended { 0 } else { self.room(&shared.pool) };
        let window = (room >> scale).min(u16::MAX.into());
        let edge = self.expected.wrapping_add((window << scale) as u32);
        // What was promised once is kept.
        if (edge.wrapping_sub(self.edge) as i32) > 0 {
            self.edge = edge;
        }
        self.ack = false;
        let offers_scale = syn && (self.scaled || self.phase == Phase::SynSent);
        let say = Say {
            sequence,
            acknowledged: if flags & ACK != 0 { self.expected } else { 0 },
            flags,
            window: window as u16,
            mss: syn.then(|| self.own_mss(&shared.config)),
            scale: offers_scale.then_some(super::flow::SCALE),
        };
        let partial = shared.offloads.contains(Offloads::GUEST_CSUM);
        let shape = Shape { payload, partial, mss: self.mss };
        segment::frame(frame.link, &self.key, &say, shape, frame.header, frame.space)
    }
}
