//! A descriptor chain (§2.7.5), walked once and checked whole.
//!
//! After the walk nothing of the guest's descriptors is read again: a [`Chain`] is a list of buffers that lie in RAM,
//! the readable ones first. It owns its list and borrows nothing, so a device keeps it as long as its request is
//! under way, on whatever thread.

use virtio_bindings::virtio_ring::VRING_DESC_ALIGN_SIZE;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::buffer::{Reader, Writer};
use super::queue::Error;

/// A piece of a buffer that lies in one region of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub addr: u64,
    pub len: u32,
}

/// A table of descriptors, the queue's or an indirect one.
pub(super) struct Table<'a> {
    pub entries: VolatileSlice<'a>,
    pub size: u16,
}

impl Table<'_> {
    fn get(&self, index: u16) -> Option<Descriptor> {
        let offset = usize::from(index) * size_of::<Descriptor>();
        (index < self.size).then(|| self.entries.read_obj(offset).ok())?
    }
}

/// A request: buffers for the device to read, then buffers for it to write.
#[derive(Debug)]
#[must_use = "a chain stays in flight until it is pushed or put back"]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// How many of `segments` are readable.
    split: usize,
    readable: u32,
    writable: u32,
}

impl Chain {
    /// A chain without buffers yet; `segments` is emptied and used.
    pub(super) fn new(head: u16, mut segments: Vec<Segment>) -> Self {
        segments.clear();
        Self { head, segments, split: 0, readable: 0, writable: 0 }
    }

    pub(super) fn into_segments(self) -> Vec<Segment> {
        self.segments
    }

    /// The index of the first descriptor: different for all chains of a queue that are in flight.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes for the device to read.
    pub fn readable_len(&self) -> u32 {
        self.readable
    }

    /// Bytes for the device to write.
    pub fn writable_len(&self) -> u32 {
        self.writable
    }

    /// What the device is to read.
    pub fn reader<'a>(&'a self, memory: &'a GuestMemoryMmap) -> Reader<'a> {
        let segments = self.segments.get(..self.split).unwrap_or_default();
        Reader::new(memory, segments, self.readable as usize)
    }

    /// Where the device is to write.
    pub fn writer<'a>(&'a self, memory: &'a GuestMemoryMmap) -> Writer<'a> {
        let segments = self.segments.get(self.split..).unwrap_or_default();
        Writer::new(memory, segments, self.writable as usize)
    }

    /// Collects the buffers that start at the head, at most `longest` of them.
    pub(super) fn walk<'a>(
        &mut self,
        mut table: Table<'a>,
        memory: &'a GuestMemoryMmap,
        longest: u16,
        indirect: bool,
    ) -> Result<(), Error> {
        let head = self.head;
        let mut index = head;
        let mut inside = false;
        let mut left = longest;
        loop {
            let size = table.size;
            let entry = table.get(index).ok_or(Error::Index { index, size })?;
            if entry.refers_to_indirect_table() {
                let refuse = |why| Err(Error::Indirect { head, why });
                if !indirect {
                    return refuse("although that feature was not negotiated");
                }
                if inside {
                    return refuse("in an indirect table");
                }
                if entry.has_next() {
                    return refuse("with a next descriptor");
                }
                table = match indirect_table(&entry, memory) {
                    Some(table) => table,
                    None => return refuse("with an impossible table"),
                };
                inside = true;
                index = 0;
                continue;
            }
            left = match left.checked_sub(1) {
                Some(left) => left,
                None => return Err(Error::TooManyDescriptors { head, max: longest }),
            };
            self.add(&entry, memory)?;
            if !entry.has_next() {
                return Ok(());
            }
            index = entry.next();
        }
    }

    fn add(&mut self, entry: &Descriptor, memory: &GuestMemoryMmap) -> Result<(), Error> {
        let head = self.head;
        let (addr, len) = (entry.addr(), entry.len());
        if self.readable.checked_add(self.writable).and_then(|sum| sum.checked_add(len)).is_none() {
            return Err(Error::TooManyBytes { head });
        }
        if entry.is_write_only() {
            self.writable += len;
        } else if self.split < self.segments.len() {
            return Err(Error::Order { head });
        } else {
            self.readable += len;
        }
        let mut at = addr.0;
        for slice in memory.get_slices(addr, len as usize) {
            let outside = || Error::BufferOutsideRam { head, addr: addr.0, len };
            let part = slice.map_err(|_| outside())?.len();
            self.segments.push(Segment { addr: at, len: part as u32 });
            at = at.wrapping_add(part as u64);
        }
        if !entry.is_write_only() {
            self.split = self.segments.len();
        }
        Ok(())
    }
}

/// The table an indirect descriptor points to: a whole number of descriptors, at least one, in RAM.
fn indirect_table<'a>(entry: &Descriptor, memory: &'a GuestMemoryMmap) -> Option<Table<'a>> {
    if entry.len() == 0 || !entry.len().is_multiple_of(VRING_DESC_ALIGN_SIZE) {
        return None;
    }
    // More entries than an index can name are of no use; the walk is bounded in any case.
    let size = u16::try_from(entry.len() / VRING_DESC_ALIGN_SIZE).ok()?;
    let entries = memory.get_slice(GuestAddress(entry.addr().0), entry.len() as usize).ok()?;
    Some(Table { entries, size })
}
