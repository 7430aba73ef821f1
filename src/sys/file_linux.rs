use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{
    FallocateFlags, fallocate, fdatasync, fstatvfs, ioctl_blkpbszget, ioctl_blksszget,
};
use rustix::ioctl::{Getter, Opcode, ioctl, opcode};

use crate::memory::Buffers;

/// `linux/fs.h`. The first two carry no size of their argument.
const BLKIOMIN: Opcode = opcode::none(0x12, 120);
const BLKIOOPT: Opcode = opcode::none(0x12, 121);
const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);

/// Reads what can be had without waiting for the drive. [`io::ErrorKind::WouldBlock`] if that is nothing;
/// An error that [`is_unsupported`](super::file::is_unsupported) if this file cannot say.
pub(crate) fn read_now(file: &File, into: Buffers<'_>, offset: u64) -> io::Result<usize> {
    let pieces = into.first_iovecs();
    let count = pieces.len() as libc::c_int;
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: `Buffers` are memory that may be written; the array and its length are those of a slice.
    let done = unsafe {
        libc::preadv2(file.as_raw_fd(), pieces.as_ptr(), count, offset, libc::RWF_NOWAIT)
    };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// Flushes a file, and the cache of the drive that it is on.
pub(crate) fn flush_drive(file: &File) -> io::Result<()> {
    Ok(fdatasync(file)?)
}

/// Makes a range read as zeros and gives its storage back. Fails as unsupported if the file system, or the
/// device, cannot.
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
}

/// Whether there can be holes in a file that ends before `end`; `block` is the size of its blocks. A hole behind the end
/// changes nothing.
pub(crate) fn can_punch_holes(file: &File, end: u64, block: u64) -> bool {
    punch_hole(file, end, block).is_ok()
}

/// Makes a range read as zeros and keeps storage for it. Fails as unsupported as above.
pub(crate) fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, len)?)
}

/// What tells files apart that have the same number on different file systems: the file system's own number, which
/// outlives a restart of the host where the number of the device that it is on may not.
pub(crate) fn origin(file: &File) -> io::Result<u64> {
    Ok(fstatvfs(file)?.f_fsid)
}

/// The size of a block device in bytes.
pub(crate) fn device_size(file: &File) -> io::Result<u64> {
    // SAFETY: BLKGETSIZE64 writes a 64-bit number.
    Ok(unsafe { ioctl(file, Getter::<BLKGETSIZE64, u64>::new()) }?)
}

/// Of a block device, in bytes: logical and physical block size, smallest and best unit of input and output.
pub(crate) fn device_topology(file: &File) -> io::Result<[u32; 4]> {
    let fd = file.as_fd();
    // SAFETY: BLKIOMIN and BLKIOOPT write a 32-bit number each.
    let (minimum, optimal) = unsafe {
        (ioctl(fd, Getter::<BLKIOMIN, u32>::new())?, ioctl(fd, Getter::<BLKIOOPT, u32>::new())?)
    };
    Ok([ioctl_blksszget(fd)?, ioctl_blkpbszget(fd)?, minimum, optimal])
}
