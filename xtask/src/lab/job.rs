//! Runs the lab's one command and carries its streams, inside the lab's machine.
//!
//! Each standard stream is a pipe, or the one pseudo-terminal where xtask's own is a terminal. This
//! is the first process, so it also buries whatever the command leaves behind.

use super::wire::{self, Job, Kind, Window};
use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, WaitOptions};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::system::{RebootCommand, reboot};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

/// How long the streams of an ended command are listened to, when something else holds them open.
const LINGER: Duration = Duration::from_millis(500);

/// Runs the command to its end and returns its exit status, 128 and the signal if one ended it.
pub fn run(job: &Job, incoming: &File, outgoing: &Outgoing) -> Result<u8> {
    let (name, arguments) = job.command.split_first().context("there is no command")?;
    let terminal = if job.terminals.contains(&true) { Some(Terminal::open(job)?) } else { None };
    let mut command = Command::new(name);
    command.args(arguments).env_clear().envs(job.environment.iter().cloned());
    command.current_dir(&job.directory);
    let end = |stream: usize| -> Result<Stdio> {
        Ok(match &terminal {
            Some(terminal) if job.terminals[stream] => terminal.slave.try_clone()?.into(),
            _ => Stdio::piped(),
        })
    };
    command.stdin(end(0)?).stdout(end(1)?).stderr(end(2)?);
    if let Some(terminal) = &terminal {
        let slave = terminal.slave.try_clone()?;
        // SAFETY: the closure only makes two system calls, and allocates and locks nothing.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(&slave)?;
                Ok(())
            });
        }
    }
    let mut child = command.spawn().with_context(|| format!("cannot run {}", name.display()))?;
    drop(command);
    let pid =
        i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a child without id")?;
    outgoing.send(Kind::Started, &[])?;

    let alive = outgoing.clone();
    std::thread::spawn(move || {
        while alive.send(Kind::Alive, &[]).is_ok() {
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    let (done, ended) = mpsc::channel();
    let mut streams = 0;
    let mut carry = |from: File, kind: Kind| {
        let (outgoing, done) = (outgoing.clone(), done.clone());
        std::thread::spawn(move || {
            copy(from, kind, &outgoing);
            done.send(())
        });
        streams += 1;
    };
    if let Some(stdout) = child.stdout.take() {
        carry(OwnedFd::from(stdout).into(), Kind::Stdout);
    }
    if let Some(stderr) = child.stderr.take() {
        carry(OwnedFd::from(stderr).into(), Kind::Stderr);
    }
    let mut master = None;
    if let Some(terminal) = terminal {
        carry(terminal.master.try_clone()?.into(), Kind::Stdout);
        master = Some(terminal.master);
        // This process's slave side is closed here, so the last of the command's ends the stream.
    }
    let stdin = child.stdin.take().map(|stdin| File::from(OwnedFd::from(stdin)));
    let incoming = incoming.try_clone()?;
    std::thread::spawn(move || feed(incoming, stdin, master));

    let status = bury_until(pid)?;
    for _ in 0..streams {
        if ended.recv_timeout(LINGER).is_err() {
            break;
        }
    }
    Ok(status)
}

/// The port's way out, which several threads share. A frame goes out whole.
#[derive(Clone)]
pub struct Outgoing(Arc<Mutex<File>>);

impl Outgoing {
    pub fn new(port: File) -> Outgoing {
        Outgoing(Arc::new(Mutex::new(port)))
    }

    pub fn send(&self, kind: Kind, bytes: &[u8]) -> io::Result<()> {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&mut *port, kind, bytes)
    }
}

struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    fn open(job: &Job) -> Result<Terminal> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, Mode::empty())?;
        resize(&master, job.window)?;
        Ok(Terminal { master, slave })
    }
}

fn resize(terminal: impl AsFd, (columns, rows): Window) -> io::Result<()> {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Sends all that a stream gives. A pseudo-terminal that everyone has closed gives an error.
fn copy(mut from: File, kind: Kind, to: &Outgoing) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.send(kind, &buffer[..count]).is_err() {
            return;
        }
    }
}

/// Passes on what comes from xtask, for as long as it comes.
fn feed(mut from: File, mut stdin: Option<File>, terminal: Option<OwnedFd>) {
    let mut typed = terminal.as_ref().and_then(|fd| fd.try_clone().ok()).map(File::from);
    while let Ok((kind, bytes)) = wire::receive(&mut from) {
        match (kind, &terminal) {
            (Kind::Stdin, _) if bytes.is_empty() => drop(stdin.take()),
            (Kind::Stdin, _) => {
                // A command that has closed its standard input does not want the rest.
                if let Some(to) = stdin.as_mut().or(typed.as_mut())
                    && to.write_all(&bytes).is_err()
                {
                    stdin = None;
                }
            }
            (Kind::Window, Some(terminal)) => {
                if let Some(window) = wire::window_from_bytes(&bytes) {
                    let _ = resize(terminal, window);
                }
            }
            _ => {}
        }
    }
    // xtask is gone: so is the reason for this machine.
    let _ = reboot(RebootCommand::PowerOff);
}

fn bury_until(pid: Pid) -> Result<u8> {
    loop {
        let Some((dead, status)) = rustix::process::wait(WaitOptions::empty())? else { continue };
        if dead != pid {
            continue;
        }
        let status =
            status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
        let status = status.context("a child that neither exited nor was killed")?;
        return Ok(u8::try_from(status)?);
    }
}
