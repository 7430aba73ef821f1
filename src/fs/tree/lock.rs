//! Locks of ranges of files, which hold against other guests and against the host's own programs.
//!
//! A lock belongs to a process of the guest, as POSIX has it, not to the open file that it was made with: a process
//! that has a file open twice never waits for itself. The locks of an open file description of the host belong to
//! the description. So there is one more description for each process and file that it has locks on, made with its
//! first lock, and gone with its last one, or with the last file by way of which there are any.
//!
//! Between the processes that share an open file the guest's kernel decides before anybody is asked here. Where what one
//! of them asks for is in the way of what another has, that has changed hands in the guest: flock's locks, which are
//! the open file's in Linux, come as those of whatever process has made the call. So whoever gives up a whole file in
//! the way of `flock -u`, which may wait, gives up what the others have by way of it too, if that is the whole file; when
//! a process closes a file Linux asks without waiting. What cannot be told apart: a process that has a flock by one
//! open file, and closes another one of the same file, gives up the lock here, and in the guest it does not; and a
//! child that asks, waiting, for its parent's lock of a whole file to be given up does that here.
//!
//! How many ranges are locked is counted here, because the host does not limit it.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::handle::{GET_LOCK, SET_LOCK, reopen};
use super::identity::FileId;
use super::ranges::Ranges;
use super::{HeldLock, LockKind, LockRequest, LockStatus, OpenFile};

/// Most processes that can have locks by way of one open file.
const MOST: usize = 16;
/// Most ranges of all files of a share that can be locked.
const MOST_RANGES: usize = 16 << 10;

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

/// A description that holds locks.
#[derive(Debug)]
pub(super) struct Holder {
    locked: Mutex<Locked>,
    /// How many ranges all of the share's have.
    all: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Locked {
    /// The description: none as long as nothing is locked.
    file: Option<File>,
    ranges: Ranges,
}

impl Holder {
    fn locked(&self) -> MutexGuard<'_, Locked> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_none(&self) -> bool {
        self.locked().ranges.is_empty()
    }

    /// Makes or gives up a lock on what `open` is. ENOLCK if there would be too many ranges, or if the host does not let
    /// the file be opened in a way in which it can be locked so.
    fn set(&self, open: &OpenFile, request: &LockRequest<'_>) -> io::Result<LockStatus> {
        let mut range = range(request)?;
        let (first, last) = (request.start, last(request));
        let mut locked = self.locked();
        let Locked { file, ranges } = &mut *locked;
        let growth = ranges.growth(first, last, request.kind);
        // A few more there may be, as those who ask at the same time are not counted.
        if growth > 0 && self.all.load(Ordering::Relaxed) >= MOST_RANGES {
            return Err(Errno::NOLCK.into());
        }
        let file = match file {
            Some(file) => file,
            None if request.kind == LockKind::None => return Ok(LockStatus::Done),
            None => file.insert(description(open)?),
        };
        let status = match control(file, SET_LOCK, &mut range) {
            Ok(()) => {
                let before = ranges.len();
                ranges.set(first, last, request.kind);
                // Wrapping, as it may become less.
                self.all.fetch_add(ranges.len().wrapping_sub(before), Ordering::Relaxed);
                Ok(LockStatus::Done)
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN | Errno::ACCESS) => Ok(LockStatus::Blocked),
                Some(Errno::BADF) => Err(Errno::NOLCK.into()),
                _ => Err(error),
            },
        };
        if locked.ranges.is_empty() {
            locked.file = None;
        }
        status
    }

    /// Gives up what is in the way of somebody else's lock. Tells whether that was anything.
    fn give_way(&self, open: &OpenFile, request: &LockRequest<'_>) -> io::Result<bool> {
        let conflicts = self.locked().ranges.conflicts(request.start, last(request), request.kind);
        for &(first, last) in &conflicts {
            let length = if last == LAST { 0 } else { last - first + 1 };
            let kind = LockKind::None;
            self.set(open, &LockRequest { kind, start: first, length, ..*request })?;
        }
        Ok(!conflicts.is_empty())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let count = self.locked().ranges.len();
        self.all.fetch_sub(count, Ordering::Relaxed);
    }
}

/// The descriptions that hold locks.
#[derive(Debug, Default)]
pub(super) struct Holders {
    table: Mutex<HashMap<Key, Weak<Holder>>>,
    ranges: Arc<AtomicUsize>,
}

/// Those that an open file has a part in.
pub(super) type Held = Vec<(Key, Arc<Holder>)>;

impl Holders {
    fn table(&self) -> MutexGuard<'_, HashMap<Key, Weak<Holder>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back a part in a description, which is gone with the last.
    fn release(&self, (key, part): (Key, Arc<Holder>)) {
        let mut table = self.table();
        drop(part);
        if table.get(&key).is_some_and(|others| others.strong_count() == 0) {
            table.remove(&key);
        }
    }

