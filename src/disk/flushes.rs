//! Flushes of a file: one at a time.
//!
//! A host that could not write data tells one flush of the open file, and then forgets about it. Of two that run side
//! by side, the other one is told that all is well, and may be the first to end. So a flush that comes while one runs
//! waits for its end, and then for the next one, which all that wait share: the one that runs may have begun before
//! the data was there.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Flushes of a file, from threads that can wait.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    turns: Mutex<Turns>,
    ended: Condvar,
    /// A flush has failed: what the host had not written by then may be gone, and later flushes would not tell.
    lost: AtomicBool,
}

/// Which flush it is the turn of. They have numbers, from 1 on.
#[derive(Debug, Default)]
struct Turns {
    /// The last one that has begun.
    begun: u64,
    /// The last one that has ended: the same, or the one before.
    ended: u64,
    /// Threads that wait.
    waiting: usize,
}

impl Flushes {
    fn lock(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flushes with `flush`, or shares the flush of another thread that has begun after this call.
    pub fn run(&self, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut turns = self.lock();
        let wanted = turns.begun + 1;
        while turns.ended < turns.begun {
            turns.waiting += 1;
            turns = self.ended.wait(turns).unwrap_or_else(PoisonError::into_inner);
            turns.waiting -= 1;
            if turns.ended >= wanted {
                drop(turns);
                return self.note(Ok(()));
            }
        }
        turns.begun += 1;
        drop(turns);
        // Noted before anybody hears of the end.
        let result = self.note(flush());
        let mut turns = self.lock();
        turns.ended = turns.begun;
        let waiting = turns.waiting;
        drop(turns);
        // Waking nobody would be a system call as well.
        if waiting > 0 {
            self.ended.notify_all();
        }
        result
    }

    /// Takes note of how a flush has ended, and tells what it is worth.
    pub fn note(&self, result: io::Result<()>) -> io::Result<()> {
        if result.is_err() {
            self.lost.store(true, Ordering::Relaxed);
        }
        match self.lost.load(Ordering::Relaxed) {
            // The host reports data that it could not write once, then forgets about it.
            true => Err(result.err().unwrap_or_else(|| {
                io::Error::other("an earlier flush failed, so data may be lost already")
            })),
            false => Ok(()),
        }
    }

    /// Threads that wait.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }
}

/// Flushes of a file that nobody waits for: whoever has it begin them says when they have ended.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(super) struct Queued<R> {
    running: bool,
    /// What shares the one that runs.
    sharing: Vec<R>,
    /// What waits for the next one.
    next: Vec<R>,
}

#[cfg(target_os = "linux")]
impl<R> Queued<R> {
    pub fn new() -> Self {
        Self { running: false, sharing: Vec::new(), next: Vec::new() }
    }

    /// Takes a request to flush.
    pub fn push(&mut self, request: R) {
        self.next.push(request);
    }

    /// One to begin now, for all that wait; `None` if one runs, or nothing waits.
    pub fn begin(&mut self) -> Option<R> {
        if self.running {
            return None;
        }
        let request = self.next.pop()?;
        self.running = true;
        std::mem::swap(&mut self.sharing, &mut self.next);
        Some(request)
    }

    /// The one that runs has ended. Returns what has ended with it.
    pub fn end(&mut self) -> impl Iterator<Item = R> {
        self.running = false;
        self.sharing.drain(..)
    }

    /// Drops what has not begun.
    pub fn clear(&mut self) {
        self.next.clear();
    }
}
