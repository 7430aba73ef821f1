//! `cargo xtask test`: every test there is, stage by stage.
//!
//! A stage that fails does not keep the next from running; what failed is told at the end, with the
//! time each stage took. [`STAGES`] is the whole list.

use crate::lab::{self, Lab};
use crate::{cargo, fuzz, host};
use anyhow::{Context, Result, ensure};
use lexopt::prelude::*;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const HELP: &str = "\
usage: cargo xtask test [--long] [--list] [--stage NAME]… [-- FILTER…]

Runs every test there is and fails if any fails, or if the lab cannot be had.

  --long         the tests that take long too: HYPERKIT_LONG=1, #[ignore]d tests, an hour of fuzzing
  --list         only name the stages
  --stage NAME   only this stage (may be given again)
  FILTER         only tests whose names contain one of these; skips the stages that have none

Tests in tests/lab*.rs and tests/lab*/ run in the lab (see `cargo xtask lab --help`); elsewhere they say
'skipped' and pass.
";

/// What a stage has to say of itself: how many tests passed and failed.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
}

struct Stage {
    name: &'static str,
    /// Does it run tests with names that a filter can choose from?
    tests: bool,
    run: fn(&Wanted) -> Result<Tally>,
}

/// Cheap ones first.
const STAGES: &[Stage] = &[
    Stage { name: "format", tests: false, run: format },
    Stage { name: "clippy", tests: false, run: clippy },
    Stage { name: "doc", tests: false, run: doc },
    Stage { name: "host", tests: true, run: on_this_host },
    Stage { name: "lab", tests: true, run: in_the_lab },
    Stage { name: "fuzz", tests: false, run: fuzz_corpus },
];

/// What was asked for.
#[derive(Default)]
struct Wanted {
    long: bool,
    filters: Vec<OsString>,
}

impl Wanted {
    /// Arguments for a test program.
    fn arguments(&self) -> Vec<OsString> {
        let long = self.long.then(|| "--include-ignored".into());
        long.into_iter().chain(self.filters.iter().cloned()).collect()
    }
}

pub fn main(mut args: lexopt::Parser) -> Result<u8> {
    let mut wanted = Wanted::default();
    let mut stages = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Long("long") => wanted.long = true,
            Long("list") => {
                STAGES.iter().for_each(|stage| println!("{}", stage.name));
                return Ok(0);
            }
            Long("stage") => {
                let name = args.value()?.string()?;
                let known = STAGES.iter().any(|stage| stage.name == name);
                ensure!(known, "there is no stage {name}; see --list");
                stages.push(name);
            }
            Long("help") => {
                print!("{HELP}");
                return Ok(0);
            }
            Value(filter) => wanted.filters.push(filter),
            other => return Err(other.unexpected().into()),
        }
    }
    std::env::set_current_dir(host::root())?;
    let chosen = STAGES.iter().filter(|stage| {
        (stages.is_empty() || stages.iter().any(|name| name == stage.name))
            && (stage.tests || wanted.filters.is_empty())
    });
    let mut report = String::new();
    let (mut passed, mut failed) = (0, 0);
    for stage in chosen {
        println!("\n== {} ==", stage.name);
        let start = Instant::now();
        let mut tally = (stage.run)(&wanted).unwrap_or_else(|error| {
            println!("{}: {error:#}", stage.name);
            Tally { passed: 0, failed: 1 }
        });
        if tally.passed + tally.failed == 0 && !stage.tests {
            tally.passed = 1;
        }
        let verdict = if tally.failed == 0 { "ok" } else { "FAILED" };
        let counts = format!("{:>5} passed {:>3} failed", tally.passed, tally.failed);
        let seconds = start.elapsed().as_secs_f64();
        report += &format!("  {:<8} {seconds:>7.1} s {counts}   {verdict}\n", stage.name);
        passed += tally.passed;
        failed += tally.failed;
    }
    println!("\n{report}\n{passed} passed, {failed} failed");
    Ok(u8::from(failed > 0))
}

fn format(_: &Wanted) -> Result<Tally> {
    succeed(cargo::cargo().args(["fmt", "--all", "--check"]))?;
    succeed(cargo::cargo().args(["fmt", "--check", "--manifest-path", "fuzz/Cargo.toml"]))
}

