//! Pieces of guest memory that a request, or a frame, is in: what devices hand to their host sides.

use std::marker::PhantomData;

use vm_memory::VolatileSlice;

/// The guest memory of one request: pieces, in order. The guest may change them at any time.
#[derive(Debug, Clone, Copy)]
pub struct Buffers<'a>(&'a [libc::iovec]);

// SAFETY: it stands for memory that may be accessed from any thread, through volatile slices or by the kernel only.
unsafe impl Send for Buffers<'_> {}
// SAFETY: as above.
unsafe impl Sync for Buffers<'_> {}

impl<'a> Buffers<'a> {
    /// Pieces that a system call takes, on Linux and macOS.
    pub(crate) const MOST_PIECES: usize = 1024;

    /// How many bytes there are.
    pub fn total(&self) -> usize {
        self.0.iter().map(|piece| piece.iov_len).sum()
    }

    /// The pieces, as they are given to system calls such as `preadv`.
    pub fn iovecs(&self) -> &'a [libc::iovec] {
        self.0
    }

    /// The pieces that one system call takes: all of them, or the first 1024.
    pub(crate) fn first_iovecs(&self) -> &'a [libc::iovec] {
        self.0.get(..Self::MOST_PIECES).unwrap_or(self.0)
    }

    /// The pieces, as memory.
    pub fn slices(self) -> impl Iterator<Item = VolatileSlice<'a>> + Clone {
        // SAFETY: whoever collected the pieces answers for each of them as long as `'a` lasts.
        self.0
            .iter()
            .map(|piece| unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) })
    }

    /// `len` bytes from `skip` on, as memory: those that there are.
    pub fn part(
        self,
        mut skip: usize,
        mut len: usize,
    ) -> impl Iterator<Item = VolatileSlice<'a>> + Clone {
        self.slices().filter_map(move |slice| {
            let start = skip.min(slice.len());
            let count = len.min(slice.len() - start);
            (skip, len) = (skip - start, len - count);
            slice.subslice(start, count).ok().filter(|part| !part.is_empty())
        })
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

    /// Fills the memory with zeros.
    pub fn zero(self) {
        const ZEROS: [u8; 4096] = [0; 4096];
        for slice in self.slices() {
            for at in (0..slice.len()).step_by(ZEROS.len()) {
                // As many as there is room for.
                if let Ok(rest) = slice.offset(at) {
                    rest.copy_from(&ZEROS);
                }
            }
        }
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
            if left == 0 {
                break;
            }
            let len = piece.iov_len.min(left);
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

    /// The same, and fills it with `len` bytes of `from` from `skip` on.
    pub fn refill<'b>(self, from: Buffers<'b>, skip: usize, len: usize) -> BufferList<'b> {
        let mut list = self.recycle();
        from.part(skip, len).for_each(|slice| list.push(slice));
        list
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
