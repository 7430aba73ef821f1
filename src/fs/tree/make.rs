//! What the guest makes, renames and removes.

use std::fs::File;
use std::io::{self, Write};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::file::Flags;
use super::handle::Handle;
use super::node::LONGEST_LINK;
use super::owner::Rule;
use super::record::Record;
use super::{Node, OpenFile, Wait, kind, new_name};

/// How often a file is looked for that is there when it should be made, and gone when it should be opened.
const ATTEMPTS: usize = 16;

/// Whose something new is, and what.
#[derive(Debug, Clone, Copy)]
struct New {
    uid: u32,
    gid: u32,
    /// With the kind of file.
    mode: u32,
    device: (u32, u32),
}

impl Node {
    /// Makes a file, or opens the one that is there unless the flags have O_EXCL.
    pub fn create(
        &self,
        name: &[u8],
        flags: u32,
        mode: u32,
        uid: u32,
        gid: u32,
    ) -> io::Result<(Self, OpenFile)> {
        let name = self.place(name)?;
        let wanted = Flags::new(flags)?;
        self.tree.has_room()?;
        let new = New { uid, gid, mode: kind::FILE | mode & 0o7777, device: (0, 0) };
        for _ in 0..ATTEMPTS {
            // What is there is never opened this way, whatever it is.
            match self.make_file(name, wanted.host(), new.mode) {
                Ok(file) => {
                    let node = self.finish(name, new, || self.node_of(&file, name))?;
                    let file = OpenFile::new(&node, file, wanted);
                    return Ok((node, file));
                }
                Err(Errno::EXIST) if !wanted.must_be_new() => {}
                Err(error) => return Err(error.into()),
            }
            match self.child(name, Wait::Long) {
                Ok(node) => return node.open(flags).map(|file| (node, file)),
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Makes a folder.
    pub fn mkdir(&self, name: &[u8], mode: u32, uid: u32, gid: u32) -> io::Result<Self> {
        let name = self.place(name)?;
        let new = New { uid, gid, mode: kind::DIRECTORY | mode & 0o7777, device: (0, 0) };
        let permissions = self.tree.rule.host_permissions(mode, true) & 0o777;
        rustix::fs::mkdirat(self.handle.folder()?, name, mode_of(permissions))?;
        self.finish(name, new, || self.made(name, new))
    }

    /// Makes a symbolic link, to wherever it says.
    pub fn symlink(&self, name: &[u8], target: &[u8], uid: u32, gid: u32) -> io::Result<Self> {
        let name = self.place(name)?;
        match target.len() {
            0 => return Err(Errno::NOENT.into()),
            1..=LONGEST_LINK if target.contains(&0) => return Err(Errno::INVAL.into()),
            1..=LONGEST_LINK => {}
            _ => return Err(Errno::NAMETOOLONG.into()),
        }
        let new = New { uid, gid, mode: kind::LINK | 0o777, device: (0, 0) };
        if self.tree.rule != Rule::Mapped {
            rustix::fs::symlinkat(target, self.handle.folder()?, name)?;
            return self.finish(name, new, || self.made(name, new));
        }
        let mut file = self.make_file(name, OFlags::WRONLY, 0)?;
        self.finish(name, new, || {
            file.write_all(target)?;
            self.node_of(&file, name)
        })
    }

    /// Makes what `mode` says: a plain file, a FIFO, a socket or a device node, whose number is `device`, major and
    /// minor.
    pub fn mknod(
        &self,
        name: &[u8],
        mode: u32,
        device: (u32, u32),
        uid: u32,
        gid: u32,
    ) -> io::Result<Self> {
        let name = self.place(name)?;
        let mode = if mode & kind::MASK == 0 { mode | kind::FILE } else { mode };
        let new = New { uid, gid, mode: mode & (kind::MASK | 0o7777), device };
        match (mode & kind::MASK, self.tree.rule) {
            (kind::FILE, _) => {
                let file = self.make_file(name, OFlags::WRONLY, mode)?;
                self.finish(name, new, || self.node_of(&file, name))
            }
            (kind::FIFO | kind::SOCKET | kind::CHAR | kind::BLOCK, Rule::Mapped) => {
                let file = self.make_file(name, OFlags::WRONLY, 0)?;
                self.finish(name, new, || self.node_of(&file, name))
            }
            (kind::CHAR | kind::BLOCK, Rule::Squash { .. }) => Err(Errno::PERM.into()),
            (kind::FIFO | kind::SOCKET | kind::CHAR | kind::BLOCK, _) => {
                self.handle.make_node(name, mode, device)?;
                self.finish(name, new, || self.made(name, new))
            }
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Gives `target` another name, in this folder.
    pub fn link(&self, target: &Self, name: &[u8]) -> io::Result<()> {
        let name = self.place(name)?;
        if target.kind == kind::DIRECTORY {
            return Err(Errno::PERM.into());
        }
        target.handle.link(&self.handle, name)
    }

    /// Removes a name from this folder: of a folder, which must be empty, or of anything else.
    pub fn unlink(&self, name: &[u8], is_dir: bool) -> io::Result<()> {
        let name = self.place(name)?;
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        Ok(rustix::fs::unlinkat(self.handle.folder()?, name, flags)?)
    }

    /// Gives what has a name in this folder another, there or in another folder. What has that name is replaced.
    pub fn rename(&self, name: &[u8], new_dir: &Self, name_there: &[u8]) -> io::Result<()> {
        let (name, name_there) = (self.place(name)?, new_dir.place(name_there)?);
        Ok(rustix::fs::renameat(self.handle.folder()?, name, new_dir.handle.folder()?, name_there)?)
    }

    /// Whether there can be changes here by the name, which is given back.
    fn place<'a>(&self, name: &'a [u8]) -> io::Result<&'a [u8]> {
        self.tree.writable()?;
        if self.kind == kind::DIRECTORY { new_name(name) } else { Err(Errno::NOTDIR.into()) }
    }

    /// Makes a plain file, which must be new, for now with no more permissions than any file can have.
    fn make_file(&self, name: &[u8], flags: OFlags, mode: u32) -> rustix::io::Result<File> {
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = mode_of(self.tree.rule.host_permissions(mode, false) & 0o777);
        let folder = self.handle.folder().map_err(|_| Errno::BADF)?;
        Ok(rustix::fs::openat(folder, name, flags | new, mode)?.into())
    }

    fn node_of(&self, file: &File, name: &[u8]) -> io::Result<Self> {
        Self::new(&self.tree, Handle::of_new(file, &self.handle, name)?)
    }

    /// What has just been made, unless somebody was quicker and put something else in its place.
    fn made(&self, name: &[u8], new: New) -> io::Result<Self> {
        let node = self.child(name, Wait::Long)?;
        if node.host_kind == new.mode & kind::MASK { Ok(node) } else { Err(Errno::STALE.into()) }
    }

    /// Finds what has just been made, and makes it what it is to be; or else removes it again.
    fn finish(
        &self,
        name: &[u8],
        new: New,
        find: impl FnOnce() -> io::Result<Self>,
    ) -> io::Result<Self> {
        find().and_then(|node| node.settle(new)).inspect_err(|_| {
            // It is of no use; that it cannot be removed either changes nothing.
            let _ = self.unlink(name, new.mode & kind::MASK == kind::DIRECTORY);
        })
    }

    /// Gives owner and mode to something new: what the guest asked for, whatever this process's umask is.
    fn settle(mut self, new: New) -> io::Result<Self> {
        let facts = self.handle.facts()?;
        match self.tree.rule {
            Rule::Mapped => {
                let New { uid, gid, mode, device } = new;
                let record = Record { uid, gid, mode, device };
                if !self.can_have_record() {
                    return Err(Errno::STALE.into());
                }
                self.set_record(record)?;
                self.become_kind(record.kind(self.host_kind));
            }
            Rule::Passthrough if (facts.uid, facts.gid) != (new.uid, new.gid) => {
                match self.handle.set_owner(Some(new.uid), Some(new.gid)) {
                    // Then it is this process's.
                    Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {}
                    done => done?,
                }
            }
            Rule::Passthrough | Rule::Squash { .. } => {}
        }
        if self.host_kind != kind::LINK {
            // What is no plain file or folder in the guest, but is one here, is nobody else's to read.
            let mode = if self.kind == self.host_kind { new.mode } else { 0 };
            let is_dir = self.host_kind == kind::DIRECTORY;
            let mode = self.tree.rule.host_permissions(mode, is_dir);
            if facts.mode & 0o7777 != mode {
                self.handle.set_permissions(mode)?;
            }
        }
        Ok(self)
    }
}

fn mode_of(permissions: u32) -> Mode {
    Mode::from_bits_truncate(permissions as _)
}
