//! Sockets between host and guest, beside those of Linux's own device (vhost-vsock) under QEMU's microvm: bytes each
//! way, a ping-pong of single bytes, and connections made and ended; the same kernel and initrd, one processor, the same
//! scripts; the machines take turns.
//!
//! The guests share the lab's only processor with what they talk to, so a rate is one over the processor time that a
//! byte, a turn or a connection takes in all, on both sides.

#[path = "support/lab.rs"]
mod lab;

use std::env;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hyperkit::vsock::{Vsock, VsockHandle};
use lab::{Guest, median, rates};
use vsock::{VMADDR_CID_ANY, VsockAddr};

const ROUNDS: usize = 3;
const MEMORY: u64 = 384 << 20;
const PATIENCE: Duration = Duration::from_secs(300);
const CID: u32 = 42;

const PRELUDE: &str = include_str!("../tests/common/vsock.pl");

/// What is measured, and its unit.
const JOBS: [(&str, &str); 5] = [
    ("bytes from guest", "MiB/s"),
    ("bytes to guest", "MiB/s"),
    ("round trips", "1/s"),
    ("connections from guest", "1/s"),
    ("connections to guest", "1/s"),
];

/// Each job takes four seconds. Ports: 1 gives the script, 2 takes bytes, 3 gives them, 4 sends back, 5 takes connections,
/// 6 makes connections to port 7 of the guest.
const SCRIPT: &str = r#"
use Time::HiRes 'time';
my ($t, $n, $s, $data);
sub rate { print "rate $_[0] ", $_[1] / (time - $t), "\n" }
$data = 'x' x 262144;
$s = dial(2) or die; $n = 0;
for ($t = time; time - $t < 4;) { put($s, $data) or die; $n += 0.25 }
shutdown($s, 1); rest($s); rate(0, $n);
$s = dial(3) or die; $n = 0;
for ($t = time; time - $t < 4;) { $n += sysread($s, $data, 262144) / 1048576 }
rate(1, $n); close $s;
$s = dial(4) or die; $n = 0;
for ($t = time; time - $t < 4; $n++) { syswrite($s, 'x'); sysread($s, $data, 1) or die }
rate(2, $n); close $s;
$n = 0;
for ($t = time; time - $t < 4; $n++) { close(dial(5) or die) }
rate(3, $n);
my $listener = hear(7);
if (!fork) { close take($listener) while 1 }
$s = dial(6) or die; print "rate 4 ", rest($s), "\n";
"#;

trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// Where host programs find the guest.
#[derive(Clone)]
enum Host {
    Ours(VsockHandle),
    Kernel,
}

impl Host {
    fn connect(&self, port: u32) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Ours(handle) => Box::new(handle.connect(port)?),
            Self::Kernel => Box::new(vsock::VsockStream::connect(&VsockAddr::new(CID, port))?),
        })
    }

    /// Handles what the guest connects to `port`, one after the other, until the machine has ended.
    fn serve(
        &self,
        port: u32,
        ended: &'static AtomicBool,
        mut handle: impl FnMut(&mut dyn Stream) -> io::Result<()> + Send + 'static,
    ) {
        let mut accept: Box<dyn FnMut() -> io::Result<Box<dyn Stream>> + Send> = match self {
            Self::Ours(handle) => {
                let listener = handle.listen(port).unwrap();
                Box::new(move || Ok(Box::new(listener.accept()?.0)))
            }
            Self::Kernel => {
                let address = VsockAddr::new(VMADDR_CID_ANY, port);
                let listener = vsock::VsockListener::bind(&address).unwrap();
                listener.set_nonblocking(true).unwrap();
                Box::new(move || {
                    loop {
                        match listener.accept() {
                            Ok((stream, _)) => {
                                stream.set_nonblocking(false)?;
                                return Ok(Box::new(stream));
                            }
                            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                                return Err(error);
                            }
                            Err(_) if ended.load(Ordering::Relaxed) => {
                                return Err(io::ErrorKind::NotConnected.into());
                            }
                            Err(_) => {
                                let mut fds = [rustix::event::PollFd::new(
                                    &listener,
                                    rustix::event::PollFlags::IN,
                                )];
                                let wait = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
                                let _ = rustix::event::poll(&mut fds, Some(&wait));
                            }
                        }
                    }
                })
            }
        };
        thread::spawn(move || {
            while let Ok(mut stream) = accept() {
                // A guest that goes away is the end of its connection, and no more.
                let _ = handle(&mut *stream);
            }
        });
    }

    /// All that the guest's script wants of its host.
    fn serve_all(&self, ended: &'static AtomicBool) {
        let script = format!("{PRELUDE}{SCRIPT}");
        self.serve(1, ended, move |stream| stream.write_all(script.as_bytes()));
        self.serve(2, ended, |stream| {
            let mut bytes = vec![0; 256 << 10];
            while stream.read(&mut bytes)? > 0 {}
            Ok(())
        });
        self.serve(3, ended, |stream| {
            let bytes = vec![b'x'; 256 << 10];
            loop {
                stream.write_all(&bytes)?;
            }
        });
        self.serve(4, ended, |stream| {
            let mut byte = [0];
            while stream.read(&mut byte)? == 1 {
                stream.write_all(&byte)?;
            }
            Ok(())
        });
        self.serve(5, ended, |_| Ok(()));
        let host = self.clone();
        self.serve(6, ended, move |stream| {
            let (begun, mut count) = (Instant::now(), 0);
            while begun.elapsed() < Duration::from_secs(4) {
                drop(host.connect(7)?);
                count += 1;
            }
            write!(stream, "{}", f64::from(count) / begun.elapsed().as_secs_f64())
        });
    }
}

