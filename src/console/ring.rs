//! The last output of a guest, in memory.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keeps the last 64 KiB that a guest wrote, for whoever wants to look: a log, a test, a crash report.
///
/// Copies share the buffer, so keep one and give the other to [`Console::ring`](super::Console::ring). It can be
/// read at any time, also when the machine has gone.
#[derive(Clone)]
pub struct RingBuffer(Arc<Mutex<Ring>>);

struct Ring {
    bytes: Box<[u8]>,
    /// How many bytes were ever written; the next goes to this index, modulo the capacity.
    total: u64,
}

impl RingBuffer {
    /// How many bytes are kept.
    pub const CAPACITY: usize = 64 << 10;

    /// An empty buffer.
    pub fn new() -> Self {
        let bytes = vec![0; Self::CAPACITY].into_boxed_slice();
        Self(Arc::new(Mutex::new(Ring { bytes, total: 0 })))
    }

    /// What is kept, oldest byte first.
    pub fn contents(&self) -> Vec<u8> {
        let ring = self.ring();
        let next = (ring.total % Self::CAPACITY as u64) as usize;
        let (newest, oldest) = ring.bytes.split_at(next);
        if ring.total < Self::CAPACITY as u64 { newest.to_vec() } else { [oldest, newest].concat() }
    }

    /// How many bytes were written in all, those included that are no longer kept.
    pub fn total(&self) -> u64 {
        self.ring().total
    }

    /// Adds `bytes`, over the oldest if there is no room.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut ring = self.ring();
        ring.total += bytes.len() as u64;
        let last = &bytes[bytes.len().saturating_sub(Self::CAPACITY)..];
        let start = ((ring.total - last.len() as u64) % Self::CAPACITY as u64) as usize;
        let (tail, head) = last.split_at(last.len().min(Self::CAPACITY - start));
        ring.bytes[start..start + tail.len()].copy_from_slice(tail);
        ring.bytes[..head.len()].copy_from_slice(head);
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for RingBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RingBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingBuffer").field("total", &self.total()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_end_of_what_was_written() {
        let ring = RingBuffer::new();
        assert_eq!(ring.contents(), b"");
        let mut all = Vec::new();
        for (count, len) in
            [1, 100, 65_435, 1, 65_536, 30_000, 40_000, 200_000, 7].iter().enumerate()
        {
            let bytes: Vec<u8> = (0..*len).map(|i: usize| (i * 7 + count) as u8).collect();
            ring.push(&bytes);
            all.extend(bytes);
            let kept = &all[all.len().saturating_sub(RingBuffer::CAPACITY)..];
            assert!(ring.contents() == kept, "after {} bytes", all.len());
            assert_eq!(ring.total(), all.len() as u64);
        }
    }
}
