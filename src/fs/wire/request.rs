//! Requests, decoded.

use super::{Errno, Fields, HEADER, Kind, MOST_NAMES, READ_HEADER};

/// Most bytes of a request that are looked at, the data of Twrite left out. Paths and names that Linux sends are far
/// shorter together: 16 names in Twalk, or a symbolic link's target and its name.
pub(in crate::fs) const MOST_BYTES: usize = 16 << 10;

/// A T-message. Fields are as the guest has sent them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum Request<'a> {
    /// `msize[4] version[s]`
    Version { msize: u32, version: &'a [u8] },
    /// `fid[4] afid[4] uname[s] aname[s] n_uname[4]`
    Attach { fid: u32, auth_fid: u32, user: &'a [u8], path: &'a [u8], uid: u32 },
    /// `fid[4] newfid[4] nwname[2] nwname*(wname[s])`
    Walk { fid: u32, new_fid: u32, names: Names<'a> },
    /// `fid[4] flags[4]`
    Lopen { fid: u32, flags: u32 },
    /// `fid[4] name[s] flags[4] mode[4] gid[4]`
    Lcreate { fid: u32, name: &'a [u8], flags: u32, mode: u32, gid: u32 },
    /// `fid[4] offset[8] count[4]`
    Read { fid: u32, offset: u64, count: u32 },
    /// `fid[4] offset[8] count[4] data[count]`
    Write { fid: u32, offset: u64, count: u32 },
    /// `fid[4] offset[8] count[4]`
    Readdir { fid: u32, cookie: u64, count: u32 },
    /// `fid[4] request_mask[8]`
    Getattr { fid: u32, mask: u64 },
    /// `fid[4] valid[4] mode[4] uid[4] gid[4] size[8] atime_sec[8] atime_nsec[8] mtime_sec[8] mtime_nsec[8]`
    Setattr {
        fid: u32,
        valid: u32,
        mode: u32,
        uid: u32,
        gid: u32,
        size: u64,
        accessed: (u64, u64),
        modified: (u64, u64),
    },
    /// `fid[4] datasync[4]`
    Fsync { fid: u32, data_only: u32 },
    /// `fid[4]`
    Clunk { fid: u32 },
    /// `fid[4]`
    Remove { fid: u32 },
    /// `fid[4] dfid[4] name[s]`
    Rename { fid: u32, dir: u32, name: &'a [u8] },
    /// `olddirfid[4] oldname[s] newdirfid[4] newname[s]`
    Renameat { dir: u32, name: &'a [u8], new_dir: u32, new_name: &'a [u8] },
    /// `dirfd[4] name[s] flags[4]`
    Unlinkat { dir: u32, name: &'a [u8], flags: u32 },
    /// `dfid[4] fid[4] name[s]`
    Link { dir: u32, fid: u32, name: &'a [u8] },
    /// `fid[4] name[s] symtgt[s] gid[4]`
    Symlink { dir: u32, name: &'a [u8], target: &'a [u8], gid: u32 },
    /// `fid[4]`
    Readlink { fid: u32 },
    /// `dfid[4] name[s] mode[4] major[4] minor[4] gid[4]`
    Mknod { dir: u32, name: &'a [u8], mode: u32, major: u32, minor: u32, gid: u32 },
    /// `dfid[4] name[s] mode[4] gid[4]`
    Mkdir { dir: u32, name: &'a [u8], mode: u32, gid: u32 },
    /// `fid[4]`
    Statfs { fid: u32 },
    /// `fid[4] newfid[4] name[s]`
    Xattrwalk { fid: u32, new_fid: u32, name: &'a [u8] },
    /// `fid[4] name[s] attr_size[8] flags[4]`
    Xattrcreate { fid: u32, name: &'a [u8], size: u64, flags: u32 },
    /// `fid[4] type[1] flags[4] start[8] length[8] proc_id[4] client_id[s]`
    Lock { fid: u32, flags: u32, lock: Lock<'a> },
    /// `fid[4] type[1] start[8] length[8] proc_id[4] client_id[s]`
    Getlock { fid: u32, lock: Lock<'a> },
}

/// What Tlock and Tgetlock are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct Lock<'a> {
    pub kind: u8,
    pub start: u64,
    pub length: u64,
    pub process: u32,
    pub client: &'a [u8],
}

/// The names of a Twalk, which are all there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct Names<'a> {
    pub(super) count: usize,
    pub(super) bytes: &'a [u8],
}

impl<'a> Names<'a> {
    fn decode(fields: &mut Fields<'a>) -> Result<Self, Errno> {
        let count = fields.u16()?.into();
        if count > MOST_NAMES {
            return Err(Errno::INVAL);
        }
        let bytes = fields.rest();
        for _ in 0..count {
            fields.string()?;
        }
        Ok(Self { count, bytes })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut fields = Fields::new(self.bytes);
        (0..self.count).map_while(move |_| fields.string().ok())
    }
}

impl<'a> Request<'a> {
    /// The request of type `kind` whose fields are `body`, and nothing else. Of Twrite the data is not in it.
    pub fn decode(kind: u8, body: &'a [u8]) -> Result<Self, Errno> {
        let mut fields = Fields::new(body);
        let request = Self::fields(kind, &mut fields)?;
        fields.end()?;
        Ok(request)
    }

    fn fields(kind: u8, f: &mut Fields<'a>) -> Result<Self, Errno> {
        Ok(match kind {
            Kind::VERSION => Self::Version { msize: f.u32()?, version: f.string()? },
            Kind::ATTACH => Self::Attach {
                fid: f.u32()?,
                auth_fid: f.u32()?,
                user: f.string()?,
                path: f.string()?,
                uid: f.u32()?,
            },
            Kind::WALK => Self::Walk { fid: f.u32()?, new_fid: f.u32()?, names: Names::decode(f)? },
            Kind::LOPEN => Self::Lopen { fid: f.u32()?, flags: f.u32()? },
            Kind::LCREATE => Self::Lcreate {
                fid: f.u32()?,
                name: f.string()?,
                flags: f.u32()?,
                mode: f.u32()?,
                gid: f.u32()?,
            },
            Kind::READ => Self::Read { fid: f.u32()?, offset: f.u64()?, count: f.u32()? },
            Kind::WRITE => Self::Write { fid: f.u32()?, offset: f.u64()?, count: f.u32()? },
            Kind::READDIR => Self::Readdir { fid: f.u32()?, cookie: f.u64()?, count: f.u32()? },
            Kind::GETATTR => Self::Getattr { fid: f.u32()?, mask: f.u64()? },
            Kind::SETATTR => Self::Setattr {
                fid: f.u32()?,
                valid: f.u32()?,
                mode: f.u32()?,
                uid: f.u32()?,
                gid: f.u32()?,
                size: f.u64()?,
                accessed: (f.u64()?, f.u64()?),
                modified: (f.u64()?, f.u64()?),
            },
            Kind::FSYNC => Self::Fsync { fid: f.u32()?, data_only: f.u32()? },
            Kind::CLUNK => Self::Clunk { fid: f.u32()? },
            Kind::REMOVE => Self::Remove { fid: f.u32()? },
            Kind::RENAME => Self::Rename { fid: f.u32()?, dir: f.u32()?, name: f.string()? },
            Kind::RENAMEAT => Self::Renameat {
                dir: f.u32()?,
                name: f.string()?,
                new_dir: f.u32()?,
                new_name: f.string()?,
            },
            Kind::UNLINKAT => Self::Unlinkat { dir: f.u32()?, name: f.string()?, flags: f.u32()? },
            Kind::LINK => Self::Link { dir: f.u32()?, fid: f.u32()?, name: f.string()? },
            Kind::SYMLINK => Self::Symlink {
                dir: f.u32()?,
                name: f.string()?,
                target: f.string()?,
                gid: f.u32()?,
            },
            Kind::READLINK => Self::Readlink { fid: f.u32()? },
            Kind::MKNOD => Self::Mknod {
                dir: f.u32()?,
                name: f.string()?,
                mode: f.u32()?,
                major: f.u32()?,
                minor: f.u32()?,
                gid: f.u32()?,
            },
            Kind::MKDIR => {
                Self::Mkdir { dir: f.u32()?, name: f.string()?, mode: f.u32()?, gid: f.u32()? }
            }
            Kind::STATFS => Self::Statfs { fid: f.u32()? },
            Kind::XATTRWALK => {
                Self::Xattrwalk { fid: f.u32()?, new_fid: f.u32()?, name: f.string()? }
            }
            Kind::XATTRCREATE => Self::Xattrcreate {
                fid: f.u32()?,
                name: f.string()?,
                size: f.u64()?,
                flags: f.u32()?,
            },
            Kind::LOCK => {
                let (fid, kind, flags) = (f.u32()?, f.u8()?, f.u32()?);
                Self::Lock { fid, flags, lock: Lock::decode(kind, f)? }
            }
            Kind::GETLOCK => {
                let (fid, kind) = (f.u32()?, f.u8()?);
                Self::Getlock { fid, lock: Lock::decode(kind, f)? }
            }
            _ => return Err(Errno::OPNOTSUPP),
        })
    }

    /// Bytes that the answer has at most, but for what Rread, Rreaddir and Rreadlink tell, of which there may be any
    /// number. Whoever has less room has no use for what the request would do.
    pub fn reply_len(&self) -> usize {
        const QID: usize = 13;
        HEADER
            + match self {
                Self::Version { version, .. } => 6 + version.len().max(b"unknown".len()),
                Self::Attach { .. } | Self::Symlink { .. } => QID,
                Self::Mknod { .. } | Self::Mkdir { .. } => QID,
                Self::Walk { names, .. } => 2 + QID * names.count(),
                Self::Lopen { .. } | Self::Lcreate { .. } => QID + 4,
                Self::Read { .. } | Self::Readdir { .. } => READ_HEADER - HEADER,
                Self::Write { .. } => 4,
                Self::Getattr { .. } => 153,
                Self::Statfs { .. } => 60,
                Self::Readlink { .. } => 2,
                Self::Xattrwalk { .. } => 8,
                Self::Lock { .. } => 1,
                Self::Getlock { lock, .. } => 23 + lock.client.len(),
                Self::Setattr { .. } | Self::Fsync { .. } | Self::Clunk { .. } => 0,
                Self::Remove { .. } | Self::Rename { .. } | Self::Renameat { .. } => 0,
                Self::Unlinkat { .. } | Self::Link { .. } | Self::Xattrcreate { .. } => 0,
            }
    }
}

impl<'a> Lock<'a> {
    fn decode(kind: u8, f: &mut Fields<'a>) -> Result<Self, Errno> {
        let (start, length) = (f.u64()?, f.u64()?);
        Ok(Self { kind, start, length, process: f.u32()?, client: f.string()? })
    }
}
