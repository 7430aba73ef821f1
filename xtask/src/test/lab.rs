//! The labs' stages: the test programs named `lab…`, in as many machines as this host has processors.
//!
//! A machine of the lab has one processor, so two of them side by side take half the time. Each runs
//! its share of the tests, one after the other.

use super::tally::Clock;
use super::{Tally, Wanted};
use crate::cargo::Executable;
use crate::cross::Accelerator;
use crate::guest::Arch;
use crate::lab::{Lab, Options};
use crate::{cargo, cross, host, packages};
use anyhow::{Context, Result, anyhow, ensure};
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// More machines than this would want more memory than many hosts have.
const MACHINES: usize = 4;

/// What is tested once more where the interrupt controller is an older one.
const WITH_GIC_V2: &[&str] =
    &["linux::cloud_kernel_2_cpus_large", "life::a_guest_reboots_in_place_every_way_it_knows"];

pub fn on_x86_64(wanted: &Wanted) -> Result<Tally> {
    for (tool, package) in super::JUDGES {
        packages::install(tool, package)?;
    }
    let words = ["build", "--workspace", "--tests", "--examples"];
    let built = cargo::build(cargo::cargo().args(words))?;
    let labs: Vec<_> = built.into_iter().filter(|built| built.name.starts_with("lab")).collect();
    run(Options { root: true, ..Options::default() }, &labs, &[], wanted)
}

pub fn on_arm64(wanted: &Wanted) -> Result<Tally> {
    let built = for_arm64(Accelerator::Kvm, &["hyperkit"], &["lab"])?;
    let mut tally = run(arm64(), &built, &[], wanted)?;
    let older = Options { gic_v2: true, ..arm64() };
    tally.merge(run(older, &built, WITH_GIC_V2, wanted)?);
    Ok(tally)
}

/// The Hypervisor.framework backend, by the stand-in for the framework over the lab's KVM: the stand-in itself, guests of a
/// few instructions, and whole kernels.
pub fn on_standin(wanted: &Wanted) -> Result<Tally> {
    let packages = ["hyperkit", "hvf_standin"];
    let tests = ["contract", "hvf", "lab"];
    run(arm64(), &for_arm64(Accelerator::StandIn, &packages, &tests)?, &[], wanted)
}

fn arm64() -> Options {
    Options { arch: Arch::Arm64, ..Options::default() }
}

/// Test programs, and the example that they run.
fn for_arm64(
    accelerator: Accelerator,
    packages: &[&str],
    tests: &[&str],
) -> Result<Vec<Executable>> {
    let mut cargo = cross::cargo(accelerator)?;
    cargo.args(["build", "--example", "boot"]);
    cargo.args(packages.iter().flat_map(|name| ["--package", name]));
    cargo.args(tests.iter().flat_map(|name| ["--test", name]));
    cross::build(&mut cargo)
}

/// Runs the tests that were asked for, of those named `only` if that says any.
fn run(options: Options, built: &[Executable], only: &[&str], wanted: &Wanted) -> Result<Tally> {
    let arch = options.arch;
    let programs: Vec<_> = built.iter().filter(|built| built.kind == "test").collect();
    ensure!(!programs.is_empty(), "there are no tests/lab*");
    let mut environment = vec![("CARGO_MANIFEST_DIR".into(), host::root().into())];
    environment.extend(wanted.long.then(|| ("HYPERKIT_LONG".into(), "1".into())));
    let hours = if wanted.long { 8 } else { 1 };
    let timeout = Some(Duration::from_secs(hours * 3600));
    let lab = Lab::new(Options { stdin: false, timeout, environment, ..options })?;
    let mut total = Tally::default();
    for program in programs {
        let mut tests = list(arch, &lab, &program.path, wanted)?;
        tests.retain(|test| only.is_empty() || only.iter().any(|name| test == name));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let machines = processors.min(MACHINES).min(tests.len());
        println!("     Running {} ({} tests in {machines} machines)", program.name, tests.len());
        let shares = (0..machines).map(|index| share(&tests, index, machines));
        let shares: Vec<_> = shares.collect();
        let tallies = std::thread::scope(|scope| {
            let shares = shares.iter();
            let runs =
                shares.map(|names| scope.spawn(|| run_share(&lab, &program.path, names, wanted)));
            let runs: Vec<_> = runs.collect();
            let done = runs.into_iter().map(|run| run.join());
            done.map(|done| done.unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
                .collect::<Vec<_>>()
        });
        for tally in tallies {
            total.merge(tally.unwrap_or_else(|error| {
                println!("lab: {error:#}");
                Tally::failure()
            }));
        }
    }
    Ok(total)
}

/// The names of the tests that were asked for.
fn list(arch: Arch, lab: &Lab, program: &Path, wanted: &Wanted) -> Result<Vec<OsString>> {
    let words = [vec!["--list".into()], wanted.arguments()].concat();
    let text = match arch {
        // That needs no KVM.
        Arch::X86_64 => host::output(Command::new(program).args(words).current_dir(host::root()))
            .context("cannot list the lab's tests")?,
        Arch::Arm64 => {
            let command = [vec![program.into()], words].concat();
            let mut text = Vec::new();
            let status = lab.run_into(&command, &mut |error, bytes| match error {
                true => std::io::stderr().write_all(bytes),
                false => text.write_all(bytes),
            })?;
            ensure!(status == 0, "cannot list the lab's tests");
            text
        }
    };
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(Into::into).collect())
}

/// Every so many-th test. Neighbours are alike, so each machine gets some of each sort.
fn share(tests: &[OsString], index: usize, of: usize) -> Vec<OsString> {
    tests.iter().skip(index).step_by(of).cloned().collect()
}

fn run_share(lab: &Lab, program: &Path, names: &[OsString], wanted: &Wanted) -> Result<Tally> {
    let mut command = vec![program.as_os_str().to_owned()];
    command.extend(["--test-threads=1".into(), "--exact".into()]);
    command.extend(wanted.long.then(|| "--include-ignored".into()));
    command.extend(names.iter().cloned());
    let mut output = Vec::new();
    let mut clock = Clock::default();
    // Whole lines only, as several machines speak at once.
    let mut line = Vec::new();
    let status = lab.run_into(&command, &mut |error, bytes| {
        if error {
            return std::io::stderr().write_all(bytes);
        }
        output.extend(bytes);
        clock.hear(bytes);
        line.extend(bytes);
        let whole = line.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&line[..whole])?;
        line.drain(..whole);
        stdout.flush()
    })?;
    std::io::stdout().write_all(&line)?;
    let tally = Tally::of(&String::from_utf8_lossy(&output), status == 0);
    Ok(Tally { times: clock.times(), ..tally })
}

#[cfg(test)]
mod tests {
    use super::share;
    use std::ffi::OsString;

    #[test]
    fn every_test_is_in_exactly_one_share() {
        let tests: Vec<OsString> = (0..7).map(|n| n.to_string().into()).collect();
        let mut all: Vec<_> = (0..3).flat_map(|index| share(&tests, index, 3)).collect();
        all.sort();
        assert_eq!(all, tests);
    }
}
