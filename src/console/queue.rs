//! Output on its way to a host side that may be slow.
//!
//! A vCPU thread puts bytes in and never waits: what does not fit is lost. One thread takes them out. Bytes come
//! one at a time from a serial port, so a thread that has just written lingers for a moment before it sleeps: to
//! a consumer that is awake, a byte costs a lock and a store, no system call.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::port::Waker;

/// How much a host side may be behind.
pub(super) const CAPACITY: usize = 64 << 10;
/// How long a consumer that has just written waits for more before it sleeps: how late output may come.
pub(super) const LINGER: Duration = Duration::from_millis(1);
/// How long a producer waits for a consumer that is behind, if it waits at all.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);
/// So much output ends the wait.
const BATCH: usize = 8 << 10;

pub(super) struct Queue {
    state: Mutex<State>,
    consumer: Consumer,
    /// Bytes were taken out.
    room: Condvar,
}

/// Who takes the bytes out.
enum Consumer {
    /// The console's event loop.
    Loop(Arc<Waker>),
    /// A thread of its own, in [`Queue::wait`].
    Thread(Condvar),
}

struct State {
    bytes: VecDeque<u8>,
    /// The consumer wants to be woken when so many bytes are there. `usize::MAX` while it is awake.
    wake_at: usize,
    /// A producer waits for room.
    wanted: bool,
    /// A producer has waited in vain, and none does again before half of the bytes are gone.
    stuck: bool,
    closed: bool,
    dead: bool,
}

impl Queue {
    /// A queue that the event loop behind `waker` empties.
    pub fn for_loop(waker: Arc<Waker>) -> Self {
        Self::new(Consumer::Loop(waker))
    }

    /// A queue that a thread of its own empties.
    pub fn for_thread() -> Self {
        Self::new(Consumer::Thread(Condvar::new()))
    }

    fn new(consumer: Consumer) -> Self {
        let bytes = VecDeque::with_capacity(CAPACITY);
        let state = State {
            bytes,
            wake_at: usize::MAX,
            wanted: false,
            stuck: false,
            closed: false,
            dead: false,
        };
        Self { state: Mutex::new(state), consumer, room: Condvar::new() }
    }

    /// Adds as much of `bytes` as there is room for, and tells how many were lost.
    #[inline]
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        if state.dead || state.closed {
            return bytes.len();
        }
        let fit = bytes.len().min(CAPACITY - state.bytes.len());
        state.bytes.extend(&bytes[..fit]);
        if state.bytes.len() >= state.wake_at {
            state.wake_at = usize::MAX;
            drop(state);
            self.wake();
        }
        bytes.len() - fit
    }

    /// As [`push`](Self::push), but waits for a consumer that is only behind, [`PATIENCE`] at most.
    pub fn push_patiently(&self, mut bytes: &[u8]) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.push(bytes);
            bytes = &bytes[bytes.len() - left..];
            if left == 0 || !self.wait_for_room(deadline) {
                return left;
            }
        }
    }

    /// Whether there is room; waits for it unless that has been in vain lately.
    fn wait_for_room(&self, deadline: Instant) -> bool {
        let mut state = self.state();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.dead || state.closed || state.stuck {
                return false;
            }
            if state.bytes.len() < CAPACITY {
                return true;
            }
            if left.is_zero() {
                state.stuck = true;
                return false;
            }
            state.wanted = true;
            state = self.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Copies the oldest bytes into `buffer`, and leaves them where they are.
    pub fn peek(&self, buffer: &mut [u8]) -> usize {
        let state = self.state();
        let (front, _) = state.bytes.as_slices();
        let count = front.len().min(buffer.len());
        buffer[..count].copy_from_slice(&front[..count]);
        count
    }

    /// Takes the oldest `count` bytes out.
    pub fn consume(&self, count: usize) {
        let mut state = self.state();
        let count = count.min(state.bytes.len());
        state.bytes.drain(..count);
        state.stuck &= state.bytes.len() > CAPACITY / 2;
        if std::mem::take(&mut state.wanted) {
            self.room.notify_all();
        }
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.state().bytes.len()
    }

    /// Whether there are bytes to write: any at all, or, while the consumer lingers, a good many. If not, it will be
    /// woken when there are.
    pub fn is_ready(&self, linger: bool) -> bool {
        let enough = if linger { BATCH } else { 1 };
        let mut state = self.state();
        let ready = state.bytes.len() >= enough;
        state.wake_at = if ready { usize::MAX } else { enough };
        ready
    }

    /// Waits, on a consumer's own thread, until there are bytes; `false` if there are none and never will be.
    pub fn wait(&self) -> bool {
        let Consumer::Thread(more) = &self.consumer else { return false };
        let mut state = self.state();
        state.wake_at = BATCH;
        let mut linger = true;
        while !state.dead
            && !state.closed
            && (state.bytes.is_empty() || linger && state.bytes.len() < BATCH)
        {
            if linger {
                state = more.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner).0;
                linger = false;
            } else {
                state.wake_at = 1;
                state = more.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.wake_at = usize::MAX;
        !state.dead && !state.bytes.is_empty()
    }

    /// Takes nothing more, and lets the consumer's thread end once it has written what is there.
    pub fn close(&self) {
        self.state().closed = true;
        self.wake();
    }

    /// The host side has failed, and gets nothing more.
    pub fn fail(&self, error: &io::Error) {
        log::warn!(
            "a host side of a console gets no more output, because writing to it failed: {error}"
        );
        self.kill();
    }

    /// The host side takes nothing any more: forgets what is there, and loses what comes.
    pub fn kill(&self) {
        let mut state = self.state();
        state.dead = true;
        state.bytes = VecDeque::new();
        drop(state);
        self.wake();
    }

    fn wake(&self) {
        match &self.consumer {
            Consumer::Loop(waker) => waker.wake(),
            Consumer::Thread(more) => more.notify_one(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
