//! A file by a descriptor; or, where there can be none without opening what must not be opened, by its name in the
//! descriptor of its folder, and by its inode: symbolic links, device nodes, FIFOs and sockets, and what this process
//! may not read. Renames do not touch what is held by a descriptor; the others cannot be found any more (ESTALE), nor
//! do they have extended attributes.
//!
//! Between the look at what a name stands for and its opening somebody may put something else there. It is opened so
//! that a FIFO does not block, and let go when it turns out not to be what was seen; to put a device node there takes
//! root on the host.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Stat, StatVfs, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::identity::{Facts, FileId};
use super::{Time, Wait, kind};
use crate::sys::file::{flush_drive, is_unsupported};

/// What everything here is opened with.
const PLAINLY: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NOCTTY);
/// What a path is opened with: no link in all of it is followed. Not to be combined with O_NOFOLLOW.
const BY_PATH: OFlags = OFlags::NOFOLLOW_ANY.union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

/// Commands of `fcntl` for locks that belong to an open file description.
pub(super) const SET_LOCK: libc::c_int = libc::F_OFD_SETLK;
/// `sys/fcntl.h`; the libc crate does not have it.
pub(super) const GET_LOCK: libc::c_int = 92;

/// Whether extended attributes are of kinds, which their names begin with, as they are in the guest.
pub(super) const HAS_KINDS: bool = false;

/// A file of the host.
#[derive(Debug)]
pub(super) enum Handle {
    Open(File),
    Named { folder: File, name: Vec<u8>, id: FileId },
}

/// Opens what a descriptor stands for once more, by the path that it has now. The guest may rename folders meanwhile, and
/// put links in their place: none is followed, so that this leads nowhere but to what is in the share.
pub(super) fn reopen(fd: impl AsFd, flags: OFlags) -> io::Result<File> {
    let path = rustix::fs::getpath(&fd)?;
    let wanted = facts_of(&rustix::fs::fstat(fd)?).id;
    open_this(CWD, path.to_bytes(), flags, BY_PATH, wanted)
}

/// Opens what is at `path`, if it is what is wanted; nothing else is changed by that.
fn open_this(
    folder: impl AsFd,
    path: &[u8],
    flags: OFlags,
    how: OFlags,
    wanted: FileId,
) -> io::Result<File> {
    let truncate = flags.contains(OFlags::TRUNC);
    let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
    let access = if truncate && !writes { OFlags::RDWR } else { OFlags::empty() };
    let flags = flags.difference(OFlags::TRUNC) | access | how | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::openat(folder, path, flags, Mode::empty())?);
    if facts_of(&rustix::fs::fstat(&file)?).id != wanted {
        return Err(Errno::STALE.into());
    }
    if truncate {
        rustix::fs::ftruncate(&file, 0)?;
    }
    Ok(file)
}

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        let (Self::Open(file) | Self::Named { folder: file, .. }) = self;
        file.as_raw_fd()
    }
}

