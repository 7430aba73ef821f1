//! What a disk asks of the storage behind it.
//!
//! A [`BlockBackend`] is synchronous, because that is how storage is easiest to write; it is called from several
//! threads at once where it may block, so that requests run side by side. What has to be true of every request (it
//! lies within the disk, it writes only where writing is allowed) has been checked when it arrives.

use std::io;

pub use crate::memory::{BufferList, Buffers};

/// Bytes per sector: the unit of sizes and offsets in virtio-blk (§5.2.4), whatever the block size is.
pub const SECTOR: u64 = 512;

/// The storage behind a disk.
///
/// Requests arrive in any order and from any thread, and several may be under way at a time, those that overlap
/// included. Offsets and lengths are in bytes, multiples of [`SECTOR`]; all of a request lies below the
/// [`size`](Self::size) that was last told.
///
/// [`MemoryDisk`](super::MemoryDisk) is the smallest example.
pub trait BlockBackend: Send + Sync {
    /// The size in bytes. What lies behind the last whole sector is not part of the disk.
    fn size(&self) -> u64;

    /// Fills all of `into` from `offset` on.
    fn read(&self, offset: u64, into: Buffers<'_>) -> io::Result<()>;

    /// Writes all of `from` from `offset` on.
    fn write(&self, offset: u64, from: Buffers<'_>) -> io::Result<()>;

    /// Makes every write, discard and zeroing that has returned survive whatever this storage promises to survive.
    fn flush(&self) -> io::Result<()>;

    /// The guest does not need these bytes any more; they may read as anything from now on. Called only if
    /// [`Properties::discard`] is set.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// Makes these bytes read as zeros; with `unmap`, storage for them may be given back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let _ = unmap;
        write_plain_zeroes(self, offset, len)
    }

    /// Changes the size to `size` bytes, a multiple of [`SECTOR`], while requests may be under way.
    fn resize(&self, size: u64) -> io::Result<()> {
        let _ = size;
        Err(io::Error::new(io::ErrorKind::Unsupported, "this storage cannot be resized"))
    }

    /// What does not change while the disk is open.
    fn properties(&self) -> Properties {
        Properties::default()
    }

    /// Whether a request may take long. If not, requests are carried out at once, on the device's own thread.
    fn blocks(&self) -> bool {
        true
    }
}

/// What a guest is told of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties {
    /// Nothing may be written.
    pub read_only: bool,
    /// [`BlockBackend::discard`] gives storage back.
    pub discard: bool,
    /// How storage is best accessed.
    pub topology: Topology,
    /// A name of up to 20 bytes that stays the same for the same storage, for the guest's `/dev/disk/by-id`.
    pub identity: Option<String>,
}

/// The block sizes of a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// The smallest unit the guest can address: a power of two, 512 or more.
    pub logical: u32,
    /// The smallest unit the storage writes without reading first: a power of two, `logical` or more.
    pub physical: u32,
    /// The size that random accesses should be a multiple of.
    pub minimum: u32,
    /// The size that streams should be cut in; 0 if there is none.
    pub optimal: u32,
}

impl Default for Topology {
    fn default() -> Self {
        Self { logical: 512, physical: 512, minimum: 512, optimal: 0 }
    }
}

/// Zeros by writing them, for storage that knows nothing better.
pub(super) fn write_plain_zeroes(
    backend: &(impl BlockBackend + ?Sized),
    mut offset: u64,
    mut len: u64,
) -> io::Result<()> {
    /// Enough to make the calls few, and too little to matter.
    const STEP: usize = 256 << 10;
    let mut zeros = vec![0; STEP.min(usize::try_from(len).unwrap_or(STEP))];
    while len > 0 {
        let step = zeros.len().min(usize::try_from(len).unwrap_or(STEP));
        let list = BufferList::from(zeros.get_mut(..step).unwrap_or_default());
        backend.write(offset, list.all())?;
        offset += step as u64;
        len -= step as u64;
    }
    Ok(())
}
