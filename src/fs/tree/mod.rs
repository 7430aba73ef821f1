//! The shared folder: everything that touches the host's file system, and nothing that is outside the folder.
//!
//! The guest names files, one component at a time, and the tree finds them relative to the descriptor of the folder
//! that they are in ([`Node`]). No path of more than one component ever reaches the host, and symbolic links are never
//! followed here: the guest reads them, and follows them itself. So there is nothing to be checked first and used
//! later, and no name, link or rename leads out of the folder: by `..` one gets to a folder's present parent if that
//! is below the share's root, by whatever way the folder got there.
//!
//! A node is a descriptor of an inode. It stays that when the file is renamed, or its parents, or when its last name is
//! gone; if somebody on the host moves a folder out of the share while the guest holds it, the guest goes on holding
//! it, as a process would. Only plain files and folders are ever opened: what a device node or a FIFO of the host does
//! when it is opened is not for the guest to find out.
//!
//! Permissions are the guest's kernel's to check; what this process may not do, the guest may not either. What may be
//! written at all is decided here ([`Shared::writable`]), as are owners ([`Owner`]).
//!
//! Errors are those of the host's system calls, or are made of the same numbers; [`linux_errno`] has the number that
//! Linux knows them by.

mod change;
mod file;
mod identity;
mod lock;
mod make;
mod node;
mod now;
mod owner;
mod ranges;
mod record;
mod types;
mod xattr;

#[cfg(target_os = "linux")]
#[path = "directory_linux.rs"]
mod directory;
#[cfg(target_os = "macos")]
#[path = "directory_macos.rs"]
mod directory;

#[cfg(target_os = "linux")]
#[path = "errno_linux.rs"]
mod errno;
#[cfg(target_os = "macos")]
#[path = "errno_macos.rs"]
mod errno;

#[cfg(target_os = "linux")]
#[path = "handle_linux.rs"]
mod handle;
#[cfg(target_os = "macos")]
#[path = "handle_macos.rs"]
mod handle;

#[cfg(all(test, target_os = "linux"))]
#[path = "testing_linux.rs"]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use crate::sys::Descriptors;
use crate::sys::file::is_unsupported;
use handle::Handle;
use identity::{FileId, Numbers};
use lock::Holders;
use owner::Rule;

pub(in crate::fs) use file::OpenFile;
pub(in crate::fs) use node::Node;
pub use owner::Owner;
pub(crate) use types::Wait;
pub(in crate::fs) use types::{
    Attributes, Entry, HeldLock, LockKind, LockRequest, LockStatus, Qid, SetAttributes, SetTime,
    StatFs, Time,
};

/// Kinds of files, as they are in Linux's `st_mode` (and in that of macOS).
mod kind {
    pub const MASK: u32 = 0o170_000;
    pub const FIFO: u32 = 0o010_000;
    pub const CHAR: u32 = 0o020_000;
    pub const DIRECTORY: u32 = 0o040_000;
    pub const BLOCK: u32 = 0o060_000;
    pub const FILE: u32 = 0o100_000;
    pub const LINK: u32 = 0o120_000;
    pub const SOCKET: u32 = 0o140_000;
}

/// Most bytes of a name, be it a file's or an extended attribute's (XATTR_NAME_MAX).
pub(in crate::fs) const LONGEST_NAME: usize = 255;

/// A folder of the host, shared.
#[derive(Debug)]
pub(in crate::fs) struct Tree(Arc<Shared>);

/// What all nodes of a tree have in common.
#[derive(Debug)]
struct Shared {
    root: Handle,
    root_id: FileId,
    /// It is on a file system that answers from memory whatever it can.
    local: bool,
    read_only: bool,
    rule: Rule,
    /// The host user.
    user: u32,
    numbers: Numbers,
    /// Held while what is kept beside a file is read and written again.
    records: Mutex<()>,
    locks: Holders,
    descriptors: Descriptors,
}

impl Tree {
    /// Opens the folder at `dir`, by whatever links that leads there. For a mapped tree that may be written, the
    /// folder's file system must have extended attributes.
    pub fn open(dir: &Path, read_only: bool, owner: Owner) -> io::Result<Self> {
        let root = Handle::root(dir)?;
        let root_id = root.facts()?.id;
        if owner.0 == Rule::Mapped && !read_only {
            match root.xattr(record::NAME, &mut [0; record::LONGEST]) {
                Err(error) if is_unsupported(&error) => {
                    let why =
                        "its file system has no extended attributes, which a mapped share takes";
                    return Err(io::Error::new(io::ErrorKind::Unsupported, why));
                }
                _ => {}
            }
        }
        Ok(Self(Arc::new(Shared {
            local: root.is_local()?,
            root,
            root_id,
            read_only,
            rule: owner.0,
            user: rustix::process::geteuid().as_raw(),
            numbers: Numbers::new(root_id.device),
            records: Mutex::default(),
            locks: Holders::default(),
            descriptors: Descriptors::of_process(),
        })))
    }

    /// The folder itself.
    pub fn root(&self) -> io::Result<Node> {
        Node::root(&self.0)
    }
}

impl Shared {
    /// Whether the guest may hold one more file.
    fn has_room(&self) -> io::Result<()> {
        self.descriptors.check(self.root.folder()?)
    }

    /// Whether anything may be changed.
    fn writable(&self) -> io::Result<()> {
        if self.read_only { Err(Errno::ROFS.into()) } else { Ok(()) }
    }
}

/// A name that may be anything but a folder's own or its parent's, if it is a name at all.
fn new_name(name: &[u8]) -> io::Result<&[u8]> {
    match name {
        b"" | b"." | b".." => Err(Errno::INVAL.into()),
        _ if name.len() > LONGEST_NAME => Err(Errno::NAMETOOLONG.into()),
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Errno::INVAL.into()),
        _ => Ok(name),
    }
}

/// The number by which Linux knows an error of the host.
pub(in crate::fs) fn linux_errno(error: &io::Error) -> u32 {
    const EIO: u32 = 5;
    match error.raw_os_error() {
        Some(number) => errno::to_linux(number).try_into().unwrap_or(EIO),
        None => EIO,
    }
}