impl Handle {
    /// The folder at `path`.
    pub fn root(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::Open(rustix::fs::open(path, flags, Mode::empty())?.into()))
    }

    /// That of a file that has just been made in `folder`.
    pub fn of_new(file: &File, folder: &Self, name: &[u8]) -> io::Result<Self> {
        let found = folder.child(name, Wait::Long)?;
        let new = facts_of(&rustix::fs::fstat(file)?);
        if found.facts()?.id == new.id { Ok(found) } else { Err(Errno::STALE.into()) }
    }

    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Open(file) => Self::Open(file.try_clone()?),
            Self::Named { folder, name, id } => {
                Self::Named { folder: folder.try_clone()?, name: name.clone(), id: *id }
            }
        })
    }

    /// What has the name, one component and not `..`, in this folder. WouldBlock if it may not wait at all: no call
    /// here keeps to that.
    pub fn child(&self, name: &[u8], wait: Wait) -> io::Result<Self> {
        if wait == Wait::No {
            return Err(Errno::WOULDBLOCK.into());
        }
        let folder = self.folder()?;
        let seen = facts_of(&rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?);
        if matches!(seen.kind(), kind::FILE | kind::DIRECTORY) {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | PLAINLY;
            match rustix::fs::openat(folder, name, flags, Mode::empty()) {
                Ok(fd) => {
                    let found = Self::Open(fd.into());
                    let same = found.facts()?.id == seen.id;
                    return if same { Ok(found) } else { Err(Errno::STALE.into()) };
                }
                Err(Errno::ACCESS | Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let folder = File::from(folder.try_clone_to_owned()?);
        Ok(Self::Named { folder, name: name.to_vec(), id: seen.id })
    }

    /// The folder that this folder is in, wherever that is.
    pub fn parent(&self) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | PLAINLY;
        Ok(Self::Open(rustix::fs::openat(self.folder()?, c"..", flags, Mode::empty())?.into()))
    }

    pub fn facts(&self) -> io::Result<Facts> {
        match self {
            Self::Open(file) => Ok(facts_of(&rustix::fs::fstat(file)?)),
            Self::Named { folder, name, id } => {
                let stat = rustix::fs::statat(folder, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
                match stat.map(|stat| facts_of(&stat)) {
                    Ok(facts) if facts.id == *id => Ok(facts),
                    Ok(_) | Err(Errno::NOENT) => Err(Errno::STALE.into()),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// Whether it is on a disk of this host.
    pub fn is_local(&self) -> io::Result<bool> {
        let (Self::Open(file) | Self::Named { folder: file, .. }) = self;
        Ok(rustix::fs::fstatfs(file)?.f_flags & libc::MNT_LOCAL as u32 != 0)
    }

    pub fn statvfs(&self) -> io::Result<StatVfs> {
        let (Self::Open(file) | Self::Named { folder: file, .. }) = self;
        Ok(rustix::fs::fstatvfs(file)?)
    }

    /// What names in this folder are relative to.
    pub fn folder(&self) -> io::Result<BorrowedFd<'_>> {
        match self {
            Self::Open(file) => Ok(file.as_fd()),
            Self::Named { .. } => Err(Errno::ACCESS.into()),
        }
    }

    /// Opens it. It must be a plain file or a folder: anything else could block.
    pub fn open(&self, flags: OFlags) -> io::Result<File> {
        match self {
            Self::Open(file) => reopen(file, flags),
            Self::Named { folder, name, id } => {
                // It is what it was, so that nothing blocks.
                self.facts()?;
                open_this(folder, name, flags, PLAINLY, *id)
            }
        }
    }

    /// Changes the permissions, of anything but a symbolic link.
    pub fn set_permissions(&self, mode: u32) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(mode as _);
        match self {
            Self::Open(file) => Ok(rustix::fs::fchmod(file, mode)?),
            Self::Named { folder, name, .. } => {
                self.facts()?;
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                Ok(rustix::fs::chmodat(folder, name.as_slice(), mode, flags)?)
            }
        }
    }

    pub fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match self {
            Self::Open(file) => Ok(rustix::fs::fchown(file, uid, gid)?),
            Self::Named { folder, name, .. } => {
                self.facts()?;
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                Ok(rustix::fs::chownat(folder, name.as_slice(), uid, gid, flags)?)
            }
        }
    }

    pub fn set_times(&self, times: &Timestamps) -> io::Result<()> {
        match self {
            Self::Open(file) => Ok(rustix::fs::futimens(file, times)?),
            Self::Named { folder, name, .. } => {
                self.facts()?;
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                Ok(rustix::fs::utimensat(folder, name.as_slice(), times, flags)?)
            }
        }
    }

    /// Where a symbolic link leads.
    pub fn read_link(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Open(_) => Err(Errno::INVAL.into()),
            Self::Named { folder, name, .. } => {
                self.facts()?;
                let target = rustix::fs::readlinkat(folder, name.as_slice(), Vec::new())?;
                Ok(target.into_bytes())
            }
        }
    }

    /// Gives it one more name.
    pub fn link(&self, folder: &Self, name: &[u8]) -> io::Result<()> {
        let (there, wanted) = (folder.folder()?, self.facts()?.id);
        match self {
            Self::Open(file) => {
                // By way of its folder: linkat would follow links on the path.
                let path = rustix::fs::getpath(file)?;
                let path = Path::new(OsStr::from_bytes(path.to_bytes()));
                let (Some(above), Some(this)) = (path.parent(), path.file_name()) else {
                    return Err(Errno::STALE.into());
                };
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | BY_PATH;
                let above = rustix::fs::openat(CWD, above, flags, Mode::empty())?;
                rustix::fs::linkat(above, this, there, name, AtFlags::empty())?;
            }
            Self::Named { folder, name: this, .. } => {
                rustix::fs::linkat(folder, this.as_slice(), there, name, AtFlags::empty())?;
            }
        }
        let found = rustix::fs::statat(there, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if facts_of(&found).id == wanted {
            return Ok(());
        }
        // Somebody was quicker with the old name.
        rustix::fs::unlinkat(there, name, AtFlags::empty())?;
        Err(Errno::STALE.into())
    }

    /// Makes a FIFO, a socket or a device node in this folder: none can be made here by the folder's descriptor on
    /// every system that is served.
    pub fn make_node(&self, _name: &[u8], _mode: u32, _device: (u32, u32)) -> io::Result<()> {
        Err(Errno::OPNOTSUPP.into())
    }

    /// An extended attribute, and how long it is; ERANGE if there is too little room.
    pub fn xattr(&self, name: &[u8], into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::fs::fgetxattr(self.with_xattrs()?, name, into)?)
    }

    /// The names of all, each with a NUL behind it.
    pub fn xattrs(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Open(file) => Ok(rustix::fs::flistxattr(file, into)?),
            Self::Named { .. } => Ok(0),
        }
    }

    /// `flags` as Linux has them: 1 for one that must be new, 2 for one that must be there.
    pub fn set_xattr(&self, name: &[u8], value: &[u8], flags: u32) -> io::Result<()> {
        let flags = match flags {
            0 => XattrFlags::empty(),
            1 => XattrFlags::CREATE,
            _ => XattrFlags::REPLACE,
        };
        Ok(rustix::fs::fsetxattr(self.with_xattrs()?, name, value, flags)?)
    }

    pub fn remove_xattr(&self, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::fremovexattr(self.with_xattrs()?, name)?)
    }

    fn with_xattrs(&self) -> io::Result<&File> {
        match self {
            Self::Open(file) => Ok(file),
            Self::Named { .. } => Err(Errno::OPNOTSUPP.into()),
        }
    }
}

