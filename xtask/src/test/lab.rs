//! The labs' stages: the test programs named `lab…`, in as many machines as this host has processors.
//!
//! A machine of the lab has one processor, so two of them side by side take half the time. Each runs
//! a share of the tests, one after the other, and the next machine another one.

use super::tally::Clock;
use super::{Tally, Wanted};
use crate::cargo::Executable;
use crate::cross::Accelerator;
use crate::guest::Arch;
use crate::lab::{Lab, Options};
use crate::{cargo, cross, host, packages};
use anyhow::{Context, Result, ensure};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// More machines than this would want more memory than many hosts have.
const MACHINES: usize = 4;

/// Fewer tests than this are not worth another machine.
const SMALLEST_SHARE: usize = 3;

/// What is tested once more where the interrupt controller is an older one.
const WITH_GIC_V2: &[&str] =
    &["linux::cloud_kernel_2_cpus_large", "life::a_guest_reboots_in_place_every_way_it_knows"];

/// What of the lab's tests depends on the accelerator. With `--long` all of them run over the stand-in too.
const OVER_STANDIN: &[&str] = &["devices::", "life::", "linux::"];

pub fn on_x86_64(wanted: &Wanted) -> Result<Tally> {
    for (tool, package) in super::JUDGES {
        packages::install(tool, package)?;
    }
    let words = ["build", "--workspace", "--tests", "--examples"];
    let built = cargo::build(cargo::cargo().args(words).args(profile(wanted)))?;
    let labs: Vec<_> = built.into_iter().filter(|built| built.name.starts_with("lab")).collect();
    run(Options { root: true, ..Options::default() }, &labs, &|_, _| true, wanted)
}

pub fn on_arm64(wanted: &Wanted) -> Result<Tally> {
    let built = for_arm64(Accelerator::Kvm, &["hyperkit"], &["lab"], wanted)?;
    let mut tally = run(arm64(), &built, &|_, _| true, wanted)?;
    let older = Options { gic_v2: true, ..arm64() };
    tally.merge(run(older, &built, &|_, test| WITH_GIC_V2.contains(&test), wanted)?);
    Ok(tally)
}

/// The Hypervisor.framework backend, by the stand-in for the framework over the lab's KVM: the stand-in itself, guests of a
/// few instructions, and whole kernels.
pub fn on_standin(wanted: &Wanted) -> Result<Tally> {
    let packages = ["hyperkit", "hvf_standin"];
    let tests = ["contract", "hvf", "lab"];
    let built = for_arm64(Accelerator::StandIn, &packages, &tests, wanted)?;
    let only = |program: &str, test: &str| {
        program != "lab" || wanted.long || OVER_STANDIN.iter().any(|part| test.starts_with(part))
    };
    run(arm64(), &built, &only, wanted)
}

/// What takes long takes less when it is optimised; checks of arithmetic are for the other runs.
fn profile(wanted: &Wanted) -> Option<&'static str> {
    wanted.long.then_some("--release")
}

fn arm64() -> Options {
    Options { arch: Arch::Arm64, ..Options::default() }
}

/// Test programs, and the example that they run.
fn for_arm64(
    accelerator: Accelerator,
    packages: &[&str],
    tests: &[&str],
    wanted: &Wanted,
) -> Result<Vec<Executable>> {
    let mut cargo = cross::cargo(accelerator)?;
    cargo.args(["build", "--example", "boot"]).args(profile(wanted));
    cargo.args(packages.iter().flat_map(|name| ["--package", name]));
    cargo.args(tests.iter().flat_map(|name| ["--test", name]));
    cross::build(&mut cargo)
}

/// Runs the tests that were asked for, of those that `only` says yes to, given a program and a test.
fn run(
    options: Options,
    built: &[Executable],
    only: &dyn Fn(&str, &str) -> bool,
    wanted: &Wanted,
) -> Result<Tally> {
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
        tests.retain(|test| only(&program.name, test));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let machines = processors.min(MACHINES).min(tests.len());
        println!("     Running {} ({} tests in {machines} machines)", program.name, tests.len());
        let queue = Mutex::new(VecDeque::from(tests));
        let tallies = std::thread::scope(|scope| {
            let work = || run_all(&lab, &program.path, &queue, machines, wanted);
            let workers: Vec<_> = (0..machines).map(|_| scope.spawn(work)).collect();
            let done = workers.into_iter().map(|worker| worker.join());
            done.map(|done| done.unwrap_or_else(|_| Tally::failure())).collect::<Vec<_>>()
        });
        tallies.into_iter().for_each(|tally| total.merge(tally));
    }
    Ok(total)
}

/// The names of the tests that were asked for.
fn list(arch: Arch, lab: &Lab, program: &Path, wanted: &Wanted) -> Result<Vec<String>> {
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

/// Takes share after share from the queue, each for a machine of its own, until it is empty or a machine fails.
fn run_all(
    lab: &Lab,
    program: &Path,
    queue: &Mutex<VecDeque<String>>,
    machines: usize,
    wanted: &Wanted,
) -> Tally {
    let mut total = Tally::default();
    loop {
        let share = next_share(&mut queue.lock().expect("no holder panics"), machines);
        if share.is_empty() {
            return total;
        }
        match run_share(lab, program, &share, wanted) {
            Ok(tally) => total.merge(tally),
            Err(error) => {
                println!("lab: {error:#}");
                total.merge(Tally::failure());
                return total;
            }
        }
    }
}

/// Large ones first, as a machine takes a while to start; small ones last, so that all machines end together.
fn next_share(queue: &mut VecDeque<String>, machines: usize) -> Vec<String> {
    let count = queue.len().div_ceil(2 * machines).max(SMALLEST_SHARE).min(queue.len());
    queue.drain(..count).collect()
}

fn run_share(lab: &Lab, program: &Path, names: &[String], wanted: &Wanted) -> Result<Tally> {
    let mut command = vec![program.as_os_str().to_owned()];
    command.extend(["--test-threads=1".into(), "--exact".into()]);
    command.extend(wanted.long.then(|| "--include-ignored".into()));
    command.extend(names.iter().map(OsString::from));
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
    use super::{SMALLEST_SHARE, next_share};
    use std::collections::VecDeque;

    #[test]
    fn every_test_is_in_exactly_one_share_and_shares_get_smaller() {
        let tests: Vec<String> = (0..70).map(|n| n.to_string()).collect();
        let mut queue = VecDeque::from(tests.clone());
        let shares: Vec<_> = std::iter::from_fn(|| {
            Some(next_share(&mut queue, 2)).filter(|share| !share.is_empty())
        })
        .collect();
        assert_eq!(shares.concat(), tests);
        assert!(shares.windows(2).all(|pair| pair[0].len() >= pair[1].len()), "{shares:?}");
        assert!(shares.last().is_some_and(|last| last.len() <= SMALLEST_SHARE));
        assert!(next_share(&mut VecDeque::new(), 2).is_empty());
    }
}
