//! What can be done with a disk while its machine runs.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::ConfigSpace;
use super::config;
use crate::disk::{SECTOR, Target};
use crate::sys::Notifier;

/// A handle on a disk. Copies are handles on the same one; none of them keeps the image open, or locked, when the
/// machine has ended.
#[derive(Clone)]
pub struct DiskHandle(pub(super) Arc<Shared>);

/// What device and handles share.
pub(super) struct Shared {
    /// The storage, until the device is gone. Held while the size changes.
    pub storage: Mutex<Option<Target>>,
    pub config: Arc<ConfigSpace>,
    /// Nothing is to be written, maybe without the storage knowing of that.
    pub read_only: bool,
    /// The size, as the device goes by it.
    pub sectors: AtomicU64,
    /// Set when the size has changed.
    pub resized: Notifier,
    /// The disk has become smaller, and requests that began before may not have ended.
    pub shrunk: AtomicBool,
}

impl DiskHandle {
    /// The size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.0.sectors.load(Ordering::Relaxed) * SECTOR
    }

    /// Changes the size of the disk to `size` bytes, a multiple of 512: that of the file first where it grows; then
    /// the guest is told. What lies behind the new end of a disk that shrinks is gone; requests for it fail. For a block
    /// device whose size has changed, say its new size. Other disks that are only read keep theirs, unless it is
    /// the storage itself that is read-only, and it takes another one.
    ///
    /// Works while the machine runs and while it is paused.
    pub fn resize(&self, size: u64) -> io::Result<()> {
        if !size.is_multiple_of(SECTOR) || size == 0 {
            let why = format!("cannot resize to {size} bytes: give a multiple of {SECTOR} above 0");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let shared = &self.0;
        let storage = shared.storage.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(storage) = storage.as_ref() else {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the disk's machine has ended",
            ));
        };
        // Storage that knows that it is only read decides itself: a device may have got another size.
        if shared.read_only && !storage.backend().properties().read_only {
            let why = "a disk that is only read keeps its size";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let before = shared.sectors.load(Ordering::Relaxed);
        let after = size / SECTOR;
        // From here on the guest cannot begin anything behind the end.
        shared.sectors.store(after.min(before), Ordering::Relaxed);
        if let Err(error) = storage.backend().resize(size) {
            shared.sectors.store(before, Ordering::Relaxed);
            return Err(error);
        }
        shared.sectors.store(after, Ordering::Relaxed);
        shared.shrunk.fetch_or(after < before, Ordering::Relaxed);
        shared.config.set(config::CAPACITY, &after.to_le_bytes());
        shared.resized.notify();
        Ok(())
    }
}

impl Shared {
    /// Cuts the storage again, once requests from before it was cut have ended: one of them may have made it longer.
    pub fn cut_again(&self) -> io::Result<()> {
        let storage = self.storage.lock().unwrap_or_else(PoisonError::into_inner);
        match storage.as_ref() {
            Some(storage) => {
                storage.backend().resize(self.sectors.load(Ordering::Relaxed) * SECTOR)
            }
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for DiskHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskHandle").field("size", &self.size()).finish_non_exhaustive()
    }
}
