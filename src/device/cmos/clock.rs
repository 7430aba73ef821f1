//! The registers of the clock chip: time, alarm, interrupts, memory. No threads, no ports, no host clock.

use super::date::{DAY, Date};
use crate::device::alarm::{SECOND, seconds};

/// When "update in progress" is clear, at least so long remains until the time changes. MC146818A datasheet, "Update
/// Cycle": 244 µs.
const UPDATE: i128 = 244_000;
/// The first update comes half a second after the divider chain has left reset. Same, "Register A".
const DIVIDER_START: i128 = SECOND / 2;

/// Register numbers.
const SECONDS_ALARM: u8 = 1;
const MINUTES_ALARM: u8 = 3;
const HOURS_ALARM: u8 = 5;
const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const D: u8 = 0x0d;
/// Where PCs keep the century. The FADT says so as well.
pub(super) const CENTURY: u8 = 0x32;

/// Register A: update in progress; divider control, of which 11x holds the clock in reset.
const A_UIP: u8 = 1 << 7;
const A_DIVIDER_RESET: u8 = 0b11 << 5;
/// 32768 Hz crystal, 1024 Hz periodic rate: what every PC has.
const A_DEFAULT: u8 = 0x26;

/// Register B: no updates; which interrupts; square wave; binary numbers; 24 hours.
const B_SET: u8 = 1 << 7;
const B_PERIODIC: u8 = 1 << 6;
const B_ALARM: u8 = 1 << 5;
const B_UPDATED: u8 = 1 << 4;
const B_SQUARE_WAVE: u8 = 1 << 3;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;

/// Register C: an enabled interrupt is pending; the others are at the bits that enable them in B.
const C_PENDING: u8 = 1 << 7;
/// Register D: the battery is good.
const D_VALID: u8 = 1 << 7;

const PM: u8 = 1 << 7;
/// An alarm byte with both bits set matches every value.
const ANY: u8 = 0b11 << 6;

/// The chip. Times called `now` are nanoseconds since 1970 by the host's clock.
pub(super) struct Chip {
    a: u8,
    b: u8,
    /// Register C without [`C_PENDING`].
    flags: u8,
    /// The guest's clock is so far ahead of the host's.
    offset: i128,
    /// The time while it stands still: the guest is setting it.
    held: Option<Date>,
    /// The last second whose update and alarm are in `flags`.
    seen: i64,
    memory: [u8; 128],
    /// An interrupt was sent and register C has not been read since.
    asserted: bool,
}

impl Chip {
    pub fn new(now: i128) -> Self {
        let seen = seconds(now);
        let (a, b, memory) = (A_DEFAULT, B_24_HOURS, [0; 128]);
        Self { a, b, flags: 0, offset: 0, held: None, seen, memory, asserted: false }
    }

    /// What the reset line does: no interrupts. Time and memory have a battery.
    pub fn reset(&mut self) {
        self.b &= !(B_PERIODIC | B_ALARM | B_UPDATED | B_SQUARE_WAVE);
        self.flags = 0;
        self.asserted = false;
    }

    /// Reads register `index`, 7 bits. Call [`interrupt`](Self::interrupt) before.
    pub fn read(&mut self, index: u8, now: i128) -> u8 {
        let date = self.date(now);
        match index {
            0 => self.encode(date.second),
            2 => self.encode(date.minute),
            4 => self.encode_hour(date.hour),
            6 => self.encode(date.weekday),
            7 => self.encode(date.day),
            8 => self.encode(date.month),
            9 => self.encode((date.year % 100) as u8),
            CENTURY => self.encode((date.year / 100) as u8),
            A => {
                let left = SECOND - self.time(now).rem_euclid(SECOND);
                let updating = self.held.is_none() && left <= UPDATE;
                self.a | if updating { A_UIP } else { 0 }
            }
            B => self.b,
            C => {
                let flags = self.flags | if self.is_pending() { C_PENDING } else { 0 };
                (self.flags, self.asserted) = (0, false);
                flags
            }
            D => D_VALID,
            _ => self.memory[usize::from(index & 0x7f)],
        }
    }

    /// Writes register `index`, 7 bits.
    pub fn write(&mut self, index: u8, value: u8, now: i128) {
        let mut date = self.date(now);
        match index {
            0 => date.second = self.decode(value),
            2 => date.minute = self.decode(value),
            4 => date.hour = self.decode_hour(value),
            // It follows from the date.
            6 => return,
            7 => date.day = self.decode(value),
            8 => date.month = self.decode(value),
            9 => date.year = date.year / 100 * 100 + u16::from(self.decode(value)),
            CENTURY => date.year = u16::from(self.decode(value)) * 100 + date.year % 100,
            A => return self.control(value & !A_UIP, self.b, now),
            B => return self.control(self.a, value, now),
            C | D => return,
            _ => {
                self.memory[usize::from(index & 0x7f)] = value;
                return;
            }
        }
        if self.held.is_some() {
            self.held = Some(date);
        } else {
            self.set(date, now);
        }
    }

