use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::macos::fs::MetadataExt;

use rustix::fs::{fcntl_fullfsync, fstatvfs};
use rustix::ioctl::{Getter, Opcode, ioctl, opcode};

use crate::memory::Buffers;

/// `sys/disk.h`.
const DKIOCGETBLOCKSIZE: Opcode = opcode::read::<u32>(b'd', 24);
const DKIOCGETBLOCKCOUNT: Opcode = opcode::read::<u64>(b'd', 25);

/// There is no such call here.
pub(crate) fn read_now(_file: &File, _into: Buffers<'_>, _offset: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Flushes a file, and the cache of the drive that it is on.
pub(crate) fn flush_drive(file: &File) -> io::Result<()> {
    Ok(fcntl_fullfsync(file)?)
}

/// Makes a range read as zeros and gives its storage back: whole blocks of the file system only.
/// Fails as unsupported for other ranges, and if the file system cannot.
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let block = fstatvfs(file)?.f_frsize.max(1);
    if !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let (offset, len) = (i64::try_from(offset), i64::try_from(len));
    let hole = libc::fpunchhole_t {
        fp_flags: 0,
        reserved: 0,
        fp_offset: offset.map_err(io::Error::other)?,
        fp_length: len.map_err(io::Error::other)?,
    };
    // SAFETY: F_PUNCHHOLE reads such a structure.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_PUNCHHOLE, &hole) } {
        -1 => Err(match io::Error::last_os_error() {
            // A file system that does not know the request, or a device.
            error if error.raw_os_error() == Some(libc::ENOTTY) => {
                io::ErrorKind::Unsupported.into()
            }
            error => error,
        }),
        _ => Ok(()),
    }
}

/// Whether there can be holes in a file.
pub(crate) fn can_punch_holes(file: &File, _end: u64, _block: u64) -> bool {
    // SAFETY: the call takes numbers only.
    unsafe { libc::fpathconf(file.as_raw_fd(), libc::_PC_MIN_HOLE_SIZE) > 0 }
}

/// There is no such call here.
pub(crate) fn zero_range(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// What tells files apart that have the same number on different file systems: when they were made. A file system's own
/// number is that of the device that it is on, which may be another after a restart of the host.
pub(crate) fn origin(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    let seconds = metadata.st_birthtime() as u64;
    Ok(seconds.wrapping_mul(1_000_000_000).wrapping_add(metadata.st_birthtime_nsec() as u64))
}

/// The size of a block device in bytes.
pub(crate) fn device_size(file: &File) -> io::Result<u64> {
    let [block, ..] = device_topology(file)?;
    // SAFETY: DKIOCGETBLOCKCOUNT writes a 64-bit number.
    let count = unsafe { ioctl(file, Getter::<DKIOCGETBLOCKCOUNT, u64>::new()) }?;
    Ok(count.saturating_mul(block.into()))
}

/// Of a block device, in bytes: logical and physical block size, smallest and best unit of input and output.
pub(crate) fn device_topology(file: &File) -> io::Result<[u32; 4]> {
    // SAFETY: DKIOCGETBLOCKSIZE writes a 32-bit number.
    let block = unsafe { ioctl(file, Getter::<DKIOCGETBLOCKSIZE, u32>::new()) }?;
    Ok([block, block, block, 0])
}
