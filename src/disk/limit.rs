//! How much a disk may do in a second.
//!
//! A token bucket for bytes and one for requests. A bucket may be overdrawn by one request, which the next ones then
//! wait for: so a request is never larger than the bucket, and over time the rate is kept all the same.

use std::time::{Duration, Instant};

/// What the owner of a disk allows; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes a second.
    pub bytes: Option<u64>,
    /// Requests a second.
    pub operations: Option<u64>,
}

/// Both buckets.
#[derive(Debug)]
pub(crate) struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    pub fn new(limits: Limits, now: Instant) -> Self {
        let bucket = |rate: u64| Bucket::new(rate, now);
        Self { bytes: limits.bytes.map(bucket), operations: limits.operations.map(bucket) }
    }

    /// Whether there is a limit at all.
    pub fn is_set(&self) -> bool {
        self.bytes.is_some() || self.operations.is_some()
    }

    /// When the next request may be taken; `None` for at once.
    pub fn wait(&mut self, now: Instant) -> Option<Instant> {
        let buckets = [&mut self.bytes, &mut self.operations].into_iter().flatten();
        buckets.filter_map(|bucket| bucket.wait(now)).max()
    }

    /// A request of `bytes` was taken.
    pub fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
    }
}

/// How much of a second's worth may be saved up, as a divisor: a tenth.
const BURST: f64 = 10.0;

#[derive(Debug)]
struct Bucket {
    /// Tokens a second.
    rate: f64,
    /// May be below zero.
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn new(rate: u64, now: Instant) -> Self {
        let rate = rate as f64;
        Self { rate, tokens: rate / BURST, filled: now }
    }

    fn wait(&mut self, now: Instant) -> Option<Instant> {
        let gone = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + gone * self.rate).min((self.rate / BURST).max(1.0));
        self.filled = self.filled.max(now);
        if self.tokens >= 0.0 {
            return None;
        }
        // An hour is as good as any longer time, and no overflow.
        let wait = (-self.tokens / self.rate).clamp(1e-6, 3600.0);
        Some(now + Duration::from_secs_f64(wait))
    }

    fn take(&mut self, tokens: u64) {
        self.tokens -= tokens as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes requests of `size` as fast as allowed for `seconds`, and returns how many.
    fn run(limits: Limits, size: u64, seconds: u64) -> u64 {
        let start = Instant::now();
        let end = start + Duration::from_secs(seconds);
        let mut limiter = Limiter::new(limits, start);
        let (mut now, mut count) = (start, 0);
        while now < end {
            match limiter.wait(now) {
                Some(later) => {
                    assert!(later > now, "time does not go on");
                    now = later;
                }
                None => {
                    limiter.take(size);
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn rates_are_kept_whatever_the_size_of_requests() {
        for (rate, size) in [
            (1000, 512),
            (1000, 1 << 25),
            (1 << 20, 512),
            (1 << 20, 1 << 20),
            (1 << 30, 1 << 20),
            (1 << 30, 1 << 25),
        ] {
            let limits = Limits { bytes: Some(rate), operations: None };
            let got = run(limits, size, 100) * size;
            let most = rate * 100 + rate / 10 + size;
            assert!(got <= most + 1, "{got} bytes at {rate}/s by {size}");
            assert!(got + size >= rate * 100, "{got} bytes at {rate}/s by {size}");
        }
        for rate in [1, 7, 5000] {
            let got = run(Limits { bytes: None, operations: Some(rate) }, 512, 100);
            assert!((rate * 100..=rate * 101 + 2).contains(&got), "{got} at {rate}/s");
        }
    }

    #[test]
    fn the_tighter_limit_decides() {
        let limits = Limits { bytes: Some(1 << 20), operations: Some(10) };
        assert!((100..=103).contains(&run(limits, 512, 10)));
        let got = run(limits, 1 << 20, 10);
        assert!((10..=12).contains(&got), "{got}");
    }

    #[test]
    fn without_limits_nothing_waits() {
        let mut limiter = Limiter::new(Limits::default(), Instant::now());
        assert!(!limiter.is_set());
        for _ in 0..1000 {
            limiter.take(u64::MAX);
            assert_eq!(limiter.wait(Instant::now()), None);
        }
    }
}
