//! A file or block device whose bytes are the disk's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::backend::{BlockBackend, BufferList, Buffers, Properties, Topology, write_plain_zeroes};
use super::error::Error;
use super::flushes::Flushes;
use crate::sys::file::{self, Flush};

/// A raw image, open and locked.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    is_device: bool,
    size: AtomicU64,
    flush: Flush,
    flushes: Flushes,
    properties: Properties,
}

impl RawFile {
    /// Opens `path`, for reading only or for both, and locks it.
    pub fn open(path: &Path, read_only: bool, flush: Flush) -> Result<Self, Error> {
        let file = open(path, read_only)?;
        let failed = |what| move |source| Error::Host { what, path: path.to_owned(), source };
        let metadata = file.metadata().map_err(failed("look at"))?;
        let is_device = metadata.file_type().is_block_device();
        let (size, topology) = match is_device {
            true => {
                let [logical, physical, minimum, optimal] =
                    file::device_topology(&file).map_err(failed("get the block size of"))?;
                let size = file::device_size(&file).map_err(failed("get the size of"))?;
                (size, Topology { logical, physical, minimum, optimal })
            }
            false => {
                let block = u32::try_from(metadata.blksize()).unwrap_or(4096).next_power_of_two();
                // File systems for guests have blocks of 4 KiB at most.
                let physical = block.clamp(512, 4096);
                let minimum = block.max(physical);
                let topology = Topology { physical, minimum, ..Topology::default() };
                (metadata.len(), topology)
            }
        };
        let past_end = size.next_multiple_of(topology.physical.into());
        let discard = !read_only
            && match is_device {
                true => true,
                false => file::can_punch_holes(&file, past_end, topology.physical.into()),
            };
        let identity =
            identity(&file, metadata.ino(), metadata.rdev()).map_err(failed("look at"))?;
        Ok(Self {
            file,
            is_device,
            size: AtomicU64::new(size),
            flush,
            flushes: Flushes::default(),
            properties: Properties { read_only, discard, topology, identity: Some(identity) },
        })
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// How it is flushed.
    pub(super) fn policy(&self) -> Flush {
        self.flush
    }

    /// Takes note of how a flush has ended that the caller has made, one at a time, and tells what it is worth.
    #[cfg(any(test, target_os = "linux"))]
    pub(super) fn flushed(&self, result: io::Result<()>) -> io::Result<()> {
        self.flushes.note(result)
    }

    /// Reads once, maybe less than wanted.
    pub(super) fn read_once(&self, offset: u64, into: Buffers<'_>) -> io::Result<usize> {
        let (pieces, count, offset) = arguments(into, offset)?;
        // SAFETY: `Buffers` are memory that may be written, and the array is a slice's.
        let done = unsafe { libc::preadv(self.file.as_raw_fd(), pieces, count, offset) };
        result(done)
    }

    /// Reads once what can be had without waiting, maybe less than wanted; see [`file::read_now`].
    pub(super) fn read_now(&self, offset: u64, into: Buffers<'_>) -> io::Result<usize> {
        file::read_now(&self.file, into, offset)
    }

    /// Writes once, maybe less than wanted.
    pub(super) fn write_once(&self, offset: u64, from: Buffers<'_>) -> io::Result<usize> {
        let (pieces, count, offset) = arguments(from, offset)?;
        // SAFETY: `Buffers` are memory that may be read, and the array is a slice's.
        let done = unsafe { libc::pwritev(self.file.as_raw_fd(), pieces, count, offset) };
        result(done)
    }
}

impl BlockBackend for RawFile {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn read(&self, offset: u64, into: Buffers<'_>) -> io::Result<()> {
        whole(offset, into, io::ErrorKind::UnexpectedEof, |at, rest| self.read_once(at, rest))
    }

