//! Entries that lead to tables: in the header, in the L1 table, in the refcount table.
//!
//! imago writes them at once when it makes a table, but the refcount of the table's cluster only when it writes its
//! refcount blocks. A process that is killed in between leaves a table that counts as free, and whoever opens the
//! image next writes something else over it. So before an entry is written, the refcount is brought into the file.
//! imago's own copy of it says the same by then, so what it writes later changes nothing about it.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::Range;

use super::header::{Header, MAGIC, MOST_L1_BYTES, MOST_REFCOUNT_BYTES, overlap, u32_at, u64_at};
use super::store::{Store, corrupt};
use super::tables::L1_PLACE;

/// Bits of an entry of the refcount table that are a block's place.
const BLOCK_PLACE: u64 = !0x1ff;

/// What a write changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The header, from its first byte on.
    Header,
    /// One entry of the L1 table or the refcount table.
    Entry,
    /// A refcount block.
    Refcounts,
    /// Something that no entry leads to yet, an L2 table, or data.
    Other,
}

/// Where the tables are, now.
#[derive(Debug)]
pub(super) struct Pointers {
    cluster_bits: u32,
    refcount_order: u32,
    l1: Range<u64>,
    refcounts: Range<u64>,
    blocks: HashSet<u64>,
    /// Entries that imago believes to be written.
    owed: BTreeMap<u64, [u8; 8]>,
}

/// What a header says differently from the one before.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub l1: Option<Range<u64>>,
    pub refcounts: Option<Range<u64>>,
}

impl Pointers {
    pub fn new(header: &Header, blocks: HashSet<u64>) -> Self {
        Self {
            cluster_bits: header.cluster_bits,
            refcount_order: header.refcount_order,
            l1: header.l1.clone(),
            refcounts: header.refcounts.clone(),
            blocks,
            owed: BTreeMap::new(),
        }
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// What a write of imago's changes. Those that would destroy a table are refused.
    pub fn target(&self, offset: u64, len: u64) -> io::Result<Target> {
        let range = offset..offset.checked_add(len).ok_or_else(|| corrupt("a table nowhere"))?;
        if offset == 0 && len <= self.cluster() {
            return Ok(Target::Header);
        }
        let entry = len == 8 && offset.is_multiple_of(8);
        let within = |table: &Range<u64>| table.start <= range.start && range.end <= table.end;
        if entry && (within(&self.l1) || within(&self.refcounts)) {
            return Ok(Target::Entry);
        }
        self.check_data(range)?;
        match self.blocks.contains(&offset) {
            true => Ok(Target::Refcounts),
            false => Ok(Target::Other),
        }
    }

    /// Refuses a place that is the header's, or one of the two tables'.
    pub fn check_data(&self, range: Range<u64>) -> io::Result<()> {
        let tables = [&(0..self.cluster()), &self.l1, &self.refcounts];
        match tables.into_iter().any(|table| overlap(table, &range)) {
            true => Err(corrupt("two things are in the same place")),
            false => Ok(()),
        }
    }

    /// Where an entry of the L1 table is.
    pub fn l1_entry(&self, index: u64) -> u64 {
        self.l1.start.saturating_add(index.saturating_mul(8))
    }

    /// An entry is to be written.
    pub fn owe(&mut self, offset: u64, entry: [u8; 8]) {
        self.owed.insert(offset, entry);
    }

    /// An entry that is to be written.
    pub fn owed(&self) -> Option<(u64, [u8; 8])> {
        self.owed.first_key_value().map(|(offset, entry)| (*offset, *entry))
    }

    /// An entry is written.
    pub fn paid(&mut self, offset: u64, entry: [u8; 8]) {
        self.owed.remove(&offset);
        let place = u64::from_be_bytes(entry) & BLOCK_PLACE;
        if self.refcounts.contains(&offset) && place != 0 {
            self.blocks.insert(place);
        }
    }

    /// The clusters that an entry leads to, if their refcounts are elsewhere.
    pub fn led_to(&self, offset: u64, entry: [u8; 8]) -> Option<Range<u64>> {
        let entry = u64::from_be_bytes(entry);
        let place = match self.refcounts.contains(&offset) {
            false => entry & L1_PLACE,
            // A new block may hold its own refcount, and was written with it.
            true => match entry & BLOCK_PLACE {
                place if self.entry_of(place) == Some(offset) => 0,
                place => place,
            },
        };
        (place != 0).then(|| place..place.saturating_add(self.cluster()))
    }

    /// Where the refcount table's entry for a place in the file is.
    fn entry_of(&self, place: u64) -> Option<u64> {
        let index = (place >> self.cluster_bits) >> self.block_bits();
        let offset = self.refcounts.start.checked_add(index.checked_mul(8)?)?;
        self.refcounts.contains(&offset).then_some(offset)
    }

    /// Two to the power of it is the refcounts in a block.
    fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order
    }

