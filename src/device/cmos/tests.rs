//! The clock, driven as Linux drives it (`drivers/rtc/rtc-mc146818-lib.c`, `rtc-cmos.c`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::date::Date;
use super::*;
use crate::device::testing::Line;

const A: u8 = 0x0a;
const B: u8 = 0x0b;
const B_ALARM: u8 = 0x20;
const B_UPDATED: u8 = 0x10;
const C: u8 = 0x0c;
const SET: u8 = 0x80;
const UIP: u8 = 0x80;
const BINARY: u8 = 0x04;
const HOURS_24: u8 = 0x02;
/// 2024-02-28 23:59:58 UTC, the evening before a leap day.
const EVENING: u64 = 1_709_164_798;

struct Guest {
    cmos: Cmos,
    irq: Arc<Line>,
    /// The host's clock, in nanoseconds.
    host: Arc<AtomicU64>,
}

impl Guest {
    fn new() -> Self {
        Self::with_ram(256 << 20)
    }

    fn with_ram(ram: u64) -> Self {
        let irq = Arc::new(Line::default());
        let host = Arc::new(AtomicU64::new(EVENING * 1_000_000_000));
        let clock = host.clone();
        let now = move || UNIX_EPOCH + Duration::from_nanos(clock.load(Ordering::Relaxed));
        Self { cmos: Cmos::with_clock(ram, irq.clone(), now), irq, host }
    }

    fn pass(&self, time: Duration) {
        self.host.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    fn read(&self, register: u8) -> u8 {
        // With NMIs masked, as kernels do.
        assert!(self.cmos.write(0, &[register | 0x80]).is_continue());
        let mut data = [0xff];
        self.cmos.read(1, &mut data);
        data[0]
    }

    fn write(&self, register: u8, value: u8) {
        assert!(self.cmos.write(0, &[register]).is_continue());
        assert!(self.cmos.write(1, &[value]).is_continue());
    }

    /// `mc146818_get_time`: `None` if it would have to wait.
    fn time(&self) -> Option<Date> {
        let second = self.read(0);
        if self.read(A) & UIP != 0 || self.read(0) != second {
            return None;
        }
        let fields = [9, 8, 7, 6, 4, 2, 0].map(|register| {
            let value = self.read(register);
            if self.read(B) & BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
        });
        let century = self.read(Cmos::CENTURY);
        let century = if self.read(B) & BINARY != 0 {
            century
        } else {
            (century >> 4) * 10 + (century & 0xf)
        };
        if self.read(A) & UIP != 0 || self.read(0) != second {
            return None;
        }
        let [year, month, day, weekday, hour, minute, second] = fields;
        let year = u16::from(century) * 100 + u16::from(year);
        Some(Date { year, month, day, weekday, hour, minute, second })
    }

    fn seconds(&self) -> u64 {
        self.time().unwrap().seconds() as u64
    }

    /// `mc146818_set_time`, with the divider reset that it does on Intel.
    fn set_time(&self, date: Date, divider_reset: bool) {
        let bcd = |value: u8| (value / 10) << 4 | (value % 10);
        let (b, a) = (self.read(B), self.read(A));
        self.write(B, b | SET);
        if divider_reset {
            self.write(A, a | 0x70);
        }
        for (register, value) in [
            (9, (date.year % 100) as u8),
            (8, date.month),
            (7, date.day),
            (4, date.hour),
            (2, date.minute),
            (0, date.second),
            (Cmos::CENTURY, (date.year / 100) as u8),
        ] {
            self.write(register, bcd(value));
        }
        self.write(B, b);
        self.write(A, a);
    }
}

#[test]
fn a_guest_reads_the_time_of_the_host() {
    let guest = Guest::new();
    assert_eq!(guest.read(0x0d), 0x80, "battery and memory are good");
    assert_eq!(guest.read(B), HOURS_24);
    let date = guest.time().unwrap();
    assert_eq!((date.year, date.month, date.day, date.weekday), (2024, 2, 28, 4));
    assert_eq!((date.hour, date.minute, date.second), (23, 59, 58));
    guest.pass(Duration::from_secs(2));
    let date = guest.time().unwrap();
    assert_eq!((date.month, date.day, date.weekday, date.hour), (2, 29, 5, 0));
    // Raw: BCD.
    guest.pass(Duration::from_secs(59));
    assert_eq!((guest.read(0), guest.read(9), guest.read(Cmos::CENTURY)), (0x59, 0x24, 0x20));
}

#[test]
fn the_real_clock_is_right_to_the_second() {
    let cmos = Cmos::new(1 << 30, Arc::new(Line::default()));
    let guest = Guest { cmos, irq: Arc::default(), host: Arc::default() };
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    let start = Instant::now();
    let time = loop {
        match guest.time() {
            Some(date) => break date.seconds() as u64,
            None => assert!(start.elapsed() < Duration::from_secs(10)),
        }
    };
    assert!((before..=now()).contains(&time));
}

#[test]
fn updates_are_announced_for_the_last_244_microseconds_of_a_second() {
    let guest = Guest::new();
    assert_eq!(guest.read(A), 0x26);
    guest.pass(Duration::from_micros(999_755));
    assert_eq!(guest.read(A) & UIP, 0);
    guest.pass(Duration::from_micros(1));
    assert_eq!(guest.read(A) & UIP, UIP);
    assert_eq!(guest.time(), None);
    guest.pass(Duration::from_micros(244));
    assert_eq!(guest.read(A) & UIP, 0);
    assert_eq!(guest.seconds(), EVENING + 1);
}

#[test]
fn a_time_that_is_set_runs_on_from_there() {
    for (divider_reset, fraction) in [(true, 500), (false, 800)] {
        let guest = Guest::new();
        guest.pass(Duration::from_millis(800));
        let date = Date { year: 1999, month: 12, day: 31, ..guest.time().unwrap() };
        guest.set_time(date, divider_reset);
        assert_eq!(guest.seconds(), date.seconds() as u64);
        // On real chips the next second begins half a second after the divider has left reset.
        guest.pass(Duration::from_millis(999 - fraction));
        assert_eq!(guest.seconds(), date.seconds() as u64);
        guest.pass(Duration::from_millis(1));
        assert_eq!(guest.seconds(), date.seconds() as u64 + 1);
        guest.pass(Duration::from_secs(86_400));
        assert_eq!(guest.seconds(), date.seconds() as u64 + 86_401);
        guest.cmos.reset();
        assert_eq!(guest.seconds(), date.seconds() as u64 + 86_401, "there is a battery");
    }
}

#[test]
fn the_time_stands_still_while_it_is_set() {
    let guest = Guest::new();
    guest.write(B, SET | HOURS_24);
    guest.pass(Duration::from_secs(100));
    assert_eq!(guest.seconds(), EVENING);
    guest.write(B, HOURS_24);
    assert_eq!(guest.seconds(), EVENING);
    guest.pass(Duration::from_secs(1));
    assert_eq!(guest.seconds(), EVENING + 1);
}

#[test]
fn registers_can_be_set_one_by_one_without_stopping() {
    let guest = Guest::new();
    guest.write(4, 0x07);
    guest.write(2, 0x30);
    let date = guest.time().unwrap();
    assert_eq!((date.day, date.hour, date.minute, date.second), (28, 7, 30, 58));
}

#[test]
fn binary_and_12_hours() {
    let guest = Guest::new();
    guest.write(B, HOURS_24 | BINARY);
    assert_eq!((guest.read(4), guest.read(2)), (23, 59));
    guest.write(4, 18);
    guest.write(B, 0);
    for (hour24, hour12) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
        guest.write(4, hour12);
        guest.write(B, HOURS_24 | BINARY);
        assert_eq!(guest.read(4), hour24);
        guest.write(B, 0);
        assert_eq!(guest.read(4), hour12);
    }
}

