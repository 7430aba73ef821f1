//! How fast a serial port takes input from the host.
//!
//! The next bytes come when the guest has drained the last ones, and after as long a break as that took it. Without
//! the break an interrupt handler would never see an empty receiver (Linux gives up after a while, "too much work for
//! irq4"), and a guest with one processor would never come to the program that reads.

use std::time::{Duration, Instant};

/// The longest break. A guest that took longer was doing other work.
const LONGEST_BREAK: Duration = Duration::from_millis(1);

/// When a receiver was filled last, and when it may be filled again.
#[derive(Default)]
pub(super) struct Pace {
    filled: Option<Instant>,
    resume: Option<Instant>,
}

impl Pace {
    /// What is left of the break at `now`.
    pub fn rest(&self, now: Instant) -> Option<Duration> {
        let left = self.resume?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// The receiver has been filled.
    pub fn filled(&mut self, now: Instant) {
        self.filled = Some(now);
    }

    /// The receiver has been drained. Tells how long the break is.
    pub fn drained(&mut self) -> Duration {
        let now = Instant::now();
        let took = self.filled.take().map(|filled| now.saturating_duration_since(filled));
        let pause = took.unwrap_or_default().min(LONGEST_BREAK);
        self.resume = Some(now + pause);
        pause
    }
}
