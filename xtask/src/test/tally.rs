//! Counting tests, and taking their time, from what test programs say of themselves.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How many tests passed and failed.
#[derive(Default)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    /// How long each took, where that is known.
    pub times: Vec<(String, Duration)>,
}

impl Tally {
    /// What a program printed, and whether it ended well.
    pub fn of(output: &str, success: bool) -> Tally {
        let mut tally = Tally::default();
        for (passed, failed) in output.lines().filter_map(summary) {
            tally.passed += passed;
            tally.failed += failed;
        }
        // Something failed that no test speaks of: it did not build, or died.
        if !success && tally.failed == 0 {
            tally.failed = 1;
        }
        tally
    }

    /// What is known is that something failed.
    pub fn failure() -> Tally {
        Tally { failed: 1, ..Tally::default() }
    }

    pub fn merge(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.times.extend(other.times);
    }

    /// The tests that took longest, at most so many, a line for each.
    pub fn slowest(&self, count: usize) -> String {
        let mut times: Vec<_> = self.times.iter().collect();
        times.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        let line =
            |(name, time): &&(String, Duration)| format!("{:>7.1} s  {name}\n", time.as_secs_f64());
        times.iter().take(count).map(line).collect()
    }
}

/// Takes the time of tests that run one after the other, by what the program prints as each begins.
#[derive(Default)]
pub struct Clock {
    begun: Vec<(String, Instant)>,
    line: Vec<u8>,
    /// Has the line been understood already?
    known: bool,
}

impl Clock {
    /// The program has printed this, just now.
    pub fn hear(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.line.clear();
                self.known = false;
                continue;
            }
            self.line.push(byte);
            if !self.known
                && let Some(name) = self.line.strip_prefix(b"test ")
                && let Some(name) = name.strip_suffix(b" ... ")
            {
                self.known = true;
                self.begun.push((String::from_utf8_lossy(name).into_owned(), Instant::now()));
            }
        }
    }

    /// The last one has just ended.
    pub fn times(self) -> Vec<(String, Duration)> {
        let ends = self.begun.iter().skip(1).map(|(_, begin)| *begin).chain([Instant::now()]);
        let ends: Vec<_> = ends.collect();
        let timed = self.begun.into_iter().zip(ends);
        timed.map(|((name, begin), end)| (name, end - begin)).collect()
    }
}

/// Runs a command, passes on what it prints, and adds up the tests' own summaries.
pub fn count(command: &mut Command) -> Result<Tally> {
    let name = format!("{command:?}");
    let child = command.stdout(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot run {name}"))?;
    let stdout = child.stdout.take().context("a child without a standard output")?;
    let mut output = String::new();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        output = output + &line + "\n";
    }
    Ok(Tally::of(&output, child.wait()?.success()))
}

/// Passed and failed, from a line like `test result: ok. 5 passed; 0 failed; 0 ignored; …`.
fn summary(line: &str) -> Option<(usize, usize)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |what: &str| {
        let mut parts = counts.split("; ");
        parts.find_map(|part| part.strip_suffix(what)?.trim().parse::<usize>().ok())
    };
    Some((number(" passed")?, number(" failed")?))
}

#[cfg(test)]
mod tests {
    use super::{Clock, Tally, summary};
    use std::time::Duration;

    #[test]
    fn summaries_are_counted_and_other_lines_are_not() {
        let ok = "test result: ok. 15 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out";
        let bad = "test result: FAILED. 3 passed; 4 failed; 0 ignored; finished in 0.10s";
        assert_eq!(summary(ok), Some((15, 0)));
        assert_eq!(summary(bad), Some((3, 4)));
        assert_eq!(summary("test a::b ... ok"), None);
        assert_eq!(summary("test result: odd"), None);
        let tally = Tally::of(&format!("{ok}\nother\n{bad}\n"), false);
        assert_eq!((tally.passed, tally.failed), (18, 4));
    }

    #[test]
    fn a_program_that_fails_without_saying_why_counts_as_one() {
        let tally = Tally::of("test result: ok. 2 passed; 0 failed; 0 ignored\n", false);
        assert_eq!((tally.passed, tally.failed), (2, 1));
        assert_eq!(Tally::of("", false).failed, 1);
    }

    #[test]
    fn a_test_lasts_until_the_next_one_begins() {
        let mut clock = Clock::default();
        clock.hear(b"\nrunning 2 tests\ntest one ... te");
        std::thread::sleep(Duration::from_millis(20));
        clock.hear(b"st two ... \nok\ntest tw");
        clock.hear(b"o ... ok\n");
        let tally = Tally { times: clock.times(), ..Tally::default() };
        let names: Vec<_> = tally.times.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        assert!(tally.times[0].1 >= Duration::from_millis(20));
        assert!(tally.slowest(1).ends_with(" s  one\n"), "{}", tally.slowest(1));
    }
}
