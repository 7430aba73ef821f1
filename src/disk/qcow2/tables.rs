//! Where an image's tables of second rank are: L2 tables and refcount blocks.
//!
//! An image in which two of them share a place, or one lies over the tables that lead to it, has no meaning that
//! could be kept while it is written to. All of them are collected and sorted; the first two tables are
//! bounded (see [`header`](super::header)), and so is this.

use std::collections::HashSet;
use std::fs::File;

use super::header::{Header, Refusal, overlap, read_up_to, refuse, u64_at};

/// Bits of an L1 entry that have a meaning: a place, and that only this entry leads there.
pub(super) const L1_PLACE: u64 = 0x00ff_ffff_ffff_fe00;
pub(super) const L1_COPIED: u64 = 1 << 63;
/// Bits of a refcount table's entry that are no place.
const BLOCK_RESERVED: u64 = 0x1ff;
/// Marks refcount blocks among the places, which are all multiples of 512.
const BLOCK: u64 = 1;
/// Read at a time.
const STEP: usize = 1 << 20;

/// Checks the tables of a file of `len` bytes, and tells where its refcount blocks are. If it is to be written,
/// no table may count as free: whatever is written next could go there.
pub(super) fn check(
    file: &File,
    header: &Header,
    len: u64,
    writable: bool,
) -> Result<HashSet<u64>, Refusal> {
    let mut places = Vec::new();
    let mut blocks = Vec::new();
    for_each(file, header.l1.start, header.l1.end, |index, entry| {
        if entry & !(L1_PLACE | L1_COPIED) != 0 {
            return refuse(format!("entry {index} of its L1 table is {entry:#x}"));
        }
        push(&mut places, entry & L1_PLACE, 0);
        Ok(())
    })?;
    for_each(file, header.refcounts.start, header.refcounts.end, |index, entry| {
        if entry & BLOCK_RESERVED != 0 {
            return refuse(format!("entry {index} of its refcount table is {entry:#x}"));
        }
        push(&mut places, entry, BLOCK);
        blocks.push(entry);
        Ok(())
    })?;

    places.sort_unstable();
    let cluster = header.cluster();
    let end = len.next_multiple_of(cluster);
    let taken = [
        ("header", 0..cluster),
        ("L1 table", header.l1.clone()),
        ("refcount table", header.refcounts.clone()),
    ];
    let mut before = None;
    for &tagged in &places {
        let place = tagged & !BLOCK;
        let name = if tagged & BLOCK == 0 { "an L2 table" } else { "a refcount block" };
        if !place.is_multiple_of(cluster) {
            return refuse(format!("it has {name} at {place:#x}, within a cluster"));
        }
        if place >= len || end - place < cluster {
            return refuse(format!("it has {name} at {place:#x}, but the file ends at {len:#x}"));
        }
        if before == Some(place) {
            return refuse(format!("it has two tables at {place:#x}"));
        }
        let here = place..place + cluster;
        if let Some((other, _)) = taken.iter().find(|(_, other)| overlap(&here, other)) {
            return refuse(format!("it has {name} at {place:#x}, over its {other}"));
        }
        before = Some(place);
    }
    if writable {
        let mut counts = Counts { file, header, blocks: &blocks, block: Vec::new(), index: None };
        for (name, range) in &taken {
            for place in range.clone().step_by(cluster as usize) {
                counts.check(name, place)?;
            }
        }
        for place in &places {
            counts.check("table", place & !BLOCK)?;
        }
    }
    Ok(places.iter().filter(|place| *place & BLOCK != 0).map(|place| place & !BLOCK).collect())
}

/// Refcounts, read block by block: places are asked for in order.
struct Counts<'a> {
    file: &'a File,
    header: &'a Header,
    /// Where each block is.
    blocks: &'a [u64],
    /// The block that was read last, and its number.
    block: Vec<u8>,
    index: Option<u64>,
}

impl Counts<'_> {
    fn check(&mut self, name: &str, place: u64) -> Result<(), Refusal> {
        let Header { cluster_bits, refcount_order, .. } = *self.header;
        let number = place >> cluster_bits;
        let per_block = cluster_bits + 3 - refcount_order;
        let index = number >> per_block;
        if self.index != Some(index) {
            self.block.clear();
            self.block.resize(1 << cluster_bits, 0);
            match usize::try_from(index).ok().and_then(|index| self.blocks.get(index)) {
                None | Some(0) => {}
                Some(&block) => {
                    let there = read_up_to(self.file, block, &mut self.block)?;
                    self.block.get_mut(there..).unwrap_or_default().fill(0);
                }
            }
            self.index = Some(index);
        }
        let bit = (number & ((1 << per_block) - 1)) << refcount_order;
        let bytes = (1usize << refcount_order).div_ceil(8);
        let count = self.block.get((bit / 8) as usize..).and_then(|from| from.get(..bytes));
        let mask = match refcount_order {
            order @ 0..3 => (((1u16 << (1 << order)) - 1) << (bit % 8)) as u8,
            _ => 0xff,
        };
        match count.is_some_and(|count| count.iter().any(|byte| byte & mask != 0)) {
            true => Ok(()),
            false => refuse(format!(
                "according to its refcounts, its {name} at {place:#x} is in free space; \
                 `qemu-img check -r all` repairs it"
            )),
        }
    }
}

fn push(places: &mut Vec<u64>, place: u64, mark: u64) {
    if place != 0 {
        places.push(place | mark);
    }
}

/// Calls `each` with the number of every entry of a table, and the entry.
fn for_each(
    file: &File,
    start: u64,
    end: u64,
    mut each: impl FnMut(u64, u64) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut buffer = vec![0; STEP.min((end - start) as usize)];
    let (mut at, mut index) = (start, 0);
    while at < end {
        let step = buffer.len().min((end - at) as usize);
        let piece = buffer.get_mut(..step).unwrap_or_default();
        let there = read_up_to(file, at, piece)?;
        // Behind the end of the file is nothing but zeros.
        piece.get_mut(there..).unwrap_or_default().fill(0);
        for entry in piece.chunks_exact(8) {
            each(index, u64_at(entry, 0))?;
            index += 1;
        }
        at += step as u64;
    }
    Ok(())
}
