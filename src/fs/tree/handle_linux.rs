//! A file by a descriptor that stands for its inode (O_PATH): nothing is opened, so nothing blocks and no device or
//! FIFO notices, and renames do not touch it. What needs more than that goes by the descriptor's name in /proc,
//! which leads to that inode and nowhere else.
//!
//! Names are looked up one at a time, and a link is never followed (O_NOFOLLOW), so that a lookup ends in the folder
//! that it begins in. Where there is openat2 (Linux 5.6), the kernel is told to see to that as well; where there is not,
//! or a container forbids it, the name is looked at once more here. Either way mounts of the host are gone into, and
//! automounts are not set off.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, StatVfs, StatxFlags, Timestamps,
    Uid, XattrFlags,
};
use rustix::io::Errno;

use super::identity::{Facts, FileId};
use super::{Time, Wait};

/// What every descriptor here is opened with.
const BY_INODE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NO_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS);
const BENEATH: ResolveFlags = NO_LINKS.union(ResolveFlags::BENEATH);
const HERE: ResolveFlags = BENEATH.union(ResolveFlags::NO_XDEV);
const IN_MEMORY: ResolveFlags = HERE.union(ResolveFlags::CACHED);

/// The kinds of file systems that are local, as the kernel numbers them: ext2 to ext4, XFS, Btrfs, Bcachefs, F2FS, ZFS,
/// tmpfs, ramfs and overlayfs.
const LOCAL: [u32; 9] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xca45_1a4e,
    0xf2f5_2010,
    0x2fc1_2fc1,
    0x0102_1994,
    0x8584_58f6,
    0x794c_7630,
];

/// A file of the host, whatever becomes of its name.
#[derive(Debug)]
pub(super) struct Handle {
    file: File,
    /// How names in it are looked up: as the whole share does it.
    lookup: Lookup,
}

/// Which system call looks up names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lookup {
    /// openat2, which can also look only at what is in memory (Linux 5.12).
    Cached,
    Openat2,
    Openat,
}

impl Lookup {
    /// The one that there is for `root`. An older kernel knows no openat2 (ENOSYS), and what container runtimes do
    /// not know they forbid (EPERM).
    fn of(root: &File) -> Self {
        match Self::Cached.open(root, b".", BY_INODE, IN_MEMORY) {
            Err(Errno::NOSYS | Errno::PERM) => Self::Openat,
            Err(Errno::INVAL) => Self::Openat2,
            _ => Self::Cached,
        }
    }

    /// What `name` leads to from `folder`, `resolve` being what it must not go by, where that can be said.
    fn open(
        self,
        folder: &File,
        name: &[u8],
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> rustix::io::Result<File> {
        let fd = match self {
            Self::Cached | Self::Openat2 => {
                rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve)?
            }
            Self::Openat => rustix::fs::openat(folder, name, flags, Mode::empty())?,
        };
        Ok(fd.into())
    }
}

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
        self.file.as_raw_fd()
    }
}

impl Handle {
    /// The folder at `path`.
    pub fn root(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let root = Self { lookup: Lookup::of(&file), file };
        // Without /proc little would work, so that is found out here.
        by_name(&root.file, |name| {
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

    /// That of a file that has just been made in `folder`.
    pub fn of_new(file: &File, folder: &Self, _name: &[u8]) -> io::Result<Self> {
        // O_NOFOLLOW would stop at the name in /proc.
        Ok(Self { file: reopen(file, OFlags::PATH)?, lookup: folder.lookup })
    }

    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, lookup: self.lookup })
    }

    /// What has the name, one component and not `..`, in this folder. WouldBlock if that may take longer than `wait`,
    /// as it may for whatever is on another file system.
    pub fn child(&self, name: &[u8], wait: Wait) -> io::Result<Self> {
        let openat = self.lookup == Lookup::Openat;
        if openat && (name == b".." || name.contains(&b'/')) {
            return Err(Errno::XDEV.into());
        }
        let resolve = match wait {
            Wait::No if self.lookup != Lookup::Cached => return Err(Errno::WOULDBLOCK.into()),
            Wait::No => IN_MEMORY,
            Wait::Brief => HERE,
            Wait::Long => BENEATH,
        };
        match self.look_up(name, BY_INODE, resolve) {
            Ok(found) if openat && wait == Wait::Brief && found.device()? != self.device()? => {
                Err(Errno::WOULDBLOCK.into())
            }
            Err(Errno::XDEV) if wait != Wait::Long => Err(Errno::WOULDBLOCK.into()),
            found => Ok(found?),
        }
    }

