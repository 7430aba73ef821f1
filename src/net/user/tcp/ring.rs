//! Bounded memory for bytes on their way.

/// Bytes that one side has sent and the other has not taken.
pub(super) struct Ring {
    bytes: Box<[u8]>,
    head: usize,
    len: usize,
}

impl Ring {
    /// How many bytes a ring can hold.
    pub const SIZE: usize = 512 << 10;

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_full(&self) -> bool {
        self.len >= self.bytes.len()
    }

    /// It is not worth reading more into it now: small pieces cost as much as large ones, and there will be room.
    pub fn is_crowded(&self) -> bool {
        self.len > Self::SIZE / 8 * 7
    }

    /// Free memory, though maybe not all of it.
    pub fn spare(&mut self) -> &mut [u8] {
        let (start, size) = (self.head + self.len, self.bytes.len());
        let range = if start < size { start..size } else { start - size..self.head };
        self.bytes.get_mut(range).unwrap_or_default()
    }

    /// The first `count` bytes of [`spare`](Self::spare) have been filled.
    pub fn filled(&mut self, count: usize) {
        self.len = (self.len + count).min(self.bytes.len());
    }

    /// Bytes from `offset` on, though maybe not all of them.
    pub fn from(&self, offset: usize) -> &[u8] {
        let size = self.bytes.len();
        let left = self.len.saturating_sub(offset);
        let at = self.head + offset.min(self.len);
        let at = if at < size { at } else { at - size };
        self.bytes.get(at..size.min(at + left)).unwrap_or_default()
    }

    /// Forgets the first `count` bytes.
    pub fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        self.head += count;
        if self.head >= self.bytes.len() {
            self.head -= self.bytes.len();
        }
        if self.len == 0 {
            // The next bytes come to where memory is warm.
            self.head = 0;
        }
    }
}

/// Rings for all connections, of which most need none.
pub(super) struct Pool {
    spare: Vec<Ring>,
    /// How many more there may be.
    left: usize,
}

impl Pool {
    /// Rings that are kept for the next in need.
    const KEPT: usize = 2;

    /// Rings of `memory` bytes in all, but one for each direction at least.
    pub fn new(memory: usize) -> Self {
        Self { spare: Vec::new(), left: (memory / Ring::SIZE).max(2) }
    }

    /// Whether a ring can be had.
    pub fn has_any(&self) -> bool {
        self.left > 0
    }

    /// An empty ring.
    pub fn take(&mut self) -> Option<Ring> {
        self.left = self.left.checked_sub(1)?;
        let new = || Ring { bytes: vec![0; Ring::SIZE].into_boxed_slice(), head: 0, len: 0 };
        Some(self.spare.pop().unwrap_or_else(new))
    }

    /// Takes a ring back.
    pub fn give(&mut self, mut ring: Ring) {
        self.left += 1;
        if self.spare.len() < Self::KEPT {
            ring.consume(usize::MAX);
            self.spare.push(ring);
        }
    }
}
