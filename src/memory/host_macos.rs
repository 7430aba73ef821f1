//! Guest memory on macOS.
//!
//! Hypervisor.framework maps what was behind a range of addresses when it was told of it. So the pages must stay the
//! same ones: a new mapping in their place would be the host's alone. That is why a fork must not make them
//! copy-on-write, and why they are zeroed where they are.
//!
//! And because they are the same ones, instruction caches may hold what was in them before, from the life of a guest that
//! boots again in place or from another use of the page. The framework knows nothing of what this process writes there.

use std::ffi::c_void;
use std::fs::File;
use std::io;

use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, VolatileSlice};

use super::Backing;

unsafe extern "C" {
    /// `libkern/OSCacheControl.h`, in libSystem. On Intel processors it has nothing to do.
    fn sys_icache_invalidate(start: *mut c_void, len: usize);
}

/// There is no such thing here.
pub(super) fn memfd(_: u64) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Keeps a region out of this process's children. Of huge pages the host thinks by itself.
pub(super) fn prepare(region: &GuestRegionMmap, _: bool) -> io::Result<()> {
    let (host, len) = (region.as_ptr().cast(), region.len() as usize);
    // SAFETY: the range is a whole mapping; only what a child of this process sees there changes.
    match unsafe { libc::minherit(host, len, libc::VM_INHERIT_NONE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Zeroes a region. The host gets back what it has compressed; what is in memory stays there.
pub(super) fn clear(region: &GuestRegionMmap, _: Backing) -> io::Result<()> {
    let (host, len) = (region.as_ptr(), region.len() as usize);
    // SAFETY: the range is a whole mapping, only ever read and written through volatile accesses, which may find
    // zeros at any time: the guest could have written them.
    if unsafe { libc::madvise(host.cast(), len, libc::MADV_ZERO) } == 0 {
        return Ok(());
    }
    // Before macOS 14.4 there is no such advice.
    let zeros = vec![0; 1 << 20];
    for at in (0..region.len()).step_by(zeros.len()) {
        let part = region.get_slice(MemoryRegionAddress(at), zeros.len().min(len - at as usize));
        part.map_err(io::Error::other)?.copy_from(&zeros);
    }
    Ok(())
}

/// Has processors fetch what is in a piece of memory now, and not what they have cached of it.
pub(super) fn sync_code(code: &VolatileSlice<'_>) {
    // SAFETY: the slice is mapped; what is in it stays as it is.
    unsafe { sys_icache_invalidate(code.ptr_guard_mut().as_ptr().cast(), code.len()) };
}
