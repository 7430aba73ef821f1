//! Guest memory on Linux: transparent huge pages, memfds, and pages that go back to the host.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{Advice, madvise};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap, VolatileSlice};

use super::Backing;

/// A file that is nowhere but in memory.
pub(super) fn memfd(len: u64) -> io::Result<File> {
    let file = File::from(memfd_create("hyperkit-ram", MemfdFlags::CLOEXEC)?);
    file.set_len(len)?;
    Ok(file)
}

/// Tells the host what is special about a region.
pub(super) fn prepare(region: &GuestRegionMmap, huge_pages: bool) -> io::Result<()> {
    if huge_pages {
        // SAFETY: the range is a whole mapping; the advice changes no contents.
        let advised = unsafe {
            madvise(region.as_ptr().cast(), region.len() as usize, Advice::LinuxHugepage)
        };
        if let Err(error) = advised {
            log::debug!("no transparent huge pages for guest memory: {error}");
        }
    }
    Ok(())
}

/// Zeroes a region, by giving its pages back.
pub(super) fn clear(region: &GuestRegionMmap, backing: Backing) -> io::Result<()> {
    let advice = match backing {
        Backing::Anonymous => Advice::LinuxDontNeed,
        Backing::Memfd => Advice::LinuxRemove,
    };
    // SAFETY: the range is a whole mapping, only ever read and written through volatile accesses, which may find
    // zeros at any time: the guest could have written them.
    Ok(unsafe { madvise(region.as_ptr().cast(), region.len() as usize, advice) }?)
}

/// Nothing to do: where a processor's caches need it, KVM does it when it gives a page to a guest, and none is the guest's
/// any more after [`clear`].
pub(super) fn sync_code(_: &VolatileSlice<'_>) {}
