//! What a segment from the guest does to a connection (RFC 9293, section 3.10.7, and RFC 5961).

use std::io::ErrorKind;
use std::time::Instant;

use super::flow::{Flow, Phase, Shared, Verdict};
use super::segment::{ACK, FIN, RST, SYN, Segment};
use crate::memory::Buffers;

/// How old an acknowledgement may be.
const MAX_WINDOW: u32 = 1 << 30;
/// How many probes of a closed window count, as long as they are answered.
const PROBES: u32 = 8;

impl Flow {
    /// Takes a segment.
    pub fn segment(
        &mut self,
        segment: &Segment,
        packet: Buffers<'_>,
        now: Instant,
        shared: &mut Shared,
    ) -> Verdict {
        let verdict = match self.phase {
            Phase::Connecting => return self.while_connecting(segment),
            Phase::SynSent => self.answered(segment, now, shared),
            Phase::SynReceived | Phase::Open | Phase::TimeWait => {
                self.last = now;
                self.synchronized(segment, packet, now, shared)
            }
        };
        self.arm(now);
        verdict
    }

    fn while_connecting(&mut self, segment: &Segment) -> Verdict {
        // The guest has heard nothing yet, so it can only give up, or repeat itself.
        let after = segment.sequence == self.expected || segment.sequence == self.initial;
        if segment.has(RST) && after { Verdict::AbortHost } else { Verdict::Keep }
    }

    /// The guest's answer to our SYN.
    fn answered(&mut self, segment: &Segment, now: Instant, shared: &mut Shared) -> Verdict {
        if segment.has(ACK) && segment.acknowledged != self.sent {
            return match segment.has(RST) {
                true => Verdict::Keep,
                false => Verdict::Answer(segment.acknowledged),
            };
        }
        // Nothing may have been sent yet: then there is nothing to answer.
        if !segment.has(ACK) || !self.in_flight() {
            return Verdict::Keep;
        }
        if segment.has(RST) {
            return Verdict::AbortHost;
        }
        if segment.has(SYN) && !segment.has(FIN) {
            self.last = now;
            self.greeted(segment, &shared.config);
            self.established();
            self.unacked = self.sent;
            self.ack = true;
        }
        Verdict::Keep
    }

    fn established(&mut self) {
        self.phase = Phase::Open;
        self.resend = false;
        self.retry = None;
        self.tries = 0;
    }

    fn synchronized(
        &mut self,
        segment: &Segment,
        packet: Buffers<'_>,
        now: Instant,
        shared: &mut Shared,
    ) -> Verdict {
        if segment.has(RST) {
            let ahead = segment.sequence.wrapping_sub(self.expected);
            if ahead == 0 {
                return Verdict::AbortHost;
            }
            // Whoever sends this in earnest can do better once it is told.
            self.ack |= ahead < self.edge.wrapping_sub(self.expected);
            return Verdict::Keep;
        }
        if segment.has(SYN) {
            let repeated = !segment.has(ACK) && segment.sequence == self.initial;
            if self.phase == Phase::SynReceived && repeated {
                self.resend = true;
            } else {
                self.ack = true;
            }
            return Verdict::Keep;
        }
        if !segment.has(ACK) {
            shared.counters.dropped += 1;
            return Verdict::Keep;
        }
        if self.phase == Phase::SynReceived {
            if segment.acknowledged != self.sent || !self.in_flight() {
                return Verdict::Answer(segment.acknowledged);
            }
            self.established();
            self.unacked = self.sent;
        }
        if !self.acknowledge(segment, now, shared) {
            return Verdict::Keep;
        }
        self.data(segment, packet, shared);
        self.finished()
    }

