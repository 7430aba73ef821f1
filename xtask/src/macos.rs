//! `cargo xtask check-macos`: everything that a Mac compiles, type-checked and linted, on any host.
//!
//! That needs no Mac, no SDK and no linker: only a standard library for the targets. It proves types,
//! not behaviour: what is called is declared by the crates `libc` and `rustix` and by this one, as it
//! is in Apple's headers.

use crate::{cargo, sysroot};
use anyhow::{Context, Result, ensure};
use lexopt::prelude::*;

const HELP: &str = "\
usage: cargo xtask check-macos [TARGET…]

Runs clippy, warnings denied, on the library, its tests, examples and benches, and on xtask, for macOS:
for aarch64-apple-darwin and x86_64-apple-darwin, or the targets named.
";

const TARGETS: [&str; 2] = ["aarch64-apple-darwin", "x86_64-apple-darwin"];

pub fn main(mut args: lexopt::Parser) -> Result<u8> {
    let mut targets = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") => {
                print!("{HELP}");
                return Ok(0);
            }
            Value(target) => targets.push(target.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    match targets.is_empty() {
        true => check_all()?,
        false => targets.iter().try_for_each(|target| check(target))?,
    }
    Ok(0)
}

/// Checks everything for every kind of Mac.
pub fn check_all() -> Result<()> {
    TARGETS.into_iter().try_for_each(check)
}

fn check(target: &str) -> Result<()> {
    ensure!(TARGETS.contains(&target), "{target} is no Mac: there are {}", TARGETS.join(" and "));
    let mut cargo = cargo::cargo();
    cargo.args(["clippy", "--workspace", "--all-targets", "--target", target]);
    if let Some(sysroot) = sysroot::ensure(target)? {
        // Build scripts and macros, which are for this host, do not get these.
        cargo.env("CARGO_ENCODED_RUSTFLAGS", format!("--sysroot={}", sysroot.display()));
    }
    let status = cargo.args(["--", "-D", "warnings"]).status().context("cannot run cargo")?;
    ensure!(status.success(), "there is something wrong for {target}");
    Ok(())
}
