//! The virtual timer (Arm ARM, D12.2): how long a processor that waits for an interrupt may sleep.
//!
//! Guests put any value into its registers, so nothing here overflows; and who sleeps too short wakes up for nothing,
//! so times are rounded up.

use std::time::Duration;

/// CNTV_CTL_EL0: the timer is on …
const ENABLE: u64 = 1 << 0;
/// … and its interrupt is not to be seen.
const IMASK: u64 = 1 << 1;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// How long until the virtual timer interrupts: zero if it does now, `None` if it will not. `control` and `compare` are
/// CNTV_CTL_EL0 and CNTV_CVAL_EL0, `count` is the virtual count, at `frequency` Hz.
pub fn until_interrupt(control: u64, compare: u64, count: u64, frequency: u64) -> Option<Duration> {
    (control & (ENABLE | IMASK) == ENABLE).then(|| until(compare, count, frequency))
}

/// How long until the count is `deadline`, which is also what WFIT and WFET wait for: zero if it is, or was.
pub fn until(deadline: u64, count: u64, frequency: u64) -> Duration {
    duration(deadline.saturating_sub(count), frequency)
}

/// How long so many ticks take. Without a frequency, any take for ever.
fn duration(ticks: u64, frequency: u64) -> Duration {
    if ticks == 0 {
        return Duration::ZERO;
    }
    let parts = (ticks.checked_div(frequency), ticks.checked_rem(frequency));
    let (Some(seconds), Some(rest)) = parts else {
        return Duration::MAX;
    };
    // A second at most, and no more than half of all seconds before it where there is a rest.
    let nanos = (u128::from(rest) * NANOS_PER_SECOND).div_ceil(frequency.into());
    Duration::new(seconds, nanos as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Of Apple's processors.
    const HZ: u64 = 24_000_000;

    #[test]
    fn a_timer_that_is_off_or_masked_never_interrupts() {
        // With ISTATUS and bits that are not there.
        for other in [0, 1 << 2, !0b11] {
            assert_eq!(until_interrupt(other, 0, 1, HZ), None);
            assert_eq!(until_interrupt(other | IMASK, 0, 1, HZ), None);
            assert_eq!(until_interrupt(other | IMASK | ENABLE, 0, 1, HZ), None);
            assert_eq!(until_interrupt(other | ENABLE, 0, 1, HZ), Some(Duration::ZERO));
        }
    }

    #[test]
    fn a_timer_interrupts_when_the_count_gets_there_and_from_then_on() {
        let wait = |compare, count| until_interrupt(ENABLE, compare, count, HZ).unwrap();
        assert_eq!(wait(HZ, 0), Duration::from_secs(1));
        assert_eq!(wait(HZ + 24, HZ), Duration::from_micros(1));
        assert_eq!(wait(HZ + 1, HZ), Duration::from_nanos(42), "rounded up");
        for count in [HZ, HZ + 1, u64::MAX] {
            assert_eq!(wait(HZ, count), Duration::ZERO);
        }
        // How Linux puts a timer off for good: 24367 years.
        assert_eq!(wait(u64::MAX, 0).as_secs(), u64::MAX / HZ);
        assert_eq!(wait(u64::MAX, u64::MAX), Duration::ZERO);
    }

    #[test]
    fn no_frequency_overflows() {
        for (ticks, frequency, expected) in [
            (u64::MAX, 1, Duration::from_secs(u64::MAX)),
            (u64::MAX, 2, Duration::new(u64::MAX / 2, 500_000_000)),
            (u64::MAX, u64::MAX, Duration::from_secs(1)),
            // A tick short of a second is nearer to it than a nanosecond.
            (u64::MAX - 1, u64::MAX, Duration::from_secs(1)),
            (1, u64::MAX, Duration::from_nanos(1)),
            (0, u64::MAX, Duration::ZERO),
            (1, 0, Duration::MAX),
            (0, 0, Duration::ZERO),
        ] {
            assert_eq!(until(ticks, 0, frequency), expected, "{ticks} at {frequency} Hz");
        }
    }

    /// Whoever sleeps so long wakes up neither before the count is there, nor a nanosecond later than needed.
    #[test]
    fn a_sleep_is_long_enough_and_no_longer() {
        let mut random = Random(1);
        for _ in 0..100_000 {
            let [compare, count] = [(); 2].map(|()| random.next() >> random.below(64));
            let frequency = (random.next() >> random.below(64)).max(1);
            let nanos = until(compare, count, frequency).as_nanos();
            let ticks = u128::from(compare.saturating_sub(count));
            // Counting in units of a tick's and a nanosecond's common part.
            let needed = ticks * NANOS_PER_SECOND;
            let slept = |nanos: u128| nanos.checked_mul(frequency.into());
            assert!(slept(nanos).is_none_or(|slept| slept >= needed));
            if let Some(less) = nanos.checked_sub(1) {
                assert!(slept(less).is_some_and(|slept| slept < needed));
            }
        }
    }
}
