//! One run of the lab, seen from the host: start the machine, hand it the job, carry the streams.

use super::hardware::Hardware;
use super::link::{Folder, Link};
use super::machine::Machine;
use super::terminal::{self, Raw};
use super::wire::{Job, Kind};
use crate::guest::{self, Arch, Guest, root};
use crate::{cross, host};
use anyhow::{Context, Result, anyhow, bail};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How many machines are tried until one starts.
const ATTEMPTS: u32 = 3;

/// A machine that starts takes some three seconds of a processor, which on a busy host may take long
/// to come by. One that has used this much without a word is going round in circles …
const CIRCLES: u64 = 30_00;

/// … and one that has used next to nothing for this long is waiting for something that never comes.
const STALL: Duration = Duration::from_secs(30);

/// A machine that says nothing for so long, not even that it is alive, is hung.
const SILENCE: Duration = Duration::from_secs(120);

/// The exit status when the time limit ended the command, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

pub struct Options {
    pub arch: Arch,
    /// Has an arm64 machine a GICv2 instead of a GICv3?
    pub gic_v2: bool,
    /// In MiB.
    pub memory: u32,
    pub smp: Option<u32>,
    pub timeout: Option<Duration>,
    /// Folders the command may write to, beyond cargo's.
    pub writable: Vec<OsString>,
    /// Where to keep what the machine's kernel said.
    pub log: Option<PathBuf>,
    /// Is the image of a root file system made, if it is not there yet?
    pub root: bool,
    /// Does the command get this process's standard input?
    pub stdin: bool,
    /// Variables for the command beyond this process's.
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            arch: Arch::X86_64,
            gic_v2: false,
            memory: 3072,
            smp: None,
            timeout: Some(Duration::from_secs(1200)),
            writable: Vec::new(),
            log: None,
            root: false,
            stdin: true,
            environment: Vec::new(),
        }
    }
}

/// Where the command's streams go: its standard output or, if `error` is set, its standard error.
pub type Sink<'a> = &'a mut dyn FnMut(bool, &[u8]) -> io::Result<()>;

/// A way to run commands in the lab. Each command gets a machine of its own.
pub struct Lab {
    options: Options,
    guest: Guest,
    /// The program that is the machine's first process.
    init: PathBuf,
    root: Option<PathBuf>,
}

impl Lab {
    pub fn new(options: Options) -> Result<Lab> {
        let guest = guest::prepare(options.arch, false)?;
        let (init, root) = match options.arch {
            Arch::X86_64 if options.root => (own()?, Some(root::prepare(&guest, false)?)),
            Arch::X86_64 => (own()?, root::present()),
            Arch::Arm64 if options.root => bail!("there is no root file system for arm64"),
            Arch::Arm64 => (cross::xtask()?.path, None),
        };
        Ok(Lab { options, guest, init, root })
    }

    /// Runs a command on this process's own streams and returns its exit status.
    pub fn run(&self, command: &[OsString]) -> Result<u8> {
        self.run_into(command, &mut |error, bytes| {
            if error {
                return io::stderr().write_all(bytes);
            }
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        })
    }

