//! The clock of an arm64 machine: ARM's PL031 (DDI 0224C, chapter 3; register names are those of there).
//!
//! It counts seconds since 1970 by the host's `CLOCK_REALTIME`. A guest that sets the time changes only its own: what is
//! kept is the difference. The alarm raises the line when the count comes to RTCMR, as Linux's `rtc-pl031` needs it for
//! wake-up times; a host clock that jumps over that moment has come to it too, one that is set back has not.
//!
//! The counter runs from the beginning, whether the guest starts it or not.

use std::sync::Arc;
use std::time::SystemTime;

use super::alarm::{Alarm, Clock, SECOND, seconds};
use super::level::Level;
use super::primecell;
use crate::accel::IrqLine;
use crate::bus::{BusDevice, Flow};

/// Register offsets, DDI 0224C table 3-1.
const DR: u64 = 0x00;
const MR: u64 = 0x04;
const LR: u64 = 0x08;
const CR: u64 = 0x0c;
const IMSC: u64 = 0x10;
const RIS: u64 = 0x14;
const MIS: u64 = 0x18;
const ICR: u64 = 0x1c;
/// Part 0x031 of designer 0x41.
const ID: u32 = 0x0004_1031;

const CR_STARTED: u32 = 1 << 0;
/// The only bit of IMSC, RIS, MIS and ICR.
const ALARM: u32 = 1 << 0;

/// The clock.
pub struct Pl031(Alarm<Registers>);

struct Registers {
    /// The guest's clock is so many seconds ahead of the host's.
    offset: i64,
    mr: u32,
    lr: u32,
    imsc: u32,
    ris: u32,
    /// The last second of the host's clock that has been looked at for a match.
    seen: i64,
    line: Level,
}

impl Pl031 {
    /// Bytes of registers that it has.
    pub const LEN: u64 = primecell::LEN;

    /// A clock that shows the host's time. `irq` is used as a level.
    pub fn new(irq: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self::with_clock(irq, SystemTime::now))
    }

    /// The same, with another notion of what time it is.
    pub fn with_clock(
        irq: Arc<dyn IrqLine>,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Self {
        let line = Level::new(irq);
        Self(Alarm::new(clock, |now| {
            let seen = seconds(now);
            Registers { offset: 0, mr: 0, lr: 0, imsc: 0, ris: 0, seen, line }
        }))
    }
}

impl Registers {
    /// RTCDR, when the host's clock shows `second`. It wraps in 2106.
    fn count(&self, second: i64) -> u32 {
        second.wrapping_add(self.offset) as u32
    }

    /// The alarm goes off if the count has just become RTCMR, or the other way round.
    fn compare(&mut self, second: i64) {
        if self.count(second) == self.mr {
            self.ris = ALARM;
        }
    }

    fn read(&self, register: u64, now: i128) -> u32 {
        match register {
            DR => self.count(seconds(now)),
            MR => self.mr,
            LR => self.lr,
            CR => CR_STARTED,
            IMSC => self.imsc,
            RIS => self.ris,
            MIS => self.ris & self.imsc,
            _ => primecell::identification(ID, register),
        }
    }

    fn write(&mut self, register: u64, value: u32, now: i128) {
        let second = seconds(now);
        match register {
            MR => {
                self.mr = value;
                self.compare(second);
            }
            LR => {
                self.lr = value;
                self.offset = i64::from(value).wrapping_sub(second);
                self.compare(second);
            }
            IMSC => self.imsc = value & ALARM,
            ICR => self.ris &= !value,
            _ => {}
        }
    }
}

impl Clock for Registers {
    fn update(&mut self, now: i128) {
        let second = seconds(now);
        let passed = second.saturating_sub(self.seen);
        let until = i64::from(self.mr.wrapping_sub(self.count(self.seen)));
        if until > 0 && until <= passed {
            self.ris = ALARM;
        }
        self.seen = second;
        self.line.set(self.ris & self.imsc != 0);
    }

    fn until_interrupt(&self, now: i128) -> Option<i128> {
        if self.imsc == 0 || self.ris != 0 {
            return None;
        }
        let second = seconds(now);
        // What it shows already, it shows again when it has been all around.
        let until = match self.mr.wrapping_sub(self.count(second)) {
            0 => 1 << 32,
            until => i128::from(until),
        };
        Some((i128::from(second) + until) * SECOND - now)
    }
}

