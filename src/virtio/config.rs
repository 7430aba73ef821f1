//! The device configuration space (§2.5): a few bytes that driver and device share.
//!
//! It stands apart from the device so that a vCPU reads it without asking the device's thread, and without waiting
//! for whatever that thread is doing. The device changes it from its own thread; each change counts the generation
//! up (§4.2.2.1), so that a driver that read half of the old and half of the new value finds out and reads again.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The configuration space of one device.
#[derive(Debug, Default)]
pub struct ConfigSpace {
    bytes: Mutex<Vec<u8>>,
    /// One bit for each bit in `bytes`, set where the driver may write.
    writable: Vec<u8>,
    generation: AtomicU32,
}

impl ConfigSpace {
    /// A space that the driver only reads.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: Mutex::new(bytes.into()), ..Self::default() }
    }

    /// A space in which the driver may write the bits that are set in `mask`; bytes that `mask` is too short for
    /// are read-only.
    pub fn with_writable(bytes: impl Into<Vec<u8>>, mask: impl Into<Vec<u8>>) -> Self {
        Self { writable: mask.into(), ..Self::new(bytes) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads `data.len()` bytes at `offset`; what lies behind the end reads as zeros.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let bytes = self.lock();
        let from = bytes.iter().skip(offset).copied().chain(std::iter::repeat(0));
        for (to, from) in data.iter_mut().zip(from) {
            *to = from;
        }
    }

    /// Device side: puts `data` at `offset` and tells whether that changed anything. If it did, the driver is to be
    /// told with [`Context::config_changed`](super::Context::config_changed).
    pub fn set(&self, offset: usize, data: &[u8]) -> bool {
        let mut bytes = self.lock();
        let mut changed = false;
        for (to, from) in bytes.iter_mut().skip(offset).zip(data) {
            changed |= to != from;
            *to = *from;
        }
        if changed {
            // Under the lock: a driver cannot see the new bytes with the old generation.
            self.generation.fetch_add(1, Ordering::Release);
        }
        changed
    }

    /// Driver side: puts what it may write of `data` at `offset`, and tells whether it may write any of it.
    pub fn write(&self, offset: usize, data: &[u8]) -> bool {
        let mut bytes = self.lock();
        let mut any = false;
        let to = bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((to, mask), from) in to.zip(data) {
            *to = (*to & !mask) | (from & mask);
            any |= *mask != 0;
        }
        any
    }

    /// Counts the device's changes.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const N: usize>(config: &ConfigSpace, offset: usize) -> [u8; N] {
        let mut data = [0xee; N];
        config.read(offset, &mut data);
        data
    }

    #[test]
    fn reads_of_any_width_and_zeros_behind_the_end() {
        let config = ConfigSpace::new([1, 2, 3, 4, 5]);
        assert_eq!(read(&config, 0), [1, 2]);
        assert_eq!(read(&config, 3), [4, 5, 0, 0]);
        assert_eq!(read(&config, 5), [0; 8]);
        assert_eq!(read(&config, usize::MAX), [0; 1]);
    }

    #[test]
    fn the_generation_counts_changes_and_nothing_else() {
        let config = ConfigSpace::new([1, 2]);
        assert!(!config.set(0, &[1, 2]));
        assert!(!config.set(2, &[9]));
        assert_eq!(config.generation(), 0);
        assert!(config.set(1, &[3, 9]));
        assert_eq!(config.generation(), 1);
        assert_eq!(read(&config, 0), [1, 3, 0]);
    }

    #[test]
    fn the_driver_writes_only_what_it_may() {
        let config = ConfigSpace::with_writable([0; 4], [0, 0x0f]);
        assert!(!config.write(0, &[0xff]));
        assert!(config.write(0, &[0xff; 8]));
        assert_eq!(read(&config, 0), [0, 0x0f, 0, 0]);
        assert!(!config.write(2, &[0xff; 2]));
        assert!(!config.write(usize::MAX, &[0xff; 8]));
        assert_eq!(config.generation(), 0);
    }
}
