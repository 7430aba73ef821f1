//! How much memory of its own the host process needs for a machine: one vCPU, a serial port, a virtio console, an entropy
//! device, and a Linux that sits idle at its shell.
//!
//! Counted is what is private to this process, its program included, and guest RAM left out.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use hyperkit::boot::Kernel;
use hyperkit::console::{Console, RingBuffer};
use hyperkit::memory::Backing;
use hyperkit::vm::Vm;

const PROMPT: &[u8] = b"\n# ";
const PATIENCE: Duration = Duration::from_secs(180);
/// After the prompt, for whatever the guest has still to do.
const REST: Duration = Duration::from_secs(5);

struct Screen(Sender<Vec<u8>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nobody listens any more once the prompt has come.
        let _ = self.0.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Private memory of this process in KiB: all, and that of guest RAM.
fn private() -> (u64, u64) {
    let (mut all, mut ram, mut in_ram) = (0, 0, false);
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            // A new mapping: addresses, and at the end the file's name.
            in_ram = line.contains("/memfd:hyperkit-ram");
        } else if first.starts_with("Private_") {
            let kib: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            all += kib;
            ram += if in_ram { kib } else { 0 };
        }
    }
    (all, ram)
}

fn main() {
    if env::var_os("HYPERKIT_LAB").is_none() {
        println!("skipped: needs the lab (cargo xtask bench --lab)");
        return;
    }
    let (Some(kernel), Some(initrd)) = (env::var_os("HK_KERNEL"), env::var_os("HK_INITRD")) else {
        println!("skipped: HK_KERNEL and HK_INITRD have to name a kernel and an initrd");
        return;
    };
    let (before, _) = private();
    let (screen, console) = channel();
    let running = Vm::builder()
        .kernel(Kernel::linux(kernel).initrd(initrd).cmdline("console=ttyS0 quiet"))
        // A file has a name to tell it by.
        .memory_backing(Backing::Memfd)
        .serial(Console::output(Screen(screen)))
        .console(Console::ring(RingBuffer::new()))
        .build()
        .and_then(Vm::start)
        .unwrap();
    let mut text = Vec::new();
    while !text.windows(PROMPT.len()).any(|part| part == PROMPT) {
        match console.recv_timeout(PATIENCE) {
            Ok(bytes) => text.extend(bytes),
            Err(_) => panic!("no shell:\n{}", String::from_utf8_lossy(&text)),
        }
    }
    std::thread::sleep(REST);
    let (all, ram) = private();
    running.stop();
    let mib = |kib: u64| kib as f64 / 1024.0;
    assert!(ram > 0, "guest RAM is not found among the mappings");
    println!(
        "private memory of the host process, guest RAM left out: {:.2} MiB ({:.2} MiB before there was a machine)",
        mib(all - ram),
        mib(before)
    );
}
