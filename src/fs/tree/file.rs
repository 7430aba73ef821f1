//! Files and folders that the guest has open.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::directory::{Found, Reader};
use super::handle::{sync, sync_data};
use super::identity::FileId;
use super::lock::Held;
use super::node::qid_kind;
use super::{Entry, Node, Qid, Shared, kind};
use crate::memory::Buffers;

/// Flags of Tlopen and Tlcreate: Linux's, of a generic processor, whatever the guest's and the host's are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flags(u32);

impl Flags {
    const WRITE_ONLY: u32 = 0o1;
    const READ_WRITE: u32 = 0o2;
    const ACCESS: u32 = 0o3;
    pub const EXCLUSIVE: u32 = 0o200;
    const TRUNCATE: u32 = 0o1000;
    const APPEND: u32 = 0o2000;
    const DATA_SYNC: u32 = 0o10_000;
    const FOLDER: u32 = 0o200_000;
    const SYNC: u32 = 0o4_000_000;

    pub fn new(flags: u32) -> io::Result<Self> {
        if flags & Self::ACCESS == Self::ACCESS {
            Err(Errno::INVAL.into())
        } else {
            Ok(Self(flags))
        }
    }

    fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    fn reads(self) -> bool {
        !self.has(Self::WRITE_ONLY)
    }

    fn can_write(self) -> bool {
        self.has(Self::WRITE_ONLY | Self::READ_WRITE)
    }

    /// Whether opening a file with these changes it, or makes that possible.
    pub fn writes(self) -> bool {
        self.can_write() || self.truncates()
    }

    /// Whether a file is to be made, and none opened.
    pub fn must_be_new(self) -> bool {
        self.has(Self::EXCLUSIVE)
    }

    pub fn truncates(self) -> bool {
        self.has(Self::TRUNCATE)
    }

    pub fn folder_only(self) -> bool {
        self.has(Self::FOLDER)
    }

    /// The host's flags that mean the same. What concerns the guest's kernel only is left out: O_DIRECT, for one,
    /// whose alignment the guest's memory need not have.
    pub fn host(self) -> OFlags {
        let access = match (self.reads(), self.can_write()) {
            (true, true) => OFlags::RDWR,
            (false, _) => OFlags::WRONLY,
            (true, false) => OFlags::RDONLY,
        };
        let others = [
            (Self::TRUNCATE, OFlags::TRUNC),
            (Self::APPEND, OFlags::APPEND),
            (Self::DATA_SYNC, OFlags::DSYNC),
            (Self::SYNC, OFlags::SYNC),
        ];
        others
            .iter()
            .filter(|&&(flag, _)| self.has(flag))
            .fold(access, |all, &(_, flag)| all | flag)
    }
}

/// A file or folder, opened.
#[derive(Debug)]
pub(in crate::fs) struct OpenFile {
    tree: Arc<Shared>,
    file: File,
    flags: Flags,
    id: FileId,
    /// Reading can be told not to wait, as far as is known.
    reads_now: AtomicBool,
    reader: Reader,
    /// What is locked by way of it.
    held: Mutex<Held>,
}

impl OpenFile {
    pub(super) fn new(node: &Node, file: File, flags: Flags) -> Self {
        node.tree.descriptors.given(file.as_raw_fd());
        Self {
            tree: Arc::clone(&node.tree),
            file,
            flags,
            id: node.id,
            reads_now: AtomicBool::new(true),
            reader: Reader::default(),
            held: Mutex::default(),
        }
    }

    pub(super) fn tree(&self) -> &Shared {
        &self.tree
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn id(&self) -> FileId {
        self.id
    }

    pub(super) fn held(&self) -> &Mutex<Held> {
        &self.held
    }

    pub(super) fn reads_now(&self) -> &AtomicBool {
        &self.reads_now
    }

    pub(super) fn can_write(&self) -> bool {
        self.flags.can_write()
    }

    /// Whether what is written goes to the disk before it counts as written.
    pub fn writes_through(&self) -> bool {
        self.flags.has(Flags::SYNC | Flags::DATA_SYNC)
    }

    /// Reads once, maybe less than there is room for; nothing at the end.
    pub fn read_at(&self, into: Buffers<'_>, offset: u64) -> io::Result<usize> {
        let (pieces, offset) = (into.first_iovecs(), position(offset)?);
        let (first, count) = (pieces.as_ptr(), pieces.len() as libc::c_int);
        // SAFETY: `Buffers` are memory that may be written, and the array is a slice's.
        again(|| unsafe { libc::preadv(self.file.as_raw_fd(), first, count, offset) })
    }

    /// Writes once, maybe less than wanted; at the end, whatever the offset, if it was opened with O_APPEND.
    pub fn write_at(&self, from: Buffers<'_>, offset: u64) -> io::Result<usize> {
        let (pieces, offset) = (from.first_iovecs(), position(offset)?);
        let (fd, first, count) =
            (self.file.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int);
        // SAFETY: `Buffers` are memory that may be read, and the array is a slice's.
        again(|| unsafe {
            match self.flags.has(Flags::APPEND) {
                true => libc::writev(fd, first, count),
                false => libc::pwritev(fd, first, count, offset),
            }
        })
    }

    /// Writes what the host has cached of it to its disk, as far as that can be told to keep it; with `data_only` no more of what is known of the file than
    /// it takes to read the data.
    pub fn sync(&self, data_only: bool) -> io::Result<()> {
        if data_only { sync_data(&self.file) } else { sync(&self.file) }
    }

    /// Calls `each` with the entries behind `cookie` (0: all), `.` and `..` included, until it returns false, the
    /// directory ends, or `room` bytes of Rreaddir are full or nearly so. With true it has taken the entry.
    ///
    /// What is in the directory from the first call to the last is met once, whatever else comes and goes.
    pub fn read_dir(
        &self,
        cookie: u64,
        room: usize,
        each: &mut dyn FnMut(Entry<'_>) -> bool,
    ) -> io::Result<()> {
        let FileId { device, .. } = self.id;
        let root = self.tree.root_id;
        self.reader.read(&self.file, cookie, room, &mut |found: Found<'_>| {
            // What is above the root is the root, as far as the guest is concerned.
            let inode = match found.name {
                b".." if self.id == root => root.inode,
                _ => found.inode,
            };
            // In a mapped tree a plain file of the host can be something else.
            let host_kind = match (found.kind << 12, self.tree.rule) {
                (kind::FILE, super::Rule::Mapped) => 0,
                (kind, _) => kind,
            };
            let path = self.tree.numbers.of(FileId { device, inode });
            each(Entry {
                name: found.name,
                qid: Qid { kind: qid_kind(host_kind), version: 0, path },
                kind: (host_kind >> 12) as u8,
                cookie: found.cookie,
            })
        })
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.release_locks();
    }
}

pub(super) fn position(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| Errno::INVAL.into())
}

/// Calls again if a signal came between.
fn again(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}
