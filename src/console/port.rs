//! The device's end of a console.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::queue::Queue;
use super::ring::RingBuffer;
use crate::sys::Notifier;

/// How much input waits for the guest before the host side is left unread.
pub(super) const INPUT_CAPACITY: usize = 64 << 10;

/// The device's end of a console: what the guest writes goes in, what is typed on the host comes out.
///
/// Nothing here ever blocks, but for [`write_patiently`](Self::write_patiently). Copies share the port. The default is a port that leads nowhere.
#[derive(Clone, Default)]
pub struct Port(pub(super) Arc<Shared>);

type Callback = Arc<dyn Fn() + Send + Sync>;

/// What a port shares with the console's threads.
#[derive(Default)]
pub(super) struct Shared {
    outputs: Vec<Output>,
    dropped: AtomicU64,
    input: Mutex<Input>,
    on_input: Mutex<Option<Callback>>,
    size: Mutex<Option<(u16, u16)>>,
    on_resize: Mutex<Option<Callback>>,
    waker: Option<Arc<Waker>>,
}

#[derive(Default)]
struct Input {
    bytes: VecDeque<u8>,
    /// The event loop has left the host side alone, because there was no room.
    paused: bool,
    /// When the device wants to be called again.
    call_at: Option<Instant>,
}

/// One place that output goes to.
pub(super) enum Output {
    Ring(RingBuffer),
    Queue(Arc<Queue>),
}

impl Port {
    /// Takes what the guest wrote. What a host side cannot take in time is dropped and counted.
    #[inline]
    pub fn write(&self, bytes: &[u8]) {
        self.put(bytes, Queue::push);
    }

    /// As [`write`](Self::write), for a device with a thread of its own: waits for a host side that is behind, a
    /// tenth of a second at most, before it drops what is too much for it. One that has let the device wait for
    /// nothing is not waited for again until it has caught up by half.
    pub fn write_patiently(&self, bytes: &[u8]) {
        self.put(bytes, Queue::push_patiently);
    }

    #[inline]
    fn put(&self, bytes: &[u8], push: impl Fn(&Queue, &[u8]) -> usize) {
        for output in &self.0.outputs {
            match output {
                Output::Ring(ring) => ring.push(bytes),
                Output::Queue(queue) => {
                    let lost = push(queue, bytes);
                    if lost > 0 {
                        self.0.dropped.fetch_add(lost as u64, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// Moves bytes from the host into `buffer`, oldest first, and tells how many; 0 if there are none now.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        let mut input = self.0.input();
        let count = buffer.len().min(input.bytes.len());
        for (to, from) in buffer.iter_mut().zip(input.bytes.drain(..count)) {
            *to = from;
        }
        // Not at the first byte of room: a device that takes a few bytes at a time would make the event loop read
        // as few.
        if input.paused && input.bytes.len() <= INPUT_CAPACITY / 2 {
            input.paused = false;
            drop(input);
            self.0.wake();
        }
        count
    }

    /// How many bytes from the host wait for the guest.
    pub fn waiting(&self) -> usize {
        self.0.input().bytes.len()
    }

    /// Calls `call` whenever input has arrived, on the console's thread; and once now, on this one, if there is some
    /// already. `call` must not block: the console rests meanwhile.
    pub fn on_input(&self, call: impl Fn() + Send + Sync + 'static) {
        let call: Callback = Arc::new(call);
        *lock(&self.0.on_input) = Some(call.clone());
        if !self.0.input().bytes.is_empty() {
            call();
        }
    }

    /// Calls the [`on_input`](Self::on_input) callback again after `delay` if there is still something to read.
    /// For devices that take input in small pieces, and want the guest to come to other work in between.
    pub fn call_again(&self, delay: Duration) {
        let mut input = self.0.input();
        if input.bytes.is_empty() {
            return;
        }
        let at = Instant::now() + delay;
        input.call_at = Some(input.call_at.map_or(at, |before| before.min(at)));
        drop(input);
        self.0.wake();
    }

    /// Columns and rows, where the host side is a terminal or [`resize`](Self::resize) has told.
    pub fn size(&self) -> Option<(u16, u16)> {
        *lock(&self.0.size)
    }

    /// Tells the guest that its terminal now has so many columns and rows.
    ///
    /// A console looks at its terminal's size whenever input arrives. That is as far as it can go without a signal
    /// handler; a program that handles SIGWINCH calls this to tell the guest at once.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.0.set_size((columns, rows));
    }

    /// Calls `call` when [`size`](Self::size) has changed, on the thread that noticed.
    pub fn on_resize(&self, call: impl Fn() + Send + Sync + 'static) {
        *lock(&self.0.on_resize) = Some(Arc::new(call));
    }

    /// How many bytes the guest wrote were dropped, counted once for each host side that missed them.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

/// Takes everything, and never fails or blocks.
impl io::Write for Port {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Port::write(self, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    pub fn new(outputs: Vec<Output>, size: Option<(u16, u16)>, waker: Arc<Waker>) -> Self {
        Self { outputs, size: Mutex::new(size), waker: Some(waker), ..Self::default() }
    }

    /// How many bytes of input there is room for; the event loop, which alone adds any, will be woken when it is
    /// more than none.
    pub fn input_room(&self) -> usize {
        let mut input = self.input();
        let room = INPUT_CAPACITY.saturating_sub(input.bytes.len());
        input.paused |= room == 0;
        if input.paused { 0 } else { room }
    }

    /// Adds input and tells the device.
    pub fn push_input(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.input().bytes.extend(bytes);
            self.call(&self.on_input);
        }
    }

    /// Calls the device again if it is time, and tells how long it is until then if it is not.
    pub fn call_if_due(&self) -> Option<Duration> {
        let mut input = self.input();
        let left = input.call_at?.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        input.call_at = None;
        drop(input);
        self.call(&self.on_input);
        None
    }

    pub fn set_size(&self, size: (u16, u16)) {
        if lock(&self.size).replace(size) != Some(size) {
            self.call(&self.on_resize);
        }
    }

    /// Calls without the lock: the callback may well come back to this port.
    fn call(&self, callback: &Mutex<Option<Callback>>) {
        let call = lock(callback).clone();
        if let Some(call) = call {
            call();
        }
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }

    fn input(&self) -> MutexGuard<'_, Input> {
        lock(&self.input)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes a console's event loop.
pub(super) struct Waker {
    notifier: Notifier,
    closing: AtomicBool,
}

impl Waker {
    pub fn new() -> io::Result<Self> {
        Ok(Self { notifier: Notifier::new()?, closing: AtomicBool::new(false) })
    }

    pub fn wake(&self) {
        self.notifier.notify();
    }

    pub fn clear(&self) {
        self.notifier.clear();
    }

    /// Tells the event loop to write what it has, and end.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake();
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }
}
