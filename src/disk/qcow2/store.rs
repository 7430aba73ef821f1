//! The file of an image, as imago reads and writes it.
//!
//! What comes through here is metadata, and what imago copies from one cluster to another; the guest's own data goes
//! past it (see [`super`]). imago writes its tables in an order that survives neither the end of the process
//! nor that of the host, so three things are added:
//!
//! * Before an entry leads to a table, the refcount of the table's cluster is in the file ([`Pointers`]).
//! * If the disk has a flush policy, the host has stored refcounts before it is given what relies on them, and the
//!   other way round when clusters are freed: see [`Store::order`].
//! * An entry that could not be written is written again before a flush succeeds.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use vm_memory::VolatileSlice;

use super::super::backend::{BlockBackend, BufferList, Buffers, write_plain_zeroes};
use super::super::raw::RawFile;
use super::header::Header;
use super::pointers::{Pointers, Target};
use super::tables::L1_COPIED;
#[cfg(test)]
use super::tests::probe::{Event, Probe};
use super::wait::may_wait;
use crate::sys::file::{self, Flush};

/// A file that imago has, and that its owner has too.
#[derive(Debug, Clone)]
pub(super) struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: RawFile,
    /// Where the file ends. Only ever grows.
    size: AtomicU64,
    /// Of an image that may be written.
    pointers: Option<Mutex<Pointers>>,
    /// The file's header could not be written: what it says and what imago believes may differ.
    broken: AtomicBool,
    marks: Marks,
    helper: CommonStorageHelper,
    #[cfg(test)]
    probe: Probe,
}

/// When metadata was written last, and how much of it the host has stored: numbers that grow with each write.
#[derive(Debug, Default)]
struct Marks {
    now: AtomicU64,
    refcounts: AtomicU64,
    tables: AtomicU64,
    stored: AtomicU64,
}

impl Store {
    /// For an image that is only read, or a raw backing file.
    pub fn read_only(file: RawFile) -> Self {
        Self::new(file, None)
    }

    /// For an image that passed all checks.
    pub fn writable(file: RawFile, header: &Header, blocks: HashSet<u64>) -> Self {
        Self::new(file, Some(Mutex::new(Pointers::new(header, blocks))))
    }

    fn new(file: RawFile, pointers: Option<Mutex<Pointers>>) -> Self {
        Self(Arc::new(Inner {
            size: AtomicU64::new(file.size()),
            file,
            pointers,
            broken: AtomicBool::new(false),
            marks: Marks::default(),
            helper: CommonStorageHelper::default(),
            #[cfg(test)]
            probe: Probe::default(),
        }))
    }

    /// The file.
    pub fn file(&self) -> &RawFile {
        &self.0.file
    }

    /// Sees what is done to the file.
    #[cfg(test)]
    pub fn probe(&self) -> &Probe {
        &self.0.probe
    }

