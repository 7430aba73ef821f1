//! Locks on ranges of files: POSIX record locks, which Linux makes of flock's too.
//!
//! Nothing waits here: a lock that somebody else has is reported as that, and whoever wants to wait asks again, as
//! Linux does.

use super::Call;
use crate::fs::tree::{LockKind, LockRequest, LockStatus};
use crate::fs::wire::{Errno, Lock, Reply};

const READ: u8 = 0;
const WRITE: u8 = 1;
const NONE: u8 = 2;

/// The only flag there is to know (P9_LOCK_FLAGS_BLOCK).
const BLOCK: u32 = 1;

impl Call<'_, '_> {
    pub fn lock(
        &self,
        fid: u32,
        flags: u32,
        lock: Lock<'_>,
        out: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        const SUCCESS: u8 = 0;
        const BLOCKED: u8 = 1;
        let fid = self.fid(fid)?;
        out.u8(match fid.open()?.lock(&request(lock, flags)?)? {
            LockStatus::Done => SUCCESS,
            LockStatus::Blocked => BLOCKED,
        });
        Ok(())
    }

    pub fn getlock(&self, fid: u32, lock: Lock<'_>, out: &mut Reply<'_>) -> Result<(), Errno> {
        let mut request = request(lock, 0)?;
        if request.kind == LockKind::None {
            // Linux does not say which kind it is about. A lock for writing is in nobody's way only if there is none.
            request.kind = LockKind::Write;
        }
        let fid = self.fid(fid)?;
        match fid.open()?.get_lock(&request)? {
            Some(held) => {
                // Whose it is nobody on the host can say.
                let kind = if held.kind == LockKind::Read { READ } else { WRITE };
                out.u8(kind).u64(held.start).u64(held.length).u32(0).string(b"");
            }
            None => {
                out.u8(NONE).u64(lock.start).u64(lock.length).u32(lock.process).string(lock.client);
            }
        }
        Ok(())
    }
}

fn request(lock: Lock<'_>, flags: u32) -> Result<LockRequest<'_>, Errno> {
    let kind = match lock.kind {
        READ => LockKind::Read,
        WRITE => LockKind::Write,
        NONE => LockKind::None,
        _ => return Err(Errno::INVAL),
    };
    let Lock { start, length, process, client, .. } = lock;
    Ok(LockRequest { kind, start, length, process, client, waits: flags & BLOCK != 0 })
}
