//! Reading and writing the buffers of a chain.
//!
//! [`Reader`] and [`Writer`] go through a chain's buffers from first to last byte, wherever the driver has cut them:
//! a header may lie in one buffer, in three, or together with the data. Bytes are copied with `read` and `write`, or
//! not at all: [`Reader::next_slice`] and [`Writer::next_slice`] hand out the memory itself.

use std::io;

use vm_memory::{ByteValued, VolatileSlice};

use super::ram::Piece;

/// A position in a list of pieces of memory.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    pieces: &'a [Piece],
    /// Bytes of the first piece that are behind us.
    skip: usize,
    /// Bytes ahead of us.
    left: usize,
}

impl<'a> Cursor<'a> {
    /// The start of `left` bytes in `pieces`.
    ///
    /// # Safety
    ///
    /// The memory that the pieces were found in lives as long as `'a`.
    pub unsafe fn new(pieces: &'a [Piece], left: usize) -> Self {
        Self { pieces, skip: 0, left }
    }

    /// The next piece of memory, at most `max` bytes.
    fn next(&mut self, max: usize) -> Option<VolatileSlice<'a>> {
        let max = max.min(self.left);
        if max == 0 {
            return None;
        }
        let (piece, rest) = self.pieces.split_first()?;
        // SAFETY: whoever made the cursor answers for the memory.
        let slice: VolatileSlice<'a> = unsafe { piece.slice() };
        let len = max.min(slice.len().checked_sub(self.skip)?);
        let next = slice.subslice(self.skip, len).ok()?;
        self.skip += len;
        if self.skip == piece.len {
            self.pieces = rest;
            self.skip = 0;
        }
        self.left -= len;
        Some(next)
    }

    fn skip(&mut self, count: usize) -> usize {
        let before = self.left;
        let end = before.saturating_sub(count);
        while self.left > end && self.next(self.left - end).is_some() {}
        before - self.left
    }

    /// Cuts off what lies behind the next `at` bytes.
    fn split_off(&mut self, at: usize) -> Option<Self> {
        if at > self.left {
            return None;
        }
        let mut tail = self.clone();
        tail.skip(at);
        self.left = at;
        Some(tail)
    }
}

/// What the device is to read.
#[derive(Clone)]
pub struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    pub(super) fn new(cursor: Cursor<'a>) -> Self {
        Self(cursor)
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.0.left
    }

    /// The next piece of memory, at most `max` bytes; `None` at the end.
    pub fn next_slice(&mut self, max: usize) -> Option<VolatileSlice<'a>> {
        self.0.next(max)
    }

    /// Copies the next bytes out; fewer than `buffer` holds only at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..) {
            let Some(slice) = self.0.next(rest.len()) else { break };
            done += slice.copy_to(rest);
        }
        done
    }

    /// Copies a structure out; `None`, and nothing is consumed, if there are not enough bytes.
    pub fn read_obj<T: ByteValued + Default>(&mut self) -> Option<T> {
        let mut value = T::default();
        if self.remaining() < size_of::<T>() {
            return None;
        }
        self.read(value.as_mut_slice());
        Some(value)
    }

    /// Passes over `count` bytes, or those there are; returns how many.
    pub fn skip(&mut self, count: usize) -> usize {
        self.0.skip(count)
    }

    /// Keeps the next `at` bytes and returns what lies behind them; `None` if there are fewer.
    pub fn split_off(&mut self, at: usize) -> Option<Self> {
        self.0.split_off(at).map(Self)
    }
}

impl io::Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(Reader::read(self, buffer))
    }
}

/// Where the device is to write.
pub struct Writer<'a> {
    cursor: Cursor<'a>,
    len: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(cursor: Cursor<'a>) -> Self {
        Self { len: cursor.left, cursor }
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.cursor.left
    }

    /// Bytes written or passed over: what [`Queue::push`](super::Queue::push) wants to hear, unless a part was
    /// split off.
    pub fn written(&self) -> u32 {
        (self.len - self.cursor.left) as u32
    }

    /// The next piece of memory, at most `max` bytes, which counts as written; `None` at the end.
    pub fn next_slice(&mut self, max: usize) -> Option<VolatileSlice<'a>> {
        self.cursor.next(max)
    }

    /// Copies `bytes` in; fewer only at the end. Returns how many.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..) {
            let Some(slice) = self.cursor.next(rest.len()) else { break };
            slice.copy_from(rest);
            done += slice.len();
        }
        done
    }

    /// Copies a structure in; `None`, and nothing is written, if there is not enough room.
    pub fn write_obj<T: ByteValued>(&mut self, value: T) -> Option<()> {
        if self.remaining() < size_of::<T>() {
            return None;
        }
        self.write(value.as_slice());
        Some(())
    }

    /// Keeps the next `at` bytes and returns what lies behind them; `None` if there are fewer.
    pub fn split_off(&mut self, at: usize) -> Option<Self> {
        let tail = self.cursor.split_off(at)?;
        self.len -= tail.left;
        Some(Self { len: tail.left, cursor: tail })
    }
}

impl io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(Writer::write(self, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