    /// Runs a command and hands what it prints to `sink`.
    pub fn run_into(&self, command: &[OsString], sink: Sink) -> Result<u8> {
        if super::inside() {
            let mut local = Command::new(&command[0]);
            let status = local.args(&command[1..]).status().context("cannot run the command")?;
            return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(255));
        }
        let job = self.job(command)?;
        let folder = Folder::new(&host::target("lab")?)?;
        for _ in 0..ATTEMPTS {
            let (guest, init) = (&self.guest, &self.init);
            let machine = Machine::start(&self.options, guest, init, &folder.0, &job.writable)?;
            let link = Link::new(&machine, &folder.0)?;
            let Err(why) = greeting(&machine, &link) else {
                let done = self.converse(&job, &machine, &link, sink);
                self.keep_log(&machine)?;
                return done;
            };
            self.keep_log(&machine)?;
            eprint!("xtask lab: trying another machine: {why}\n{}", tail(&machine.log()));
        }
        bail!("the lab's machine did not start in {ATTEMPTS} attempts")
    }

    fn job(&self, command: &[OsString]) -> Result<Job> {
        let mut environment: Vec<_> =
            std::env::vars_os().filter(|(name, _)| !is_of_xtask(name)).collect();
        let root = self.root.as_deref().map(|path| ("ROOT", path));
        let files = self.guest.variables().into_iter().chain(root);
        let files = files.map(|(name, path)| (format!("HK_{name}").into(), path.into()));
        let fixed = [("HYPERKIT_LAB", "1"), ("TMPDIR", "/run/tmp"), ("HK_SCRATCH", "/run/scratch")];
        let fixed = fixed.map(|(k, v)| (k.into(), v.into()));
        let older = self.options.gic_v2.then(|| ("HK_GIC_V2".into(), "1".into()));
        let more = files.chain(fixed).chain(older).chain(self.options.environment.iter().cloned());
        for (name, value) in more {
            environment.retain(|(other, _)| *other != name);
            environment.push((name, value));
        }
        let mut writable = vec![host::target("")?.canonicalize()?.into_os_string()];
        writable.extend(host::cargo_target().canonicalize().ok().map(PathBuf::into_os_string));
        writable.extend(self.options.writable.iter().cloned());
        // A folder inside another is mounted after it.
        writable.sort();
        writable.dedup();
        let typed = self.options.stdin && io::stdin().is_terminal();
        let (stdout, stderr) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Ok(Job {
            command: command.to_vec(),
            environment,
            directory: std::env::current_dir()?.into_os_string(),
            writable,
            terminals: [typed, typed && stdout, typed && stderr],
            window: terminal::window().unwrap_or((80, 24)),
            time: Duration::ZERO,
        })
    }

    /// From the machine's hello to the command's end.
    fn converse(&self, job: &Job, machine: &Machine, link: &Link, sink: Sink) -> Result<u8> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH)?;
        link.send(Kind::Job, &Job { time, ..job.clone() }.to_bytes())?;
        if !self.options.stdin {
            link.send(Kind::Stdin, &[])?;
        }
        if Hardware::of(&self.options).poked {
            machine.poke()?;
        }
        let raw = job.terminals[0].then(Raw::enter);
        let deadline = self.options.timeout.map(|timeout| Instant::now() + timeout);
        let mut heard = Instant::now();
        loop {
            match link.frames.recv_timeout(Duration::from_millis(250)) {
                Ok((kind, bytes)) => {
                    heard = Instant::now();
                    match kind {
                        Kind::Stdout | Kind::Stderr => sink(kind == Kind::Stderr, &bytes)
                            .context("cannot pass on the command's output")?,
                        Kind::Started if self.options.stdin => link.feed(),
                        Kind::Exit => return bytes.first().copied().context("an end of no sort"),
                        Kind::Failed => bail!("{}", String::from_utf8_lossy(&bytes)),
                        _ => {}
                    }
                }
                Err(RecvTimeoutError::Timeout) if heard.elapsed() < SILENCE => {}
                Err(error) => {
                    link.end_if_ending();
                    drop(raw);
                    let hung = error == RecvTimeoutError::Timeout;
                    return Err(broken(if hung { "is hung" } else { "has died" }, machine));
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                drop(raw);
                let limit = self.options.timeout.unwrap_or_default();
                eprintln!("xtask lab: the command was ended after {limit:?} (--timeout)");
                return Ok(TIMED_OUT);
            }
        }
    }

    fn keep_log(&self, machine: &Machine) -> Result<()> {
        let Some(path) = &self.options.log else { return Ok(()) };
        fs::write(path, machine.log()).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// This program.
fn own() -> Result<PathBuf> {
    std::env::current_exe().context("cannot tell where this program is")
}

/// Waits for the machine's first process to say hello.
fn greeting(machine: &Machine, link: &Link) -> Result<(), String> {
    let (mut before, mut since) = (0, Instant::now());
    loop {
        match link.frames.recv_timeout(Duration::from_secs(1)) {
            Ok((Kind::Hello, _)) => return Ok(()),
            Ok((kind, _)) => return Err(format!("it began with {kind:?}")),
            Err(RecvTimeoutError::Disconnected) => {
                link.end_if_ending();
                return Err("it died while starting".to_owned());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let used = machine.used();
        if used > CIRCLES {
            return Err("it goes round in circles".to_owned());
        }
        if used > before + 10 {
            (before, since) = (used, Instant::now());
        }
        if since.elapsed() > STALL {
            return Err("it has come to a stop".to_owned());
        }
    }
}

/// Variables that cargo sets for xtask, and that would mislead another program.
pub fn is_of_xtask(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
    name == "CARGO_PRIMARY_PACKAGE" || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

fn broken(how: &str, machine: &Machine) -> anyhow::Error {
    let log = machine.log();
    let panicked = if log.contains("Kernel panic") { ": its kernel panicked" } else { "" };
    anyhow!("the lab's machine {how}{panicked}\n{}", tail(&log))
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().filter(|line| !line.is_empty()).collect();
    let from = lines.len().saturating_sub(40);
    lines[from..].iter().map(|line| format!("  | {line}\n")).collect()
}
