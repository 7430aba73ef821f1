//! A descriptor chain (§2.7.5), walked once and checked whole.
//!
//! After the walk nothing of the guest's descriptors is read again: a [`Chain`] is a list of buffers that lie in RAM,
//! the readable ones first. It owns what it needs and borrows nothing, so a device keeps it as long as its request is
//! under way, on whatever thread.

use std::sync::Arc;

use virtio_bindings::virtio_ring::VRING_DESC_ALIGN_SIZE;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemoryMmap, VolatileMemory, VolatileSlice};

use super::buffer::{Cursor, Reader, Writer};
use super::queue::Error;
use super::ram::{Piece, Ram};

/// A request: buffers for the device to read, then buffers for it to write.
#[derive(Debug)]
#[must_use = "a chain stays in flight until it is pushed or put back"]
pub struct Chain {
    head: u16,
    buffers: Buffers,
    /// Keeps the memory that the buffers are in.
    _memory: Arc<GuestMemoryMmap>,
}

#[derive(Debug, Default)]
struct Buffers {
    pieces: Vec<Piece>,
    /// How many of `pieces` are readable.
    split: u32,
    readable: u32,
    writable: u32,
}

/// What a walk has to keep to.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Most descriptors in a chain.
    pub longest: u16,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
}

impl Chain {
    /// Collects the buffers of the chain that starts at `head` of `table`; in `room`, so as not to allocate.
    pub(super) fn walk(
        head: u16,
        table: VolatileSlice<'_>,
        limits: Limits,
        ram: &Ram,
        mut room: Vec<Piece>,
    ) -> Result<Self, Error> {
        room.clear();
        let mut buffers = Buffers { pieces: room, ..Buffers::default() };
        let mut table = Table(table);
        let mut index = head;
        let mut left = limits.longest;
        let mut inside = false;
        loop {
            let entry = table.get(index)?;
            if entry.refers_to_indirect_table() {
                table = match (limits.indirect, inside, entry.has_next()) {
                    (true, false, false) => Table::find(head, &entry, ram)?,
                    (false, ..) => return Err(Error::Indirect { head, why: "not negotiated" }),
                    (_, true, _) => return Err(Error::Indirect { head, why: "in another one" }),
                    _ => return Err(Error::Indirect { head, why: "with a next descriptor" }),
                };
                inside = true;
                index = 0;
                continue;
            }
            left = match left.checked_sub(1) {
                Some(left) => left,
                None => return Err(Error::TooManyDescriptors { head, max: limits.longest }),
            };
            buffers.add(head, &entry, ram)?;
            if !entry.has_next() {
                return Ok(Self { head, buffers, _memory: ram.memory().clone() });
            }
            index = entry.next();
        }
    }

    /// Gives the room back that [`walk`](Self::walk) was given.
    pub(super) fn into_room(self) -> Vec<Piece> {
        self.buffers.pieces
    }

    /// The index of the first descriptor: different for all chains of a queue that are in flight.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes for the device to read.
    pub fn readable_len(&self) -> u32 {
        self.buffers.readable
    }

    /// Bytes for the device to write.
    pub fn writable_len(&self) -> u32 {
        self.buffers.writable
    }

    /// What the device is to read.
    pub fn reader(&self) -> Reader<'_> {
        let Buffers { pieces, split, readable, .. } = &self.buffers;
        Reader::new(self.cursor(pieces.get(..*split as usize), *readable))
    }

    /// Where the device is to write.
    pub fn writer(&self) -> Writer<'_> {
        let Buffers { pieces, split, writable, .. } = &self.buffers;
        Writer::new(self.cursor(pieces.get(*split as usize..), *writable))
    }

    fn cursor<'a>(&'a self, pieces: Option<&'a [Piece]>, len: u32) -> Cursor<'a> {
        // SAFETY: the pieces were found in `self._memory`.
        unsafe { Cursor::new(pieces.unwrap_or_default(), len as usize) }
    }
}

impl Buffers {
    /// Adds the buffer that `entry` describes.
    fn add(&mut self, head: u16, entry: &Descriptor, ram: &Ram) -> Result<(), Error> {
        let (addr, len) = (entry.addr().0, entry.len());
        // Both sums stay in bounds if their sum does.
        if self.readable.checked_add(self.writable).is_none_or(|sum| sum.checked_add(len).is_none())
        {
            return Err(Error::TooManyBytes { head });
        }
        let mut left = len as usize;
        let mut at = addr;
        while left > 0 {
            let outside = || Error::BufferOutsideRam { head, addr, len };
            let piece = ram.find(at, left).ok_or_else(outside)?;
            left -= piece.len;
            // Behind the last region of RAM the next lookup fails, wrapped or not.
            at = at.wrapping_add(piece.len as u64);
            self.pieces.push(piece);
        }
        if entry.is_write_only() {
            self.writable += len;
        } else if self.writable > 0 {
            return Err(Error::Order { head });
        } else {
            self.readable += len;
            self.split = self.pieces.len() as u32;
        }
        Ok(())
    }
}

/// A table of descriptors, the queue's or an indirect one.
struct Table<'a>(VolatileSlice<'a>);

impl<'a> Table<'a> {
    /// The table that an indirect descriptor points to: a whole number of descriptors, at least one, in RAM.
    fn find(head: u16, entry: &Descriptor, ram: &'a Ram) -> Result<Self, Error> {
        let len = entry.len();
        if len == 0 || !len.is_multiple_of(VRING_DESC_ALIGN_SIZE) {
            return Err(Error::Indirect { head, why: "of an impossible length" });
        }
        match ram.find_whole(entry.addr().0, len as usize) {
            // SAFETY: it was found in `ram`, which lives as long as the table.
            Some(piece) => Ok(Self(unsafe { piece.slice() })),
            None => Err(Error::Indirect { head, why: "outside of RAM" }),
        }
    }

    fn get(&self, index: u16) -> Result<Descriptor, Error> {
        let Self(entries) = self;
        match entries.get_ref(usize::from(index) * size_of::<Descriptor>()) {
            Ok(entry) => Ok(entry.load()),
            Err(_) => Err(Error::Index { index, size: entries.len() / size_of::<Descriptor>() }),
        }
    }
}
