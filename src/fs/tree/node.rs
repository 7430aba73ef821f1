//! Files and folders that the guest has found, and what can be learned of them.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::file::Flags;
use super::handle::{self, Handle};
use super::identity::{Facts, FileId};
use super::owner::Rule;
use super::record::{self, Record};
use super::{Attributes, LONGEST_NAME, OpenFile, Qid, Shared, StatFs, Time, Wait, kind, new_name};
use crate::sys::file::is_unsupported;

/// Most folders that are gone through on the way from one to the root.
const DEEPEST: usize = 4096;

/// Most bytes of a symbolic link, as on Linux.
pub(super) const LONGEST_LINK: usize = 4095;

/// A file or folder of the tree, whatever becomes of its name.
#[derive(Debug)]
pub(in crate::fs) struct Node {
    pub(super) tree: Arc<Shared>,
    pub(super) handle: Handle,
    pub(super) id: FileId,
    /// The kind of file on the host …
    pub(super) host_kind: u32,
    /// … and in the guest.
    pub(super) kind: u32,
    qid: Qid,
}

impl Node {
    pub(super) fn root(tree: &Arc<Shared>) -> io::Result<Self> {
        Self::new(tree, tree.root.duplicate()?)
    }

    pub(super) fn new(tree: &Arc<Shared>, handle: Handle) -> io::Result<Self> {
        tree.descriptors.given(handle.as_raw_fd());
        let facts = handle.facts()?;
        let host_kind = facts.kind();
        let mut node = Self {
            tree: Arc::clone(tree),
            handle,
            id: facts.id,
            host_kind,
            kind: host_kind,
            qid: Qid { kind: 0, version: 0, path: 0 },
        };
        // Only plain files can be something else in the guest.
        if host_kind == kind::FILE
            && let Some(record) = node.record()?
        {
            node.kind = record.kind(host_kind);
        }
        node.qid = node.qid_of(&facts, node.kind);
        Ok(node)
    }

    /// What it was when it was found; [`Attributes::qid`] is what it is now.
    pub fn qid(&self) -> Qid {
        self.qid
    }

    /// What is there by the name: one component, `.` and `..` included. `..` of the root is the root. WouldBlock if
    /// it may take longer than `wait` to find that out.
    pub fn find(&self, name: &[u8], wait: Wait) -> io::Result<Self> {
        if self.kind != kind::DIRECTORY {
            return Err(Errno::NOTDIR.into());
        }
        self.tree.has_room()?;
        match name {
            b"." => Self::new(&self.tree, self.handle.duplicate()?),
            // Who knows where that is by now.
            b".." if wait != Wait::Long => Err(Errno::WOULDBLOCK.into()),
            b".." => self.parent(),
            _ => self.child(new_name(name)?, wait),
        }
    }

    /// What is there by a name that has been looked at.
    pub(super) fn child(&self, name: &[u8], wait: Wait) -> io::Result<Self> {
        Self::new(&self.tree, self.handle.child(name, wait)?)
    }

    fn parent(&self) -> io::Result<Self> {
        let root = self.tree.root_id;
        if self.id == root {
            return Self::root(&self.tree);
        }
        let parent = self.handle.parent()?;
        // The folder may have been moved out of the share since it was found: then its parents do not lead to the root.
        let mut here = parent.facts()?.id;
        let mut above = None;
        for _ in 0..DEEPEST {
            if here == root {
                return Self::new(&self.tree, parent);
            }
            let next = above.as_ref().unwrap_or(&parent).parent()?;
            let there = next.facts()?.id;
            if there == here {
                break;
            }
            (here, above) = (there, Some(next));
        }
        Err(Errno::STALE.into())
    }

    /// What Tgetattr asks for.
    pub fn attributes(&self) -> io::Result<Attributes> {
        Ok(self.attributes_of(&self.handle.facts()?, self.record()?))
    }

    pub(super) fn attributes_of(&self, facts: &Facts, record: Option<Record>) -> Attributes {
        let mut attributes = Attributes {
            qid: self.qid_of(facts, self.kind),
            mode: facts.mode & 0o7777 | self.host_kind,
            uid: facts.uid,
            gid: facts.gid,
            links: facts.links,
            device: if is_device(self.host_kind) { facts.device } else { 0 },
            size: facts.size,
            block_size: facts.block_size,
            blocks: facts.blocks,
            accessed: facts.accessed,
            modified: facts.modified,
            changed: facts.changed,
        };
        match (self.tree.rule, record) {
            (Rule::Squash { uid, gid }, _) if attributes.uid == self.tree.user => {
                (attributes.uid, attributes.gid) = (uid, gid);
            }
            (Rule::Mapped, Some(record)) => {
                (attributes.uid, attributes.gid) = (record.uid, record.gid);
                attributes.mode = record.mode & 0o7777 | self.kind;
                if is_device(self.kind) {
                    attributes.device = linux_device(record.device);
                }
            }
            _ => {}
        }
        attributes
    }