    /// Takes what the segment acknowledges. `false` if the rest of it is to be ignored.
    fn acknowledge(&mut self, segment: &Segment, now: Instant, shared: &mut Shared) -> bool {
        let acked = segment.acknowledged.wrapping_sub(self.unacked);
        if acked > self.sent.wrapping_sub(self.unacked) {
            // Nothing new, or something that was never sent.
            let age = self.unacked.wrapping_sub(segment.acknowledged);
            self.ack |= age > MAX_WINDOW;
            return age <= MAX_WINDOW;
        }
        let window = u32::from(segment.window) << self.scale;
        if acked > 0 {
            self.unacked = segment.acknowledged;
            if (self.next.wrapping_sub(self.unacked) as i32) < 0 {
                self.next = self.unacked;
            }
            let end = self.end.is_some_and(|end| self.unacked == end.wrapping_add(1));
            let data = acked - u32::from(end);
            shared.counters.bytes_in += u64::from(data);
            let all = !self.in_flight();
            if let Some(host) = &self.host
                && self.inbound.acknowledged(host, data as usize, all, &mut shared.pool).is_err()
            {
                // What was read once cannot be read any more: there is nothing to go on with.
                self.deafen();
            }
            self.duplicates = 0;
            self.tries = 0;
            self.retry = None;
            if let Some(recover) = self.recover {
                let more = (recover.wrapping_sub(self.unacked) as i32) > 0;
                self.resend = more;
                self.recover = self.recover.filter(|_| more);
            }
        } else if segment.len == 0
            && !segment.has(FIN)
            && self.in_flight()
            && window == self.window
            && self.recover.is_none()
        {
            self.duplicates = self.duplicates.saturating_add(1);
            if self.duplicates == 3 {
                self.recover = Some(self.sent);
                self.resend = true;
            }
        } else if window == 0 {
            // The answer to a probe: probing goes on, but not more often.
            self.tries = self.tries.min(PROBES);
        } else if !self.in_flight() {
            self.tries = 0;
            self.retry = None;
        }
        self.window = window;
        self.max_window = self.max_window.max(window);
        self.arm(now);
        true
    }

    /// Takes data, and the end.
    fn data(&mut self, segment: &Segment, packet: Buffers<'_>, shared: &mut Shared) {
        let span = segment.span();
        let known = self.expected.wrapping_sub(segment.sequence);
        if known != 0 || span == 0 {
            // Ahead of what is expected, or all of it known: what is expected is said again.
            let partly_new = (known as i32) > 0 && known < span;
            if (known as i32) < 0 && span > 0 && !self.guest_ended {
                self.repeat = 3.min(self.repeat + 1);
                return;
            }
            if !partly_new {
                self.ack |= known != 0;
                return;
            }
        }
        self.ack = true;
        if self.guest_ended {
            return;
        }
        let known = known as usize;
        let len = segment.len.saturating_sub(known);
        let promised = self.edge.wrapping_sub(self.expected) as usize;
        let len_taken = len.min(promised);
        let taken = self.take(packet, segment.header + known, len_taken, shared);
        self.expected = self.expected.wrapping_add(taken as u32);
        if taken < len {
            shared.counters.dropped += 1;
        } else if segment.has(FIN) {
            self.guest_ended = true;
            self.expected = self.expected.wrapping_add(1);
            self.edge = self.expected;
            self.end_host();
        }
    }

    /// Gives the host `len` bytes from `skip` on, and keeps what it does not take; tells how many there is no room for
    /// by how many fewer it returns.
    fn take(&mut self, packet: Buffers<'_>, skip: usize, len: usize, shared: &mut Shared) -> usize {
        if len == 0 {
            return 0;
        }
        let Some(host) = self.host.as_ref().filter(|_| !self.host_deaf) else { return len };
        let mut list = std::mem::take(&mut shared.room).refill(packet, skip, len);
        let mut done = 0;
        let mut deaf = false;
        if self.outbound.is_none() {
            while done < len {
                match host.send(list.all()) {
                    Ok(0) => break,
                    Ok(count) => {
                        done += count;
                        shared.counters.bytes_out += count as u64;
                        list.advance(count);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => {
                        deaf = true;
                        done = len;
                    }
                }
            }
        }
        if done < len {
            if self.outbound.is_none() {
                self.outbound = shared.pool.take();
            }
            if let Some(ring) = &mut self.outbound {
                for slice in list.all().slices() {
                    let mut at = 0;
                    while at < slice.len() && !ring.is_full() {
                        let Ok(from) = slice.offset(at) else { break };
                        let count = from.copy_to(ring.spare());
                        ring.filled(count);
                        at += count;
                        done += count;
                    }
                }
            }
        }
        shared.room = list.recycle();
        if deaf {
            self.deafen();
        }
        done
    }
}
