//! Threads that carry requests out one after the other, and block as long as that takes. Works for every backend, on
//! every host.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::super::spec::Target;
use super::{Done, Op, Request, Runner, cancelled, carry_out};
use crate::sys::{self, Notifier};

/// A pool of threads for one disk. They are started as requests pile up, and end with the pool.
pub(crate) struct Pool<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
    most: usize,
}

struct Shared<T> {
    target: Target,
    state: Mutex<State<T>>,
    /// There is work, or an end to it.
    work: Condvar,
    /// Something has ended.
    ended: Condvar,
    notifier: Notifier,
    cancel: AtomicBool,
}

struct State<T> {
    waiting: VecDeque<Request<T>>,
    done: Vec<Done<T>>,
    /// Requests that threads are at.
    running: usize,
    /// Threads that wait for work.
    idle: usize,
    stop: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + 'static> Pool<T> {
    /// At most `most` threads for `target`. `notifier` is set when a request has ended.
    pub fn new(target: Target, notifier: Notifier, most: usize) -> Self {
        let state =
            State { waiting: VecDeque::new(), done: Vec::new(), running: 0, idle: 0, stop: false };
        let shared = Arc::new(Shared {
            target,
            state: Mutex::new(state),
            work: Condvar::new(),
            ended: Condvar::new(),
            notifier,
            cancel: AtomicBool::new(false),
        });
        Self { shared, threads: Vec::new(), most }
    }

    fn add_thread(&mut self) -> io::Result<()> {
        let shared = self.shared.clone();
        self.threads.push(sys::spawn("hk-disk", move || work(&shared))?);
        Ok(())
    }
}

impl<T: Send + 'static> Runner<T> for Pool<T> {
    fn submit(&mut self, request: Request<T>) {
        let mut state = self.shared.lock();
        state.waiting.push_back(request);
        let wanted = state.waiting.len() > state.idle && self.threads.len() < self.most;
        drop(state);
        if wanted && let Err(error) = self.add_thread() {
            if self.threads.is_empty() {
                // Nobody would ever come to them.
                let mut state = self.shared.lock();
                while let Some(request) = state.waiting.pop_front() {
                    let result = Err(io::Error::new(error.kind(), "no thread for the disk"));
                    state.done.push(Done { request, result });
                }
                self.shared.notifier.notify();
            }
            log::warn!("cannot start a thread for a disk: {error}");
        }
        self.shared.work.notify_one();
    }

    fn collect(&mut self, done: &mut Vec<Done<T>>) {
        done.append(&mut self.shared.lock().done);
    }

    fn wait(&mut self) {
        let mut state = self.shared.lock();
        while state.done.is_empty() && (state.running > 0 || !state.waiting.is_empty()) {
            state = self.shared.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn cancel(&mut self) {
        let mut state = self.shared.lock();
        state.waiting.clear();
        self.shared.cancel.store(true, Ordering::Relaxed);
        while state.running > 0 {
            state = self.shared.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.done.clear();
        self.shared.cancel.store(false, Ordering::Relaxed);
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.waiting.clear();
        state.stop = true;
        self.shared.cancel.store(true, Ordering::Relaxed);
        drop(state);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A backend's panic does not get as far as that.
            let _ = thread.join();
        }
    }
}

/// What a thread does.
fn work<T>(shared: &Shared<T>) {
    let mut state = shared.lock();
    loop {
        if let Some(mut request) = state.waiting.pop_front() {
            state.running += 1;
            drop(state);
            let result = carry_out_safely(&shared.target, &mut request, &shared.cancel);
            state = shared.lock();
            state.running -= 1;
            let first = state.done.is_empty();
            state.done.push(Done { request, result });
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

/// Carries a request out; a backend that panics fails it, and nothing else.
pub(super) fn carry_out_safely<T>(
    target: &Target,
    request: &mut Request<T>,
    cancel: &AtomicBool,
) -> io::Result<()> {
    let Request { op, buffers, .. } = request;
    if cancel.load(Ordering::Relaxed) && *op != Op::Flush {
        return Err(cancelled());
    }
    let call = AssertUnwindSafe(|| carry_out(target.backend(), op, buffers, cancel));
    catch_unwind(call).unwrap_or_else(|_| Err(io::Error::other("the disk's backend panicked")))
}
