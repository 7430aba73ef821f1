//! What files are, and changing that.

use super::{Call, owner};
use crate::fs::tree::{SetAttributes, SetTime, Time};
use crate::fs::wire::{Errno, Reply};

/// All that is known of every file: mode to blocks (P9_GETATTR_BASIC). Birth times, generations and versions are not.
const KNOWN: u64 = 0x7ff;

/// The bits of Tsetattr's `valid`.
mod valid {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_SET: u32 = 1 << 7;
    pub const MTIME_SET: u32 = 1 << 8;
    /// With 1 << 6, the time of change, which the host sets whenever something else changes.
    pub const ALL: u32 = MTIME_SET * 2 - 1;
}

/// What Linux's statfs says of 9P file systems (V9FS_MAGIC).
const MAGIC: u32 = 0x0102_1997;

/// Whether Tsetattr with these bits changes a file's size.
pub(super) fn changes_size(bits: u32) -> bool {
    bits & valid::SIZE != 0
}

impl Call<'_, '_> {
    pub fn getattr(&self, fid: u32, out: &mut Reply<'_>) -> Result<(), Errno> {
        let fid = self.file(fid)?;
        self.check_known(&fid.node)?;
        let known = fid.node.attributes()?;
        out.u64(KNOWN).qid(known.qid.kind, known.qid.version, known.qid.path);
        out.u32(known.mode).u32(known.uid).u32(known.gid);
        out.u64(known.links).u64(known.device).u64(known.size);
        out.u64(known.block_size).u64(known.blocks);
        for time in [known.accessed, known.modified, known.changed, Time::default()] {
            out.u64(time.seconds as u64).u64(time.nanoseconds.into());
        }
        // Generation and data version.
        out.u64(0).u64(0);
        Ok(())
    }

    pub fn setattr(
        &self,
        fid: u32,
        valid: u32,
        mode: u32,
        (uid, gid): (u32, u32),
        size: u64,
        (accessed, modified): ((u64, u64), (u64, u64)),
    ) -> Result<(), Errno> {
        if valid & !valid::ALL != 0 {
            return Err(Errno::INVAL);
        }
        let fid = self.file(fid)?;
        let has = |bit| valid & bit != 0;
        let changes = SetAttributes {
            mode: has(valid::MODE).then_some(mode),
            uid: has(valid::UID).then(|| owner(uid)).transpose()?,
            gid: has(valid::GID).then(|| owner(gid)).transpose()?,
            size: has(valid::SIZE).then_some(size),
            accessed: time(has(valid::ATIME), has(valid::ATIME_SET), accessed)?,
            modified: time(has(valid::MTIME), has(valid::MTIME_SET), modified)?,
        };
        Ok(fid.node.set_attributes(&changes, fid.open().ok())?)
    }

    pub fn statfs(&self, fid: u32, out: &mut Reply<'_>) -> Result<(), Errno> {
        let known = self.file(fid)?.node.statfs()?;
        out.u32(MAGIC).u32(known.block_size);
        out.u64(known.blocks).u64(known.free).u64(known.available);
        out.u64(known.files).u64(known.free_files).u64(known.id).u32(known.name_length);
        Ok(())
    }
}

/// What a time is set to, if it is: `given`, or else the host's.
fn time(
    set: bool,
    given: bool,
    (seconds, nanoseconds): (u64, u64),
) -> Result<Option<SetTime>, Errno> {
    if !set {
        return Ok(None);
    }
    if !given {
        return Ok(Some(SetTime::Now));
    }
    match u32::try_from(nanoseconds) {
        // Before 1970 there are negative ones.
        Ok(nanoseconds @ ..1_000_000_000) => {
            Ok(Some(SetTime::To(Time { seconds: seconds as i64, nanoseconds })))
        }
        _ => Err(Errno::INVAL),
    }
}
