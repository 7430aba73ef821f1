//! How long a stock kernel takes to its first instruction in user space, beside QEMU's microvm.
//!
//! The same kernel, initrd and command line, one processor, KVM; the machines take turns. The init that is put into the
//! initrd writes to COM1 by itself, so what ends the time is the same for all: its first bytes come out.
//!
//! Two times, because there are two fair comparisons. From a machine that is ready: `start()` here, `cont` over QMP there.
//! And from nothing: from the builder on here, from the start of the process there.

#[path = "support/init.rs"]
mod init;

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use hyperkit::boot::Kernel;
use hyperkit::console::Console;
use hyperkit::vm::Vm;
use init::MARKER;

const ROUNDS: usize = 5;
const MEMORY: u64 = 512 << 20;
const CMDLINE: &str = "console=ttyS0 quiet panic=-1";
const PATIENCE: Duration = Duration::from_secs(120);

/// What is booted.
struct Files {
    kernel: PathBuf,
    initrd: PathBuf,
    /// For QEMU's socket.
    dir: PathBuf,
}

/// From a machine that is ready, and from nothing.
type Times = (Duration, Duration);

/// Tells when the marker has come, or what came instead.
fn await_marker(console: &Receiver<Vec<u8>>) -> Instant {
    let deadline = Instant::now() + PATIENCE;
    let mut text = Vec::new();
    loop {
        match console.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => text.extend(bytes),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                panic!("init was never reached:\n{}", String::from_utf8_lossy(&text));
            }
        }
        if text.windows(MARKER.len()).any(|part| part == MARKER) {
            return Instant::now();
        }
    }
}

struct Screen(Sender<Vec<u8>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nobody listens any more once the marker has come.
        let _ = self.0.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hyperkit(files: &Files) -> Times {
    let (screen, console) = channel();
    let begun = Instant::now();
    let kernel = Kernel::linux(&files.kernel).initrd(&files.initrd).cmdline(CMDLINE);
    let vm = Vm::builder()
        .memory(MEMORY)
        .kernel(kernel)
        .serial(Console::output(Screen(screen)))
        .build()
        .unwrap();
    let started = Instant::now();
    let running = vm.start().unwrap();
    let reached = await_marker(&console);
    running.stop();
    (reached - started, reached - begun)
}

/// A process that is ended with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn qemu(files: &Files, acpi: &str) -> Times {
    let (screen, console) = channel();
    let socket = files.dir.join("qmp");
    let begun = Instant::now();
    let child = Command::new("qemu-system-x86_64")
        .args(["-M", &format!("microvm,acpi={acpi}"), "-accel", "kvm", "-cpu", "host"])
        .args(["-smp", "1", "-m", &format!("{}M", MEMORY >> 20)])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"])
        .args(["-serial", "stdio", "-append", CMDLINE])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
        .args([Path::new("-kernel"), &files.kernel, Path::new("-initrd"), &files.initrd])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut process = Process(child);
    let mut output = process.0.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            let _ = screen.send(buffer[..count].to_vec());
        }
    });
    let started = cont(&socket);
    let reached = await_marker(&console);
    drop(process);
    reader.join().unwrap();
    fs::remove_file(socket).unwrap();
    (reached - started, reached - begun)
}

/// Tells QEMU to go, and when that was.
fn cont(socket: &Path) -> Instant {
    let deadline = Instant::now() + PATIENCE;
    let stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", socket.display()),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    next(); // the greeting
    writeln!(&stream, r#"{{"execute":"qmp_capabilities"}}"#).unwrap();
    next();
    let started = Instant::now();
    writeln!(&stream, r#"{{"execute":"cont"}}"#).unwrap();
    // It forgets what it was told by somebody who has hung up.
    next();
    started
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
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        println!("skipped: there is no qemu-system-x86_64 to compare with");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let files = Files {
        kernel: kernel.into(),
        initrd: dir.path().join("initrd"),
        dir: dir.path().to_owned(),
    };
    fs::write(&files.initrd, init::in_initrd(fs::read(initrd).unwrap())).unwrap();

    let machines: [(&str, &dyn Fn() -> Times); 3] = [
        ("hyperkit", &|| hyperkit(&files)),
        ("microvm,acpi=on", &|| qemu(&files, "on")),
        ("microvm,acpi=off", &|| qemu(&files, "off")),
    ];
    // One round more than is counted: the first reads programs and files from the disk.
    let mut times = machines.map(|_| Vec::new());
    for round in 0..=ROUNDS {
        for ((name, boot), times) in machines.iter().zip(&mut times) {
            let (ready, nothing) = boot();
            println!("round {round}: {name}: {ready:.2?}, {nothing:.2?} from nothing");
            if round > 0 {
                times.push((ready, nothing));
            }
        }
    }
    println!("\nto the first instruction in user space, in {ROUNDS} rounds:");
    for (what, part) in
        [("ready", (|times| times.0) as fn(&Times) -> Duration), ("nothing", |times| times.1)]
    {
        let sorted = times.each_ref().map(|times| {
            let mut times: Vec<Duration> = times.iter().map(part).collect();
            times.sort_unstable();
            times
        });
        // On a busy machine the best times say more.
        for (which, at) in [("median", ROUNDS / 2), ("best", 0)] {
            let [ours, on, off] = sorted.each_ref().map(|times| times[at]);
            let ratio = ours.as_secs_f64() / on.min(off).as_secs_f64();
            println!(
                "  from {what}, {which}: {ours:.2?}, acpi=on {on:.2?}, acpi=off {off:.2?}: ratio {ratio:.2}"
            );
        }
    }
}
