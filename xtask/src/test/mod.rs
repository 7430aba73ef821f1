//! `cargo xtask test`: the tests, stage by stage.
//!
//! A stage that fails does not keep the next from running; what failed is told at the end, with the
//! time each stage took. [`STAGES`] is the whole list.

mod lab;
mod tally;

use crate::{cargo, fuzz, host, macos, packages};
use anyhow::{Context, Result, ensure};
use lexopt::prelude::*;
use std::ffi::OsString;
use std::process::Command;
use std::time::Instant;
use tally::Tally;

const HELP: &str = "\
usage: cargo xtask test [--long] [--list] [--stage NAME]… [-- FILTER…]

Runs the tests, the lab's included, and fails if any fails, or if the lab cannot be had.

  --long         all tests, those that take long too: HYPERKIT_LONG=1, #[ignore]d tests, more fuzzing
  --list         only name the stages
  --stage NAME   only this stage (may be given again)
  FILTER         only tests whose names contain one of these; skips the stages that have none

Tests in tests/lab*.rs and tests/lab*/ run in the lab (see `cargo xtask lab --help`); elsewhere they say
'skipped' and pass.
";

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
    Stage { name: "macos", tests: false, run: for_macos },
    Stage { name: "doc", tests: false, run: doc },
    Stage { name: "host", tests: true, run: on_this_host },
    Stage { name: "lab", tests: true, run: lab::on_x86_64 },
    Stage { name: "lab-arm64", tests: true, run: lab::on_arm64 },
    Stage { name: "lab-hvf", tests: true, run: lab::on_standin },
    Stage { name: "fuzz", tests: false, run: fuzz_corpus },
];

/// How many tests are named that took longest.
const SLOWEST: usize = 12;

/// Programs of others that tests hold ours against, and their packages. Without one, its tests on this
/// host say 'skipped'; the lab's want them all.
const JUDGES: &[(&str, &str)] = &[
    ("iasl", "acpica-tools"),
    ("dmidecode", "dmidecode"),
    ("dtc", "device-tree-compiler"),
    ("qemu-img", "qemu-utils"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("ip", "iproute2"),
    ("passt", "passt"),
    ("diod", "diod"),
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
            Tally::failure()
        });
        if tally.passed + tally.failed == 0 && !stage.tests {
            tally.passed = 1;
        }
        let verdict = if tally.failed == 0 { "ok" } else { "FAILED" };
        let counts = format!("{:>5} passed {:>3} failed", tally.passed, tally.failed);
        let seconds = start.elapsed().as_secs_f64();
        if !tally.times.is_empty() {
            println!("\nThe slowest of {}:\n{}", stage.name, tally.slowest(SLOWEST));
        }
        report += &format!("  {:<9} {seconds:>7.1} s {counts}   {verdict}\n", stage.name);
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
    let bare = ["clippy", "--package", "hyperkit", "--lib", "--no-default-features"];
    succeed(cargo::cargo().args(bare).args(strict))?;
    let fuzz = ["clippy", "--all-targets", "--manifest-path", "fuzz/Cargo.toml"];
    succeed(cargo::cargo().args(fuzz).args(strict))
}

/// The same for Macs, in types and lints only.
fn for_macos(_: &Wanted) -> Result<Tally> {
    macos::check_all().map(|()| Tally::default())
}

fn doc(_: &Wanted) -> Result<Tally> {
    let mut cargo = cargo::cargo();
    cargo.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    succeed(&mut cargo)
}

/// Unit tests, doc tests, integration tests, and the fuzz targets' seeds without a fuzzer.
fn on_this_host(wanted: &Wanted) -> Result<Tally> {
    for (tool, package) in JUDGES {
        if let Err(error) = packages::install(tool, package) {
            println!("tests that want {tool} will be skipped: {error:#}");
        }
    }
    let mut total = Tally::default();
    let all: [&[&str]; 2] = [&["--workspace"], &["--manifest-path", "fuzz/Cargo.toml"]];
    for what in all {
        let mut cargo = cargo::cargo();
        cargo.args(["test", "--no-fail-fast"]).args(what).arg("--").args(wanted.arguments());
        if wanted.long {
            cargo.env("HYPERKIT_LONG", "1");
        }
        let tally = tally::count(&mut cargo)?;
        total.merge(tally);
    }
    Ok(total)
}

fn fuzz_corpus(wanted: &Wanted) -> Result<Tally> {
    let failed = fuzz::run(if wanted.long { 600 } else { 5 }, &[])?;
    Ok(Tally { failed, ..Tally::default() })
}

fn succeed(command: &mut Command) -> Result<Tally> {
    let name = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    ensure!(status.success(), "{name}: {status}");
    Ok(Tally::default())
}