    fn write(&self, offset: u64, from: Buffers<'_>) -> io::Result<()> {
        whole(offset, from, io::ErrorKind::WriteZero, |at, rest| self.write_once(at, rest))
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.run(|| file::flush(&self.file, self.flush))
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let (start, end) = self.blocks_within(offset, len);
        match file::punch_hole(&self.file, start, end - start) {
            _ if start == end => Ok(()),
            // It was a hint.
            Err(error) if file::is_unsupported(&error) => Ok(()),
            done => done,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let (start, end) = self.blocks_within(offset, len);
        let done = match unmap {
            _ if start == end => Err(io::ErrorKind::Unsupported.into()),
            true => file::punch_hole(&self.file, start, end - start),
            false => file::zero_range(&self.file, start, end - start),
        };
        match done {
            Ok(()) => {
                write_plain_zeroes(self, offset, start - offset)?;
                write_plain_zeroes(self, end, offset + len - end)
            }
            Err(error) if file::is_unsupported(&error) => write_plain_zeroes(self, offset, len),
            Err(error) => Err(error),
        }
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        if self.is_device {
            let there = file::device_size(&self.file)?;
            if size > there {
                return Err(io::Error::other(format!("the device has {there} bytes only")));
            }
        } else if self.properties.read_only {
            return Err(io::Error::other("the file of a disk that is only read keeps its size"));
        } else {
            self.file.set_len(size)?;
        }
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn properties(&self) -> Properties {
        self.properties.clone()
    }
}

impl RawFile {
    /// The start and end of the whole blocks in a range; the start twice if there is none.
    fn blocks_within(&self, offset: u64, len: u64) -> (u64, u64) {
        let block = u64::from(self.properties.topology.physical);
        let start = offset.next_multiple_of(block).min(offset + len);
        let end = (offset + len) / block * block;
        (start, end.max(start))
    }
}

/// Opens a regular file or block device, and locks it: against everybody if it may be written, against writers if not.
pub(super) fn open(path: &Path, read_only: bool) -> Result<File, Error> {
    let failed = |what| move |source| Error::Host { what, path: path.to_owned(), source };
    check_kind(path)?;
    let opened = OpenOptions::new().read(true).write(!read_only).open(path);
    let file = opened.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
            Error::NotWritable { path: path.to_owned(), source }
        }
        _ => failed("open")(source),
    })?;
    match lock(&file, read_only) {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Locked { path: path.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed("lock")(source)),
    }
}

/// Locks a file. A lock that was given up a moment ago may be in the hands of a program that is just being started,
/// until that closes what it does not inherit: so it is worth a few tries.
fn lock(file: &File, read_only: bool) -> Result<(), std::fs::TryLockError> {
    const TRIES: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(10);
    let mut tries = 0;
    loop {
        match if read_only { file.try_lock_shared() } else { file.try_lock() } {
            Err(std::fs::TryLockError::WouldBlock) if tries < TRIES => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

/// Makes sure that `path` is something that can be a disk, before anything is opened: opening a FIFO would wait.
pub(super) fn check_kind(path: &Path) -> Result<(), Error> {
    let metadata = std::fs::metadata(path).map_err(|source| Error::Host {
        what: "open",
        path: path.to_owned(),
        source,
    })?;
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a character device",
    };
    Err(Error::NotADisk { path: path.to_owned(), what })
}

/// What a file is known by whatever its name, also after a restart of the host.
pub(super) fn identity(file: &File, inode: u64, device: u64) -> io::Result<String> {
    let origin = file::origin(file)?;
    // FNV-1a: any hash does that stays what it is.
    let bytes = [origin, inode, device].into_iter().flat_map(u64::to_le_bytes);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    Ok(format!("hk-{hash:016x}"))
}

/// `buffers` for a system call that takes an array of pieces.
fn arguments(
    buffers: Buffers<'_>,
    offset: u64,
) -> io::Result<(*const libc::iovec, libc::c_int, libc::off_t)> {
    let pieces = buffers.first_iovecs();
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    Ok((pieces.as_ptr(), pieces.len() as libc::c_int, offset))
}

fn result(done: isize) -> io::Result<usize> {
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// Repeats `once` until all of `buffers` is done; `end` is what it means if nothing more can be.
fn whole(
    mut offset: u64,
    buffers: Buffers<'_>,
    end: io::ErrorKind,
    once: impl Fn(u64, Buffers<'_>) -> io::Result<usize>,
) -> io::Result<()> {
    let mut left = buffers.total();
    let mut rest: Option<BufferList<'_>> = None;
    while left > 0 {
        let now = rest.as_ref().map_or(buffers, BufferList::all);
        let done = match once(offset, now) {
            Ok(0) => return Err(end.into()),
            Ok(done) => done.min(left),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        left -= done;
        offset += done as u64;
        if left > 0 {
            rest.get_or_insert_with(|| buffers.slices().collect()).advance(done);
        }
    }
    Ok(())
}
