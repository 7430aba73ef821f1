//! Giving clusters back, and zeros.
//!
//! imago takes clusters out of its tables and frees them, but leaves what was in them in the file. Here the file
//! shrinks as well: holes are punched once nothing in memory names the clusters, and before they can be used again.

use std::io;
use std::ops::Range;

use imago::ShallowMapping;

use super::super::backend::{BlockBackend, write_plain_zeroes};
use super::{Changes, Qcow2};

/// After so many pieces, others have their turn.
const PIECES: usize = 512;

impl Qcow2 {
    /// Frees the whole clusters of an extent.
    pub(super) fn discard_extent(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.facts.can_free() {
            true => self.free(self.whole_clusters(offset, len), false),
            // It was a hint.
            false => Ok(()),
        }
    }

    /// Makes an extent read as zeros.
    pub(super) fn zero_extent(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if !self.facts.can_free() {
            return write_plain_zeroes(self, offset, len);
        }
        let whole = self.whole_clusters(offset, len);
        if whole.is_empty() {
            return self.zero_part(offset..offset + len);
        }
        self.zero_part(offset..whole.start)?;
        self.zero_part(whole.end..offset + len)?;
        match unmap {
            true => self.free(whole, true),
            false => self.zero_in_place(whole),
        }
    }

    /// The clusters that are within an extent from end to end. Nobody sees what is behind the end of the disk.
    fn whole_clusters(&self, offset: u64, len: u64) -> Range<u64> {
        let cluster = self.facts.cluster;
        let end = match offset + len {
            end if end >= self.size() => self.image.size(),
            end => end / cluster * cluster,
        };
        offset.next_multiple_of(cluster).min(end)..end
    }

    /// Zeros in a part of a cluster.
    fn zero_part(&self, mut range: Range<u64>) -> io::Result<()> {
        while range.start < range.end {
            let left = range.end - range.start;
            let zeros = {
                let _use = self.gate.enter();
                let mapping = self.image.get_shallow_mapping(range.start, left);
                match self.ask(mapping)? {
                    (ShallowMapping::Zero { .. }, len) => Some(len),
                    _ => None,
                }
            };
            match zeros {
                Some(len) => range.start += len,
                None => return write_plain_zeroes(self, range.start, left),
            }
        }
        Ok(())
    }

    /// Zeros in clusters that keep their storage, if they have any.
    fn zero_in_place(&self, mut range: Range<u64>) -> io::Result<()> {
        while range.start < range.end {
            let used = self.gate.enter();
            let mapping = self.image.get_shallow_mapping(range.start, range.end - range.start);
            let (mapping, len) = self.change(mapping)?;
            match mapping {
                ShallowMapping::Raw { offset, writable: true, .. } => {
                    self.store.zero_data(offset, len)?;
                }
                ShallowMapping::Zero { .. } | ShallowMapping::Eof { .. } => {}
                _ => {
                    drop(used);
                    self.free(range.start..range.start + len, true)?;
                }
            }
            range.start += len.max(1);
        }
        Ok(())
    }

    /// Takes whole clusters out of the image. They read as zeros afterwards; unless that is wanted, what is under the
    /// image may be seen where it was before.
    fn free(&self, mut range: Range<u64>, zeros: bool) -> io::Result<()> {
        while range.start < range.end {
            let mut changes = self.changes();
            let mut holes = Holes::default();
            // A table that has to be made must not be where something is that was freed.
            if !self.store.has_l2(range.start, self.facts.cluster)? {
                self.settle(&mut changes)?;
            }
            let done = {
                let _shut = self.gate.shut();
                self.free_some(&mut range, zeros, &mut changes, &mut holes)
            };
            // The tables in the file may still lead there: a crash leaves zeros then, which is as good.
            holes.0.into_iter().for_each(|hole| self.store.punch(hole));
            done?;
        }
        Ok(())
    }

    /// Takes clusters out, from the start of the range, as far as one L2 table reaches.
    fn free_some(
        &self,
        range: &mut Range<u64>,
        zeros: bool,
        changes: &mut Changes,
        holes: &mut Holes,
    ) -> io::Result<()> {
        let table = self.facts.cluster * (self.facts.cluster / 8);
        let first = range.start / table;
        for _ in 0..PIECES {
            let at = range.start;
            if at >= range.end || at / table != first {
                break;
            }
            let mapping = self.image.get_shallow_mapping(at, range.end - at);
            let (mapping, len) = self.change(mapping)?;
            let len = len.clamp(1, range.end - at);
            match mapping {
                ShallowMapping::Raw { offset, writable, .. } => {
                    changes.freed = true;
                    self.take_out(at, len)?;
                    if writable {
                        holes.push(offset, len);
                    }
                }
                ShallowMapping::Special { .. } => {
                    changes.freed = true;
                    self.take_out(at, len)?;
                }
                ShallowMapping::Indirect { .. } if zeros => self.take_out(at, len)?,
                _ => {}
            }
            range.start = at + len;
        }
        Ok(())
    }

    /// Takes clusters out of one L2 table.
    fn take_out(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let image = self.image.inner();
            let (from, count) = match self.facts.backing {
                // SAFETY: the gate is shut, so nobody has a place that imago named before; and whoever has been given
                // a new one has committed it, as that takes `Changes`.
                Some(_) => self.change(unsafe { image.discard_to_zero_unsafe(offset, len) }),
                // SAFETY: as above.
                None => self.change(unsafe { image.discard_to_backing_unsafe(offset, len) }),
            }?;
            let done = (from + count).saturating_sub(offset).min(len);
            if done == 0 {
                return Err(io::Error::other("clusters cannot be freed"));
            }
            offset += done;
            len -= done;
        }
        Ok(())
    }
}

/// Places in the file that nothing names any more, those next to each other together.
#[derive(Debug, Default)]
struct Holes(Vec<Range<u64>>);

impl Holes {
    fn push(&mut self, offset: u64, len: u64) {
        match self.0.last_mut() {
            Some(last) if last.end == offset => last.end += len,
            _ => self.0.push(offset..offset.saturating_add(len)),
        }
    }
}
