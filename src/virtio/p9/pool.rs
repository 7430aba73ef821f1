//! Threads that answer messages, each as long as that takes.
//!
//! There are none before the first message. They are started as messages pile up, wait without a timer, and end with the
//! driver that needed them.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::fs::{EIO, Scratch, Server, Wait, rlerror};
use crate::memory::{BufferList, Buffers};
use crate::sys::{self, Notifier};
use crate::virtio::Chain;

/// Most threads of a device: as many messages can wait for the host's file system before others have to wait for them.
pub(super) const THREADS: usize = 16;

/// Linux's number of "Resource temporarily unavailable".
const EAGAIN: u32 = 11;

/// Who answers messages. Called by several threads at once.
pub(super) trait Serve: Send + Sync + 'static {
    /// Answers the message in `request`, and returns how long the reply is; nothing if it may take longer than
    /// `wait`, and then nothing has been done.
    fn serve(
        &self,
        request: Buffers<'_>,
        reply: Buffers<'_>,
        scratch: &mut Scratch,
        wait: Wait,
    ) -> Option<usize>;

    /// The driver has gone.
    fn reset(&self);
}

impl Serve for Server {
    fn serve(
        &self,
        request: Buffers<'_>,
        reply: Buffers<'_>,
        scratch: &mut Scratch,
        wait: Wait,
    ) -> Option<usize> {
        Self::serve(self, request, reply, scratch, wait)
    }

    fn reset(&self) {
        Self::reset(self);
    }
}

/// A message.
pub(super) struct Job {
    /// Distinguishes messages in flight, and tells which came earlier.
    pub id: u64,
    pub tag: u16,
    /// The message.
    pub request: BufferList<'static>,
    /// Room for the reply.
    pub reply: BufferList<'static>,
    /// Keeps the memory that both are in.
    pub chain: Chain,
    /// Bytes of the reply.
    pub written: usize,
}

impl Job {
    /// Has the message answered, and tells whether it has been: that may take longer than `wait`. A server that panics
    /// fails it, and nothing else.
    pub fn answer(&mut self, server: &dyn Serve, scratch: &mut Scratch, wait: Wait) -> bool {
        let call = || server.serve(self.request.all(), self.reply.all(), scratch, wait);
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Some(written)) => self.written = written,
            Ok(None) => return false,
            Err(_) => self.fail(EIO),
        }
        true
    }

    /// Says what is wrong rather than to answer.
    fn fail(&mut self, errno: u32) {
        let message = rlerror(self.tag, errno);
        let room = self.reply.all();
        self.written = if room.total() >= message.len() { room.fill_from(&message) } else { 0 };
    }
}

pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    server: Arc<dyn Serve>,
    state: Mutex<State>,
    /// There is work, or an end to it.
    work: Condvar,
    /// Something has ended.
    ended: Condvar,
    /// Set when something has ended.
    notifier: Notifier,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    done: Vec<Job>,
    /// Messages that threads are at.
    running: usize,
    /// Threads that wait for work.
    idle: usize,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Threads for `server`; `notifier` is set when there is something to [`collect`](Self::collect).
    pub fn new(server: Arc<dyn Serve>, notifier: Notifier) -> Self {
        let shared = Shared {
            server,
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
            notifier,
        };
        Self { shared: Arc::new(shared), threads: Vec::new() }
    }

    fn add_thread(&mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        self.threads.push(sys::spawn("hk-9p", move || work(&shared))?);
        Ok(())
    }

    /// Takes a message.
    pub fn submit(&mut self, job: Job) {
        let mut state = self.shared.lock();
        state.waiting.push_back(job);
        let wanted = state.waiting.len() > state.idle && self.threads.len() < THREADS;
        drop(state);
        if wanted && let Err(error) = self.add_thread() {
            log::warn!("cannot start a thread for a share: {error}");
            if self.threads.is_empty() {
                // Nobody would ever come to it.
                let mut state = self.shared.lock();
                let State { waiting, done, .. } = &mut *state;
                waiting.iter_mut().for_each(|job| job.fail(EAGAIN));
                done.extend(waiting.drain(..));
                self.shared.notifier.notify();
            }
        }
        self.shared.work.notify_one();
    }

    /// Takes a message back that no thread has begun with.
    pub fn withdraw(&mut self, id: u64) -> Option<Job> {
        let waiting = &mut self.shared.lock().waiting;
        let index = waiting.iter().position(|job| job.id == id)?;
        waiting.remove(index)
    }

    /// Puts what has ended into `done`, which is empty, without waiting.
    pub fn collect(&self, done: &mut Vec<Job>) {
        std::mem::swap(done, &mut self.shared.lock().done);
    }

    /// Waits until something can be collected. Not to be called if nothing is under way.
    pub fn wait(&self) {
        let mut state = self.shared.lock();
        while state.done.is_empty() && (state.running > 0 || !state.waiting.is_empty()) {
            state = self.shared.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Drops every message, those that a thread is at as soon as it has ended; then ends the threads.
    pub fn end(&mut self) {
        let mut state = self.shared.lock();
        state.waiting.clear();
        state.stop = true;
        drop(state);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A server's panic does not get as far as that.
            let _ = thread.join();
        }
        let mut state = self.shared.lock();
        state.done.clear();
        state.stop = false;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a thread does.
fn work(shared: &Shared) {
    let mut scratch = Scratch::default();
    let mut state = shared.lock();
    loop {
        if let Some(mut job) = state.waiting.pop_front() {
            state.running += 1;
            drop(state);
            job.answer(&*shared.server, &mut scratch, Wait::Long);
            state = shared.lock();
            state.running -= 1;
            let first = state.done.is_empty();
            state.done.push(job);
            shared.ended.notify_one();
            if first {
                shared.notifier.notify();
            }
        } else if state.stop {
            return;
        } else {
            state.idle += 1;
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}
