//! What the tree says of files, and is told to change: in the terms of 9P2000.L, whatever the host is.

/// How long something may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wait {
    /// No longer than a look at what the host has in memory: it waits for no disk, nor for who waits for one.
    No,
    /// Most likely not longer than that.
    Brief,
    /// As long as it takes.
    Long,
}

/// What a file is, as 9P identifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::fs) struct Qid {
    /// [`Qid::DIRECTORY`], [`Qid::SYMLINK`], or 0 for anything else.
    pub kind: u8,
    /// Another number whenever the content changes; 0 where it is not known, and in entries of directories.
    pub version: u32,
    /// The file's own number, as long as there is the file: no other file of the share has it, on whatever device of
    /// the host.
    pub path: u64,
}

impl Qid {
    /// QTDIR.
    pub const DIRECTORY: u8 = 0x80;
    /// QTSYMLINK.
    pub const SYMLINK: u8 = 0x02;
}

/// A moment: seconds since 1970, and nanoseconds after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(in crate::fs) struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// All that Rgetattr tells, as the guest is to see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct Attributes {
    pub qid: Qid,
    /// The kind of file and the permissions, as in Linux's `st_mode`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u64,
    /// The device that a device node stands for, as Linux encodes it.
    pub device: u64,
    /// In bytes.
    pub size: u64,
    /// The unit that is good for input and output, in bytes.
    pub block_size: u64,
    /// What it takes on the host's disk, in units of 512 bytes.
    pub blocks: u64,
    pub accessed: Time,
    pub modified: Time,
    pub changed: Time,
}

/// What a time is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum SetTime {
    /// The host's present time.
    Now,
    To(Time),
}

/// What Tsetattr changes: whatever is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::fs) struct SetAttributes {
    /// Permissions; the kind of file in it is ignored.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// In bytes.
    pub size: Option<u64>,
    pub accessed: Option<SetTime>,
    pub modified: Option<SetTime>,
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct Entry<'a> {
    pub name: &'a [u8],
    /// Its version is 0. Where another file system is mounted there, this is still the folder below it.
    pub qid: Qid,
    /// DT_DIR and so on, as on Linux; 0 where the host does not tell without looking at the file.
    pub kind: u8,
    /// What to ask for next to go on behind it.
    pub cookie: u64,
}

/// What Rstatfs tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct StatFs {
    /// The unit of what follows, in bytes.
    pub block_size: u32,
    pub blocks: u64,
    pub free: u64,
    /// Of those, what others than root may use.
    pub available: u64,
    pub files: u64,
    pub free_files: u64,
    /// Which file system of the host.
    pub id: u64,
    /// Most bytes of a name.
    pub name_length: u32,
}

/// What a lock keeps others from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum LockKind {
    /// P9_LOCK_TYPE_RDLCK: others may read.
    Read,
    /// P9_LOCK_TYPE_WRLCK.
    Write,
    /// P9_LOCK_TYPE_UNLCK: nothing.
    None,
}

/// A lock that Tlock or Tgetlock asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct LockRequest<'a> {
    pub kind: LockKind,
    /// The first byte.
    pub start: u64,
    /// How many bytes; 0 for all that are and will be there.
    pub length: u64,
    /// The process in the guest …
    pub process: u32,
    /// … and which guest.
    pub client: &'a [u8],
    /// P9_LOCK_FLAGS_BLOCK: the process waits for it.
    pub waits: bool,
}

/// What became of Tlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum LockStatus {
    /// P9_LOCK_SUCCESS.
    Done,
    /// P9_LOCK_BLOCKED: somebody else has it, ask again.
    Blocked,
}

/// A lock that is in the way of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct HeldLock {
    pub kind: LockKind,
    pub start: u64,
    /// 0 for all from the start on.
    pub length: u64,
}