fn clippy(_: &Wanted) -> Result<Tally> {
    let strict = ["--", "-D", "warnings"];
    succeed(cargo::cargo().args(["clippy", "--workspace", "--all-targets"]).args(strict))?;
    let fuzz = ["clippy", "--all-targets", "--manifest-path", "fuzz/Cargo.toml"];
    succeed(cargo::cargo().args(fuzz).args(strict))
}

fn doc(_: &Wanted) -> Result<Tally> {
    let mut cargo = cargo::cargo();
    cargo.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    succeed(&mut cargo)
}

/// Unit tests, doc tests, integration tests, and the fuzz targets' seeds without a fuzzer.
fn on_this_host(wanted: &Wanted) -> Result<Tally> {
    let mut total = Tally::default();
    let all: [&[&str]; 2] = [&["--workspace"], &["--manifest-path", "fuzz/Cargo.toml"]];
    for what in all {
        let mut cargo = cargo::cargo();
        cargo.args(["test", "--no-fail-fast"]).args(what).arg("--").args(wanted.arguments());
        if wanted.long {
            cargo.env("HYPERKIT_LONG", "1");
        }
        let tally = count(&mut cargo)?;
        total.passed += tally.passed;
        total.failed += tally.failed;
    }
    Ok(total)
}

fn in_the_lab(wanted: &Wanted) -> Result<Tally> {
    let mut build = cargo::cargo();
    let built = cargo::build(build.args(["test", "--no-run", "--package", "hyperkit", "--tests"]))?;
    let tests = built.iter().filter(|built| built.kind == "test" && built.name.starts_with("lab"));
    let tests: Vec<_> = tests.collect();
    ensure!(!tests.is_empty(), "there are no tests/lab*");
    let mut environment = vec![("CARGO_MANIFEST_DIR".into(), host::root().into())];
    environment.extend(wanted.long.then(|| ("HYPERKIT_LONG".into(), "1".into())));
    let hours = if wanted.long { 8 } else { 1 };
    let lab = Lab::new(lab::Options {
        stdin: false,
        timeout: Some(Duration::from_secs(hours * 3600)),
        environment,
        ..Default::default()
    })?;
    let mut total = Tally::default();
    for test in tests {
        println!("     Running {} in the lab", test.name);
        let mut command = vec![test.path.clone().into_os_string(), "--test-threads=1".into()];
        command.extend(wanted.arguments());
        let mut output = Vec::new();
        let status = lab.run_into(&command, &mut |error, bytes| {
            if error {
                return std::io::stderr().write_all(bytes);
            }
            output.extend(bytes);
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        })?;
        let lines = String::from_utf8_lossy(&output);
        total.add(lines.lines().filter_map(summary), status == 0);
    }
    Ok(total)
}

fn fuzz_corpus(wanted: &Wanted) -> Result<Tally> {
    let failed = fuzz::run(if wanted.long { 600 } else { 5 }, &[])?;
    Ok(Tally { passed: 0, failed })
}

fn succeed(command: &mut Command) -> Result<Tally> {
    let name = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    ensure!(status.success(), "{name}: {status}");
    Ok(Tally::default())
}

/// Runs cargo, passes on what it prints, and adds up the tests' own summaries.
fn count(command: &mut Command) -> Result<Tally> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let stdout = child.stdout.take().context("a child without a standard output")?;
    let mut summaries = Vec::new();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        summaries.extend(summary(&line));
    }
    let mut tally = Tally::default();
    tally.add(summaries.into_iter(), child.wait()?.success());
    Ok(tally)
}

impl Tally {
    fn add(&mut self, summaries: impl Iterator<Item = (usize, usize)>, success: bool) {
        let before = self.failed;
        for (passed, failed) in summaries {
            self.passed += passed;
            self.failed += failed;
        }
        // Something failed that no test speaks of: it did not build, or died.
        if !success && self.failed == before {
            self.failed += 1;
        }
    }
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
    }

    #[test]
    fn a_program_that_fails_without_saying_why_counts_as_one() {
        let mut tally = Tally::default();
        tally.add([(2, 0)].into_iter(), false);
        assert_eq!((tally.passed, tally.failed), (2, 1));
        tally.add([(1, 3)].into_iter(), false);
        assert_eq!((tally.passed, tally.failed), (3, 4));
    }
}
