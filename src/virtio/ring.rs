//! The three parts of a split virtqueue in guest memory (§2.7): descriptor table, available ring, used ring.
//!
//! In here is what the specification says about where things are, in which order they are read and written, and who
//! is notified when. The indices are the device's own copies. What comes from the driver is an index that is at most
//! the size of the queue ahead, and heads that the caller checks.
//!
//! The queue of the virtio-queue crate keeps addresses and looks them up at each access: a request with one buffer
//! takes 1200 instructions there, and 430 here.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use vm_memory::{Bytes, GuestMemoryMmap, VolatileMemory, VolatileSlice};

use super::queue::{Error, Layout};
use super::ram::{Piece, Ram};

// Offsets in the available and used ring (§2.7.6, §2.7.8).
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ENTRIES: usize = 4;

pub(super) const DESCRIPTOR: usize = 16;
const AVAILABLE: usize = size_of::<u16>();
const USED: usize = size_of::<[u32; 2]>();

/// A split virtqueue's rings, and how far the device is with them.
pub(super) struct Rings {
    ram: Ram,
    descriptors: Piece,
    driver: Piece,
    device: Piece,
    size: u16,
    event_idx: bool,
    /// The available index, as it was last read.
    available: u16,
    next_available: u16,
    next_used: u16,
    /// `next_used` when the driver was last considered for an interrupt.
    considered: u16,
}

impl Rings {
    /// The rings at `layout`, if they can be there. `max` is the size that the device offered.
    pub fn new(
        layout: Layout,
        max: u16,
        event_idx: bool,
        memory: Arc<GuestMemoryMmap>,
    ) -> Result<Self, Error> {
        let size = match u16::try_from(layout.size) {
            Ok(size) if size.is_power_of_two() && size <= max => size,
            _ => return Err(Error::Size { size: layout.size, max }),
        };
        let n = usize::from(size);
        let ram = Ram::new(memory);
        let find = |part: &'static str, addr: u64, align: u64, len: usize| {
            if addr == 0 {
                return Err(Error::NoAddress { part });
            }
            if !addr.is_multiple_of(align) {
                return Err(Error::Misaligned { part, addr, align });
            }
            ram.find_whole(addr, len).ok_or(Error::RingOutsideRam { part, addr, len })
        };
        // Each ring ends with the index at which its reader wants to be notified.
        let ring = |entry| ENTRIES + entry * n + size_of::<u16>();
        let descriptors = find("descriptor table", layout.descriptors, 16, DESCRIPTOR * n)?;
        let driver = find("available ring", layout.driver, 2, ring(AVAILABLE))?;
        let device = find("used ring", layout.device, 4, ring(USED))?;
        Ok(Self {
            ram,
            descriptors,
            driver,
            device,
            size,
            event_idx,
            available: 0,
            next_available: 0,
            next_used: 0,
            considered: 0,
        })
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// The descriptor table.
    #[inline]
    pub fn descriptors(&self) -> VolatileSlice<'_> {
        // SAFETY: it was found in `self.ram`.
        unsafe { self.descriptors.slice() }
    }

    #[inline]
    fn driver(&self) -> VolatileSlice<'_> {
        // SAFETY: it was found in `self.ram`.
        unsafe { self.driver.slice() }
    }

    #[inline]
    fn device(&self) -> VolatileSlice<'_> {
        // SAFETY: it was found in `self.ram`.
        unsafe { self.device.slice() }
    }

    /// The head of the next available chain, unchecked; it counts as taken.
    #[inline]
    pub fn take(&mut self) -> Result<Option<u16>, Error> {
        if self.next_available == self.available && !self.look()? {
            return Ok(None);
        }
        let entry = ENTRIES + AVAILABLE * self.slot(self.next_available);
        // Cannot fail: the slot is in the ring. Nor can what follows in this file.
        let head =
            self.driver().get_ref::<u16>(entry).map_or(0, |entry| u16::from_le(entry.load()));
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(head))
    }

    /// Undoes a [`take`](Self::take).
    pub fn untake(&mut self) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    /// Reads the available index, and tells whether it has moved.
    fn look(&mut self) -> Result<bool, Error> {
        self.available = load(&self.driver(), INDEX);
        // The entries and descriptors are read after the index that covers them.
        fence(Ordering::Acquire);
        match self.available.wrapping_sub(self.next_available) {
            0 => Ok(false),
            ahead if ahead <= self.size => Ok(true),
            _ => Err(Error::AvailableIndex { size: self.size }),
        }
    }

    /// Asks the driver to kick from now on, and tells whether chains have become available meanwhile: for those it
    /// may not have kicked.
    pub fn enable_kicks(&mut self) -> Result<bool, Error> {
        if self.event_idx {
            let event = ENTRIES + USED * usize::from(self.size);
            store(&self.device(), event, self.next_available);
        } else {
            store(&self.device(), FLAGS, 0);
        }
        // The driver writes its index, then looks at this; here it is the other way round. Either it sees this, or
        // its index is seen here.
        fence(Ordering::SeqCst);
        self.look()
    }

    /// Asks the driver not to kick. With VIRTIO_F_EVENT_IDX there is no need to: it kicks once for each time that it
    /// is asked to.
    pub fn disable_kicks(&mut self) {
        if !self.event_idx {
            store(&self.device(), FLAGS, VRING_USED_F_NO_NOTIFY as u16);
        }
    }

    /// Puts a chain into the used ring.
    #[inline]
    pub fn put_used(&mut self, head: u16, written: u32) {
        self.fill_used(head, written);
        // The entry, and the buffers, are written before the index that covers them.
        fence(Ordering::Release);
        store(&self.device(), INDEX, self.next_used);
    }

    /// The same, but the driver does not see it before the next [`put_used`](Self::put_used).
    #[inline]
    pub fn fill_used(&mut self, head: u16, written: u32) {
        let entry = ENTRIES + USED * self.slot(self.next_used);
        if let Ok(entry) = self.device().get_ref(entry) {
            entry.store([u32::from(head).to_le(), written.to_le()]);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Whether the driver wants an interrupt for what was used since the last call.
    pub fn wants_interrupt(&mut self) -> bool {
        // The driver asks for an interrupt, then looks at the used index; here it is the other way round.
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.considered, self.next_used);
        if !self.event_idx {
            return load(&self.driver(), FLAGS) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0;
        }
        let event = load(&self.driver(), ENTRIES + AVAILABLE * usize::from(self.size));
        // §2.7.7.2: whether the index has moved past the one that the driver waits for.
        let new = self.next_used;
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Where an index is in its ring.
    #[inline]
    fn slot(&self, index: u16) -> usize {
        // The size is a power of two.
        usize::from(index & (self.size - 1))
    }
}

/// Reads an index or flags; the driver may be writing them.
#[inline]
fn load(part: &VolatileSlice<'_>, offset: usize) -> u16 {
    part.load(offset, Ordering::Relaxed).map_or(0, u16::from_le)
}

/// Writes an index or flags; the driver may be reading them.
#[inline]
fn store(part: &VolatileSlice<'_>, offset: usize, value: u16) {
    let _ = part.store(value.to_le(), offset, Ordering::Relaxed);
}