#[test]
fn memory_keeps_what_is_written_and_starts_with_the_memory_size() {
    let word =
        |guest: &Guest, low| u32::from(guest.read(low)) | u32::from(guest.read(low + 1)) << 8;
    let guest = Guest::with_ram(256 << 20);
    assert_eq!(word(&guest, 0x15), 640);
    assert_eq!((word(&guest, 0x17), word(&guest, 0x30)), (0xffff, 0xffff));
    assert_eq!(word(&guest, 0x34), (240 << 20) >> 16);
    assert_eq!(word(&guest, 0x5b), 0);
    let guest = Guest::with_ram(8 << 20);
    assert_eq!((word(&guest, 0x17), word(&guest, 0x34)), (7 << 10, 0));
    let guest = Guest::with_ram(6 << 30);
    assert_eq!(word(&guest, 0x34), ((3 << 30) - (16 << 20)) >> 16);
    assert_eq!(word(&guest, 0x5b) | u32::from(guest.read(0x5d)) << 16, (3 << 30) >> 16);

    for register in (0x0e..=0x7f).filter(|&register| register != Cmos::CENTURY) {
        guest.write(register, register ^ 0x5a);
    }
    guest.cmos.reset();
    for register in (0x0e..=0x7f).filter(|&register| register != Cmos::CENTURY) {
        assert_eq!(guest.read(register), register ^ 0x5a, "{register:#x}");
    }
}

