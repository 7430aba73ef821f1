//! `cargo xtask bench`: the benches on this machine, then those that need a whole KVM, in the lab.
//!
//! A bench whose name begins with `lab_` is of the second kind. Figures are ratios between things
//! measured in one run; those of one machine say little about another.

use crate::cargo::{self, Executable};
use crate::lab::{Lab, Options};
use crate::{host, packages};
use anyhow::{Context, Result};
use lexopt::prelude::*;
use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::Duration;

const HELP: &str = "\
usage: cargo xtask bench [--host | --lab] [-- ARGUMENT…]

Runs the benches: those named lab_… in the lab, the others on this machine. What follows -- goes to
each of them; criterion takes a word there as a filter.

  --host   only those for this machine
  --lab    only those for the lab
";

/// What benches in the lab run there beside us: the program, and Debian's package of it.
const PEERS: &[(&str, &str)] = &[("ip", "iproute2"), ("iperf3", "iperf3"), ("passt", "passt")];

pub fn main(mut args: lexopt::Parser) -> Result<u8> {
    let (mut host, mut lab, mut given) = (true, true, Vec::new());
    while let Some(arg) = args.next()? {
        match arg {
            Long("host") => lab = false,
            Long("lab") => host = false,
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
    let built = cargo::build(cargo::cargo().args(["bench", "--no-run", "--benches"]))?;
    let benches = built.iter().filter(|built| built.kind == "bench");
    let (in_lab, here): (Vec<_>, Vec<_>) =
        benches.partition(|bench| bench.name.starts_with("lab_"));
    let mut failed = 0;
    for bench in here.into_iter().filter(|_| host) {
        let command = command(bench, &given);
        println!("\n== {} ==", bench.name);
        let mut local = Command::new(&command[0]);
        local.args(&command[1..]).current_dir(host::root()).stdin(Stdio::null());
        let status = local.status().with_context(|| format!("cannot run {}", bench.name))?;
        failed += usize::from(!status.success());
    }
    for (tool, package) in PEERS.iter().filter(|_| lab) {
        if let Err(error) = packages::install(tool, package) {
            println!("benches that want {tool} will be skipped: {error:#}");
        }
    }
    for bench in in_lab.into_iter().filter(|_| lab) {
        println!("\n== {}, in the lab ==", bench.name);
        let timeout = Some(Duration::from_secs(3600));
        let options = Options { timeout, root: true, stdin: false, ..Options::default() };
        failed += usize::from(Lab::new(options)?.run(&command(bench, &given))? != 0);
    }
    Ok(u8::from(failed > 0))
}

fn command(bench: &Executable, given: &[OsString]) -> Vec<OsString> {
    let mut command = vec![bench.path.clone().into_os_string(), "--bench".into()];
    command.extend(given.iter().cloned());
    command
}
