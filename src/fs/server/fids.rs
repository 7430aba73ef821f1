//! What the guest holds, by number.
//!
//! What a fid stands for never changes: where the protocol has it become something else (Tlopen, Tlcreate, Txattrcreate,
//! Twalk in place), another value takes its number, if the number still stands for the same. So a request that has
//! looked up a fid has what it needs, whatever others do to the number in the meantime, Tclunk included; and a file is
//! closed when the last of them is done with it.
//!
//! The table is locked for as long as a number is looked up, and nothing is closed under the lock.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fs::tree::{Node, OpenFile};
use crate::fs::wire::{Errno, NO_FID};

use super::xattr::{NewValue, Value};

/// All fids of a guest.
#[derive(Debug)]
pub(super) struct Fids {
    table: Mutex<Table>,
    most: usize,
}

#[derive(Debug, Default)]
struct Table {
    session: Session,
    fids: HashMap<u32, Arc<Fid>>,
}

/// What lies between one Tversion and the next.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Session {
    /// Another one for each session.
    pub epoch: u64,
    /// Most bytes of a message; none before the version has been agreed on.
    pub message: Option<usize>,
}

/// What a fid stands for.
#[derive(Debug)]
pub(super) struct Fid {
    pub node: Arc<Node>,
    /// Whom it was attached for.
    pub uid: u32,
    /// By which name it was found. None for a folder that was found as the root, or by `..`.
    pub place: Option<Arc<Mutex<Place>>>,
    pub state: State,
}

#[derive(Debug)]
pub(super) enum State {
    /// It was found, no more.
    Found,
    Open(OpenFile),
    /// The value of an extended attribute, or the names of all, to be read.
    Value(Value),
    /// An extended attribute that is being written.
    NewValue(Mutex<NewValue>),
}

/// Where a file is, as far as this session's renames have it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub dir: Arc<Node>,
    pub name: Box<[u8]>,
}

impl Place {
    pub fn new(dir: &Arc<Node>, name: &[u8]) -> Option<Arc<Mutex<Self>>> {
        Some(Arc::new(Mutex::new(Self { dir: dir.clone(), name: name.into() })))
    }
}

impl Fid {
    /// Whether it stands for an extended attribute.
    pub fn is_attribute(&self) -> bool {
        matches!(self.state, State::Value(_) | State::NewValue(_))
    }

    /// The file, as it was opened.
    pub fn open(&self) -> Result<&OpenFile, Errno> {
        if let State::Open(file) = &self.state { Ok(file) } else { Err(Errno::BADF) }
    }

    /// The same file, in another state.
    pub fn with(&self, state: State) -> Self {
        Self { node: self.node.clone(), uid: self.uid, place: self.place.clone(), state }
    }

    /// Where it is, if that is known.
    pub fn place(&self) -> Option<Place> {
        self.place.as_deref().map(|place| lock(place).clone())
    }
}

impl Fids {
    pub fn new(most: usize) -> Self {
        Self { table: Mutex::default(), most }
    }

    pub fn session(&self) -> Session {
        lock(&self.table).session
    }

    /// Ends the session: no number stands for anything any more. Messages of the next have at most `message` bytes.
    pub fn reset(&self, message: Option<usize>) {
        let mut table = lock(&self.table);
        let session = Session { epoch: table.session.epoch.wrapping_add(1), message };
        let old = std::mem::replace(&mut *table, Table { session, fids: HashMap::new() });
        drop(table);
        drop(old);
    }

    /// The table, if the session is still `epoch`.
    fn table(&self, epoch: u64) -> Result<MutexGuard<'_, Table>, Errno> {
        let table = lock(&self.table);
        if table.session.epoch == epoch { Ok(table) } else { Err(Errno::BADF) }
    }

    pub fn get(&self, epoch: u64, fid: u32) -> Result<Arc<Fid>, Errno> {
        self.table(epoch)?.fids.get(&fid).cloned().ok_or(Errno::BADF)
    }

    /// Whether `fid` can be given to something: it is free, and there are not too many.
    pub fn check_free(&self, epoch: u64, fid: u32) -> Result<(), Errno> {
        self.free(&*self.table(epoch)?, fid)
    }

    fn free(&self, table: &Table, fid: u32) -> Result<(), Errno> {
        if fid == NO_FID {
            Err(Errno::INVAL)
        } else if table.fids.contains_key(&fid) {
            Err(Errno::BUSY)
        } else if table.fids.len() >= self.most {
            Err(Errno::NFILE)
        } else {
            Ok(())
        }
    }

    pub fn insert(&self, epoch: u64, fid: u32, what: Fid) -> Result<(), Errno> {
        // Made, and in case of an error dropped, while nothing is locked.
        let what = Arc::new(what);
        let mut table = self.table(epoch)?;
        self.free(&table, fid)?;
        table.fids.insert(fid, what.clone());
        drop(table);
        Ok(())
    }

    /// Has `fid` stand for `new`, if it still stands for `old`.
    pub fn replace(&self, epoch: u64, fid: u32, old: &Arc<Fid>, new: Fid) -> Result<(), Errno> {
        let mut new = Arc::new(new);
        let mut table = self.table(epoch)?;
        let replaced = match table.fids.get_mut(&fid) {
            Some(here) if Arc::ptr_eq(here, old) => {
                std::mem::swap(here, &mut new);
                Ok(())
            }
            // Another request has made something else of it.
            Some(_) => Err(Errno::BUSY),
            None => Err(Errno::BADF),
        };
        drop(table);
        replaced
    }

    /// Takes `fid` away.
    pub fn remove(&self, epoch: u64, fid: u32) -> Result<Arc<Fid>, Errno> {
        match self.table(epoch)?.fids.entry(fid) {
            Entry::Occupied(entry) => Ok(entry.remove()),
            Entry::Vacant(_) => Err(Errno::BADF),
        }
    }

    /// What was `name` in the folder `dir` is now at `to`.
    pub fn moved(&self, epoch: u64, dir: &Node, name: &[u8], to: &Place) {
        let dir = dir.qid().path;
        let mut old = Vec::new();
        if let Ok(table) = self.table(epoch) {
            for place in table.fids.values().filter_map(|fid| fid.place.as_deref()) {
                let mut place = lock(place);
                if place.dir.qid().path == dir && *place.name == *name {
                    old.push(std::mem::replace(&mut *place, to.clone()));
                }
            }
        }
        drop(old);
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        lock(&self.table).fids.len()
    }
}

/// Nothing that is done under these locks can fail half-way.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
