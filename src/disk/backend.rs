//! What a disk asks of the storage behind it.
//!
//! A [`BlockBackend`] is synchronous, because that is how storage is easiest to write; it is called from several
//! threads at once where it may block, so that requests run side by side. What has to be true of every request (it
//! lies within the disk, it writes only where writing is allowed) has been checked when it arrives.

use std::io;
use std::marker::PhantomData;

use vm_memory::VolatileSlice;

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

/// The guest memory of one request: pieces, in order. The guest may change them at any time.
#[derive(Debug, Clone, Copy)]
pub struct Buffers<'a>(&'a [libc::iovec]);

// SAFETY: it stands for memory that may be accessed from any thread, through volatile slices or by the kernel only.
unsafe impl Send for Buffers<'_> {}
// SAFETY: as above.
unsafe impl Sync for Buffers<'_> {}

impl<'a> Buffers<'a> {
    /// How many bytes there are.
    pub fn total(&self) -> usize {
        self.0.iter().map(|piece| piece.iov_len).sum()
    }

    /// The pieces, as they are given to system calls such as `preadv`.
    pub fn iovecs(&self) -> &'a [libc::iovec] {
        self.0
    }

    /// The pieces, as memory.
    pub fn slices(self) -> impl Iterator<Item = VolatileSlice<'a>> + Clone {
        // SAFETY: whoever collected the pieces answers for each of them as long as `'a` lasts.
        self.0
            .iter()
            .map(|piece| unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) })
    }

    /// Copies `bytes` into the memory, and tells how many fitted.
    pub fn fill_from(self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            let rest = bytes.get(done..).unwrap_or_default();
            let count = rest.len().min(slice.len());
            slice.copy_from(rest.get(..count).unwrap_or_default());
            done += count;
        }
        done
    }

    /// Copies the memory into `bytes`, and tells how many fitted.
    pub fn copy_to(self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.slices() {
            done += slice.copy_to(bytes.get_mut(done..).unwrap_or_default());
        }
        done
    }
}

/// Pieces of memory that [`Buffers`] are made of.
#[derive(Debug, Default)]
pub struct BufferList<'a> {
    pieces: Vec<libc::iovec>,
    memory: PhantomData<VolatileSlice<'a>>,
}

// SAFETY: as for `Buffers`.
unsafe impl Send for BufferList<'_> {}
// SAFETY: as for `Buffers`.
unsafe impl Sync for BufferList<'_> {}

impl<'a> BufferList<'a> {
    /// All of them.
    pub fn all(&self) -> Buffers<'_> {
        Buffers(&self.pieces)
    }

    /// Adds a piece.
    pub fn push(&mut self, slice: VolatileSlice<'a>) {
        let (iov_base, iov_len) = (slice.ptr_guard_mut().as_ptr().cast(), slice.len());
        self.pieces.push(libc::iovec { iov_base, iov_len });
    }

    /// Cuts off the first `count` bytes.
    pub fn advance(&mut self, mut count: usize) {
        let mut whole = 0;
        for piece in &mut self.pieces {
            if count < piece.iov_len {
                // SAFETY: the offset is within the piece.
                piece.iov_base = unsafe { piece.iov_base.byte_add(count) };
                piece.iov_len -= count;
                break;
            }
            count -= piece.iov_len;
            whole += 1;
        }
        self.pieces.drain(..whole);
    }

    /// Takes the first `count` bytes out.
    pub fn take_front(&mut self, count: usize) -> Self {
        let mut front = Self::default();
        let mut left = count;
        for piece in &self.pieces {
            let len = piece.iov_len.min(left);
            if len == 0 {
                break;
            }
            front.pieces.push(libc::iovec { iov_len: len, ..*piece });
            left -= len;
        }
        self.advance(count - left);
        front
    }

    /// Empties the list, for memory of any other life: the room is used again.
    pub fn recycle<'b>(mut self) -> BufferList<'b> {
        self.pieces.clear();
        BufferList { pieces: self.pieces, memory: PhantomData }
    }
}

impl<'a> From<&'a mut [u8]> for BufferList<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self::from_iter([VolatileSlice::from(bytes)])
    }
}

impl<'a> FromIterator<VolatileSlice<'a>> for BufferList<'a> {
    fn from_iter<T: IntoIterator<Item = VolatileSlice<'a>>>(slices: T) -> Self {
        let mut list = Self::default();
        slices.into_iter().for_each(|slice| list.push(slice));
        list
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