    /// Makes sure that no cluster of a range counts as free in the file.
    pub fn claim(&self, store: &Store, range: Range<u64>) -> io::Result<()> {
        for place in range.step_by(self.cluster() as usize) {
            let mut entry = [0; 8];
            let at = self.entry_of(place).ok_or_else(|| corrupt("a table has no refcount"))?;
            store.read_bytes(at, &mut entry)?;
            let block = u64::from_be_bytes(entry) & BLOCK_PLACE;
            if block == 0 {
                return Err(corrupt("a table has no refcount"));
            }
            let index = (place >> self.cluster_bits) & ((1 << self.block_bits()) - 1);
            let bit = index << self.refcount_order;
            // One byte for refcounts that are smaller.
            let mut count = [0; 8];
            let bytes = (1usize << self.refcount_order).div_ceil(8);
            let count = count.get_mut(..bytes).unwrap_or_default();
            let at = block.checked_add(bit / 8).ok_or_else(|| corrupt("refcounts nowhere"))?;
            store.read_bytes(at, count)?;
            let (mask, one) = match self.refcount_order {
                order @ 0..3 => (((1u16 << (1 << order)) - 1) as u8, 1u8),
                _ => (0xff, 1),
            };
            let shift = (bit % 8) as u32;
            if count.iter().any(|byte| byte & (mask << shift) != 0) {
                continue;
            }
            if let Some(last) = count.last_mut() {
                *last |= one << shift;
            }
            store.write_refcount(at, count)?;
        }
        Ok(())
    }

    /// What is elsewhere according to a header that imago writes.
    pub fn moved(&self, header: &[u8]) -> io::Result<Moved> {
        if header.first_chunk() != Some(&MAGIC) {
            return Err(corrupt("something is where its header is"));
        }
        let table = |offset: u64, len: u64| offset..offset.saturating_add(len);
        let l1 = table(u64_at(header, 40), u64::from(u32_at(header, 36)) * 8);
        let clusters = u64::from(u32_at(header, 56));
        let refcounts = table(u64_at(header, 48), clusters << self.cluster_bits);
        if l1.end - l1.start > MOST_L1_BYTES
            || refcounts.end - refcounts.start > MOST_REFCOUNT_BYTES
        {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the image cannot grow further",
            ));
        }
        Ok(Moved {
            l1: (l1 != self.l1).then_some(l1),
            refcounts: (refcounts != self.refcounts).then_some(refcounts),
        })
    }

    /// The header says so now.
    pub fn move_to(&mut self, moved: Moved, store: &Store) -> io::Result<()> {
        if let Some(l1) = moved.l1 {
            self.l1 = l1;
        }
        if let Some(refcounts) = moved.refcounts {
            // Some of the blocks are new as well.
            let mut table = vec![0; (refcounts.end - refcounts.start) as usize];
            store.read_bytes(refcounts.start, &mut table)?;
            let places = table.chunks_exact(8).map(|entry| u64_at(entry, 0) & BLOCK_PLACE);
            self.blocks = places.filter(|place| *place != 0).collect();
            self.refcounts = refcounts;
        }
        Ok(())
    }
}
