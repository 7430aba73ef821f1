//! Counting tests, from what test programs say of themselves.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// How many tests passed and failed.
#[derive(Default)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
}

impl Tally {
    /// What a program printed, and whether it ended well.
    pub fn of(output: &str, success: bool) -> Tally {
        let mut tally = Tally::default();
        for (passed, failed) in output.lines().filter_map(summary) {
            tally.merge(&Tally { passed, failed });
        }
        // Something failed that no test speaks of: it did not build, or died.
        if !success && tally.failed == 0 {
            tally.failed = 1;
        }
        tally
    }

    pub fn merge(&mut self, other: &Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
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
    use super::{Tally, summary};

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
}