    /// What is kept beside it, in a mapped tree.
    pub(super) fn record(&self) -> io::Result<Option<Record>> {
        if !self.can_have_record() {
            return Ok(None);
        }
        let mut text = [0; record::LONGEST];
        match self.handle.xattr(record::NAME, &mut text) {
            Ok(len) => Ok(text.get(..len).and_then(Record::from_text)),
            // There is none, there can be none, or it is longer than any of ours; or the host user may not read the
            // file, and so has not written it.
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::RANGE | Errno::ACCESS | Errno::PERM) => Ok(None),
                _ if is_unsupported(&error) => Ok(None),
                Some(errno) if handle::is_no_xattr(errno) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Whether owner and mode are kept beside it.
    pub fn can_have_record(&self) -> bool {
        self.tree.rule == Rule::Mapped && matches!(self.host_kind, kind::FILE | kind::DIRECTORY)
    }

    /// A new file is what the record says that has just been written.
    pub(super) fn become_kind(&mut self, kind: u32) {
        self.kind = kind;
        self.qid.kind = qid_kind(kind);
    }

    fn qid_of(&self, facts: &Facts, kind: u32) -> Qid {
        let Time { seconds, nanoseconds } = facts.modified;
        let modified =
            (seconds as u64).wrapping_mul(1_000_000_000).wrapping_add(nanoseconds.into());
        let mixed = modified ^ facts.size.rotate_left(8);
        // To Linux, 0 says that a file must not be cached.
        let version = ((mixed >> 32) as u32 ^ mixed as u32).max(1);
        Qid { kind: qid_kind(kind), version, path: self.tree.numbers.of(self.id) }
    }

    /// Where a symbolic link leads, unless it is longer than Linux has them.
    pub fn readlink(&self) -> io::Result<Vec<u8>> {
        match (self.kind, self.host_kind) {
            (kind::LINK, kind::LINK) => self.handle.read_link(),
            (kind::LINK, _) => {
                let file = self.handle.open(OFlags::RDONLY)?;
                let mut target = vec![0; LONGEST_LINK];
                let mut len = 0;
                while let Some(rest) = target.get_mut(len..).filter(|rest| !rest.is_empty()) {
                    match rustix::io::pread(&file, rest, len as u64)? {
                        0 => break,
                        count => len += count,
                    }
                }
                target.truncate(len);
                Ok(target)
            }
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Opens it, with the flags of Tlopen. ENXIO for what is neither a plain file nor a folder.
    pub fn open(&self, flags: u32) -> io::Result<OpenFile> {
        self.open_with(Flags::new(flags)?, OFlags::empty())
    }

    /// Opens it with some flags of the host's besides.
    pub(super) fn open_with(&self, flags: Flags, besides: OFlags) -> io::Result<OpenFile> {
        self.tree.has_room()?;
        if flags.writes() {
            self.tree.writable()?;
        }
        match self.kind {
            kind::DIRECTORY if flags.writes() => return Err(Errno::ISDIR.into()),
            kind::FILE if flags.folder_only() => return Err(Errno::NOTDIR.into()),
            kind::DIRECTORY | kind::FILE => {}
            kind::LINK => return Err(Errno::LOOP.into()),
            _ => return Err(Errno::NXIO.into()),
        }
        Ok(OpenFile::new(self, self.handle.open(flags.host() | besides)?, flags))
    }

    /// The file system that it is on.
    pub fn statfs(&self) -> io::Result<StatFs> {
        let stat = self.handle.statvfs()?;
        Ok(StatFs {
            block_size: u32::try_from(stat.f_frsize).unwrap_or(4096),
            blocks: stat.f_blocks,
            free: stat.f_bfree,
            available: stat.f_bavail,
            files: stat.f_files,
            free_files: stat.f_ffree,
            id: stat.f_fsid,
            name_length: LONGEST_NAME as u32,
        })
    }
}

/// The kind of a file, as 9P has it.
pub(super) fn qid_kind(kind: u32) -> u8 {
    match kind {
        kind::DIRECTORY => Qid::DIRECTORY,
        kind::LINK => Qid::SYMLINK,
        _ => 0,
    }
}

fn is_device(kind: u32) -> bool {
    matches!(kind, kind::CHAR | kind::BLOCK)
}

/// Linux's encoding of a device number.
pub(super) fn linux_device((major, minor): (u32, u32)) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    (major & !0xfff) << 32 | (major & 0xfff) << 8 | (minor & !0xff) << 12 | minor & 0xff
}
