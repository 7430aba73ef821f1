//! What Tsetattr changes.

use std::io;
use std::sync::PoisonError;

use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, ftruncate};
use rustix::io::Errno;

use super::identity::Facts;
use super::owner::Rule;
use super::record::{self, Record};
use super::{Attributes, Node, OpenFile, SetAttributes, SetTime, kind};

impl Node {
    /// Changes what there is in `changes`, or as much of it as can be before something fails. `open`: the file as the
    /// guest has it open, if it has, so that its size can be changed whatever its permissions are by now.
    pub fn set_attributes(
        &self,
        changes: &SetAttributes,
        open: Option<&OpenFile>,
    ) -> io::Result<()> {
        self.tree.writable()?;
        let &SetAttributes { mode, uid, gid, size, accessed, modified } = changes;
        let times = Timestamps { last_access: time(accessed)?, last_modification: time(modified)? };
        if let Some(size) = size {
            self.set_size(size, open)?;
        }
        if uid.is_some() || gid.is_some() || mode.is_some() {
            if self.can_have_record() {
                self.change_record(mode, uid, gid)?;
            } else {
                // In this order, as a new owner may end set-user-ID.
                self.set_owner(uid, gid)?;
                self.set_mode(mode)?;
            }
        }
        // At last, as a new size sets them as well.
        if accessed.is_none() && modified.is_none() {
            return Ok(());
        }
        match self.handle.set_times(&times) {
            // To set one of the two takes the file's owner; that the file has a new size does not.
            Err(error)
                if matches!(Errno::from_io_error(&error), Some(Errno::PERM | Errno::ACCESS))
                    && size.is_some()
                    && (accessed, modified) == (None, Some(SetTime::Now)) =>
            {
                Ok(())
            }
            done => done,
        }
    }

    fn set_size(&self, size: u64, open: Option<&OpenFile>) -> io::Result<()> {
        match self.kind {
            kind::FILE => {}
            kind::DIRECTORY => return Err(Errno::ISDIR.into()),
            _ => return Err(Errno::INVAL.into()),
        }
        match open.filter(|open| open.can_write()) {
            Some(open) => ftruncate(open.file(), size)?,
            None => ftruncate(self.handle.open(OFlags::WRONLY)?, size)?,
        }
        Ok(())
    }

    fn set_owner(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        match self.tree.rule {
            _ if uid.is_none() && gid.is_none() => Ok(()),
            Rule::Passthrough => self.handle.set_owner(uid, gid),
            Rule::Squash { .. } | Rule::Mapped => {
                let now = self.attributes()?;
                let same =
                    uid.is_none_or(|uid| uid == now.uid) && gid.is_none_or(|gid| gid == now.gid);
                if same { Ok(()) } else { Err(Errno::PERM.into()) }
            }
        }
    }

    fn set_mode(&self, mode: Option<u32>) -> io::Result<()> {
        match (mode, self.tree.rule) {
            (None, _) => Ok(()),
            (Some(_), _) if self.host_kind == kind::LINK => Err(Errno::OPNOTSUPP.into()),
            (Some(_), Rule::Mapped) => Err(Errno::PERM.into()),
            (Some(mode), rule) => {
                let mode = rule.host_permissions(mode, self.kind == kind::DIRECTORY);
                self.handle.set_permissions(mode)
            }
        }
    }

    fn change_record(
        &self,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> io::Result<()> {
        let _alone = self.tree.records.lock().unwrap_or_else(PoisonError::into_inner);
        let facts = self.handle.facts()?;
        let is_dir = self.host_kind == kind::DIRECTORY;
        // What the host has made may be something that its owner can neither read nor write, nor what is beside it.
        let open = self.tree.rule.host_permissions(facts.mode, is_dir);
        let shut = facts.uid == self.tree.user && facts.mode | open & 0o700 != facts.mode;
        if shut {
            self.handle.set_permissions(open)?;
        }
        let done = self.change_open_record(&facts, mode, uid, gid);
        if shut && done.is_err() {
            // Nothing is to have changed. If that fails too, the first error is the one to tell.
            let _ = self.handle.set_permissions(facts.mode & 0o7777);
        }
        done
    }

    fn change_open_record(
        &self,
        facts: &Facts,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> io::Result<()> {
        let before = self.record()?;
        let kind = before.map_or(self.kind, |record| record.kind(self.host_kind));
        let Attributes { mode: mode_now, uid: uid_now, gid: gid_now, .. } =
            self.attributes_of(facts, before);
        let mode_then = mode.unwrap_or(mode_now);
        self.set_record(Record {
            uid: uid.unwrap_or(uid_now),
            gid: gid.unwrap_or(gid_now),
            mode: mode_then & 0o7777 | kind,
            device: before.map_or((0, 0), |record| record.device),
        })?;
        match mode {
            // What is no plain file in the guest is nobody else's to read on the host.
            Some(mode) if kind == self.host_kind => {
                let is_dir = self.host_kind == kind::DIRECTORY;
                self.handle.set_permissions(self.tree.rule.host_permissions(mode, is_dir))
            }
            _ => Ok(()),
        }
    }

    /// Keeps owner and mode beside the file.
    pub(super) fn set_record(&self, record: Record) -> io::Result<()> {
        let (text, len) = record.to_text();
        self.handle.set_xattr(record::NAME, text.get(..len).unwrap_or_default(), 0)
    }
}

fn time(time: Option<SetTime>) -> io::Result<Timespec> {
    let special = |what| Timespec { tv_sec: 0, tv_nsec: what };
    match time {
        None => Ok(special(UTIME_OMIT)),
        Some(SetTime::Now) => Ok(special(UTIME_NOW)),
        // What is no fraction of a second could be one of the two above.
        Some(SetTime::To(time)) if time.nanoseconds >= 1_000_000_000 => Err(Errno::INVAL.into()),
        Some(SetTime::To(time)) => {
            Ok(Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() })
        }
    }
}
