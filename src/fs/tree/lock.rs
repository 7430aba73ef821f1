//! Locks of ranges of files, which hold against other guests and against the host's own programs.
//!
//! A lock belongs to a process of the guest, as POSIX has it, not to the open file that it was made with: a process
//! that has a file open twice never waits for itself. The locks of an open file description of the host belong to
//! the description. So there is one more description for each process and file that it has locks on, made with its
//! first lock, and gone with the last file by way of which there are any. Between the processes of one guest its kernel
//! decides before anybody is asked here.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::handle::{GET_LOCK, SET_LOCK, reopen};
use super::identity::FileId;
use super::{HeldLock, LockKind, LockRequest, LockStatus, OpenFile};

/// Most processes that can have locks by way of one open file.
const MOST: usize = 16;

const READ: libc::c_short = libc::F_RDLCK as libc::c_short;
const WRITE: libc::c_short = libc::F_WRLCK as libc::c_short;

/// Whose locks, on which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    file: FileId,
    process: u32,
    /// The name of the guest, as a hash: who makes two that are the same shares locks with itself.
    client: u64,
}

/// The descriptions that hold locks.
#[derive(Debug, Default)]
pub(super) struct Owners(Mutex<HashMap<Key, Weak<File>>>);

/// Those that an open file has a part in.
pub(super) type Held = Vec<(Key, Arc<File>)>;

impl Owners {
    fn table(&self) -> MutexGuard<'_, HashMap<Key, Weak<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back a part in a description, which is closed if it is the last.
    fn release(&self, (key, part): (Key, Arc<File>)) {
        let mut table = self.table();
        drop(part);
        if table.get(&key).is_some_and(|others| others.strong_count() == 0) {
            table.remove(&key);
        }
    }

    fn find(&self, key: &Key) -> Option<Arc<File>> {
        self.table().get(key).and_then(Weak::upgrade)
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.table().len()
    }
}

impl OpenFile {
    fn key(&self, request: &LockRequest<'_>) -> Key {
        let mut hasher = DefaultHasher::new();
        request.client.hash(&mut hasher);
        Key { file: self.id(), process: request.process, client: hasher.finish() }
    }

    fn my_locks(&self) -> MutexGuard<'_, Held> {
        self.held().lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes or gives up a lock, without waiting. ENOLCK if too many processes have locks by way of this open file.
    pub fn lock(&self, request: &LockRequest<'_>) -> io::Result<LockStatus> {
        let mut range = range(request)?;
        let key = self.key(request);
        let mut held = self.my_locks();
        let mine = held.iter().position(|(of, _)| *of == key);
        if request.kind == LockKind::None {
            if let Some(owner) = self.tree().locks.find(&key) {
                control(&owner, SET_LOCK, &mut range)?;
            }
            if let Some(mine) = mine.filter(|_| request.start == 0 && request.length == 0) {
                self.tree().locks.release(held.swap_remove(mine));
            }
            return Ok(LockStatus::Done);
        }
        let owner = match mine.and_then(|mine| held.get(mine)) {
            Some((_, owner)) => Arc::clone(owner),
            None if held.len() >= MOST => return Err(Errno::NOLCK.into()),
            None => {
                let owner = self.owner(key)?;
                held.push((key, Arc::clone(&owner)));
                owner
            }
        };
        match control(&owner, SET_LOCK, &mut range) {
            Ok(()) => Ok(LockStatus::Done),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN | Errno::ACCESS) => Ok(LockStatus::Blocked),
                _ => Err(error),
            },
        }
    }

    /// The lock that is in the way of the one asked about, if any.
    pub fn get_lock(&self, request: &LockRequest<'_>) -> io::Result<Option<HeldLock>> {
        let mut range = range(request)?;
        if request.kind == LockKind::None {
            return Err(Errno::INVAL.into());
        }
        match self.tree().locks.find(&self.key(request)) {
            Some(owner) => control(&owner, GET_LOCK, &mut range)?,
            None => control(self.file(), GET_LOCK, &mut range)?,
        }
        let kind = match range.l_type {
            READ => LockKind::Read,
            WRITE => LockKind::Write,
            _ => return Ok(None),
        };
        let (start, length) = (range.l_start.try_into(), range.l_len.try_into());
        Ok(Some(HeldLock {
            kind,
            start: start.unwrap_or_default(),
            length: length.unwrap_or_default(),
        }))
    }

    /// The description that has a process's locks on this file.
    fn owner(&self, key: Key) -> io::Result<Arc<File>> {
        let mut table = self.tree().locks.table();
        if let Some(owner) = table.get(&key).and_then(Weak::upgrade) {
            return Ok(owner);
        }
        // For locks of both kinds, if that may be: it is not known who asks for what next.
        let ways: &[OFlags] = match self.tree().read_only {
            true => &[OFlags::RDONLY],
            false => &[OFlags::RDWR, OFlags::RDONLY, OFlags::WRONLY],
        };
        let mut opened = Err(Errno::BADF.into());
        for &way in ways {
            opened = reopen(self.file(), way);
            if opened.is_ok() {
                break;
            }
        }
        let owner = Arc::new(opened?);
        table.insert(key, Arc::downgrade(&owner));
        Ok(owner)
    }

    /// The file is closed.
    pub(super) fn release_locks(&self) {
        for part in self.my_locks().drain(..) {
            self.tree().locks.release(part);
        }
    }
}

/// The lock, in the host's terms.
fn range(request: &LockRequest<'_>) -> io::Result<libc::flock> {
    let number = |value: u64| i64::try_from(value).map_err(|_| io::Error::from(Errno::INVAL));
    let kind = match request.kind {
        LockKind::Read => READ,
        LockKind::Write => WRITE,
        LockKind::None => libc::F_UNLCK as libc::c_short,
    };
    Ok(libc::flock {
        l_type: kind,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: number(request.start)?,
        l_len: number(request.length)?,
        l_pid: 0,
    })
}

fn control(file: &File, what: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: both commands take such a structure, and write at most that.
    match unsafe { libc::fcntl(file.as_raw_fd(), what, std::ptr::from_mut(lock)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
