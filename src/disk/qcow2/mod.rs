//! Disks in QEMU's qcow2 format, with [imago] for the metadata.
//!
//! imago is asked where data is, or is to go ([`open`]); the data itself is read and written in place, from and to
//! guest memory, without a copy and without a lock of imago's ([`data`]). What imago reads and writes itself goes
//! through [`store`], which adds the order that its metadata needs to survive a crash.
//!
//! Who may do what at the same time:
//!
//! * Whoever uses a place that imago named holds a [`gate::Use`]. So do readers until they have read, and writers
//!   whose clusters are there.
//! * Whoever has places changed holds [`Changes`], and shuts the gate meanwhile. So does whoever has metadata
//!   written: imago flushes its caches one after the other, and is not prepared for changes in between.
//! * A writer that had clusters allocated writes its data without shutting the gate: nobody else knows these clusters
//!   before they are committed. It still holds `Changes`.

mod data;
mod extents;
mod gate;
mod header;
mod open;
pub(super) mod place;
mod pointers;
mod store;
mod tables;
#[cfg(test)]
mod tests;
mod wait;

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use imago::FormatAccess;
use imago::format::PreallocateMode;

use self::gate::Gate;
pub(super) use self::place::Found;
use self::store::{BROKEN, Store};
use super::backend::{BlockBackend, Buffers, Properties, SECTOR, Topology};
use super::error::Error;
use super::spec::Image;
use crate::sys::file::Flush;

/// A qcow2 image, open and locked.
pub struct Qcow2 {
    image: FormatAccess<Store>,
    store: Store,
    gate: Gate,
    changes: Mutex<Changes>,
    facts: Facts,
    properties: Properties,
}

/// What does not change while an image is open.
#[derive(Debug, Clone, Copy)]
struct Facts {
    version: u32,
    cluster: u64,
    has_snapshots: bool,
    /// Bytes of what is under the image, if there is something.
    backing: Option<u64>,
}

/// What belongs to whoever changes the image.
#[derive(Debug, Default)]
struct Changes {
    /// Clusters were freed that tables in the file may still name.
    freed: bool,
}

impl Qcow2 {
    /// Opens an image that has no backing file, for reading only or for both, and locks it.
    pub fn open_alone(path: &Path, read_only: bool, flush: Flush) -> Result<Self, Error> {
        Self::open(path, None, read_only, flush)
    }

    /// Opens an image and what is under it.
    pub(super) fn open(
        path: &Path,
        backing: Option<&Image>,
        read_only: bool,
        flush: Flush,
    ) -> Result<Self, Error> {
        let open::Layer { image, store, header, backing } =
            open::layer(path, backing, read_only, flush)?;
        let cluster = header.cluster() as u32;
        let facts = Facts {
            version: header.version,
            cluster: header.cluster(),
            has_snapshots: header.has_snapshots,
            backing,
        };
        let topology = Topology {
            logical: SECTOR as u32,
            // File systems for guests have blocks of 4 KiB at most.
            physical: cluster.min(4096),
            minimum: cluster,
            optimal: cluster,
        };
        let properties = Properties {
            read_only,
            discard: !read_only && facts.can_free(),
            topology,
            identity: store.file().properties().identity,
        };
        let (gate, changes) = (Gate::default(), Mutex::default());
        Ok(Self { image, store, gate, changes, facts, properties })
    }

    /// Keeps everybody else from changing anything.
    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has imago do something that may write.
    fn change<R>(&self, what: impl Future<Output = io::Result<R>>) -> io::Result<R> {
        match self.store.is_broken() {
            true => Err(io::Error::other(BROKEN)),
            false => self.ask(what),
        }
    }

    /// Has imago do something. If it panics, what it has in memory is not to be trusted any more, and the image is
    /// written no more.
    fn ask<R>(&self, what: impl Future<Output = io::Result<R>>) -> io::Result<R> {
        let result = guarded(what);
        if result.as_ref().is_err_and(is_panic) {
            self.store.break_off();
        }
        result
    }

    /// Has imago write what it has in memory. What was freed can be used again.
    fn write_back(&self, changes: &mut Changes) -> io::Result<()> {
        self.change(self.image.flush())?;
        self.store.order_tables()?;
        changes.freed = false;
        Ok(())
    }

    /// Before clusters are allocated: none of them may be one that a table in the file still names.
    fn settle(&self, changes: &mut Changes) -> io::Result<()> {
        if changes.freed { self.write_back(changes) } else { Ok(()) }
    }
}

impl Facts {
    /// Whether clusters can be freed: those of version 2 with a backing file would read as what is in that.
    fn can_free(&self) -> bool {
        self.version > 2 || self.backing.is_none()
    }
}

/// What a future of imago's has for whoever does not wait.
fn at_once<R>(what: impl Future<Output = io::Result<R>>) -> Option<io::Result<R>> {
    let run = AssertUnwindSafe(|| wait::now(what));
    catch_unwind(run).unwrap_or_else(|_| Some(Err(io::Error::other(PANIC))))
}

/// What is told if imago panics.
const PANIC: &str = "imago panicked";

/// Runs one of imago's futures. A panic is an error.
fn guarded<R>(what: impl Future<Output = io::Result<R>>) -> io::Result<R> {
    let run = AssertUnwindSafe(|| wait::block_on(what));
    catch_unwind(run).unwrap_or_else(|_| Err(io::Error::other(PANIC)))
}

fn is_panic(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.to_string() == PANIC)
}

impl Qcow2 {
    fn check_writable(&self) -> io::Result<()> {
        match self.properties.read_only {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => Ok(()),
        }
    }
}

impl BlockBackend for Qcow2 {
    fn size(&self) -> u64 {
        self.image.size() / SECTOR * SECTOR
    }

    fn read(&self, offset: u64, into: Buffers<'_>) -> io::Result<()> {
        self.read_data(offset, into)
    }

    fn write(&self, offset: u64, from: Buffers<'_>) -> io::Result<()> {
        self.check_writable()?;
        self.write_data(offset, from)
    }

    fn flush(&self) -> io::Result<()> {
        if self.properties.read_only {
            return Ok(());
        }
        let mut changes = self.changes();
        self.change(self.image.flush())?;
        changes.freed = false;
        drop(changes);
        self.store.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.discard_extent(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check_writable()?;
        self.zero_extent(offset, len, unmap)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut changes = self.changes();
        let _shut = self.gate.shut();
        let now = self.image.size();
        if size < now {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a qcow2 image cannot be made smaller while it is in use",
            ));
        }
        let mode = match self.facts.backing {
            // What is under the image behind its old end is not to appear.
            Some(backing) if backing > now => PreallocateMode::Zero,
            _ => PreallocateMode::None,
        };
        self.settle(&mut changes)?;
        self.change(self.image.resize_grow(size, mode))?;
        self.write_back(&mut changes)
    }

    fn properties(&self) -> Properties {
        self.properties.clone()
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if !self.properties.read_only
            && let Err(error) = self.change(self.image.flush())
        {
            log::warn!("closing a qcow2 image: {error}");
        }
    }
}

impl fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2").field("facts", &self.facts).finish_non_exhaustive()
    }
}
