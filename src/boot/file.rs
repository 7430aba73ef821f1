//! The files of a boot: opened once, measured once, read at each reset.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile, VolatileMemoryError, VolatileSlice,
};

use super::Error;

/// An open file of known length.
#[derive(Debug)]
pub(super) struct Source {
    what: &'static str,
    path: PathBuf,
    len: u64,
    /// Locked while its position matters.
    file: Mutex<File>,
}

impl Source {
    pub(super) fn open(what: &'static str, path: &Path) -> Result<Self, Error> {
        let path = path.to_path_buf();
        // Without O_NONBLOCK the opening of a pipe waits for somebody to write to it.
        let opened =
            File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).and_then(
                |file| {
                    let metadata = file.metadata()?;
                    Ok((file, metadata))
                },
            );
        let (file, metadata) = match opened {
            Ok(opened) => opened,
            Err(source) => return Err(Error::Open { what, path, source }),
        };
        if !metadata.is_file() {
            return Err(Error::NotAFile { what, path });
        }
        if metadata.len() == 0 {
            return Err(Error::Empty { what, path });
        }
        Ok(Self { what, path, len: metadata.len(), file: Mutex::new(file) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Length at the time of opening. The file may have changed since: reads can still end early.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Up to `max` bytes from the start of the file.
    pub(super) fn start(&self, max: usize) -> Result<Vec<u8>, Error> {
        let len = usize::try_from(self.len).map_or(max, |len| len.min(max));
        self.read(0, len)
    }

    /// `len` bytes at `offset`; the caller bounds `len`.
    pub(super) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.read_exact_at(&mut bytes, offset).map_err(|source| Error::Read {
            what: self.what,
            path: self.path.clone(),
            source,
        })?;
        Ok(bytes)
    }

    pub(super) fn load_error(&self, why: impl ToString) -> Error {
        Error::Load { what: self.what, path: self.path.clone(), why: why.to_string() }
    }

    pub(super) fn corrupt(&self, why: impl Into<String>) -> Error {
        Error::Corrupt { path: self.path.clone(), why: why.into() }
    }

    pub(super) fn not_a_kernel(&self, found: impl Into<String>, wanted: &'static str) -> Error {
        Error::NotAKernel { path: self.path.clone(), found: found.into(), wanted }
    }

    pub(super) fn unsupported(&self, why: impl Into<String>) -> Error {
        Error::Unsupported { path: self.path.clone(), why: why.into() }
    }

    /// Fails unless the file has `needs` bytes.
    pub(super) fn reaches(&self, part: &'static str, needs: u64) -> Result<(), Error> {
        if needs <= self.len {
            return Ok(());
        }
        Err(Error::Truncated { path: self.path.clone(), part, needs, len: self.len })
    }
}

/// A file behind headers that were read and checked before.
///
/// The file can change between the check and the load, and again before each reset; a guest that has it shared could
/// change it on purpose. A loader that reads through this sees `head` as it was checked, then the bytes of
/// the file from `resume` up to a total length of `len`: it can get wrong contents, never a wrong address.
pub(super) struct Image<'a> {
    pub(super) head: &'a [u8],
    pub(super) source: &'a Source,
    pub(super) resume: u64,
    pub(super) len: u64,
    pub(super) at: u64,
}

impl<'a> Image<'a> {
    /// All of a file, without checked headers.
    pub(super) fn plain(source: &'a Source) -> Self {
        Self { head: &[], source, resume: 0, len: source.len(), at: 0 }
    }

    /// Copies the next `len` bytes to guest memory.
    pub(super) fn load(
        &mut self,
        memory: &GuestMemoryMmap,
        address: u64,
        len: u64,
    ) -> Result<(), Error> {
        let len = usize::try_from(len).map_err(|error| self.source.load_error(error))?;
        memory
            .read_exact_volatile_from(GuestAddress(address), self, len)
            .map_err(|error| self.source.load_error(error))
    }

    /// The part of `head` from the current position, if that is not behind it.
    fn rest_of_head(&self) -> Option<&'a [u8]> {
        let at = usize::try_from(self.at).ok()?;
        self.head.get(at..).filter(|rest| !rest.is_empty())
    }

    /// Where in the file the current position is, and how many bytes are left from there.
    fn in_file(&self) -> (u64, u64) {
        let behind_head = self.at.saturating_sub(self.head.len() as u64);
        (self.resume.saturating_add(behind_head), self.len.saturating_sub(self.at))
    }
}

impl Seek for Image<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl io::Read for Image<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = match self.rest_of_head() {
            Some(mut rest) => rest.read(buf)?,
            None => {
                let (offset, left) = self.in_file();
                let max = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
                let file = self.source.file.lock().unwrap_or_else(PoisonError::into_inner);
                file.read_at(&mut buf[..max], offset)?
            }
        };
        self.at = self.at.saturating_add(read as u64);
        Ok(read)
    }
}

impl ReadVolatile for Image<'_> {
    /// Fills `buf` as far as there is anything to fill it with, because vm-memory takes a short read for the end, and
    /// network file systems give short reads as they like.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let from_head = match self.rest_of_head() {
            Some(mut rest) => rest.read_volatile(buf)?,
            None => 0,
        };
        self.at = self.at.saturating_add(from_head as u64);
        let (offset, left) = self.in_file();
        let rest = buf.len() - from_head;
        let max = usize::try_from(left).map_or(rest, |left| left.min(rest));
        let mut part = buf.subslice(from_head, max)?;
        let mut file = self.source.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset)).map_err(VolatileMemoryError::IOError)?;
        file.read_exact_volatile(&mut part)?;
        self.at = self.at.saturating_add(max as u64);
        Ok(from_head + max)
    }
}