    /// Puts `value` into the memory, from register `index` on, lowest byte first.
    pub fn preset(&mut self, index: u8, value: &[u8]) {
        for (byte, value) in self.memory.iter_mut().skip(index.into()).zip(value) {
            *byte = *value;
        }
    }

    /// Takes note of what happened until now. `true` if an interrupt is to be sent.
    pub fn interrupt(&mut self, now: i128) -> bool {
        let second = seconds(self.time(now));
        if self.held.is_none() && second != self.seen {
            self.flags |= B_UPDATED;
            if self.alarm_after(self.seen).is_some_and(|alarm| alarm <= second) {
                self.flags |= B_ALARM;
            }
            self.seen = second;
        }
        let before = self.asserted;
        self.asserted = self.is_pending();
        self.asserted && !before
    }

    /// How many nanoseconds it is until the next interrupt, if there will be one.
    pub fn until_interrupt(&self, now: i128) -> Option<i128> {
        if self.held.is_some() || self.asserted {
            return None;
        }
        let time = self.time(now);
        let second = seconds(time);
        let at = if self.b & B_UPDATED != 0 {
            second + 1
        } else if self.b & B_ALARM != 0 {
            self.alarm_after(second)?
        } else {
            return None;
        };
        Some(i128::from(at) * SECOND - time)
    }

    fn is_pending(&self) -> bool {
        self.flags & self.b != 0
    }

    /// The guest's time, in nanoseconds since 1970.
    fn time(&self, now: i128) -> i128 {
        now + self.offset
    }

    fn date(&self, now: i128) -> Date {
        self.held.unwrap_or_else(|| Date::at(seconds(self.time(now))))
    }

    /// Makes it `date` now. When the second ends does not change.
    fn set(&mut self, date: Date, now: i128) {
        let second = date.seconds();
        let fraction = self.time(now).rem_euclid(SECOND);
        self.offset = i128::from(second) * SECOND + fraction - now;
        self.seen = second;
    }

    /// Registers A and B become `a` and `b`.
    fn control(&mut self, a: u8, mut b: u8, now: i128) {
        if b & B_SET != 0 {
            b &= !B_UPDATED;
        }
        let date = self.date(now);
        let in_reset = |a: u8| a & A_DIVIDER_RESET == A_DIVIDER_RESET;
        if in_reset(self.a) && !in_reset(a) {
            self.offset += DIVIDER_START - self.time(now).rem_euclid(SECOND);
        }
        (self.a, self.b) = (a, b);
        let hold = in_reset(a) || b & B_SET != 0;
        match (self.held.take(), hold) {
            (_, true) => self.held = Some(date),
            (Some(date), false) => self.set(date, now),
            (None, false) => {}
        }
    }

    /// The first second after `second` that the alarm matches.
    fn alarm_after(&self, second: i64) -> Option<i64> {
        let matching = |index, limit, decode: &dyn Fn(u8) -> u8| {
            let raw = self.memory[usize::from(index)];
            let value = i64::from(decode(raw));
            match raw & ANY == ANY {
                true => Some(0..limit),
                false => (value < limit).then_some(value..value + 1),
            }
        };
        let hours = matching(HOURS_ALARM, 24, &|raw| self.decode_hour(raw))?;
        let minutes = matching(MINUTES_ALARM, 60, &|raw| self.decode(raw))?;
        let seconds = matching(SECONDS_ALARM, 60, &|raw| self.decode(raw))?;
        // The first match in a day that is not before its second `from`.
        let first = |from: i64| {
            let starts = hours
                .clone()
                .flat_map(|hour| minutes.clone().map(move |minute| (hour * 60 + minute) * 60));
            starts
                .map(|start| (start, seconds.start.max(from - start)))
                .find(|(_, second)| *second < seconds.end)
                .map(|(start, second)| start + second)
        };
        let (day, from) = ((second + 1).div_euclid(DAY) * DAY, (second + 1).rem_euclid(DAY));
        first(from).map(|at| day + at).or_else(|| first(0).map(|at| day + DAY + at))
    }

    fn encode(&self, value: u8) -> u8 {
        if self.b & B_BINARY != 0 { value } else { ((value / 10) << 4) + value % 10 }
    }

    /// 0 to 99.
    fn decode(&self, raw: u8) -> u8 {
        let value = if self.b & B_BINARY != 0 { raw } else { (raw >> 4) * 10 + (raw & 0xf) };
        value.min(99)
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let twelve = (hour + 11) % 12 + 1;
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, raw: u8) -> u8 {
        if self.b & B_24_HOURS != 0 {
            return self.decode(raw);
        }
        self.decode(raw & !PM) % 12 + if raw & PM != 0 { 12 } else { 0 }
    }
}
