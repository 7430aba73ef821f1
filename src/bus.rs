//! Address to device, for port I/O and MMIO.
//!
//! A [`Bus`] is built once, before the first vCPU runs, and never changes: looking an address up takes no lock
//! and writes no shared memory. Each vCPU looks through its own [`BusView`], which remembers the last device it
//! reached, because guests touch the same device many times in a row.
//!
//! Devices take `&self` and lock inside, as finely as they like. What a register write means for the whole
//! machine (power off, reset) is returned as [`Flow`], and acted upon by the exit loop once the device has let go
//! of its locks.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::accel::Exit;

/// What a register write asks of the exit loop: go on, or leave `run` with this exit.
pub type Flow = ControlFlow<Exit>;

/// A device with registers that a vCPU reads and writes.
///
/// `offset` counts from the start of the claimed range, and the whole access lies within it; `data` is 1 to 8
/// bytes long and little-endian. Both are the guest's to choose: an access a device does not expect must be
/// answered (reads as zeros or ones, writes ignored), never panic.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset`. `data` comes in as all ones.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> Flow;

    /// Puts the registers back to what they are at power-on. No vCPU runs while it is called.
    fn reset(&self) {}
}

/// Why a device could not be put on the bus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another device has part of the range.
    #[error(
        "cannot put {device} at {start:#x}..={last:#x}: {other} has {other_start:#x}..={other_last:#x}"
    )]
    Overlap {
        /// The device that was refused.
        device: String,
        /// Its first address.
        start: u64,
        /// Its last address.
        last: u64,
        /// The device that is there.
        other: String,
        /// The first address of the device that is there.
        other_start: u64,
        /// The last address of the device that is there.
        other_last: u64,
    },
    /// The range is empty or passes the end of the address space.
    #[error("cannot put {device} at {start:#x}: a range of {len} bytes does not exist there")]
    BadRange {
        /// The device that was refused.
        device: String,
        /// Its first address.
        start: u64,
        /// How many bytes it asked for.
        len: u64,
    },
}

struct Slot {
    last: u64,
    device: Arc<dyn BusDevice>,
    name: String,
}

/// The devices of one address space, sorted by address.
#[derive(Default)]
pub struct Bus {
    /// First address of each slot, ascending; apart from the slots so that a search touches few cache lines.
    starts: Vec<u64>,
    slots: Vec<Slot>,
}

impl Bus {
    /// A bus with nothing on it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `len` addresses from `start` to `device`. `name` appears in errors.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        start: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), Error> {
        let name = name.into();
        let Some(last) = len.checked_sub(1).and_then(|n| start.checked_add(n)) else {
            return Err(Error::BadRange { device: name, start, len });
        };
        let at = self.starts.partition_point(|&s| s < start);
        let before = at.checked_sub(1).filter(|&i| self.slots[i].last >= start);
        let after = Some(at).filter(|&i| i < self.starts.len() && self.starts[i] <= last);
        if let Some(i) = before.or(after) {
            return Err(Error::Overlap {
                device: name,
                start,
                last,
                other: self.slots[i].name.clone(),
                other_start: self.starts[i],
                other_last: self.slots[i].last,
            });
        }
        self.starts.insert(at, start);
        self.slots.insert(at, Slot { last, device, name });
        Ok(())
    }

    /// Every device once per range it has, in address order.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<dyn BusDevice>> {
        self.slots.iter().map(|slot| &slot.device)
    }

    /// The slot that holds all of `addr..addr + len`.
    #[inline]
    fn find(&self, addr: u64, len: usize) -> Option<usize> {
        let at = self.starts.partition_point(|&s| s <= addr).checked_sub(1)?;
        let last = self.slots.get(at)?.last;
        (addr <= last && last - addr >= (len as u64).saturating_sub(1)).then_some(at)
    }
}

/// One vCPU's way into a [`Bus`].
pub struct BusView {
    bus: Arc<Bus>,
    /// The slot that was reached last, its first address, and how far its last one is from there.
    hit: usize,
    start: u64,
    reach: u64,
}

impl BusView {
    /// A view of `bus`.
    pub fn new(bus: Arc<Bus>) -> Self {
        let mut view = Self { bus, hit: 0, start: 0, reach: 0 };
        view.remember(0);
        view
    }

    fn remember(&mut self, at: usize) {
        if let (Some(&start), Some(slot)) = (self.bus.starts.get(at), self.bus.slots.get(at)) {
            (self.hit, self.start, self.reach) = (at, start, slot.last - start);
        }
    }

