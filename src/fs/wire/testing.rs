//! The other side of the messages, for tests: requests encoded.

use super::{HEADER, Header, Kind, Lock, Names, Request};

/// A message being put together, field by field.
#[derive(Debug)]
pub(in crate::fs) struct Message {
    kind: u8,
    bytes: Vec<u8>,
}

impl Message {
    pub fn new(kind: u8) -> Self {
        Self { kind, bytes: vec![0; HEADER] }
    }

    pub fn u8(self, value: u8) -> Self {
        self.raw(&[value])
    }

    pub fn u16(self, value: u16) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub fn string(self, value: &[u8]) -> Self {
        self.u16(value.len().try_into().unwrap()).raw(value)
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn finish(mut self, tag: u16) -> Vec<u8> {
        let size = self.bytes.len().try_into().unwrap();
        self.bytes[..HEADER].copy_from_slice(&Header { size, kind: self.kind, tag }.encode());
        self.bytes
    }
}

/// The names of a Twalk, as bytes.
pub(in crate::fs) fn encode_names(names: &[&[u8]]) -> Vec<u8> {
    names.iter().fold(Message::new(0), |message, name| message.string(name)).bytes.split_off(HEADER)
}

/// What [`encode_names`] made.
pub(in crate::fs) fn names(count: usize, bytes: &[u8]) -> Names<'_> {
    Names { count, bytes }
}

/// The message that `request` was decoded from, without the data of Twrite.
pub(in crate::fs) fn encode(request: &Request<'_>) -> Message {
    let lock = |message: Message, lock: &Lock<'_>| {
        message.u64(lock.start).u64(lock.length).u32(lock.process).string(lock.client)
    };
    let new = Message::new;
    match *request {
        Request::Version { msize, version } => new(Kind::VERSION).u32(msize).string(version),
        Request::Attach { fid, auth_fid, user, path, uid } => {
            new(Kind::ATTACH).u32(fid).u32(auth_fid).string(user).string(path).u32(uid)
        }
        Request::Walk { fid, new_fid, names } => {
            let count = names.count().try_into().unwrap();
            new(Kind::WALK).u32(fid).u32(new_fid).u16(count).raw(names.bytes)
        }
        Request::Lopen { fid, flags } => new(Kind::LOPEN).u32(fid).u32(flags),
        Request::Lcreate { fid, name, flags, mode, gid } => {
            new(Kind::LCREATE).u32(fid).string(name).u32(flags).u32(mode).u32(gid)
        }
        Request::Read { fid, offset, count } => new(Kind::READ).u32(fid).u64(offset).u32(count),
        Request::Write { fid, offset, count } => new(Kind::WRITE).u32(fid).u64(offset).u32(count),
        Request::Readdir { fid, cookie, count } => {
            new(Kind::READDIR).u32(fid).u64(cookie).u32(count)
        }
        Request::Getattr { fid, mask } => new(Kind::GETATTR).u32(fid).u64(mask),
        Request::Setattr { fid, valid, mode, uid, gid, size, accessed, modified } => {
            let message = new(Kind::SETATTR).u32(fid).u32(valid).u32(mode).u32(uid).u32(gid);
            let message = message.u64(size).u64(accessed.0).u64(accessed.1);
            message.u64(modified.0).u64(modified.1)
        }
        Request::Fsync { fid, data_only } => new(Kind::FSYNC).u32(fid).u32(data_only),
        Request::Clunk { fid } => new(Kind::CLUNK).u32(fid),
        Request::Remove { fid } => new(Kind::REMOVE).u32(fid),
        Request::Rename { fid, dir, name } => new(Kind::RENAME).u32(fid).u32(dir).string(name),
        Request::Renameat { dir, name, new_dir, new_name } => {
            new(Kind::RENAMEAT).u32(dir).string(name).u32(new_dir).string(new_name)
        }
        Request::Unlinkat { dir, name, flags } => {
            new(Kind::UNLINKAT).u32(dir).string(name).u32(flags)
        }
        Request::Link { dir, fid, name } => new(Kind::LINK).u32(dir).u32(fid).string(name),
        Request::Symlink { dir, name, target, gid } => {
            new(Kind::SYMLINK).u32(dir).string(name).string(target).u32(gid)
        }
        Request::Readlink { fid } => new(Kind::READLINK).u32(fid),
        Request::Mknod { dir, name, mode, major, minor, gid } => {
            let message = new(Kind::MKNOD).u32(dir).string(name).u32(mode);
            message.u32(major).u32(minor).u32(gid)
        }
        Request::Mkdir { dir, name, mode, gid } => {
            new(Kind::MKDIR).u32(dir).string(name).u32(mode).u32(gid)
        }
        Request::Statfs { fid } => new(Kind::STATFS).u32(fid),
        Request::Xattrwalk { fid, new_fid, name } => {
            new(Kind::XATTRWALK).u32(fid).u32(new_fid).string(name)
        }
        Request::Xattrcreate { fid, name, size, flags } => {
            new(Kind::XATTRCREATE).u32(fid).string(name).u64(size).u32(flags)
        }
        Request::Lock { fid, flags, lock: ref of } => {
            lock(new(Kind::LOCK).u32(fid).u8(of.kind).u32(flags), of)
        }
        Request::Getlock { fid, lock: ref of } => lock(new(Kind::GETLOCK).u32(fid).u8(of.kind), of),
    }
}
