//! `cargo xtask fuzz`: every fuzz target for a while, without cargo-fuzz and with a stable compiler.
//!
//! The targets in `fuzz/` are cargo-fuzz's, and `cargo fuzz run` works on them where it is installed.
//! What it does is to pass some flags to the compiler; they are given here, and RUSTC_BOOTSTRAP makes a
//! stable compiler take the one that is not stable. What a target finds goes below
//! `target/fuzz/`, so the seeds in `fuzz/corpus/` stay as they are.

use crate::{cargo, host, packages};
use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const HELP: &str = "\
usage: cargo xtask fuzz [--seconds N] [TARGET…]

Runs each fuzz target (or those named) for N seconds (default 60), beginning with its seeds in
fuzz/corpus/ and what earlier runs have left in target/fuzz/corpus/. An input that fails is kept in
fuzz/artifacts/, and the log of each run in target/fuzz/.
";

/// What `cargo fuzz build` passes too.
const RUSTFLAGS: &str = "--cfg fuzzing -Zsanitizer=address -Cdebug-assertions -Ccodegen-units=1 \
    -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

pub fn main(mut args: lexopt::Parser) -> Result<u8> {
    let (mut seconds, mut wanted) = (60, Vec::new());
    while let Some(arg) = args.next()? {
        match arg {
            Long("seconds") => seconds = args.value()?.parse()?,
            Long("help") => {
                print!("{HELP}");
                return Ok(0);
            }
            Value(name) => wanted.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let failed = run(seconds, &wanted)?;
    Ok(u8::from(failed > 0))
}

/// Builds and runs the targets; returns how many have failed.
pub fn run(seconds: u32, wanted: &[String]) -> Result<usize> {
    let dir = host::target("fuzz")?;
    let mut targets = build(&dir)?;
    targets.sort();
    if let Some(name) = wanted.iter().find(|name| !targets.iter().any(|(own, _)| own == *name)) {
        let names: Vec<_> = targets.iter().map(|(name, _)| name.as_str()).collect();
        bail!("there is no fuzz target {name}, only {}", names.join(", "));
    }
    targets.retain(|(name, _)| wanted.is_empty() || wanted.contains(name));
    ensure!(!targets.is_empty(), "there are no fuzz targets");
    let mut failed = 0;
    for (name, program) in &targets {
        failed += usize::from(!run_one(&dir, name, program, seconds)?);
    }
    Ok(failed)
}

/// The targets' names and programs.
fn build(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    // libFuzzer itself is C++.
    packages::install("c++", "g++")?;
    let mut cargo = cargo::cargo();
    cargo.args(["build", "--release", "--bins", "--manifest-path", "fuzz/Cargo.toml"]);
    // With a target named, build scripts and macros are built without the flags.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    cargo.arg("--target").arg(target).arg("--target-dir").arg(dir);
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", RUSTFLAGS);
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    let built = cargo::build(&mut cargo)?.into_iter();
    Ok(built.filter(|built| built.kind == "bin").map(|built| (built.name, built.path)).collect())
}

fn run_one(dir: &Path, name: &str, program: &Path, seconds: u32) -> Result<bool> {
    let root = host::root();
    let found = dir.join("corpus").join(name);
    let artifacts = root.join("fuzz/artifacts").join(name);
    let seeds = root.join("fuzz/corpus").join(name);
    for dir in [&found, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let path = dir.join(format!("{name}.log"));
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(program);
    // The first folder is where new inputs go.
    command.arg(&found).args(seeds.is_dir().then_some(&seeds));
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.args(["-timeout=25", "-rss_limit_mb=2048"]).current_dir(&root);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let status = command.status().with_context(|| format!("cannot run {}", program.display()))?;
    let log = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    let done = log.lines().rev().find(|line| line.starts_with("Done "));
    if status.success() {
        println!("fuzz {name}: {}", done.unwrap_or("done"));
    } else {
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        println!("{tail}\nfuzz {name}: FAILED ({status}); all of it is in {}", path.display());
    }
    Ok(status.success())
}
