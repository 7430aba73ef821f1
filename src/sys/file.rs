//! Files as disks: what goes beyond reading and writing.

use std::fs::File;
use std::io;

use rustix::fs::fsync;

#[cfg(target_os = "linux")]
pub(crate) use super::file_linux::{
    can_punch_holes, device_size, device_topology, flush_drive, origin, punch_hole, read_now,
    zero_range,
};
#[cfg(target_os = "macos")]
pub(crate) use super::file_macos::{
    can_punch_holes, device_size, device_topology, flush_drive, origin, punch_hole, read_now,
    zero_range,
};

/// What a disk's flush does on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Flush {
    /// Hands everything written to the drive: `fdatasync` on Linux, where that includes the drive's own cache;
    /// `fsync` on macOS, where it does not, so that the last seconds may be lost with the power.
    #[default]
    Fsync,
    /// Everything up to the platters: `F_FULLFSYNC` on macOS, which is slow; the same as [`Fsync`](Self::Fsync) on
    /// Linux.
    Full,
    /// Nothing: a crash of the host may lose or tear anything written since the disk was opened. What was written
    /// survives the end of this process nonetheless.
    None,
}

/// Flushes a file, as `how` says.
pub(crate) fn flush(file: &File, how: Flush) -> io::Result<()> {
    match how {
        Flush::None => Ok(()),
        Flush::Full => flush_drive(file),
        Flush::Fsync if cfg!(target_os = "linux") => flush_drive(file),
        Flush::Fsync => Ok(fsync(file)?),
    }
}

/// Whether an error says that the host, or the file system, does not have what was asked for.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    // On Linux the two last are the same number, and not all of them are of the kind `Unsupported`.
    let numbers = [libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOTSUP];
    error.kind() == io::ErrorKind::Unsupported
        || error.raw_os_error().is_some_and(|number| numbers.contains(&number))
}
