//! The lab's machine: one QEMU process that emulates a processor which can virtualise.

use super::Options;
use super::hardware::Hardware;
use crate::guest::Guest;
use crate::{host, packages};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How much the scratch disk holds; its file grows as the command writes.
const SCRATCH: &str = "8G";

/// How long a lost interrupt stays lost.
const POKE_EVERY: Duration = Duration::from_millis(50);

/// A running QEMU; dropping it kills it.
pub struct Machine {
    qemu: Arc<Mutex<Child>>,
    /// The other end of the port that the lab's first process speaks through.
    pub wire: UnixStream,
    /// The other end of a second port, see [`Machine::poke`].
    needle: UnixStream,
    console: PathBuf,
    messages: PathBuf,
}

/// Kills a machine, from whatever thread.
#[derive(Clone)]
pub struct Killer(Arc<Mutex<Child>>);

impl Killer {
    pub fn kill(&self) {
        let mut qemu = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = qemu.kill();
        let _ = qemu.wait();
    }
}

impl Machine {
    /// Starts one. `dir` is for its files, `writable` are the folders the lab may write to.
    pub fn start(
        options: &Options,
        guest: &Guest,
        init: &Path,
        dir: &Path,
        writable: &[OsString],
    ) -> Result<Machine> {
        let hardware = Hardware::of(options);
        let (qemu, package) = hardware.qemu;
        let qemu = packages::install(qemu, package)?;
        let initramfs = dir.join("initramfs");
        super::image::write(init, guest, &initramfs)?;
        let scratch = scratch(dir)?;
        let (wire, far) = UnixStream::pair()?;
        let (needle, skin) = UnixStream::pair()?;
        let (console, messages) = (dir.join("console.log"), dir.join("qemu.log"));

        let mut command = Command::new(qemu);
        let smp = options.smp.unwrap_or(hardware.smp);
        command.args(["-M", hardware.board, "-cpu", hardware.processor]);
        command.args(["-accel", "tcg,thread=multi"]);
        command.args(["-smp", &smp.to_string(), "-m", &options.memory.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(&guest.lab.kernel).arg("-initrd").arg(&initramfs);
        command.arg("-append").arg(hardware.words(options.arch));
        command.arg("-serial").arg(with_path("file:", &console, ""));
        command.args(["-device", "virtio-serial-pci,max_ports=3"]);
        command.args(["-chardev", &format!("socket,id=wire,fd={}", far.as_raw_fd())]);
        command.args(["-device", "virtserialport,chardev=wire,name=xtask,nr=1"]);
        command.args(["-chardev", &format!("socket,id=poke,fd={}", skin.as_raw_fd())]);
        command.args(["-device", "virtserialport,chardev=poke,name=poke,nr=2"]);
        let rest = ",id=host,security_model=none,readonly=on,multidevs=remap";
        command.arg("-fsdev").arg(with_path("local,path=", Path::new("/"), rest));
        command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
        for (index, path) in writable.iter().enumerate() {
            let rest = format!(",id=w{index},security_model=none,multidevs=remap");
            command.arg("-fsdev").arg(with_path("local,path=", Path::new(path), &rest));
            let device = format!("virtio-9p-pci,fsdev=w{index},mount_tag=w{index}");
            command.args(["-device", &device]);
        }
        // Its content does not outlive the machine, so it need never reach the host's disk.
        let rest = ",if=none,id=scratch,format=raw,cache=unsafe,discard=unmap";
        command.arg("-drive").arg(with_path("file=", &scratch, rest));
        command.args(["-device", "virtio-blk-pci,drive=scratch"]);
        let log = File::create(&messages)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // ctrl-C is for xtask, which ends QEMU itself.
        command.process_group(0);
        // SAFETY: the closure only makes system calls, and allocates and locks nothing.
        unsafe {
            command.pre_exec(move || {
                // The far ends stay open in QEMU, and QEMU does not outlive this thread.
                for end in [&far, &skin] {
                    rustix::io::fcntl_setfd(end, rustix::io::FdFlags::empty())?;
                }
                #[cfg(target_os = "linux")]
                rustix::process::set_parent_process_death_signal(Some(
                    rustix::process::Signal::KILL,
                ))?;
                Ok(())
            });
        }
        let child = command.spawn().context("cannot run QEMU")?;
        Ok(Machine { qemu: Arc::new(Mutex::new(child)), wire, needle, console, messages })
    }

    pub fn killer(&self) -> Killer {
        Killer(Arc::clone(&self.qemu))
    }

    /// Interrupts the machine's processor from now on, again and again.
    ///
    /// QEMU's emulation of SVM changes the processor's set of pending events without the lock that its other
    /// threads take to add to it, so now and then one is lost that says "look at the local APIC". What waits there,
    /// such as the one-shot timer that all of Linux depends on, would wait for ever; the next interrupt of
    /// any kind brings it to light. A port of its own, as the other is blocked while nobody reads the
    /// command's input.
    pub fn poke(&self) -> Result<()> {
        let mut needle = self.needle.try_clone()?;
        needle.set_nonblocking(true)?;
        std::thread::spawn(move || {
            loop {
                match needle.write(&[0]) {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                    _ => std::thread::sleep(POKE_EVERY),
                }
            }
        });
        Ok(())
    }

    /// The processor time QEMU has used, in hundredths of a second.
    pub fn used(&self) -> u64 {
        let id = self.qemu.lock().unwrap_or_else(PoisonError::into_inner).id();
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // After the name, in parentheses, come the state and ten numbers, then user and system time.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        rest.split_whitespace().skip(11).take(2).flat_map(str::parse::<u64>).sum()
    }

    /// What the kernel and QEMU have said.
    pub fn log(&self) -> String {
        let mut text = String::new();
        for file in [&self.console, &self.messages] {
            text += &String::from_utf8_lossy(&fs::read(file).unwrap_or_default());
        }
        text.replace('\r', "")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.killer().kill();
    }
}

/// Makes the machine's scratch disk, an empty ext4 file system in a sparse file. Nothing in it is left to be
/// initialised when it is mounted, as that would go on behind the command's back.
fn scratch(dir: &Path) -> Result<PathBuf> {
    let image = dir.join("scratch.img");
    let mut mke2fs = Command::new(packages::install("mke2fs", "e2fsprogs")?);
    mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "0", "-J", "size=16", "-N", "65536"]);
    mke2fs.args(["-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]);
    host::output(mke2fs.arg(&image).arg(SCRATCH))?;
    Ok(image)
}

/// A QEMU option with a path in it; QEMU wants commas doubled.
fn with_path(before: &str, path: &Path, after: &str) -> OsString {
    let mut bytes = before.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        bytes.extend(std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
    }
    bytes.extend(after.as_bytes());
    OsString::from_vec(bytes)
}
