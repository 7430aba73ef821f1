//! A caller's `Read` and `Write`, which may block: each has a thread of its own.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::events::FLUSH_STALL;
use super::port::Waker;
use super::queue::Queue;
use crate::sys;

/// Bytes a reader's thread hands to the event loop; it reads on when they are taken.
pub(super) struct Feed {
    state: Mutex<FeedState>,
    taken: Condvar,
}

struct FeedState {
    bytes: Vec<u8>,
    /// The thread is in `read`, and nobody knows for how long.
    reading: bool,
    /// Gone once the console is closed.
    waker: Option<Arc<Waker>>,
}

impl Feed {
    /// Takes up to `most` bytes.
    pub fn take(&self, most: usize) -> Vec<u8> {
        let mut state = self.state();
        let count = most.min(state.bytes.len());
        let bytes = state.bytes.drain(..count).collect();
        if count > 0 && state.bytes.is_empty() {
            self.taken.notify_one();
        }
        bytes
    }

    pub fn is_empty(&self) -> bool {
        self.state().bytes.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, FeedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands `bytes` over and waits until they are taken. `false` if nobody will take any more.
    fn give(&self, bytes: &[u8]) -> bool {
        let mut state = self.state();
        state.reading = false;
        state.bytes.extend_from_slice(bytes);
        if let Some(waker) = &state.waker {
            waker.wake();
        }
        while state.waker.is_some() && !state.bytes.is_empty() {
            state = self.taken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.reading = state.waker.is_some();
        state.reading
    }
}

/// The thread behind a caller's `Read`.
pub(super) struct Reader {
    feed: Arc<Feed>,
    thread: JoinHandle<()>,
}

impl Reader {
    pub fn start(mut input: Box<dyn Read + Send>, waker: Arc<Waker>) -> io::Result<Self> {
        let state = FeedState { bytes: Vec::new(), reading: true, waker: Some(waker) };
        let feed = Arc::new(Feed { state: Mutex::new(state), taken: Condvar::new() });
        let ours = feed.clone();
        let thread = sys::spawn("hk-console-in", move || {
            let mut buffer = [0; 4096];
            loop {
                match input.read(&mut buffer) {
                    Ok(count) if count > 0 && ours.give(&buffer[..count]) => {}
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    _ => break,
                }
            }
            drop(input);
            ours.state().reading = false;
        })?;
        Ok(Self { feed, thread })
    }

    pub fn feed(&self) -> Arc<Feed> {
        self.feed.clone()
    }

    /// Ends the thread, unless it is in `read`: then it ends once that returns, and holds nothing but the reader.
    pub fn close(self) {
        let mut state = self.feed.state();
        state.waker = None;
        let reading = state.reading;
        drop(state);
        self.feed.taken.notify_one();
        if !reading {
            // A reader that panicked is as gone as one that ended.
            let _ = self.thread.join();
        }
    }
}

/// The thread behind a caller's `Write`.
pub(super) struct Writer {
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
}

impl Writer {
    pub fn start(mut output: Box<dyn Write + Send>, queue: Arc<Queue>) -> io::Result<Self> {
        let ours = queue.clone();
        let thread = sys::spawn("hk-console-out", move || {
            let mut buffer = [0; 4096];
            while ours.wait() {
                let count = ours.peek(&mut buffer);
                match output.write(&buffer[..count]).and_then(|n| output.flush().map(|()| n)) {
                    Ok(count) if count > 0 => ours.consume(count),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Ok(_) => ours.fail(&ErrorKind::WriteZero.into()),
                    Err(error) => ours.fail(&error),
                }
            }
        })?;
        Ok(Self { queue, thread })
    }

    /// Tells the thread to write what is there, and end.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Waits until it has, as long as the caller's `Write` takes bytes, but not past `deadline`. Leaves a thread
    /// behind that is still writing then.
    pub fn join(self, deadline: Instant) {
        let (mut left, mut progress) = (self.queue.len(), Instant::now());
        while !self.thread.is_finished() {
            let now = Instant::now();
            if now > deadline || now.duration_since(progress) > FLUSH_STALL {
                self.queue.kill();
                return;
            }
            std::thread::sleep(Duration::from_micros(200));
            if self.queue.len() != left {
                (left, progress) = (self.queue.len(), Instant::now());
            }
        }
        let _ = self.thread.join();
    }
}
