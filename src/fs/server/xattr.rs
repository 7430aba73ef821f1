//! Extended attributes, whose values are read and written like files.
//!
//! A value is held here from Txattrwalk to Tclunk, and from the first Twrite after Txattrcreate to Tclunk, which is
//! when the attribute is set. All that are held at a time, names included, have so many bytes at most, and one has as
//! many as Linux allows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Call;
use super::fids::{Fid, State};
use crate::fs::tree::{LONGEST_NAME, Node};
use crate::fs::wire::{Errno, Reply};
use crate::memory::Buffers;

/// Most bytes of a value (XATTR_SIZE_MAX), or of the names of all (XATTR_LIST_MAX).
const MOST_VALUE: usize = 64 << 10;

/// Most bytes of all that are held for a guest.
const MOST_IN_ALL: usize = 4 << 20;

/// Flags of Txattrcreate, which are those of setxattr: there must be none of the name, or there must be one.
const CREATE: u32 = 1;
const REPLACE: u32 = 2;

/// Bytes of values that are held.
#[derive(Debug, Clone, Default)]
pub(super) struct Budget(Arc<AtomicUsize>);

/// Some of them, as long as it lives.
#[derive(Debug)]
struct Share {
    of: Budget,
    bytes: usize,
}

impl Budget {
    fn take(&self, bytes: usize) -> Result<Share, Errno> {
        let take = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= MOST_IN_ALL);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(Share { of: self.clone(), bytes }),
            Err(_) => Err(Errno::NOMEM),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A value, or the names of all attributes, to be read.
#[derive(Debug)]
pub(super) struct Value {
    bytes: Vec<u8>,
    _share: Share,
}

impl Value {
    /// What there is from `offset` on.
    pub fn rest(&self, offset: u64) -> &[u8] {
        usize::try_from(offset).ok().and_then(|at| self.bytes.get(at..)).unwrap_or_default()
    }
}

/// An attribute that is to be set.
#[derive(Debug)]
pub(super) struct NewValue {
    name: Box<[u8]>,
    flags: u32,
    /// How many bytes there are to be.
    size: usize,
    bytes: Vec<u8>,
    _share: Share,
}

impl NewValue {
    /// Writes what fits, from the start of the value to its end.
    pub fn write(&mut self, data: Buffers<'_>, offset: u64) -> Result<usize, Errno> {
        let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        let end = start.checked_add(data.total()).filter(|end| *end <= self.size);
        let end = end.ok_or(Errno::INVAL)?;
        if start > self.bytes.len() {
            return Err(Errno::INVAL);
        }
        if end > self.bytes.len() {
            // No more room than was counted.
            self.bytes.reserve_exact(self.size - self.bytes.len());
            self.bytes.resize(end, 0);
        }
        Ok(data.copy_to(self.bytes.get_mut(start..end).unwrap_or_default()))
    }

    /// Sets it. Linux asks for attributes to be taken away by setting one that is there to nothing.
    pub fn store(&self, node: &Node) -> Result<(), Errno> {
        if self.bytes.len() != self.size {
            return Err(Errno::INVAL);
        }
        match (self.size, self.flags) {
            (0, REPLACE) => node.xattr_remove(&self.name)?,
            _ => node.xattr_set(&self.name, &self.bytes, self.flags)?,
        }
        Ok(())
    }
}

impl Call<'_, '_> {
    pub fn xattrwalk(
        &self,
        fid: u32,
        new_fid: u32,
        name: &[u8],
        out: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let from = self.file(fid)?;
        self.server.fids.check_free(self.epoch, new_fid)?;
        let node = &from.node;
        let bytes = if name.is_empty() { node.xattr_list()? } else { node.xattr_get(name)? };
        if bytes.len() > MOST_VALUE {
            return Err(Errno::TOOBIG);
        }
        let share = self.server.attributes.take(bytes.len())?;
        out.u64(bytes.len() as u64);
        let state = State::Value(Value { bytes, _share: share });
        self.server.fids.insert(self.epoch, new_fid, from.with(state))
    }

    pub fn xattrcreate(&self, fid: u32, name: &[u8], size: u64, flags: u32) -> Result<(), Errno> {
        if flags & !(CREATE | REPLACE) != 0 {
            return Err(Errno::INVAL);
        }
        let found = self.found(fid)?;
        let size = usize::try_from(size).ok().filter(|size| *size <= MOST_VALUE);
        let size = size.ok_or(Errno::TOOBIG)?;
        if name.len() > LONGEST_NAME {
            return Err(Errno::RANGE);
        }
        let new = NewValue {
            name: name.into(),
            flags,
            size,
            bytes: Vec::new(),
            _share: self.server.attributes.take(name.len() + size)?,
        };
        let new = Fid { place: None, ..found.with(State::NewValue(new.into())) };
        self.server.fids.replace(self.epoch, fid, &found, new)
    }
}
