//! The guest's data: read and written where imago says it is.

use std::io;

use imago::{Mapping, PreparedDataMapping, ShallowMapping};

use super::super::backend::{BufferList, Buffers};
use super::store::Store;
use super::{Changes, Qcow2};

/// Compressed data is unpacked in pieces of about this size.
const UNPACK: u64 = 1 << 20;

/// Where a part of the disk is read from.
pub(super) enum Place<'a> {
    /// From a file, from an offset on.
    File(&'a Store, u64),
    /// Nowhere: it is zeros.
    Zeros,
    /// It has to be unpacked.
    Packed,
}

impl Qcow2 {
    /// Where the disk is read from at `offset`, and how many bytes from there on, at most `most`.
    fn place(&self, offset: u64, most: u64) -> io::Result<(Place<'_>, u64)> {
        let (mapping, len) = self.ask(self.image.get_mapping(offset, most))?;
        Ok(match mapping {
            Mapping::Raw { storage, offset, .. } => (Place::File(storage, offset), len),
            Mapping::Zero { .. } => (Place::Zeros, len),
            Mapping::Special { .. } => (Place::Packed, len),
            _ => (Place::Zeros, most),
        })
    }

    /// Reads all of `into`.
    pub(super) fn read_data(&self, mut offset: u64, into: Buffers<'_>) -> io::Result<()> {
        let _use = self.gate.enter();
        let mut left = into.total() as u64;
        let mut rest: Option<BufferList<'_>> = None;
        while left > 0 {
            let (place, len) = self.place(offset, left)?;
            if rest.is_none() && len >= left {
                return self.read_from(&place, offset, into);
            }
            let list = rest.get_or_insert_with(|| into.slices().collect());
            let len = len.min(left);
            self.read_from(&place, offset, list.take_front(len as usize).all())?;
            offset += len;
            left -= len;
        }
        Ok(())
    }

    fn read_from(&self, place: &Place<'_>, offset: u64, into: Buffers<'_>) -> io::Result<()> {
        match place {
            Place::File(store, at) => store.read_at(*at, into),
            Place::Zeros => {
                into.zero();
                Ok(())
            }
            Place::Packed => self.unpack(offset, into),
        }
    }

    /// Reads compressed data, through a buffer: the guest must not change what is still being unpacked.
    fn unpack(&self, mut offset: u64, into: Buffers<'_>) -> io::Result<()> {
        let mut rest: BufferList<'_> = into.slices().collect();
        let mut left = into.total() as u64;
        let mut buffer = Vec::new();
        while left > 0 {
            // Up to the end of a cluster, which is unpacked as a whole.
            let end = (offset + UNPACK).next_multiple_of(self.facts.cluster);
            let len = (end - offset).min(left);
            buffer.resize(len as usize, 0);
            self.ask(self.image.read(buffer.as_mut_slice(), offset))?;
            rest.take_front(len as usize).all().fill_from(&buffer);
            offset += len;
            left -= len;
        }
        Ok(())
    }

    /// Writes all of `from`.
    pub(super) fn write_data(&self, offset: u64, from: Buffers<'_>) -> io::Result<()> {
        let total = from.total() as u64;
        let mut done = self.write_in_place(offset, from)?;
        if done == total {
            return Ok(());
        }
        let mut rest: BufferList<'_> = from.slices().collect();
        rest.advance(done as usize);
        let mut changes = self.changes();
        while done < total {
            let prepared = self.prepare(offset + done, total - done, &mut changes)?;
            let len = prepared.length().min(total - done);
            self.store.write_data(prepared.offset(), rest.take_front(len as usize).all())?;
            self.change(self.image.commit_data_mapping(prepared))?;
            done += len;
        }
        Ok(())
    }

    /// Writes as far as there are clusters which may be written, and tells how far that is.
    fn write_in_place(&self, offset: u64, from: Buffers<'_>) -> io::Result<u64> {
        let total = from.total() as u64;
        let mut rest: Option<BufferList<'_>> = None;
        let mut done = 0;
        let _use = self.gate.enter();
        while done < total {
            let mapping = self.image.get_shallow_mapping(offset + done, total - done);
            let (ShallowMapping::Raw { offset: at, writable: true, .. }, len) =
                self.change(mapping)?
            else {
                break;
            };
            let len = len.min(total - done);
            if len == total {
                self.store.write_data(at, from)?;
            } else {
                let list = rest.get_or_insert_with(|| from.slices().collect());
                self.store.write_data(at, list.take_front(len as usize).all())?;
            }
            done += len;
        }
        Ok(done)
    }

    /// Has a place for data allocated, for up to `most` bytes from `offset` on.
    fn prepare(
        &self,
        offset: u64,
        most: u64,
        changes: &mut Changes,
    ) -> io::Result<PreparedDataMapping<'_, Store>> {
        self.settle(changes)?;
        let _shut = self.gate.shut();
        let (mapping, len) = self.change(self.image.get_shallow_mapping(offset, most))?;
        let mut len = len.min(most);
        match mapping {
            // What was there is freed once the new place is committed.
            ShallowMapping::Raw { writable: false, .. } | ShallowMapping::Special { .. } => {
                changes.freed = true;
            }
            ShallowMapping::Zero { explicit: true, .. } => {
                changes.freed = self.facts.has_snapshots;
                // A cluster that is kept for such zeros is used again if there is one. For more than one cluster
                // imago would rather free it than leave the others apart.
                let cluster = self.facts.cluster;
                len = len.min(cluster - offset % cluster);
            }
            _ => {}
        }
        self.change(self.image.prepare_data_mapping(offset, len, true))
    }
}
