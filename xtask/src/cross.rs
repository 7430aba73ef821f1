//! `cargo xtask build-arm64`: programs for arm64 Linux, by Debian's cross compiler.
//!
//! They are static, as the arm64 lab (see [`lab`](crate::lab)) has this machine's files for its own:
//! a loader and libraries for arm64 are not among them.

use crate::cargo::{self, Executable};
use crate::{guest, host, packages, sysroot};
use anyhow::{Context, Result, ensure};
use lexopt::prelude::*;
use std::process::Command;

const HELP: &str = "\
usage: cargo xtask build-arm64 [--standin] [-- ARGUMENT…]

Builds for arm64 Linux: the tests, benches and examples of the package hyperkit, and xtask, which is
the first process of the arm64 lab; or what the arguments say, which `cargo build` gets instead of
`--package hyperkit --all-targets`. The programs are static. Prints each one's kind, name and path.

  --standin   for Hypervisor.framework instead of KVM, over the stand-in in tests/hvf_standin
";

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";

/// What a program for arm64 is linked with, which the linker's package only recommends.
const LIBRARY: &str = "/usr/aarch64-linux-gnu/lib/libc.a";

pub fn main(mut args: lexopt::Parser) -> Result<u8> {
    let (mut accelerator, mut given) = (Accelerator::Kvm, Vec::new());
    while let Some(arg) = args.next()? {
        match arg {
            Long("standin") => accelerator = Accelerator::StandIn,
            Long("help") => {
                print!("{HELP}");
                return Ok(0);
            }
            Value(word) => {
                given.push(word);
                given.extend(args.raw_args()?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if given.is_empty() {
        given = ["--package", "hyperkit", "--all-targets"].map(Into::into).to_vec();
    }
    let mut built = build(cargo(accelerator)?.arg("build").args(given))?;
    built.push(xtask()?);
    for Executable { kind, name, path } in built {
        println!("{kind} {name} {}", path.display());
    }
    Ok(0)
}

/// What the programs are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// KVM.
    Kvm,
    /// Hypervisor.framework, by the stand-in for it in tests/hvf_standin.
    StandIn,
}

/// cargo in the checkout, building for arm64.
pub fn cargo(accelerator: Accelerator) -> Result<Command> {
    packages::install(LINKER, "gcc-aarch64-linux-gnu")?;
    packages::install(LIBRARY, "libc6-dev-arm64-cross")?;
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    if let Some(sysroot) = sysroot::ensure(TARGET)? {
        flags.push(format!("--sysroot={}", sysroot.display()));
    }
    let mut cargo = cargo::cargo();
    if accelerator == Accelerator::StandIn {
        flags.extend(["--cfg", "hyperkit_hvf_standin"].map(str::to_owned));
        // Beside the others: what is built with other flags takes the place of what is there.
        cargo.env("CARGO_TARGET_DIR", host::cargo_target().join("standin"));
    }
    cargo.env("CARGO_BUILD_TARGET", TARGET);
    cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    Ok(cargo)
}

/// Builds, and tells what can be run in the arm64 lab.
pub fn build(cargo: &mut Command) -> Result<Vec<Executable>> {
    let built = cargo::build(cargo)?;
    for Executable { path, .. } in &built {
        ensure!(guest::is_static(path)?, "{} is not static", path.display());
    }
    Ok(built)
}

/// This program, for arm64.
pub fn xtask() -> Result<Executable> {
    let words = ["build", "--quiet", "--release", "--package", "xtask"];
    let built = build(cargo(Accelerator::Kvm)?.args(words))?;
    let mut built = built.into_iter().filter(|built| built.name == "xtask" && built.kind == "bin");
    built.next().context("cargo has built no xtask")
}