/// Whether an error says that there is no such extended attribute.
pub(super) fn is_no_xattr(error: Errno) -> bool {
    error.raw_os_error() == libc::ENOATTR
}

/// Writes a file to the host's disk and has that keep it, as fsync alone does not here. File systems that know nothing
/// of a disk, which say so in many ways, have nothing better.
pub(super) fn sync(file: &File) -> io::Result<()> {
    let says_so = |error: &io::Error| {
        is_unsupported(error)
            || matches!(Errno::from_io_error(error), Some(Errno::NOTTY | Errno::INVAL))
    };
    match flush_drive(file) {
        Err(error) if says_so(&error) => Ok(rustix::fs::fsync(file)?),
        done => done,
    }
}

/// The same: the data cannot be kept without the rest.
pub(super) fn sync_data(file: &File) -> io::Result<()> {
    sync(file)
}

fn facts_of(stat: &Stat) -> Facts {
    let time = |seconds, nanoseconds| Time {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or_default(),
    };
    // As this system has device numbers: 8 bits of major and 24 of minor.
    let device = stat.st_rdev as u32;
    Facts {
        id: FileId { device: stat.st_dev as u32 as u64, inode: stat.st_ino },
        mode: stat.st_mode.into(),
        uid: stat.st_uid,
        gid: stat.st_gid,
        links: stat.st_nlink.into(),
        device: super::node::linux_device((device >> 24, device & 0xff_ffff)),
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        block_size: u64::try_from(stat.st_blksize).unwrap_or_default(),
        blocks: u64::try_from(stat.st_blocks).unwrap_or_default(),
        accessed: time(stat.st_atime, stat.st_atime_nsec),
        modified: time(stat.st_mtime, stat.st_mtime_nsec),
        changed: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}
