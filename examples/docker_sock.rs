//! Exposes a unix socket of the guest on the host, as Docker for Mac did with Docker's.
//!
//! ```text
//! cargo run --release --example docker_sock -- \
//!     --kernel vmlinuz --initrd initrd.img --disk root.img --port 2376 --socket /tmp/docker.sock
//! docker -H unix:///tmp/docker.sock version
//! ```
//!
//! In the guest something has to take connections to that port to the socket: vsudd did it then, and socat can do it
//! now, `socat VSOCK-LISTEN:2376,fork UNIX-CONNECT:/run/docker.sock`. On the host nothing has to be copied: what
//! connects to the socket is connected to the guest.

use std::error::Error;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use hyperkit::arch::SERIAL_CONSOLE;
use hyperkit::{Console, Disk, Kernel, RingBuffer, Running, Vm, Vsock};
use lexopt::prelude::*;

const HELP: &str = "\
Usage: docker_sock --kernel FILE --initrd FILE --socket PATH [OPTION]...

  --kernel FILE    bzImage or ELF vmlinux (x86-64), Image (arm64)
  --initrd FILE    initial RAM disk
  --cmdline TEXT   kernel command line [console=ttyS0, or ttyAMA0 on arm64]
  --memory MIB     guest memory [1024]
  --disk FILE      raw disk, read-only
  --port PORT      the guest's port [2376]
  --socket PATH    the socket on this host

Says so once the guest listens, and runs until the guest powers off.
";

struct Options {
    kernel: PathBuf,
    initrd: PathBuf,
    cmdline: String,
    memory: u64,
    disk: Option<PathBuf>,
    port: u32,
    socket: PathBuf,
}

fn main() -> ExitCode {
    match options().and_then(|options| options.map_or(Ok(()), run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("docker_sock: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line says; nothing, if it only asks for help.
fn options() -> Result<Option<Options>, Box<dyn Error>> {
    let (mut kernel, mut initrd, mut disk, mut socket) = (None, None, None, None);
    let (mut cmdline, mut memory, mut port) = (format!("console={SERIAL_CONSOLE}"), 1024_u64, 2376);
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("kernel") => kernel = Some(args.value()?.into()),
            Long("initrd") => initrd = Some(args.value()?.into()),
            Long("cmdline") => cmdline = args.value()?.string()?,
            Long("memory") => memory = args.value()?.parse()?,
            Long("disk") => disk = Some(args.value()?.into()),
            Long("port") => port = args.value()?.parse()?,
            Long("socket") => socket = Some(args.value()?.into()),
            Long("help") => {
                print!("{HELP}");
                return Ok(None);
            }
            _ => return Err(arg.unexpected().into()),
        }
    }
    Ok(Some(Options {
        kernel: kernel.ok_or("--kernel is missing; see --help")?,
        initrd: initrd.ok_or("--initrd is missing; see --help")?,
        cmdline,
        memory,
        disk,
        port,
        socket: socket.ok_or("--socket is missing; see --help")?,
    }))
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let Options { kernel, initrd, cmdline, memory, disk, port, socket } = options;
    let console = RingBuffer::new();
    let mut machine = Vm::builder()
        .memory(memory << 20)
        .kernel(Kernel::linux(kernel).initrd(initrd).cmdline(cmdline))
        .serial(Console::ring(console.clone()))
        .vsock(Vsock::new().guest_port(port, &socket));
    if let Some(disk) = disk {
        machine = machine.disk(Disk::raw(disk)?.read_only());
    }
    let running = machine.build()?.start()?;

    if wait_for_guest(&running, port) {
        println!("ready: unix://{}", socket.display());
        if let Some(version) = version(&running, port) {
            println!("{version}");
        }
    }
    let end = running.wait()?;
    eprintln!("docker_sock: {end}; the guest's console:");
    eprintln!("{}", String::from_utf8_lossy(&console.contents()));
    Ok(())
}

/// Waits until somebody in the guest listens; false if the machine ends first.
fn wait_for_guest(running: &Running, port: u32) -> bool {
    while running.vsock().connect(port).is_err() {
        if running.wait_timeout(Duration::from_millis(200)).is_some() {
            return false;
        }
    }
    true
}

/// Asks whoever listens for its version, in Docker's API: a stream of the guest is read and written as any other.
fn version(running: &Running, port: u32) -> Option<String> {
    let mut stream = running.vsock().connect(port).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(120))).ok()?;
    stream.write_all(b"GET /version HTTP/1.0\r\nHost: docker\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some(body.trim().to_owned())
}
