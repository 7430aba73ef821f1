//! Waiting for imago's futures on a thread of ours.
//!
//! Their input and output is done within [`Store`](super::store::Store) without waiting for anything but the host, so
//! all that a future waits for is a lock that another thread has. An executor of one's own also works where the
//! caller is within another one already, which the ones that can be had refuse.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

thread_local! {
    static WAKER: Waker = Arc::new(Unpark(thread::current())).into();
    /// This thread cannot wait for the host.
    static HURRY: Cell<bool> = const { Cell::new(false) };
}

/// Runs a future to its end.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    // Threads that are ending have no such values any more.
    let waker = WAKER.try_with(Waker::clone);
    let waker = waker.unwrap_or_else(|_| Arc::new(Unpark(thread::current())).into());
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// Runs a future to its end if it gets there without waiting, neither for another thread nor for the host.
pub(super) fn now<F: Future>(future: F) -> Option<F::Output> {
    /// Also if the future panics.
    struct Hurry;
    impl Drop for Hurry {
        fn drop(&mut self) {
            HURRY.set(false);
        }
    }
    HURRY.set(true);
    let _hurry = Hurry;
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Refuses what may take long if this thread cannot wait.
pub(super) fn may_wait() -> io::Result<()> {
    match HURRY.try_with(Cell::get) {
        Ok(true) => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}