    /// The device that it is on, as far as that is known without asking anybody.
    fn device(&self) -> io::Result<(u32, u32)> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let known = rustix::fs::statx(&self.file, c"", flags, StatxFlags::empty())?;
        Ok((known.stx_dev_major, known.stx_dev_minor))
    }

    /// The folder that this folder is in, wherever that is.
    pub fn parent(&self) -> io::Result<Self> {
        Ok(self.look_up(b"..", BY_INODE | OFlags::DIRECTORY, NO_LINKS)?)
    }

    fn look_up(
        &self,
        name: &[u8],
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> rustix::io::Result<Self> {
        let file = self.lookup.open(&self.file, name, flags, resolve)?;
        Ok(Self { file, lookup: self.lookup })
    }

    pub fn facts(&self) -> io::Result<Facts> {
        Ok(facts_of(&rustix::fs::fstat(&self.file)?))
    }

    /// Whether it is on a file system of a kind that is this host's own affair, and that it has in memory what has been
    /// used lately.
    pub fn is_local(&self) -> io::Result<bool> {
        let kind = rustix::fs::fstatfs(&self.file)?.f_type;
        Ok(LOCAL.contains(&(kind as u32)))
    }

    pub fn statvfs(&self) -> io::Result<StatVfs> {
        Ok(rustix::fs::fstatvfs(&self.file)?)
    }

    /// What names in this folder are relative to.
    pub fn folder(&self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.file.as_fd())
    }

    /// Opens it. It must be a plain file or a folder: anything else could block.
    pub fn open(&self, flags: OFlags) -> io::Result<File> {
        reopen(&self.file, flags)
    }

    /// Changes the permissions, of anything but a symbolic link.
    pub fn set_permissions(&self, mode: u32) -> io::Result<()> {
        by_name(&self.file, |name| Ok(rustix::fs::chmod(name, Mode::from_raw_mode(mode))?))
    }

    pub fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        Ok(rustix::fs::chownat(&self.file, c"", uid, gid, AtFlags::EMPTY_PATH)?)
    }

    pub fn set_times(&self, times: &Timestamps) -> io::Result<()> {
        // Linux 5.8 could do it by the descriptor.
        by_name(&self.file, |name| Ok(rustix::fs::utimensat(CWD, name, times, AtFlags::empty())?))
    }

    /// Where a symbolic link leads.
    pub fn read_link(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.file, c"", Vec::new())?.into_bytes())
    }

    /// Gives it one more name.
    pub fn link(&self, folder: &Self, name: &[u8]) -> io::Result<()> {
        by_name(&self.file, |this| {
            // What is followed is the name in /proc, not a symbolic link that it may stand for.
            Ok(rustix::fs::linkat(CWD, this, &folder.file, name, AtFlags::SYMLINK_FOLLOW)?)
        })
    }

    /// Makes a FIFO, a socket or a device node in this folder.
    pub fn make_node(&self, name: &[u8], mode: u32, (major, minor): (u32, u32)) -> io::Result<()> {
        let (kind, mode) = (FileType::from_raw_mode(mode), Mode::from_raw_mode(mode & 0o777));
        let device = rustix::fs::makedev(major, minor);
        Ok(rustix::fs::mknodat(&self.file, name, kind, mode, device)?)
    }

    /// An extended attribute, and how long it is; ERANGE if there is too little room.
    pub fn xattr(&self, name: &[u8], into: &mut [u8]) -> io::Result<usize> {
        by_name(&self.file, |this| Ok(rustix::fs::getxattr(this, name, into)?))
    }

    /// The names of all, each with a NUL behind it.
    pub fn xattrs(&self, into: &mut [u8]) -> io::Result<usize> {
        by_name(&self.file, |this| Ok(rustix::fs::listxattr(this, into)?))
    }

    /// `flags` as Linux has them: 1 for one that must be new, 2 for one that must be there.
    pub fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> io::Result<()> {
        by_name(&self.file, |this| {
            Ok(rustix::fs::setxattr(this, name, value, XattrFlags::from_bits_retain(flags))?)
        })
    }

    pub fn remove_xattr(&self, name: &[u8]) -> io::Result<()> {
        by_name(&self.file, |this| Ok(rustix::fs::removexattr(this, name)?))
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

/// Writes a file to the host's disk.
pub(super) fn sync(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fsync(file)?)
}

/// The same, without what it does not take to read the data.
pub(super) fn sync_data(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fdatasync(file)?)
}
