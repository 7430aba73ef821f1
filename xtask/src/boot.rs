//! `cargo xtask boot`: a stock kernel to a shell on this terminal, by the `boot` example.
//!
//! On this machine if its /dev/kvm can run an unmodified kernel, which the example's own `--probe`
//! tells; if not, in the lab, with the same terminal or pipes.

use crate::cargo;
use crate::guest::{self, Guest};
use crate::lab::{self, Lab};
use anyhow::{Context, Result};
use lexopt::prelude::*;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const HELP: &str = "\
usage: cargo xtask boot [--host | --lab] [--generic] [-- ARGUMENT…]

Boots Debian's cloud kernel to a root shell on this terminal, by examples/boot.rs; Ctrl-] stops it.
The arguments after -- are the example's (-- --help lists them); --kernel, --initrd and --cmdline are
given to it unless they are among those. Standard input that is no terminal is fed to the guest:

  printf 'uname -r; nproc; poweroff -f\\n' | cargo xtask boot -- --cpus 2

  --host      on this machine, whatever its /dev/kvm is
  --lab       in the lab, whatever this machine's /dev/kvm is
  --generic   Debian's generic kernel instead of the one for clouds

Exit status: the example's, 0 when the guest powers off; 125 if there was nothing to boot.
";

pub fn main(mut args: lexopt::Parser) -> Result<u8> {
    let (mut place, mut generic, mut given) = (None, false, Vec::new());
    while let Some(arg) = args.next()? {
        match arg {
            Long("host") => place = Some(false),
            Long("lab") => place = Some(true),
            Long("generic") => generic = true,
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
    let guest = guest::prepare(false)?;
    let mut build = cargo::cargo();
    let built = cargo::build(build.args(["build", "--release", "--example", "boot"]))?;
    let boot = built.into_iter().find(|built| built.name == "boot" && built.kind == "example");
    let boot = boot.context("cargo has built no example named boot")?.path;
    let arguments = arguments(&guest, generic, given);
    let in_lab = place.unwrap_or_else(|| match host_can_run_linux(&boot) {
        Ok(()) => false,
        Err(why) => {
            eprintln!("xtask boot: booting in the lab: {why}");
            true
        }
    });
    if !in_lab {
        return Err(Command::new(&boot).args(arguments).exec()).context("cannot run the example");
    }
    let command = [vec![boot.into_os_string()], arguments].concat();
    Lab::new(lab::Options { timeout: None, ..Default::default() })?.run(&command)
}

/// The example's arguments: those given, and what is missing among them.
fn arguments(guest: &Guest, generic: bool, given: Vec<OsString>) -> Vec<OsString> {
    let has = |name: &str| {
        let with_value = format!("{name}=");
        given.iter().any(|word| word == name || word.to_string_lossy().starts_with(&with_value))
    };
    let image = if generic { &guest.generic } else { &guest.cloud };
    let mut arguments = Vec::<OsString>::new();
    for (name, path) in [("--kernel", &image.kernel), ("--initrd", &image.initrd)] {
        if !has(name) {
            arguments.extend([name.into(), path.into()]);
        }
    }
    if !has("--cmdline") {
        let mut words = given.iter().map(|word| word.to_string_lossy());
        let virtio = has("--console=virtio") || words.any(|word| word == "virtio");
        let console = if virtio { "hvc0" } else { "ttyS0" };
        let size = if std::io::stdin().is_terminal() { lab::window() } else { None };
        let (columns, rows) = size.unwrap_or((80, 24));
        let cmdline = format!("console={console} quiet hk.size={columns}x{rows}");
        arguments.extend(["--cmdline".into(), cmdline.into()]);
    }
    arguments.extend(given);
    arguments
}

/// Why this machine's /dev/kvm cannot run an unmodified kernel, if it cannot.
fn host_can_run_linux(boot: &Path) -> Result<(), String> {
    let probe = Command::new(boot).arg("--probe").stdin(Stdio::null()).output();
    let probe = probe.map_err(|error| format!("the probe cannot be run: {error}"))?;
    if probe.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&probe.stderr);
    let line = text.lines().find(|line| !line.is_empty());
    Err(line.map_or_else(|| format!("the probe ended with {}", probe.status), str::to_owned))
}
