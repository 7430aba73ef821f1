//! Guest RAM as places in this process.
//!
//! Looking an address up through vm-memory, and once more for each access, costs many times what the access does.
//! RAM does not move as long as the machine lives, so the regions are listed once, and the rings of a queue and the
//! buffers of a chain are looked up, and checked, when they become known. What the guest does there meanwhile is its
//! business: all access stays volatile, through vm-memory's slices.

use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{
    GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress, VolatileSlice,
};

/// The regions of a guest's memory, which it keeps mapped.
pub(super) struct Ram {
    memory: Arc<GuestMemoryMmap>,
    /// As few as there are holes below 4 GiB, and one more: going through them is the fastest way.
    regions: Box<[Region]>,
}

struct Region {
    start: u64,
    whole: Piece,
}

/// A piece of guest RAM. It takes no part in keeping that mapped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    host: NonNull<u8>,
    pub len: usize,
}

// SAFETY: it is an address and a length. The memory is mapped for all threads; whoever makes a slice of it answers for
// its still being there.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl Ram {
    /// All of `memory`.
    pub fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        let region = |region: &<GuestMemoryMmap as GuestMemoryBackend>::R| {
            let len = usize::try_from(region.len()).ok()?;
            let slice = region.get_slice(MemoryRegionAddress(0), len).ok()?;
            let host = NonNull::new(slice.ptr_guard_mut().as_ptr())?;
            Some(Region { start: region.start_addr().0, whole: Piece { host, len } })
        };
        let regions = memory.iter().filter_map(region).collect();
        Self { memory, regions }
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// The first part of `len` bytes at `addr`: all of them, unless the region ends before.
    #[inline]
    pub fn find(&self, addr: u64, len: usize) -> Option<Piece> {
        self.regions.iter().find_map(|region| {
            let offset = usize::try_from(addr.checked_sub(region.start)?).ok()?;
            let left = region.whole.len.checked_sub(offset).filter(|left| *left > 0)?;
            // SAFETY: the offset is inside the region, which is one mapping.
            let host = unsafe { region.whole.host.add(offset) };
            Some(Piece { host, len: len.min(left) })
        })
    }

    /// All of `len` bytes at `addr`, if they are in one region.
    #[inline]
    pub fn find_whole(&self, addr: u64, len: usize) -> Option<Piece> {
        self.find(addr, len).filter(|piece| piece.len == len)
    }
}

impl Piece {
    /// The memory itself.
    ///
    /// # Safety
    ///
    /// The memory of the [`Ram`] that the piece was found in is mapped as long as `'a` lasts.
    #[inline]
    pub unsafe fn slice<'a>(&self) -> VolatileSlice<'a> {
        // SAFETY: all of the piece lies in a region, and the caller answers for that.
        unsafe { VolatileSlice::new(self.host.as_ptr(), self.len) }
    }
}
