//! Doing at once what most likely takes no time, on a thread that others wait for: by how long it has taken lately.
//!
//! The host's file system puts most of what it is asked into memory, or takes it from there, and handing that to
//! another thread costs several times as much. Now and then it waits for its disk all the same. So each call is timed;
//! after one that took long the next ones are somebody else's for a while.

use std::time::{Duration, Instant};

/// Whether this is a time for it.
#[derive(Debug)]
pub(crate) struct Pace {
    /// It is none before then.
    closed: Option<Instant>,
    penalty: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { closed: None, penalty: Self::SHORTEST }
    }
}

impl Pace {
    /// A call that took longer has waited for something.
    const LONG: Duration = Duration::from_micros(500);
    /// What copying a byte may take on a slow host.
    const PER_BYTE: Duration = Duration::from_nanos(4);
    /// How long to stay away after a call that took long; each one in a row doubles it.
    const SHORTEST: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_secs(1);

    /// The present, if something may be done at once.
    pub fn start(&self) -> Option<Instant> {
        let now = Instant::now();
        self.is_open(now).then_some(now)
    }

    /// What [`start`](Self::start) allowed has been done, on `bytes` bytes.
    pub fn end(&mut self, start: Instant, bytes: usize) {
        self.took(start, Instant::now(), bytes);
    }

    fn is_open(&self, now: Instant) -> bool {
        self.closed.is_none_or(|until| now >= until)
    }

    fn took(&mut self, start: Instant, end: Instant, bytes: usize) {
        let copying = Self::PER_BYTE * u32::try_from(bytes).unwrap_or(u32::MAX);
        if end - start > Self::LONG + copying {
            self.closed = Some(end + self.penalty);
            self.penalty = (self.penalty * 2).min(Self::LONGEST);
        } else if self.closed.take().is_some() {
            self.penalty = Self::SHORTEST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(400);
    const SLOW: Duration = Duration::from_micros(600);

    #[test]
    fn after_a_call_that_took_long_there_is_a_pause_and_each_in_a_row_doubles_it() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        for pause in [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000].map(Duration::from_millis) {
            assert!(pace.is_open(now));
            pace.took(now, now + SLOW, 0);
            now += SLOW;
            assert!(!pace.is_open(now + pause - Duration::from_nanos(1)), "{pause:?}");
            now += pause;
        }
        assert!(pace.is_open(now));
        pace.took(now, now + SHORT, 0);
        pace.took(now, now + SLOW, 0);
        assert!(pace.is_open(now + SLOW + Pace::SHORTEST), "it has not begun anew");
    }

    #[test]
    fn copying_may_take_its_time() {
        let now = Instant::now();
        let mut pace = Pace::default();
        pace.took(now, now + SLOW, 100_000);
        assert!(pace.is_open(now + SLOW));
        pace.took(now, now + SLOW, 10_000);
        assert!(!pace.is_open(now + SLOW));
        // So many bytes that nobody counts them.
        let mut pace = Pace::default();
        pace.took(now, now + SLOW, usize::MAX);
        assert!(pace.is_open(now + SLOW));
    }
}
