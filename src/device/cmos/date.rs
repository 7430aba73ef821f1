//! Seconds since 1970 as the clock chip shows them, and back.

/// Seconds in a day.
pub(super) const DAY: i64 = 86_400;
/// Seconds from the start of the years 1 and 10000: what a four-digit year can show.
const FIRST: i64 = -62_135_596_800;
const LAST: i64 = 253_402_300_799;

/// A moment in UTC, proleptic Gregorian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 is Sunday.
    pub weekday: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

impl Date {
    /// The date at `seconds` since 1970, within the years 1 to 9999.
    pub fn at(seconds: i64) -> Self {
        let seconds = seconds.clamp(FIRST, LAST);
        let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let (year, month, day) = civil(days);
        Self {
            year: year as u16,
            month: month as u8,
            day: day as u8,
            // 1970-01-01 was a Thursday.
            weekday: (days + 4).rem_euclid(7) as u8 + 1,
            hour: (second / 3600) as u8,
            minute: (second / 60 % 60) as u8,
            second: (second % 60) as u8,
        }
    }

    /// Seconds since 1970. A field out of its range (a guest may write anything) counts as the nearest that is in
    /// it; the weekday does not count.
    pub fn seconds(&self) -> i64 {
        let (year, month) = (i64::from(self.year.clamp(1, 9999)), self.month.clamp(1, 12));
        let day = self.day.clamp(1, days_in(year, month));
        let hours = days(year, month, day) * 24 + i64::from(self.hour.min(23));
        (hours * 60 + i64::from(self.minute.min(59))) * 60 + i64::from(self.second.min(59))
    }
}

fn days_in(year: i64, month: u8) -> u8 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01. Years begin in March here, so that the leap day is the last; 400 of them are an era.
fn days(year: i64, month: u8, day: u8) -> i64 {
    let month = i64::from(month);
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year * 365 + year / 4 - year / 100 + of_year - 719_468
}

/// Year, month and day of a number of days from 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        // From `date -u -d @… '+%Y-%m-%d %w %T'`.
        for (seconds, year, month, day, weekday, time) in [
            (0, 1970, 1, 1, 5, (0, 0, 0)),
            (951_782_399, 2000, 2, 28, 2, (23, 59, 59)),
            (951_782_400, 2000, 2, 29, 3, (0, 0, 0)),
            (1_709_251_199, 2024, 2, 29, 5, (23, 59, 59)),
            (4_107_542_400, 2100, 3, 1, 2, (0, 0, 0)),
            (-1, 1969, 12, 31, 4, (23, 59, 59)),
        ] {
            let (hour, minute, second) = time;
            let date = Date { year, month, day, weekday, hour, minute, second };
            assert_eq!(Date::at(seconds), date);
            assert_eq!(date.seconds(), seconds);
        }
    }

    #[test]
    fn every_day_of_eight_centuries_there_and_back() {
        let mut before = Date::at(Date { year: 1599, month: 12, day: 31, ..Date::at(0) }.seconds());
        for day in 0..292_194 {
            let seconds = -11_676_096_000 + day * DAY;
            let date = Date::at(seconds);
            assert_eq!(date.seconds(), seconds);
            assert_eq!(date.weekday, before.weekday % 7 + 1);
            assert!((before.year, before.month, before.day) < (date.year, date.month, date.day));
            assert!((1..=days_in(date.year.into(), date.month)).contains(&date.day));
            before = date;
        }
    }

    #[test]
    fn impossible_dates_become_near_ones() {
        let at = |year, month, day| Date { year, month, day, ..Date::at(0) }.seconds();
        assert_eq!(at(2023, 2, 31), at(2023, 2, 28));
        assert_eq!(at(2024, 0, 0), at(2024, 1, 1));
        assert_eq!(at(2024, 255, 255), at(2024, 12, 31));
        assert_eq!(Date::at(i64::MIN).year, 1);
        assert_eq!(Date::at(i64::MAX).year, 9999);
    }
}
