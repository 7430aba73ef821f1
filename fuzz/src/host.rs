//! The host as the devices of a chipset see it: what time it is, and where their interrupts go.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyperkit::accel::IrqLine;

/// The host's clock is off by so many seconds at most: more than the years that any chip can show.
const FURTHEST: i64 = 1 << 40;

/// A clock that shows what an input says.
#[derive(Default)]
pub struct Clock {
    seconds: AtomicI64,
    nanos: AtomicI64,
}

impl Clock {
    /// Sets it: seconds since 1970, signed.
    pub fn set(&self, seconds: u64) {
        self.nanos.store(0, Ordering::Relaxed);
        self.seconds.store(seconds as i64 % FURTHEST, Ordering::Relaxed);
    }

    /// Time goes on, or back: nanoseconds, signed.
    pub fn pass(&self, nanos: u64) {
        self.nanos.fetch_add(nanos as i64, Ordering::Relaxed);
    }

    /// The time.
    pub fn time(&self) -> SystemTime {
        let part = |count: i64, unit: fn(u64) -> Duration| (count < 0, unit(count.unsigned_abs()));
        let parts = [
            part(self.seconds.load(Ordering::Relaxed), Duration::from_secs),
            part(self.nanos.load(Ordering::Relaxed), Duration::from_nanos),
        ];
        parts.iter().fold(UNIX_EPOCH, |time, (before, by)| {
            let moved = if *before { time.checked_sub(*by) } else { time.checked_add(*by) };
            moved.unwrap_or(time)
        })
    }

    /// The time since 1970, for what counts from some moment.
    pub fn uptime(&self) -> Duration {
        self.time().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// An interrupt line that can be looked at.
#[derive(Default)]
pub struct Level(AtomicBool);

impl Level {
    /// Whether it is held up.
    pub fn is_high(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl IrqLine for Level {
    fn pulse(&self) {}

    fn set_level(&self, high: bool) {
        self.0.store(high, Ordering::Relaxed);
    }
}