    /// The device at `addr` for an access of `len` bytes, 1 to 8, and the offset in its range.
    #[inline]
    fn locate(&mut self, addr: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let mut offset = addr.wrapping_sub(self.start);
        let beyond = (len as u64).saturating_sub(1);
        if offset > self.reach || self.reach - offset < beyond {
            self.remember(self.bus.find(addr, len)?);
            offset = addr - self.start;
        }
        Some((&*self.bus.slots.get(self.hit)?.device, offset))
    }

    /// Reads from the device at `addr`; an address that nobody has reads as all ones.
    #[inline]
    pub fn read(&mut self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.locate(addr, data.len()) {
            device.read(offset, data);
        }
    }

    /// Writes to the device at `addr`; a write to an address that nobody has goes nowhere.
    #[inline]
    pub fn write(&mut self, addr: u64, data: &[u8]) -> Flow {
        match self.locate(addr, data.len()) {
            Some((device, offset)) => device.write(offset, data),
            None => Flow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) -> Flow {
            self.0.lock().unwrap().push((offset, data.to_vec()));
            Flow::Continue(())
        }
    }

    fn bus(ranges: &[(u64, u64)]) -> (BusView, Vec<Arc<Recorder>>) {
        let mut bus = Bus::new();
        let devices: Vec<_> = ranges
            .iter()
            .map(|&(start, len)| {
                let device = Arc::new(Recorder::default());
                bus.insert(format!("dev{start:x}"), start, len, device.clone()).unwrap();
                device
            })
            .collect();
        (BusView::new(Arc::new(bus)), devices)
    }

    fn read_u32(view: &mut BusView, addr: u64) -> u32 {
        let mut data = [0; 4];
        view.read(addr, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn accesses_reach_the_device_that_claims_them() {
        let (mut view, devices) = bus(&[(0x1000, 0x10), (0x3f8, 8), (0x2000, 4)]);
        assert_eq!(read_u32(&mut view, 0x1004), 0x0404_0404);
        assert_eq!(read_u32(&mut view, 0x3fc), 0x0404_0404);
        assert!(view.write(0x2000, &[1, 2, 3, 4]).is_continue());
        assert_eq!(*devices[2].0.lock().unwrap(), [(0, vec![1, 2, 3, 4])]);
        assert!(devices[0].0.lock().unwrap().is_empty());
    }

    #[test]
    fn unclaimed_addresses_read_as_ones_and_swallow_writes() {
        let (mut view, devices) = bus(&[(0x1000, 0x10)]);
        for addr in [0, 0xfff, 0x1010, u64::MAX] {
            let mut data = [0; 1];
            view.read(addr, &mut data);
            assert_eq!(data, [0xff], "at {addr:#x}");
            assert!(view.write(addr, &[0]).is_continue());
        }
        assert!(devices[0].0.lock().unwrap().is_empty());
    }

    #[test]
    fn an_access_that_leaves_the_range_is_unclaimed() {
        let (mut view, _) = bus(&[(0x1000, 0x10), (u64::MAX - 3, 4)]);
        assert_eq!(read_u32(&mut view, 0x100c), 0x0c0c_0c0c);
        assert_eq!(read_u32(&mut view, 0x100d), u32::MAX);
        assert_eq!(read_u32(&mut view, 0xffe), u32::MAX);
        assert_eq!(read_u32(&mut view, u64::MAX - 3), 0);
        assert_eq!(read_u32(&mut view, u64::MAX - 2), u32::MAX);
    }

    #[test]
    fn overlaps_and_impossible_ranges_are_refused() {
        let mut bus = Bus::new();
        let device = || Arc::new(Recorder::default());
        bus.insert("first", 0x100, 0x10, device()).unwrap();
        for (start, len) in [(0x100, 0x10), (0xff, 2), (0x10f, 1), (0, 0x1000), (0x104, 2)] {
            let error = bus.insert("second", start, len, device()).unwrap_err().to_string();
            assert!(error.contains("second") && error.contains("first"), "{error}");
        }
        for (start, len) in [(0, 0), (u64::MAX, 2)] {
            assert!(matches!(bus.insert("odd", start, len, device()), Err(Error::BadRange { .. })));
        }
        bus.insert("left", 0xff, 1, device()).unwrap();
        bus.insert("right", 0x110, 1, device()).unwrap();
    }
}
