//! A disk in this process's memory: gone when the machine is. Also the example of a backend of one's own.

use std::io;
use std::sync::{PoisonError, RwLock};

use super::backend::{BlockBackend, Buffers};

/// Storage that is a vector.
///
/// ```
/// use hyperkit::disk::{Disk, MemoryDisk};
///
/// let scratch = Disk::backend(MemoryDisk::new(16 << 20));
/// let loaded = Disk::backend(MemoryDisk::from(vec![0x5a; 4096])).read_only();
/// # let _ = (scratch, loaded);
/// ```
#[derive(Debug)]
pub struct MemoryDisk(RwLock<Vec<u8>>);

impl MemoryDisk {
    /// `size` bytes of zeros, a multiple of 512. The host gives them as they are touched.
    pub fn new(size: usize) -> Self {
        Self(RwLock::new(vec![0; size]))
    }

    /// What is on the disk.
    pub fn contents(&self) -> Vec<u8> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl From<Vec<u8>> for MemoryDisk {
    fn from(bytes: Vec<u8>) -> Self {
        Self(RwLock::new(bytes))
    }
}

fn outside() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "behind the end of the disk")
}

impl BlockBackend for MemoryDisk {
    fn size(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn read(&self, offset: u64, into: Buffers<'_>) -> io::Result<()> {
        let bytes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let from = usize::try_from(offset).ok().and_then(|from| bytes.get(from..));
        let wanted = into.total();
        let from = from.and_then(|bytes| bytes.get(..wanted)).ok_or_else(outside)?;
        into.fill_from(from);
        Ok(())
    }

    fn write(&self, offset: u64, from: Buffers<'_>) -> io::Result<()> {
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let to = usize::try_from(offset).ok().and_then(|to| bytes.get_mut(to..));
        let count = from.total();
        let to = to.and_then(|bytes| bytes.get_mut(..count)).ok_or_else(outside)?;
        from.copy_to(to);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let range = usize::try_from(offset).ok().zip(usize::try_from(len).ok());
        let range = range.and_then(|(at, len)| Some(at..at.checked_add(len)?));
        bytes.get_mut(range.ok_or_else(outside)?).ok_or_else(outside)?.fill(0);
        Ok(())
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let size = usize::try_from(size).map_err(io::Error::other)?;
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // A vector that cannot grow would end the process.
        let more = size.saturating_sub(bytes.len());
        bytes
            .try_reserve_exact(more)
            .map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
        bytes.resize(size, 0);
        Ok(())
    }

    fn blocks(&self) -> bool {
        false
    }
}
