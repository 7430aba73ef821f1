//! What takes no time, or most likely none: done as elsewhere here, but given up (WouldBlock) if it would take longer
//! than somebody can wait. What was given up has not been begun.
//!
//! The kernel can be told not to wait for the disk when it looks up a name that it may have in memory, when it reads, and
//! when it opens a file that somebody has a lease on. What a file is it has in memory as long as there is a descriptor.
//! For everything else there is no such way: it is brief as a rule, on a file system of this host, unless somebody
//! waits for the disk already.

use std::io;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::file::{Flags, position};
use super::{Node, OpenFile, Wait};
use crate::memory::Buffers;
use crate::sys::file::{is_unsupported, read_now};

/// Most units of 512 bytes of a file without a name whose end is brief.
const FEW_BLOCKS: u64 = 2 << 10;

impl Node {
    /// Whether anything about it is brief at all. Behind other file systems may be other machines.
    pub fn is_near(&self) -> bool {
        self.tree.local && self.id.device == self.tree.root_id.device
    }

    /// Opens it as [`open`](Self::open) does.
    pub fn open_within(&self, flags: u32, wait: Wait) -> io::Result<OpenFile> {
        if wait == Wait::Long {
            return self.open(flags);
        }
        let flags = Flags::new(flags)?;
        // A file can be cut short only as fast as its blocks are given back.
        if wait == Wait::No || flags.truncates() {
            return Err(Errno::WOULDBLOCK.into());
        }
        self.open_with(flags, OFlags::NONBLOCK)
    }

    /// Makes a file as [`create`](Self::create) does.
    pub fn create_within(
        &self,
        name: &[u8],
        flags: u32,
        mode: u32,
        (uid, gid): (u32, u32),
        wait: Wait,
    ) -> io::Result<(Self, OpenFile)> {
        if wait == Wait::Long || Flags::new(flags)?.must_be_new() {
            return self.create(name, flags, mode, uid, gid);
        }
        match self.create(name, flags | Flags::EXCLUSIVE, mode, uid, gid) {
            // To open what is there can take longer.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => {
                Err(Errno::WOULDBLOCK.into())
            }
            made => made,
        }
    }

    /// Whether it takes no longer than `wait` to give up what may be the last descriptor of it. With that goes a file
    /// that has no name any more, and so do its blocks.
    pub fn can_be_left(&self, wait: Wait) -> io::Result<bool> {
        let facts = match wait {
            Wait::Long => return Ok(true),
            _ => self.handle.facts()?,
        };
        Ok(facts.links > 0 || wait == Wait::Brief && facts.blocks <= FEW_BLOCKS)
    }
}

impl OpenFile {
    /// Whether it takes no longer than `wait` to close it. What was written may be sent on its way then.
    pub fn can_be_closed(&self, wait: Wait) -> bool {
        wait > Wait::No || !self.can_write()
    }

    /// Reads as [`read_at`](Self::read_at) does.
    pub fn read_within(&self, into: Buffers<'_>, offset: u64, wait: Wait) -> io::Result<usize> {
        if wait == Wait::Long {
            return self.read_at(into, offset);
        }
        position(offset)?;
        if self.reads_now().load(Ordering::Relaxed) {
            match read_now(self.file(), into, offset) {
                // What is in memory may end before the file does.
                Ok(count) if count > 0 && count < into.total() => {
                    let end = offset.saturating_add(count as u64);
                    return match self.file().metadata()?.len() <= end {
                        true => Ok(count),
                        false => Err(Errno::WOULDBLOCK.into()),
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    return Err(Errno::WOULDBLOCK.into());
                }
                Err(error) if is_unsupported(&error) => {
                    self.reads_now().store(false, Ordering::Relaxed);
                }
                done => return done,
            }
        }
        match wait {
            Wait::No => Err(Errno::WOULDBLOCK.into()),
            _ => self.read_at(into, offset),
        }
    }
}
