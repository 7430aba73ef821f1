//! A file by a descriptor that stands for its inode (O_PATH): nothing is opened, so nothing blocks and no device or
//! FIFO notices, and renames do not touch it. What needs more than that goes by the descriptor's name in /proc,
//! which leads to that inode and nowhere else.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, StatVfs, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::Time;
use super::identity::{Facts, FileId};

/// What every descriptor here is opened with.
const BY_INODE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NO_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS);

/// A file of the host, whatever becomes of its name.
#[derive(Debug)]
pub(super) struct Handle(File);

/// Opens what a descriptor stands for once more.
pub(super) fn reopen(fd: impl AsFd, flags: OFlags) -> io::Result<File> {
    by_name(fd, |name| {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        Ok(rustix::fs::openat(CWD, name, flags, Mode::empty())?.into())
    })
}

/// Calls `call` with the name of a descriptor's inode.
fn by_name<T>(fd: impl AsFd, call: impl FnOnce(&CStr) -> io::Result<T>) -> io::Result<T> {
    let mut name = [0; 40];
    // The last byte stays 0. That of the thread is there even if the process's first thread is gone.
    write!(&mut name[..39], "/proc/thread-self/fd/{}", fd.as_fd().as_raw_fd())?;
    call(CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?)
}

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Handle {
    /// The folder at `path`.
    pub fn root(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = Self(rustix::fs::open(path, flags, Mode::empty())?.into());
        // Without /proc little would work, so that is found out here.
        by_name(&root.0, |name| {
            let stat = rustix::fs::stat(name).map_err(|error| {
                let why =
                    format!("/proc, which sharing a folder takes: {}", io::Error::from(error));
                io::Error::other(why)
            })?;
            match facts_of(&stat).id == root.facts()?.id {
                true => Ok(()),
                false => Err(io::Error::other("/proc is not what it should be")),
            }
        })?;
        Ok(root)
    }

    /// That of a file that has just been made in `_folder`.
    pub fn of_new(file: &File, _folder: &Self, _name: &[u8]) -> io::Result<Self> {
        // O_NOFOLLOW would stop at the name in /proc.
        reopen(file, OFlags::PATH).map(Self)
    }

    pub fn duplicate(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// What has the name, one component and not `..`, in this folder.
    pub fn child(&self, name: &[u8]) -> io::Result<Self> {
        let resolve = NO_LINKS | ResolveFlags::BENEATH;
        Ok(Self(rustix::fs::openat2(&self.0, name, BY_INODE, Mode::empty(), resolve)?.into()))
    }

    /// The folder that this folder is in, wherever that is.
    pub fn parent(&self) -> io::Result<Self> {
        let flags = BY_INODE | OFlags::DIRECTORY;
        Ok(Self(rustix::fs::openat2(&self.0, c"..", flags, Mode::empty(), NO_LINKS)?.into()))
    }

    pub fn facts(&self) -> io::Result<Facts> {
        Ok(facts_of(&rustix::fs::fstat(&self.0)?))
    }

    pub fn statvfs(&self) -> io::Result<StatVfs> {
        Ok(rustix::fs::fstatvfs(&self.0)?)
    }

    /// What names in this folder are relative to.
    pub fn folder(&self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.0.as_fd())
    }

    /// Opens it. It must be a plain file or a folder: anything else could block.
    pub fn open(&self, flags: OFlags) -> io::Result<File> {
        reopen(&self.0, flags)
    }

    /// Changes the permissions, of anything but a symbolic link.
    pub fn set_permissions(&self, mode: u32) -> io::Result<()> {
        by_name(&self.0, |name| Ok(rustix::fs::chmod(name, Mode::from_raw_mode(mode))?))
    }

    pub fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        Ok(rustix::fs::chownat(&self.0, c"", uid, gid, AtFlags::EMPTY_PATH)?)
    }

    pub fn set_times(&self, times: &Timestamps) -> io::Result<()> {
        Ok(rustix::fs::utimensat(&self.0, c"", times, AtFlags::EMPTY_PATH)?)
    }

    /// Where a symbolic link leads.
    pub fn read_link(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.0, c"", Vec::new())?.into_bytes())
    }

    /// Gives it one more name.
    pub fn link(&self, folder: &Self, name: &[u8]) -> io::Result<()> {
        by_name(&self.0, |this| {
            // What is followed is the name in /proc, not a symbolic link that it may stand for.
            Ok(rustix::fs::linkat(CWD, this, &folder.0, name, AtFlags::SYMLINK_FOLLOW)?)
        })
    }

    /// Makes a FIFO, a socket or a device node in this folder.
    pub fn make_node(&self, name: &[u8], mode: u32, (major, minor): (u32, u32)) -> io::Result<()> {
        let (kind, mode) = (FileType::from_raw_mode(mode), Mode::from_raw_mode(mode & 0o777));
        let device = rustix::fs::makedev(major, minor);
        Ok(rustix::fs::mknodat(&self.0, name, kind, mode, device)?)
    }

    /// An extended attribute, and how long it is; ERANGE if there is too little room.
    pub fn xattr(&self, name: &[u8], into: &mut [u8]) -> io::Result<usize> {
        by_name(&self.0, |this| Ok(rustix::fs::getxattr(this, name, into)?))
    }

    /// The names of all, each with a NUL behind it.
    pub fn xattrs(&self, into: &mut [u8]) -> io::Result<usize> {
        by_name(&self.0, |this| Ok(rustix::fs::listxattr(this, into)?))
    }

    /// `flags` as Linux has them: 1 for one that must be new, 2 for one that must be there.
    pub fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> io::Result<()> {
        by_name(&self.0, |this| {
            Ok(rustix::fs::setxattr(this, name, value, XattrFlags::from_bits_retain(flags))?)
        })
    }

    pub fn remove_xattr(&self, name: &[u8]) -> io::Result<()> {
        by_name(&self.0, |this| Ok(rustix::fs::removexattr(this, name)?))
    }
}

#[allow(clippy::useless_conversion, reason = "the number of links has 32 bits on arm64")]
fn facts_of(stat: &Stat) -> Facts {
    let time = |seconds, nanoseconds: u64| Time {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or_default(),
    };
    Facts {
        id: FileId { device: stat.st_dev, inode: stat.st_ino },
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        links: u64::from(stat.st_nlink),
        device: stat.st_rdev,
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        block_size: u64::try_from(stat.st_blksize).unwrap_or_default(),
        blocks: u64::try_from(stat.st_blocks).unwrap_or_default(),
        accessed: time(stat.st_atime, stat.st_atime_nsec),
        modified: time(stat.st_mtime, stat.st_mtime_nsec),
        changed: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// Whether an error says that there is no such extended attribute.
pub(super) fn is_no_xattr(error: Errno) -> bool {
    error == Errno::NODATA
}

/// The commands of `fcntl` for locks that belong to an open file description.
pub(super) const SET_LOCK: libc::c_int = libc::F_OFD_SETLK;
pub(super) const GET_LOCK: libc::c_int = libc::F_OFD_GETLK;

/// Whether extended attributes are of kinds, which their names begin with, as they are in the guest.
pub(super) const HAS_KINDS: bool = true;

/// Writes a file's data to the host's disk.
pub(super) fn sync_data(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fdatasync(file)?)
}