    /// A part in a description, which may be a new one.
    fn get(&self, key: Key) -> Arc<Holder> {
        let mut table = self.table();
        if let Some(holder) = table.get(&key).and_then(Weak::upgrade) {
            return holder;
        }
        let all = Arc::clone(&self.ranges);
        let holder = Arc::new(Holder { locked: Mutex::default(), all });
        table.insert(key, Arc::downgrade(&holder));
        holder
    }

    /// Calls `call` with a description, if it is there already.
    fn with<T>(&self, key: Key, call: impl FnOnce(Option<&Holder>) -> T) -> T {
        let part = self.table().get(&key).and_then(Weak::upgrade);
        let result = call(part.as_deref());
        if let Some(part) = part {
            self.release((key, part));
        }
        result
    }

    /// How many there are, and how many ranges are locked.
    #[cfg(test)]
    pub fn count(&self) -> (usize, usize) {
        (self.table().len(), self.ranges.load(Ordering::Relaxed))
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

    /// Makes or gives up a lock, without waiting. ENOLCK if too many processes have locks by way of this open file, or
    /// there are too many of them.
    pub fn lock(&self, request: &LockRequest<'_>) -> io::Result<LockStatus> {
        let key = self.key(request);
        let mut held = self.my_locks();
        let status = match request.kind {
            LockKind::None => self.unlock(key, &held, request),
            _ => self.lock_for(key, &mut held, request),
        };
        self.give_back(&mut held);
        status
    }

    fn unlock(&self, key: Key, held: &Held, request: &LockRequest<'_>) -> io::Result<LockStatus> {
        range(request)?;
        if request.waits && (request.start, request.length) == (0, 0) {
            for (_, other) in held.iter().filter(|(of, _)| of.client == key.client) {
                // No other is one of flock's.
                if other.locked().ranges.are_just(0, LAST) {
                    other.set(self, request)?;
                }
            }
        }
        self.tree().locks.with(key, |holder| match holder {
            Some(holder) => holder.set(self, request),
            None => Ok(LockStatus::Done),
        })
    }

    fn lock_for(
        &self,
        key: Key,
        held: &mut Held,
        request: &LockRequest<'_>,
    ) -> io::Result<LockStatus> {
        let mine = match held.iter().find(|(of, _)| *of == key) {
            Some((_, mine)) => Arc::clone(mine),
            None => {
                if held.len() >= MOST {
                    self.give_back(held);
                }
                if held.len() >= MOST {
                    return Err(Errno::NOLCK.into());
                }
                let mine = self.tree().locks.get(key);
                held.push((key, Arc::clone(&mine)));
                mine
            }
        };
        if mine.set(self, request)? == LockStatus::Done {
            return Ok(LockStatus::Done);
        }
        let mut gave_way = false;
        for (of, other) in held.iter().filter(|(of, _)| *of != key) {
            gave_way |= of.client == key.client && other.give_way(self, request)?;
        }
        if gave_way { mine.set(self, request) } else { Ok(LockStatus::Blocked) }
    }

    /// Gives back the parts in descriptions that hold nothing.
    fn give_back(&self, held: &mut Held) {
        for part in held.extract_if(.., |(_, holder)| holder.has_none()) {
            self.tree().locks.release(part);
        }
    }

    /// The lock that is in the way of the one asked about, if any.
    pub fn get_lock(&self, request: &LockRequest<'_>) -> io::Result<Option<HeldLock>> {
        let mut range = range(request)?;
        if request.kind == LockKind::None {
            return Err(Errno::INVAL.into());
        }
        self.tree().locks.with(self.key(request), |holder| {
            let locked = holder.map(Holder::locked);
            let file = locked.as_ref().and_then(|locked| locked.file.as_ref());
            control(file.unwrap_or(self.file()), GET_LOCK, &mut range)
        })?;
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

    /// The file is closed.
    pub(super) fn release_locks(&self) {
        for part in self.my_locks().drain(..) {
            self.tree().locks.release(part);
        }
    }
}

/// The last byte that there can be.
const LAST: u64 = i64::MAX as u64;

/// The last byte of what is to be locked.
fn last(&LockRequest { start, length, .. }: &LockRequest<'_>) -> u64 {
    match length {
        0 => LAST,
        _ => start.saturating_add(length - 1),
    }
}

/// One more description of the file, for locks of both kinds if that may be: it is not known who asks for what next.
fn description(open: &OpenFile) -> io::Result<File> {
    let tree = open.tree();
    tree.has_room()?;
    let ways: &[OFlags] = match tree.read_only {
        true => &[OFlags::RDONLY],
        false => &[OFlags::RDWR, OFlags::RDONLY, OFlags::WRONLY],
    };
    let opened = ways.iter().find_map(|&way| reopen(open.file(), way).ok());
    let file = opened.ok_or(Errno::NOLCK)?;
    tree.descriptors.given(file.as_raw_fd());
    Ok(file)
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