impl BusDevice for Pl031 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.touch(|registers, now| {
            primecell::read(offset, data, |register| registers.read(register, now));
        });
    }

    fn write(&self, offset: u64, data: &[u8]) -> Flow {
        self.0.touch(|registers, now| {
            primecell::write(offset, data, |register, value| registers.write(register, value, now));
        });
        Flow::Continue(())
    }

    /// The time has a battery: it stays.
    fn reset(&self) {
        self.0.touch(|registers, _| {
            (registers.mr, registers.lr, registers.imsc, registers.ris) = (0, 0, 0, 0);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::device::testing::Line;

    /// 2024-02-28 23:59:58 UTC.
    const EVENING: i64 = 1_709_164_798;

    /// As `drivers/rtc/rtc-pl031.c` uses it.
    struct Guest {
        rtc: Pl031,
        irq: Arc<Line>,
        /// The host's clock, in milliseconds.
        host: Arc<AtomicI64>,
    }

    impl Guest {
        fn new() -> Self {
            let (irq, host) = (Arc::new(Line::default()), Arc::new(AtomicI64::new(0)));
            let clock = host.clone();
            let rtc = Pl031::with_clock(irq.clone(), move || {
                let millis = clock.load(Ordering::Relaxed);
                let part = Duration::from_millis(millis.unsigned_abs());
                if millis < 0 { UNIX_EPOCH - part } else { UNIX_EPOCH + part }
            });
            let guest = Self { rtc, irq, host };
            guest.set_host(EVENING * 1000);
            guest
        }

        fn set_host(&self, millis: i64) {
            self.host.store(millis, Ordering::Relaxed);
        }

        fn pass(&self, millis: i64) {
            self.host.fetch_add(millis, Ordering::Relaxed);
        }

        fn read(&self, register: u64) -> u32 {
            let mut data = [0xff; 4];
            self.rtc.read(register, &mut data);
            u32::from_le_bytes(data)
        }

        fn write(&self, register: u64, value: u32) {
            assert!(self.rtc.write(register, &value.to_le_bytes()).is_continue());
        }

        /// `pl031_set_alarm`.
        fn set_alarm(&self, time: u32) {
            self.write(MR, time);
            self.write(ICR, ALARM);
            self.write(IMSC, self.read(IMSC) | ALARM);
        }

        /// `pl031_interrupt`: whether it was the alarm.
        fn interrupt(&self) -> bool {
            let alarm = self.read(MIS) & ALARM != 0;
            if alarm {
                self.write(ICR, ALARM);
            }
            alarm
        }
    }

    #[test]
    fn a_guest_reads_the_time_of_the_host() {
        let guest = Guest::new();
        // `pl031_probe`.
        guest.write(CR, guest.read(CR) | CR_STARTED);
        assert_eq!(guest.read(DR), EVENING as u32);
        guest.pass(999);
        assert_eq!(guest.read(DR), EVENING as u32);
        guest.pass(1);
        assert_eq!(guest.read(DR), EVENING as u32 + 1);
        guest.set_host(1_000_000_000_000);
        assert_eq!(guest.read(DR), 1_000_000_000, "the host's clock was set");
    }

    #[test]
    fn the_real_clock_is_right_to_the_second() {
        let irq = Arc::new(Line::default());
        let rtc = Pl031::new(irq);
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let before = now();
        let mut data = [0; 4];
        rtc.read(DR, &mut data);
        let read = u32::from_le_bytes(data);
        assert!((before..=now()).contains(&read.into()), "{read}");
        assert!(!rtc.0.has_thread(), "a thread that nobody asked for");
    }

    #[test]
    fn a_guest_sets_its_own_time() {
        let guest = Guest::new();
        for time in [0, 1, 1_000_000_000, u32::MAX] {
            guest.write(LR, time);
            assert_eq!((guest.read(DR), guest.read(LR)), (time, time));
            guest.pass(5000);
            assert_eq!(guest.read(DR), time.wrapping_add(5));
            assert_eq!(guest.read(LR), time);
        }
    }

    #[test]
    fn times_that_the_register_cannot_hold_wrap() {
        let guest = Guest::new();
        guest.set_host(((1 << 32) + 7) * 1000);
        assert_eq!(guest.read(DR), 7);
        guest.set_host(-1);
        assert_eq!(guest.read(DR), u32::MAX);
        guest.write(LR, 100);
        guest.pass(1);
        assert_eq!(guest.read(DR), 101);
    }

    #[test]
    fn an_alarm_comes_at_its_time() {
        let guest = Guest::new();
        guest.pass(300);
        for after in [1, 2, 60, 100_000] {
            let alarm = guest.read(DR) + after;
            guest.set_alarm(alarm);
            assert_eq!(guest.read(MR), alarm);
            guest.pass(i64::from(after) * 1000 - 301);
            assert!(!guest.interrupt() && !guest.irq.is_high(), "{after} s is early");
            guest.pass(1);
            assert_eq!((guest.read(DR), guest.read(RIS)), (alarm, ALARM));
            assert!(guest.irq.is_high(), "{after} s is late");
            assert!(guest.interrupt());
            assert!(!guest.interrupt() && !guest.irq.is_high(), "once");
            guest.pass(300);
            assert!(!guest.interrupt());
        }
    }

    #[test]
    fn an_alarm_that_a_jump_leaves_behind_comes_and_one_in_the_past_does_not() {
        let guest = Guest::new();
        let now = guest.read(DR);
        guest.set_alarm(now + 10);
        guest.pass(1_000_000);
        assert!(guest.interrupt());
        guest.set_alarm(now);
        guest.pass(1_000_000);
        assert!(!guest.interrupt());
        let now = guest.read(DR);
        guest.set_alarm(now + 10);
        guest.pass(-1_000_000);
        assert!(!guest.interrupt(), "set back");
        guest.pass(1_009_000);
        assert!(!guest.interrupt());
        guest.pass(1_000);
        assert!(guest.interrupt());
    }

    #[test]
    fn setting_the_time_to_that_of_the_alarm_is_its_time() {
        let guest = Guest::new();
        guest.set_alarm(1000);
        guest.write(LR, 999);
        assert!(!guest.interrupt());
        guest.write(LR, 1000);
        assert!(guest.interrupt());
        guest.write(MR, 1000);
        assert!(guest.interrupt());
        // Past it without touching it.
        guest.write(LR, 5000);
        assert!(!guest.interrupt());
    }

    #[test]
    fn a_masked_alarm_shows_in_ris_alone() {
        let guest = Guest::new();
        guest.write(MR, guest.read(DR) + 1);
        guest.pass(1000);
        assert_eq!((guest.read(RIS), guest.read(MIS)), (ALARM, 0));
        assert!(!guest.irq.is_high() && !guest.rtc.0.has_thread());
        guest.write(IMSC, u32::MAX);
        assert_eq!((guest.read(IMSC), guest.read(MIS)), (ALARM, ALARM));
        assert!(guest.irq.is_high());
        guest.write(IMSC, 0);
        assert!(!guest.irq.is_high());
    }

    /// Nobody touches a register meanwhile: the thread has to raise the line.
    #[test]
    fn an_alarm_comes_by_itself() {
        let irq = Arc::new(Line::default());
        let rtc = Pl031::with_clock(irq.clone(), SystemTime::now);
        let guest = Guest { rtc, irq, host: Arc::default() };
        for _ in 0..2 {
            guest.set_alarm(guest.read(DR) + 1);
            assert!(guest.irq.wait_high(Duration::from_secs(20)));
            assert!(guest.interrupt());
        }
        guest.set_alarm(guest.read(DR) + 1);
        guest.write(IMSC, 0);
        assert!(!guest.irq.wait_high(Duration::from_millis(1200)));
    }

    #[test]
    fn an_alarm_that_shows_already_wakes_nobody_at_once() {
        let guest = Guest::new();
        let now = guest.read(DR);
        guest.set_alarm(now);
        let nanos = guest.rtc.0.touch(|registers, now| registers.until_interrupt(now));
        assert_eq!(nanos, Some((1 << 32) * SECOND));
    }

    #[test]
    fn is_found_as_a_pl031() {
        let guest = Guest::new();
        let id = |first: u64| (0..4).map(|n| guest.read(first + 4 * n)).collect::<Vec<_>>();
        assert_eq!(id(0xfe0), [0x31, 0x10, 0x04, 0x00]);
        assert_eq!(id(0xff0), [0x0d, 0xf0, 0x05, 0xb1]);
    }

    #[test]
    fn reset_ends_the_alarm_and_keeps_the_time() {
        let guest = Guest::new();
        guest.write(LR, 1000);
        guest.set_alarm(1001);
        guest.pass(1000);
        guest.read(DR);
        assert!(guest.irq.is_high());
        guest.rtc.reset();
        assert!(!guest.irq.is_high());
        let registers = [DR, MR, LR, CR, IMSC, RIS, MIS].map(|register| guest.read(register));
        assert_eq!(registers, [1001, 0, 0, CR_STARTED, 0, 0, 0]);
    }

    #[test]
    fn every_access_is_answered() {
        let guest = Guest::new();
        for value in [0, 1, 0x80, 0xff] {
            for offset in (0..0x30).chain(0xfc0..0x1010).chain([u64::MAX - 3, u64::MAX]) {
                for len in 0..=8 {
                    let _ = guest.rtc.write(offset, &[value; 8][..len]);
                    guest.rtc.read(offset, &mut [0xff; 8][..len]);
                    guest.pass(7777);
                }
            }
        }
    }
}