/// Runs a guest, and returns what it printed.
type Machine = fn(&Guest) -> String;

/// Takes the script from the host.
const BOOTSTRAP: &str = "in-tools /dev/vda perl -e \
    'socket(S,40,1,0);connect(S,pack(\"SSLLx4\",40,0,1,2))||die $!;undef $/;eval <S>;die $@ if $@'";

fn hyperkit(guest: &Guest) -> String {
    let ended: &'static AtomicBool = Box::leak(Box::default());
    guest.hyperkit(
        BOOTSTRAP,
        |vm| vm.vsock(Vsock::new().cid(CID)),
        |running| Host::Ours(running.vsock().clone()).serve_all(ended),
    )
}

fn qemu(guest: &Guest) -> String {
    let ended: &'static AtomicBool = Box::leak(Box::default());
    Host::Kernel.serve_all(ended);
    let device = format!("vhost-vsock-device,guest-cid={CID}");
    let text = guest.qemu(BOOTSTRAP, &["-device", &device]);
    ended.store(true, Ordering::Relaxed);
    // Until the listeners are gone.
    thread::sleep(Duration::from_secs(2));
    text
}

fn main() {
    if env::var_os("HYPERKIT_LAB").is_none() {
        println!("skipped: needs the lab (cargo xtask bench --lab)");
        return;
    }
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        println!("skipped: there is no qemu-system-x86_64");
        return;
    }
    // Where it is built in, there is nothing to load.
    let _ = Command::new("modprobe").arg("vhost_vsock").output();
    if !Path::new("/dev/vhost-vsock").exists() {
        println!("skipped: the lab's kernel has no vhost-vsock");
        return;
    }
    let guest = Guest::new("HK_KERNEL", "HK_INITRD", MEMORY, PATIENCE);
    let machines: [(&str, Machine); 2] = [("hyperkit", hyperkit), ("vhost-vsock", qemu)];
    let mut all = machines.map(|_| Vec::new());
    for round in 1..=ROUNDS {
        for ((name, machine), all) in machines.iter().zip(&mut all) {
            let rates: [f64; JOBS.len()] = rates(&machine(&guest));
            println!("round {round}: {name}: {rates:.1?}");
            all.push(rates);
        }
    }
    println!("\nmedians of {ROUNDS} rounds");
    println!("{:30}{:>12}{:>12}{:>10}", "", "hyperkit", "vhost-vsock", "ratio");
    for (at, (job, unit)) in JOBS.iter().enumerate() {
        let [ours, kernel] = all.each_ref().map(|rounds| median(rounds, at));
        let job = format!("{job}, {unit}");
        println!("{job:30}{ours:>12.1}{kernel:>12.1}{:>10.2}", ours / kernel);
    }
}
