//! The shared folder: everything that touches the host's file system, and nothing that is outside the folder.

mod types;

use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::memory::Buffers;

pub(in crate::fs) use types::{
    Attributes, Entry, HeldLock, LockKind, LockRequest, LockStatus, Qid, SetAttributes, SetTime,
    StatFs, Time,
};

/// Whose the files of a share are: what the guest sees, and what becomes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(Mode);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Passthrough,
    Squash { uid: u32, gid: u32 },
    Mapped,
}

impl Owner {
    /// As on the host.
    pub fn passthrough() -> Self {
        Self(Mode::Passthrough)
    }

    /// The host user's files appear as one user's.
    pub fn squash(uid: u32, gid: u32) -> Self {
        Self(Mode::Squash { uid, gid })
    }

    /// Owner and mode are kept in an extended attribute.
    pub fn mapped() -> Self {
        Self(Mode::Mapped)
    }
}

/// A folder of the host, shared.
#[derive(Debug)]
pub(in crate::fs) struct Tree {}

/// A file or folder of the tree, whatever becomes of its name.
#[derive(Debug)]
pub(in crate::fs) struct Node {}

/// A file or folder, opened.
#[derive(Debug)]
pub(in crate::fs) struct OpenFile {}

impl Tree {
    pub fn open(_dir: &Path, _read_only: bool, _owner: Owner) -> io::Result<Self> {
        Err(Errno::NOSYS.into())
    }

    /// The folder itself.
    pub fn root(&self) -> io::Result<Node> {
        Err(Errno::NOSYS.into())
    }
}

impl Node {
    /// What it was when it was found; [`Attributes::qid`] is what it is now.
    pub fn qid(&self) -> Qid {
        Qid { kind: 0, version: 0, path: 0 }
    }

    /// What is there by the name: one component, `.` and `..` included. `..` of the root is the root.
    pub fn walk(&self, _name: &[u8]) -> io::Result<Node> {
        Err(Errno::NOSYS.into())
    }

    pub fn attributes(&self) -> io::Result<Attributes> {
        Err(Errno::NOSYS.into())
    }

    /// `open`: the file as the guest has it open, if it has, so that its size can be changed whatever its mode.
    pub fn set_attributes(
        &self,
        _changes: &SetAttributes,
        _open: Option<&OpenFile>,
    ) -> io::Result<()> {
        Err(Errno::NOSYS.into())
    }

    /// Opens it, with the flags of Tlopen.
    pub fn open(&self, _flags: u32) -> io::Result<OpenFile> {
        Err(Errno::NOSYS.into())
    }

    /// Makes a file, or opens the one that is there unless the flags have O_EXCL.
    pub fn create(
        &self,
        _name: &[u8],
        _flags: u32,
        _mode: u32,
        _uid: u32,
        _gid: u32,
    ) -> io::Result<(Node, OpenFile)> {
        Err(Errno::NOSYS.into())
    }

    pub fn mkdir(&self, _name: &[u8], _mode: u32, _uid: u32, _gid: u32) -> io::Result<Node> {
        Err(Errno::NOSYS.into())
    }

    pub fn symlink(&self, _name: &[u8], _target: &[u8], _uid: u32, _gid: u32) -> io::Result<Node> {
        Err(Errno::NOSYS.into())
    }

    /// `mode` has the kind; `major` and `minor` count for devices.
    pub fn mknod(
        &self,
        _name: &[u8],
        _mode: u32,
        (_major, _minor): (u32, u32),
        _uid: u32,
        _gid: u32,
    ) -> io::Result<Node> {
        Err(Errno::NOSYS.into())
    }

    /// Gives `target` another name, in this folder.
    pub fn link(&self, _target: &Node, _name: &[u8]) -> io::Result<()> {
        Err(Errno::NOSYS.into())
    }

    pub fn readlink(&self) -> io::Result<Vec<u8>> {
        Err(Errno::NOSYS.into())
    }

    pub fn unlink(&self, _name: &[u8], _is_dir: bool) -> io::Result<()> {
        Err(Errno::NOSYS.into())
    }

    pub fn rename(&self, _name: &[u8], _new_dir: &Node, _new_name: &[u8]) -> io::Result<()> {
        Err(Errno::NOSYS.into())
    }

    pub fn statfs(&self) -> io::Result<StatFs> {
        Err(Errno::NOSYS.into())
    }

    pub fn xattr_get(&self, _name: &[u8]) -> io::Result<Vec<u8>> {
        Err(Errno::NOSYS.into())
    }

    /// The names, each with a NUL behind it.
    pub fn xattr_list(&self) -> io::Result<Vec<u8>> {
        Err(Errno::NOSYS.into())
    }

    /// `flags`: XATTR_CREATE 1, XATTR_REPLACE 2.
    pub fn xattr_set(&self, _name: &[u8], _value: &[u8], _flags: u32) -> io::Result<()> {
        Err(Errno::NOSYS.into())
    }

    pub fn xattr_remove(&self, _name: &[u8]) -> io::Result<()> {
        Err(Errno::NOSYS.into())
    }
}

impl OpenFile {
    /// Reads once, maybe less than there is room for; nothing at the end.
    pub fn read_at(&self, _into: Buffers<'_>, _offset: u64) -> io::Result<usize> {
        Err(Errno::NOSYS.into())
    }

    /// Writes once, maybe less than wanted; at the end if it was opened with O_APPEND.
    pub fn write_at(&self, _from: Buffers<'_>, _offset: u64) -> io::Result<usize> {
        Err(Errno::NOSYS.into())
    }

    pub fn sync(&self, _data_only: bool) -> io::Result<()> {
        Err(Errno::NOSYS.into())
    }

    /// Never waits.
    pub fn lock(&self, _request: &LockRequest<'_>) -> io::Result<LockStatus> {
        Err(Errno::NOSYS.into())
    }

    /// The lock that is in the way of the one asked about, if any.
    pub fn get_lock(&self, _request: &LockRequest<'_>) -> io::Result<Option<HeldLock>> {
        Err(Errno::NOSYS.into())
    }

    /// Calls `each` with the entries behind `cookie` (0: all), `.` and `..` included, until it returns false, the
    /// directory ends, or about `room` bytes of Rreaddir are full. With true it has taken the entry.
    pub fn read_dir(
        &self,
        _cookie: u64,
        _room: usize,
        _each: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> io::Result<()> {
        Err(Errno::NOSYS.into())
    }
}

/// The number by which Linux knows an error of the host.
pub(in crate::fs) fn linux_errno(error: &io::Error) -> u32 {
    const EIO: u32 = 5;
    error.raw_os_error().and_then(|number| number.try_into().ok()).unwrap_or(EIO)
}
