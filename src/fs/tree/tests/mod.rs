//! Tests of the tree, with real files.

mod escapes;
mod files;
mod folders;
mod locks;
mod owners;
#[cfg(target_os = "linux")]
mod system_linux;

use std::fs;
use std::io;

use tempfile::TempDir;

use super::*;
use crate::memory::BufferList;

const RDONLY: u32 = 0;
const WRONLY: u32 = 0o1;
const RDWR: u32 = 0o2;
const EXCL: u32 = 0o200;
const TRUNC: u32 = 0o1000;
const APPEND: u32 = 0o2000;

/// A share, and what is beside it in the same folder, which nobody should reach.
struct Share {
    outside: TempDir,
    tree: Tree,
}

impl Share {
    fn new(owner: Owner) -> Self {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("share")).unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let tree = Tree::open(&outside.path().join("share"), false, owner).unwrap();
        Self { outside, tree }
    }

    fn plain() -> Self {
        Self::new(Owner::passthrough())
    }

    fn root(&self) -> Node {
        self.tree.root().unwrap()
    }

    /// Where something is on the host.
    fn host(&self, name: &str) -> std::path::PathBuf {
        self.outside.path().join("share").join(name)
    }

    /// The same folder, as another guest has it.
    fn again(&self, read_only: bool, owner: Owner) -> Tree {
        Tree::open(&self.outside.path().join("share"), read_only, owner).unwrap()
    }
}

/// Finds files however long that takes.
trait Walk {
    fn walk(&self, name: &[u8]) -> io::Result<Node>;
}

impl Walk for Node {
    fn walk(&self, name: &[u8]) -> io::Result<Node> {
        self.find(name, Wait::Long)
    }
}

fn me() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Makes a file of one's own.
fn create(folder: &Node, name: &str, flags: u32) -> (Node, OpenFile) {
    let (uid, gid) = me();
    folder.create(name.as_bytes(), flags, 0o644, uid, gid).unwrap()
}

fn mkdir(folder: &Node, name: &str) -> Node {
    let (uid, gid) = me();
    folder.mkdir(name.as_bytes(), 0o755, uid, gid).unwrap()
}

fn write(file: &OpenFile, offset: u64, mut bytes: Vec<u8>) -> io::Result<usize> {
    let list = BufferList::from(&mut bytes[..]);
    file.write_at(list.all(), offset)
}

fn read(file: &OpenFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let list = BufferList::from(&mut bytes[..]);
    let count = file.read_at(list.all(), offset)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// The error that something must have failed with.
fn errno<T>(result: io::Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("it has not failed"),
        Err(error) => Errno::from_io_error(&error).unwrap_or_else(|| panic!("{error:?}")),
    }
}

/// Everything in a folder, read by replies of `room` bytes.
fn list(folder: &OpenFile, room: usize) -> Vec<(Vec<u8>, Qid, u8)> {
    let mut names = Vec::new();
    let mut cookie = 0;
    loop {
        let before = names.len();
        let mut left = room;
        folder
            .read_dir(cookie, room, &mut |entry| {
                let Some(rest) = left.checked_sub(24 + entry.name.len()) else { return false };
                left = rest;
                names.push((entry.name.to_vec(), entry.qid, entry.kind));
                cookie = entry.cookie;
                true
            })
            .unwrap();
        if names.len() == before {
            return names;
        }
    }
}

/// The names in a folder but for `.` and `..`, sorted.
fn names(folder: &Node) -> Vec<String> {
    let mut names: Vec<_> = list(&folder.open(RDONLY).unwrap(), 4096)
        .into_iter()
        .map(|(name, ..)| String::from_utf8(name).unwrap())
        .filter(|name| !matches!(&**name, "." | ".."))
        .collect();
    names.sort();
    names
}
