//! What clocks with an alarm have in common: whoever touches one finds it as it is at that moment, and a thread wakes it
//! when its next interrupt is due. The thread is not there until a guest asks for an interrupt.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sys;

/// An armed alarm looks at the host's clock so often, which may have been set meanwhile.
const LOOK: Duration = Duration::from_secs(60);

/// Nanoseconds in a second.
pub(super) const SECOND: i128 = 1_000_000_000;

/// Registers that change with time. Times called `now` are nanoseconds since 1970 by the host's clock.
pub(super) trait Clock: Send + 'static {
    /// Takes note of what happened until now, and signals interrupts.
    fn update(&mut self, now: i128);

    /// How many nanoseconds it is until the next interrupt, if there will be one.
    fn until_interrupt(&self, now: i128) -> Option<i128>;
}

/// A clock, and what wakes it.
pub(super) struct Alarm<C: Clock> {
    shared: Arc<Shared<C>>,
    /// Sends interrupts at their time, once the guest has asked for any.
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared<C> {
    state: Mutex<State<C>>,
    /// The thread has to look again.
    changed: Condvar,
    host: Box<dyn Fn() -> SystemTime + Send + Sync>,
}

struct State<C> {
    clock: C,
    closing: bool,
}

impl<C: Clock> Alarm<C> {
    /// A clock that `make` makes of the time that it is now, by the clock `host`.
    pub fn new(
        host: impl Fn() -> SystemTime + Send + Sync + 'static,
        make: impl FnOnce(i128) -> C,
    ) -> Self {
        let state = Mutex::new(State { clock: make(nanos(host())), closing: false });
        let shared = Shared { state, changed: Condvar::new(), host: Box::new(host) };
        Self { shared: Arc::new(shared), thread: Mutex::default() }
    }

    /// Lets `touch` at the clock. It is up to date before and after.
    pub fn touch<R>(&self, touch: impl FnOnce(&mut C, i128) -> R) -> R {
        let mut state = self.shared.state();
        let now = self.shared.now();
        state.clock.update(now);
        let result = touch(&mut state.clock, now);
        state.clock.update(now);
        let armed = state.clock.until_interrupt(now).is_some();
        drop(state);
        if armed {
            self.start_thread();
        }
        self.shared.changed.notify_one();
        result
    }

    /// Whether there is a thread.
    #[cfg(test)]
    pub fn has_thread(&self) -> bool {
        self.thread.lock().unwrap().is_some()
    }

    fn start_thread(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let shared = self.shared.clone();
            // Without a thread there are no alarms, until the guest asks again.
            *thread = sys::spawn("hk-rtc", move || shared.run()).ok();
        }
    }
}

impl<C: Clock> Drop for Alarm<C> {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.changed.notify_one();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It cannot panic, and there would be nobody to tell.
            let _ = thread.join();
        }
    }
}

impl<C: Clock> Shared<C> {
    fn state(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> i128 {
        nanos((self.host)())
    }

    fn run(&self) {
        let mut state = self.state();
        while !state.closing {
            let now = self.now();
            state.clock.update(now);
            let wait = state.clock.until_interrupt(now);
            state = match wait.map(|nanos| u64::try_from(nanos).unwrap_or(u64::MAX)) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(nanos) => {
                    let wait = Duration::from_nanos(nanos).min(LOOK);
                    let woken = self.changed.wait_timeout(state, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

fn nanos(time: SystemTime) -> i128 {
    let signed = |duration: Duration| i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => signed(since),
        Err(before) => -signed(before.duration()),
    }
}

/// Whole seconds of nanoseconds since 1970.
pub(super) fn seconds(nanos: i128) -> i64 {
    nanos.div_euclid(SECOND) as i64
}
