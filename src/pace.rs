//! Doing at once what most likely takes no time, on a thread that others wait for: by how long it has taken lately.
//!
//! The host's file system puts most of what it is asked into memory, or takes it from there, and handing that to
//! another thread costs several times as much. Now and then it waits for its disk all the same. So each call is timed;
//! after one that took long by waiting the next ones are somebody else's for a while. One that took long because others
//! had the processor is none of those: another thread would wait for it as well. To tell the two apart takes a system
//! call more, so that is done only after one has taken long.

use std::time::{Duration, Instant};

use crate::sys;

/// Whether this is a time for it.
#[derive(Debug)]
pub(crate) struct Pace {
    /// It is none before then.
    closed: Option<Instant>,
    penalty: Duration,
    /// Calls to come that are looked at more closely.
    looks: u8,
}

/// The start of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    at: Instant,
    look: Option<Look>,
}

/// How often this thread had waited by then, as far as the host tells.
#[derive(Debug, Clone, Copy)]
struct Look(Option<u64>);

impl Default for Pace {
    fn default() -> Self {
        Self { closed: None, penalty: Self::SHORTEST, looks: 0 }
    }
}

impl Pace {
    /// A call that took longer has waited for something, or for the processor.
    const LONG: Duration = Duration::from_micros(500);
    /// What copying a byte may take on a slow host.
    const PER_BYTE: Duration = Duration::from_nanos(4);
    /// How long to stay away after a call that took long; each one in a row doubles it.
    const SHORTEST: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_secs(1);
    /// How many calls are looked at more closely after one that took long.
    const LOOKS: u8 = 64;

    /// The present, if something may be done at once.
    pub fn start(&self) -> Option<Start> {
        let at = Instant::now();
        let look = (self.looks > 0).then(|| Look(sys::waits()));
        self.is_open(at).then_some(Start { at, look })
    }

    /// What [`start`](Self::start) allowed has been done, on `bytes` bytes.
    pub fn end(&mut self, Start { at, look }: Start, bytes: usize) {
        let waited = || look.map(|Look(before)| before.is_none() || sys::waits() != before);
        self.took(at, Instant::now(), bytes, waited);
    }

    fn is_open(&self, now: Instant) -> bool {
        self.closed.is_none_or(|until| now >= until)
    }

    /// `waited`: whether it has, if that is known.
    fn took(
        &mut self,
        start: Instant,
        end: Instant,
        bytes: usize,
        waited: impl FnOnce() -> Option<bool>,
    ) {
        let copying = Self::PER_BYTE * u32::try_from(bytes).unwrap_or(u32::MAX);
        let long = end - start > Self::LONG + copying;
        self.looks = if long { Self::LOOKS } else { self.looks.saturating_sub(1) };
        if long && waited() == Some(true) {
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

    fn took(pace: &mut Pace, now: Instant, time: Duration, bytes: usize) {
        pace.took(now, now + time, bytes, || Some(true));
    }

    #[test]
    fn after_a_call_that_took_long_there_is_a_pause_and_each_in_a_row_doubles_it() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        for pause in [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000].map(Duration::from_millis) {
            assert!(pace.is_open(now));
            took(&mut pace, now, SLOW, 0);
            now += SLOW;
            assert!(!pace.is_open(now + pause - Duration::from_nanos(1)), "{pause:?}");
            now += pause;
        }
        assert!(pace.is_open(now));
        took(&mut pace, now, SHORT, 0);
        took(&mut pace, now, SLOW, 0);
        assert!(pace.is_open(now + SLOW + Pace::SHORTEST), "it has not begun anew");
    }

    #[test]
    fn copying_may_take_its_time() {
        let now = Instant::now();
        let mut pace = Pace::default();
        took(&mut pace, now, SLOW, 100_000);
        assert!(pace.is_open(now + SLOW));
        took(&mut pace, now, SLOW, 10_000);
        assert!(!pace.is_open(now + SLOW));
        // So many bytes that nobody counts them.
        let mut pace = Pace::default();
        took(&mut pace, now, SLOW, usize::MAX);
        assert!(pace.is_open(now + SLOW));
    }

    #[test]
    fn a_call_that_waits_for_the_processor_only_is_none_that_waits() {
        if sys::waits().is_none() {
            return;
        }
        let mut pace = Pace::default();
        for _ in 0..5 {
            let start = pace.start().expect("it was taken for one that waits");
            while start.at.elapsed() < SLOW {}
            pace.end(start, 0);
        }
    }

    #[test]
    fn the_second_call_in_a_row_that_waits_is_known_as_one() {
        let mut pace = Pace::default();
        for _ in 0..2 {
            let start = pace.start().expect("it was taken for one that waits");
            std::thread::sleep(SLOW);
            pace.end(start, 0);
        }
        assert!(pace.closed.is_some());
    }
}
