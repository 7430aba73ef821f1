//! The host's end of the wire: what comes from the machine, what goes to it, and the signals that
//! concern it.

use super::machine::{Killer, Machine};
use super::terminal;
use super::wire::{self, Kind};
use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::iterator::{Handle, Signals};
use std::fs;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};

/// A run's own folder, which goes when it is dropped.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Makes one in `dir`, and removes those of processes that were killed.
    pub fn new(dir: &Path) -> Result<Folder> {
        for entry in fs::read_dir(dir)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let id = name.strip_prefix("run-").and_then(|rest| rest.split('-').next());
            let process = id.and_then(|id| id.parse::<u32>().ok());
            if process.is_some_and(|id| !Path::new("/proc").join(id.to_string()).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let folder = dir.join(format!("run-{}-{run}", std::process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Folder(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The connection to one machine. While it lives, a signal that ends xtask ends QEMU first.
pub struct Link {
    wire: Arc<Mutex<UnixStream>>,
    pub frames: Receiver<(Kind, Vec<u8>)>,
    signals: Handle,
    /// A signal has come, and ends this process any moment.
    ending: Arc<AtomicBool>,
}

impl Link {
    /// `folder` is removed if a signal ends this process.
    pub fn new(machine: &Machine, folder: &Path) -> Result<Link> {
        let wire = Arc::new(Mutex::new(machine.wire.try_clone()?));
        let signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGWINCH])?;
        let link = Link {
            wire: Arc::clone(&wire),
            frames: listen(machine.wire.try_clone()?),
            signals: signals.handle(),
            ending: Arc::new(AtomicBool::new(false)),
        };
        let (killer, folder) = (machine.killer(), folder.to_path_buf());
        let ending = Arc::clone(&link.ending);
        std::thread::spawn(move || obey(signals, &killer, &folder, &wire, &ending));
        Ok(link)
    }

    pub fn send(&self, kind: Kind, bytes: &[u8]) -> io::Result<()> {
        send(&self.wire, kind, bytes)
    }

    /// Waits for the end of this process if it is the reason why the machine has gone.
    pub fn end_if_ending(&self) {
        while self.ending.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }

    /// Passes standard input on, to its end.
    pub fn feed(&self) {
        let wire = Arc::clone(&self.wire);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 32 << 10];
            let mut stdin = io::stdin().lock();
            loop {
                let count = stdin.read(&mut buffer).unwrap_or(0);
                if send(&wire, Kind::Stdin, &buffer[..count]).is_err() || count == 0 {
                    return;
                }
            }
        });
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.signals.close();
    }
}

fn send(wire: &Mutex<UnixStream>, kind: Kind, bytes: &[u8]) -> io::Result<()> {
    wire::send(&mut *wire.lock().unwrap_or_else(PoisonError::into_inner), kind, bytes)
}

fn listen(mut wire: UnixStream) -> Receiver<(Kind, Vec<u8>)> {
    // Not many: what the caller cannot take must hold up the command, not fill the memory.
    let (sender, frames) = mpsc::sync_channel(16);
    std::thread::spawn(move || {
        while let Ok(frame) = wire::receive(&mut wire) {
            if sender.send(frame).is_err() {
                return;
            }
        }
    });
    frames
}

fn obey(
    mut signals: Signals,
    killer: &Killer,
    folder: &Path,
    wire: &Mutex<UnixStream>,
    ending: &AtomicBool,
) {
    for signal in &mut signals {
        if signal == SIGWINCH {
            if let Some(window) = terminal::window() {
                let _ = send(wire, Kind::Window, &wire::window_to_bytes(window));
            }
            continue;
        }
        ending.store(true, Ordering::SeqCst);
        killer.kill();
        terminal::restore();
        if signal != SIGINT {
            eprintln!("xtask lab: ended by signal {signal}");
        }
        let _ = fs::remove_dir_all(folder);
        std::process::exit(128 + signal);
    }
}