#[test]
fn update_interrupts_come_every_second_that_register_c_is_read() {
    let guest = Guest::new();
    guest.write(B, HOURS_24 | B_UPDATED);
    assert_eq!((guest.read(C), guest.irq.pulses()), (0, 0));
    for second in 1..=3 {
        guest.pass(Duration::from_secs(1));
        guest.seconds();
        assert_eq!(guest.irq.pulses(), second);
        guest.pass(Duration::from_secs(5));
        guest.seconds();
        assert_eq!(guest.irq.pulses(), second, "no second edge before C is read");
        // Midnight has set the alarm's flag as well, which is not enabled.
        assert_eq!((guest.read(C) & !0x20, guest.read(C)), (0x90, 0));
    }
    // Setting the time ends them.
    guest.write(B, SET | HOURS_24 | B_UPDATED);
    assert_eq!(guest.read(B), SET | HOURS_24);
}

#[test]
fn an_alarm_comes_at_its_time() {
    for (alarm, after) in [
        // Seconds, minutes, hours; seconds from 23:59:58.
        ([0x59, 0x59, 0x23], 1),
        ([0x00, 0x00, 0x00], 2),
        ([0x57, 0x59, 0x23], 86_399),
        ([0x58, 0x59, 0x23], 86_400),
        ([0x30, 0x15, 0x07], 7 * 3600 + 15 * 60 + 30 + 2),
        ([0xff, 0xff, 0xff], 1),
        ([0x10, 0xff, 0xff], 12),
        ([0x10, 0x20, 0xc0], 2 + 20 * 60 + 10),
        ([0xff, 0x30, 0x12], 2 + 12 * 3600 + 30 * 60),
    ] {
        let guest = Guest::new();
        for (register, value) in [1, 3, 5].into_iter().zip(alarm) {
            guest.write(register, value);
        }
        guest.write(B, HOURS_24 | B_ALARM);
        assert_eq!((guest.read(C), guest.irq.pulses()), (0, 0));
        guest.pass(Duration::from_secs(after - 1));
        guest.seconds();
        assert_eq!(guest.irq.pulses(), 0, "{alarm:x?} is early");
        guest.pass(Duration::from_secs(1));
        guest.seconds();
        assert_eq!(guest.irq.pulses(), 1, "{alarm:x?} is late");
        assert_eq!(guest.read(C) & 0xa0, 0xa0);
    }
}

#[test]
fn an_impossible_alarm_never_comes() {
    let guest = Guest::new();
    guest.write(1, 0x75);
    guest.write(B, HOURS_24 | B_ALARM);
    guest.pass(Duration::from_secs(100_000));
    assert_eq!(guest.read(C), 0x10);
    assert_eq!(guest.irq.pulses(), 0);
}

/// Nobody touches a register meanwhile: the thread has to send it.
#[test]
fn interrupts_come_by_themselves() {
    let irq = Arc::new(Line::default());
    let cmos = Cmos::new(1 << 30, irq.clone());
    let guest = Guest { cmos, irq, host: Arc::default() };
    assert!(!guest.cmos.0.has_thread(), "a thread that nobody asked for");
    guest.write(B, HOURS_24 | B_UPDATED);
    for _ in 0..2 {
        assert!(guest.irq.wait_pulse(Duration::from_secs(20)));
        assert_eq!(guest.read(C) & 0x90, 0x90);
    }
    // Not before the next one either, if nobody asks for it.
    guest.write(B, HOURS_24);
    guest.read(C);
    let pulses = guest.irq.pulses();
    assert!(!guest.irq.wait_pulse(Duration::from_millis(1200)) || guest.irq.pulses() == pulses);
}

#[test]
fn reset_disables_interrupts() {
    let guest = Guest::new();
    guest.write(B, HOURS_24 | B_UPDATED | B_ALARM | 0x48);
    guest.cmos.reset();
    assert_eq!(guest.read(B), HOURS_24);
    guest.pass(Duration::from_secs(10));
    guest.seconds();
    assert_eq!(guest.irq.pulses(), 0);
}

#[test]
fn every_register_takes_every_value() {
    for mode in [0, SET, BINARY, HOURS_24, SET | BINARY | HOURS_24, 0x30] {
        let guest = Guest::new();
        for register in 0..=0xff {
            for value in 0..=255 {
                guest.write(register, value);
                if register & 0x7f == B {
                    guest.write(B, mode);
                }
                guest.read(register);
            }
        }
        guest.write(A, 0x26);
        guest.write(B, HOURS_24);
        // Not at the end of the last year there is.
        guest.write(Cmos::CENTURY, 0x20);
        let before = guest.seconds();
        guest.pass(Duration::from_secs(1));
        assert_eq!(guest.seconds(), before + 1);
    }
    let guest = Guest::new();
    for offset in (0..3).chain([u64::MAX]) {
        for len in 0..=8 {
            let _ = guest.cmos.write(offset, &[0xff; 8][..len]);
            guest.cmos.read(offset, &mut [0; 8][..len]);
        }
    }
}