    /// Whether the image must not be written any more.
    pub fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::Relaxed)
    }

    /// Has the image written no more.
    pub fn break_off(&self) {
        self.0.broken.store(true, Ordering::Relaxed);
    }

    /// Reads; behind the end of the file there are zeros.
    pub fn read_at(&self, offset: u64, into: Buffers<'_>) -> io::Result<()> {
        let total = into.total() as u64;
        let there = self.0.size.load(Ordering::Acquire).saturating_sub(offset);
        if there >= total {
            return self.0.file.read(offset, into);
        }
        let mut behind: BufferList<'_> = into.slices().collect();
        let within = behind.take_front(there as usize);
        if there > 0 {
            self.0.file.read(offset, within.all())?;
        }
        behind.all().zero();
        Ok(())
    }

    /// Writes the guest's data into clusters that are its own.
    pub fn write_data(&self, offset: u64, from: Buffers<'_>) -> io::Result<()> {
        let len = from.total() as u64;
        self.check_data(offset, len)?;
        self.write_at(offset, from)
    }

    /// Whether a place is in the file.
    pub fn reaches(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.0.size.load(Ordering::Acquire))
    }

    /// Whether data that is in the file may be written at a place, if that can be told without waiting.
    pub fn is_data_now(&self, offset: u64, len: u64) -> bool {
        let pointers = self.0.pointers.as_ref().and_then(|pointers| pointers.try_lock().ok());
        self.reaches(offset, len)
            && pointers.is_some_and(|pointers| pointers.check_data(offset..offset + len).is_ok())
    }

    /// Makes sure that data does not go where the file's tables are, whatever the image says.
    pub fn check_data(&self, offset: u64, len: u64) -> io::Result<()> {
        let end =
            offset.checked_add(len).ok_or_else(|| corrupt("data behind the end of all files"))?;
        match &self.0.pointers {
            Some(pointers) => lock(pointers).check_data(offset..end),
            None => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    /// Whether there is an L2 table for `offset` that may be written.
    pub fn has_l2(&self, offset: u64, cluster: u64) -> io::Result<bool> {
        let Some(pointers) = &self.0.pointers else { return Ok(false) };
        let index = offset / (cluster * (cluster / 8));
        let mut entry = [0; 8];
        self.read_bytes(lock(pointers).l1_entry(index), &mut entry)?;
        Ok(u64::from_be_bytes(entry) & L1_COPIED != 0)
    }

    /// Zeros in clusters that are the guest's own and keep their storage.
    pub fn zero_data(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_data(offset, len)?;
        let size = self.0.size.load(Ordering::Acquire);
        let within = size.saturating_sub(offset).min(len);
        if within == 0 {
            return Ok(());
        }
        #[cfg(test)]
        self.0.probe.see(Event::Zeros(offset..offset + within))?;
        match file::zero_range(self.0.file.file(), offset, within) {
            Err(error) if file::is_unsupported(&error) => {
                write_plain_zeroes(&self.0.file, offset, within)
            }
            done => done,
        }
    }

    /// Gives storage back. If that fails, it is only not given back.
    pub fn punch(&self, hole: Range<u64>) {
        let end = hole.end.min(self.0.size.load(Ordering::Acquire));
        #[cfg(test)]
        let _ = self.0.probe.see(Event::Zeros(hole.start..end));
        let punched = match self.check_data(hole.start, hole.end - hole.start) {
            Ok(()) if hole.start >= end => Ok(()),
            Ok(()) => file::punch_hole(self.0.file.file(), hole.start, end - hole.start),
            Err(error) => Err(error),
        };
        if let Err(error) = punched {
            log::debug!("no hole in a qcow2 image at {:#x}: {error}", hole.start);
        }
    }

    fn write_at(&self, offset: u64, from: Buffers<'_>) -> io::Result<()> {
        #[cfg(test)]
        self.0.probe.see(Event::write(offset, from))?;
        self.0.file.write(offset, from)?;
        self.0.size.fetch_max(offset + from.total() as u64, Ordering::Release);
        Ok(())
    }

    /// Flushes the file as its policy says.
    pub fn sync(&self) -> io::Result<()> {
        let marks = &self.0.marks;
        let now = marks.now.load(Ordering::Acquire);
        self.0.file.flush()?;
        #[cfg(test)]
        self.0.probe.see(Event::Sync)?;
        marks.stored.fetch_max(now, Ordering::AcqRel);
        Ok(())
    }

    /// Has the host store what was written to some of the tables, unless it has.
    fn order(&self, refcounts: bool, tables: bool) -> io::Result<()> {
        if self.0.file.policy() == Flush::None {
            return Ok(());
        }
        let marks = &self.0.marks;
        let stored = marks.stored.load(Ordering::Acquire);
        let waits =
            |wanted: bool, mark: &AtomicU64| wanted && mark.load(Ordering::Acquire) > stored;
        match waits(refcounts, &marks.refcounts) || waits(tables, &marks.tables) {
            true => self.sync(),
            false => Ok(()),
        }
    }

    /// Has the host store the tables, so that clusters which they do not name any more can be used again.
    pub fn order_tables(&self) -> io::Result<()> {
        self.order(false, true)
    }

    /// Takes note that metadata was written.
    fn mark(&self, which: &AtomicU64) {
        let now = self.0.marks.now.fetch_add(1, Ordering::AcqRel) + 1;
        which.fetch_max(now, Ordering::AcqRel);
    }

    /// Writes metadata, in its order.
    fn write_metadata(&self, offset: u64, from: Buffers<'_>) -> io::Result<()> {
        let marks = &self.0.marks;
        let Some(pointers) = &self.0.pointers else {
            return Err(io::ErrorKind::PermissionDenied.into());
        };
        if self.is_broken() {
            return Err(io::Error::other(BROKEN));
        }
        let len = from.total() as u64;
        let mut pointers = lock(pointers);
        match pointers.target(offset, len)? {
            Target::Refcounts => {
                drop(pointers);
                // A cluster is free once no table names it.
                self.order(false, true)?;
                self.write_at(offset, from)?;
                self.mark(&marks.refcounts);
            }
            Target::Other => {
                drop(pointers);
                // A table names a cluster once it is not free.
                self.order(true, false)?;
                self.write_at(offset, from)?;
                self.mark(&marks.tables);
            }
            Target::Entry => {
                let mut entry = [0; 8];
                from.copy_to(&mut entry);
                pointers.owe(offset, entry);
                self.pay(&mut pointers)?;
            }
            Target::Header => {
                let mut bytes = vec![0; from.total()];
                from.copy_to(&mut bytes);
                let written = self.write_header(&mut pointers, &bytes);
                if written.is_err() {
                    self.break_off();
                }
                written?;
            }
        }
        Ok(())
    }

    fn write_header(&self, pointers: &mut Pointers, bytes: &[u8]) -> io::Result<()> {
        self.pay(pointers)?;
        let moved = pointers.moved(bytes)?;
        if let Some(l1) = &moved.l1 {
            pointers.claim(self, l1.clone())?;
        }
        if moved.l1.is_some() || moved.refcounts.is_some() {
            self.order(true, true)?;
        }
        self.write_bytes(0, bytes)?;
        self.mark(&self.0.marks.tables);
        pointers.move_to(moved, self)
    }

    /// Writes the entries that are to be written, those that could not be written before included.
    fn pay(&self, pointers: &mut Pointers) -> io::Result<()> {
        while let Some((offset, entry)) = pointers.owed() {
            if let Some(cluster) = pointers.led_to(offset, entry) {
                pointers.claim(self, cluster)?;
            }
            // The table itself as well as its refcount.
            self.order(true, true)?;
            self.write_bytes(offset, &entry)?;
            self.mark(&self.0.marks.tables);
            pointers.paid(offset, entry);
        }
        Ok(())
    }

    /// Reads a few bytes.
    pub fn read_bytes(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, BufferList::from(into).all())
    }

    fn write_bytes(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut copy = bytes.to_vec();
        self.write_at(offset, BufferList::from(copy.as_mut_slice()).all())
    }

    /// Writes a few bytes of a refcount block that make a refcount larger: nothing has to be stored before.
    pub fn write_refcount(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_bytes(offset, bytes)?;
        self.mark(&self.0.marks.refcounts);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is told if an image is written no more.
pub(super) const BROKEN: &str =
    "the qcow2 image could not be kept consistent, so it is written no more";

/// What is told of an image that turns out to be damaged while it is in use.
pub(super) fn corrupt(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the qcow2 image is damaged: {what}"))
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("file")
    }
}

impl Storage for Store {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.size.load(Ordering::Acquire))
    }

    async unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        may_wait()?;
        let mut pieces = bufv.into_inner();
        let list: BufferList<'_> =
            pieces.iter_mut().map(|piece| VolatileSlice::from(&mut **piece)).collect();
        self.read_at(offset, list.all())
    }

    async unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        may_wait()?;
        let pieces = bufv.into_inner();
        let list: BufferList<'_> = pieces
            .iter()
            .map(|piece| {
                // SAFETY: the memory is borrowed as long as the list is used, which is only read from.
                unsafe { VolatileSlice::new(piece.as_ptr().cast_mut(), piece.len()) }
            })
            .collect();
        self.write_metadata(offset, list.all())
    }

    /// Only called for clusters that nothing names yet, by whoever is alone in writing to the file: there is nobody
    /// whose data could be cut off.
    async unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        may_wait()?;
        self.check_data(offset, length)?;
        let (size, end) = (self.0.size.load(Ordering::Acquire), offset + length);
        #[cfg(test)]
        self.0.probe.see(Event::Zeros(offset..end))?;
        if offset < size {
            file::punch_hole(self.0.file.file(), offset, end.min(size) - offset).map_err(
                |error| {
                    match file::is_unsupported(&error) {
                        // imago writes zeros then.
                        true => io::ErrorKind::Unsupported.into(),
                        false => error,
                    }
                },
            )?;
        }
        if end > size {
            self.0.file.file().set_len(end)?;
            self.0.size.fetch_max(end, Ordering::Release);
        }
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        match &self.0.pointers {
            Some(pointers) => self.pay(&mut lock(pointers)),
            None => Ok(()),
        }
    }

    async fn sync(&self) -> io::Result<()> {
        Store::sync(self)
    }

    async unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.0.helper
    }
}
