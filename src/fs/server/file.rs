//! Opening files and folders, and what is in them.

use std::sync::Arc;

use super::fids::{Fid, Place, State, lock};
use super::{Call, owner, put_qid};
use crate::fs::wire::{Errno, READ_HEADER, Reply, WRITE_HEADER};
use crate::memory::Buffers;

/// Most bytes of entries in one answer.
const MOST_ENTRIES: usize = 64 << 10;

/// Bytes of an entry besides its name: `qid[13] offset[8] type[1] name[s]`.
const ENTRY: usize = 13 + 8 + 1 + 2;

/// What Linux leaves for the header of Tread and Twrite when it computes how much data there may be (P9_IOHDRSZ).
const LINUX_HEADER: usize = 24;

impl Call<'_, '_> {
    pub fn lopen(&self, fid: u32, flags: u32, out: &mut Reply<'_>) -> Result<(), Errno> {
        let found = self.found(fid)?;
        let file = self.in_time(found.node.open_within(flags, self.wait))?;
        put_qid(out, &found.node);
        out.u32(self.unit());
        self.server.fids.replace(self.epoch, fid, &found, found.with(State::Open(file)))
    }

    /// `fid` is the folder, and afterwards the file.
    pub fn lcreate(
        &self,
        fid: u32,
        name: &[u8],
        flags: u32,
        (mode, gid): (u32, u32),
        out: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let dir = self.found(fid)?;
        let owner = (dir.uid, owner(gid)?);
        let made = dir.node.create_within(name, flags, mode, owner, self.wait);
        let (node, file) = self.in_time(made)?;
        put_qid(out, &node);
        out.u32(self.unit());
        let (place, state) = (Place::new(&dir.node, name), State::Open(file));
        let new = Fid { node: Arc::new(node), uid: dir.uid, place, state };
        self.server.fids.replace(self.epoch, fid, &dir, new)
    }

    /// What `fid` stands for, if it can be opened.
    pub(super) fn found(&self, fid: u32) -> Result<Arc<Fid>, Errno> {
        let fid = self.file(fid)?;
        if matches!(fid.state, State::Found) { Ok(fid) } else { Err(Errno::BUSY) }
    }

    /// The length of data that suits, for files that are read or written one piece after the other: whole pages, if
    /// there is room for one. 0 leaves it to the guest.
    fn unit(&self) -> u32 {
        let message = self.server.fids.session().message.unwrap_or_default();
        (message.saturating_sub(LINUX_HEADER) & !0xfff) as u32
    }

    pub fn read(
        &mut self,
        fid: u32,
        offset: u64,
        count: u32,
        out: &mut Reply<'_>,
    ) -> Result<usize, Errno> {
        let fid = self.fid(fid)?;
        let count = (count as usize).min(self.most - READ_HEADER);
        self.check_count(count)?;
        let read = match &fid.state {
            State::Open(file) => {
                let wait = self.wait;
                let read = |data: Buffers<'_>| file.read_within(data, offset, wait);
                let read = self.with_data(self.reply, READ_HEADER, count, read);
                self.in_time(read)?
            }
            State::Value(value) => {
                let rest = value.rest(offset);
                self.with_data(self.reply, READ_HEADER, count, |data| data.fill_from(rest))
            }
            State::Found | State::NewValue(_) => return Err(Errno::BADF),
        };
        out.u32(read as u32);
        Ok(read)
    }

    pub fn write(
        &mut self,
        fid: u32,
        offset: u64,
        count: u32,
        out: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let count = count as usize;
        if count > self.size - WRITE_HEADER {
            return Err(Errno::PROTO);
        }
        self.check_count(count)?;
        let fid = self.fid(fid)?;
        let written = match &fid.state {
            State::Open(file) => {
                self.check(!file.writes_through())?;
                self.with_data(self.request, WRITE_HEADER, count, |data| {
                    file.write_at(data, offset)
                })?
            }
            State::NewValue(value) => {
                let mut value = lock(value);
                self.with_data(self.request, WRITE_HEADER, count, |data| value.write(data, offset))?
            }
            State::Found | State::Value(_) => return Err(Errno::BADF),
        };
        out.u32(written as u32);
        Ok(())
    }

    /// Calls `call` with `count` bytes of `message` from `skip` on.
    fn with_data<T>(
        &mut self,
        message: Buffers<'_>,
        skip: usize,
        count: usize,
        call: impl FnOnce(Buffers<'_>) -> T,
    ) -> T {
        let data = std::mem::take(self.list).refill(message, skip, count);
        let result = call(data.all());
        *self.list = data.recycle();
        result
    }

    pub fn readdir(
        &self,
        fid: u32,
        cookie: u64,
        count: u32,
        out: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let fid = self.fid(fid)?;
        let room = (count as usize).min(self.most - READ_HEADER).min(MOST_ENTRIES);
        out.u32(0);
        let mut too_long = false;
        fid.open()?.read_dir(cookie, room, &mut |entry| {
            let len = out.len() - READ_HEADER;
            if entry.name.len() + ENTRY > room - len {
                // What does not fit alone never will.
                too_long = len == 0;
                return false;
            }
            out.qid(entry.qid.kind, entry.qid.version, entry.qid.path);
            out.u64(entry.cookie).u8(entry.kind).string(entry.name);
            true
        })?;
        if too_long {
            return Err(Errno::INVAL);
        }
        let len = out.len() - READ_HEADER;
        out.put(READ_HEADER - 4, &(len as u32).to_le_bytes());
        Ok(())
    }

    pub fn fsync(&self, fid: u32, data_only: u32) -> Result<(), Errno> {
        Ok(self.fid(fid)?.open()?.sync(data_only != 0)?)
    }
}
