//! Answers that take no time: which messages can have one, and what is given up.
//!
//! A message that is given up is answered later, from the beginning; so it is given up before it has done anything.

use std::io;

use super::fids::State;
use super::{Call, attributes};
use crate::fs::tree::{Node, Wait};
use crate::fs::wire::{Errno, Request};

/// That it would take longer than it may. Linux has no such number.
pub(super) const LATER: Errno = Errno(u32::MAX);

/// Most bytes that are read or written before somebody else has a turn.
const MOST_AT_ONCE: usize = 256 << 10;

/// What it takes at least to try it.
pub(super) fn least(request: &Request<'_>) -> Wait {
    use Request as R;
    match request {
        R::Walk { .. } | R::Getattr { .. } | R::Read { .. } | R::Clunk { .. } => Wait::No,
        R::Setattr { valid, .. } if !attributes::changes_size(*valid) => Wait::Brief,
        R::Lopen { .. } | R::Lcreate { .. } | R::Write { .. } | R::Readdir { .. } => Wait::Brief,
        R::Mkdir { .. } | R::Symlink { .. } | R::Mknod { .. } | R::Link { .. } => Wait::Brief,
        R::Renameat { .. } | R::Unlinkat { .. } | R::Readlink { .. } => Wait::Brief,
        R::Statfs { .. } | R::Xattrwalk { .. } | R::Xattrcreate { .. } => Wait::Brief,
        _ => Wait::Long,
    }
}

impl Call<'_, '_> {
    /// What a call ended with that is given up if it would take longer than this one may.
    pub fn in_time<T>(&self, result: io::Result<T>) -> Result<T, Errno> {
        match result {
            Err(error) if self.wait < Wait::Long && error.kind() == io::ErrorKind::WouldBlock => {
                Err(LATER)
            }
            result => Ok(result?),
        }
    }

    /// Goes on if what is to be done is `brief` enough for this call.
    pub fn check(&self, brief: bool) -> Result<(), Errno> {
        if brief || self.wait == Wait::Long { Ok(()) } else { Err(LATER) }
    }

    /// Whether anything about `node` can be brief.
    pub fn check_brief(&self, node: &Node) -> Result<(), Errno> {
        self.check(self.wait == Wait::Long || node.is_near())
    }

    /// Whether the disk has nothing to say about what `node` is.
    pub fn check_known(&self, node: &Node) -> Result<(), Errno> {
        self.check(self.wait > Wait::No || !node.can_have_record())
    }

    /// Whether so many bytes can be read or written at once.
    pub fn check_count(&self, count: usize) -> Result<(), Errno> {
        self.check(count <= MOST_AT_ONCE)
    }

    /// Whether `fid` can be given up at once.
    pub fn check_end(&self, fid: u32) -> Result<(), Errno> {
        if self.wait == Wait::Long {
            return Ok(());
        }
        let fid = self.fid(fid)?;
        let closed = match &fid.state {
            State::Found | State::Value(_) => true,
            State::Open(file) => file.can_be_closed(self.wait),
            State::NewValue(_) => self.wait > Wait::No,
        };
        self.check(closed && fid.node.can_be_left(self.wait)?)
    }
}
