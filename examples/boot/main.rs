//! Boots a kernel and an initrd, with the guest's console on this terminal.
//!
//! ```text
//! cargo run --release --example boot -- --kernel vmlinuz --initrd initrd.img --cpus 2 --memory 1G
//! ```

mod disk;
mod net;
#[cfg_attr(target_os = "macos", path = "probe_macos.rs")]
#[cfg_attr(not(target_os = "macos"), path = "probe_linux.rs")]
mod probe;
mod share;
mod vsock;

#[cfg(hyperkit_hvf_standin)]
use hvf_standin as _;

use std::error::Error as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;

use hyperkit::accel;
use hyperkit::arch::SERIAL_CONSOLE;
use hyperkit::boot::Kernel;
use hyperkit::console::Console;
use hyperkit::disk::Disk;
use hyperkit::fs::Share;
use hyperkit::net::Net;
use hyperkit::vm::{End, Error, OnReset, Vm};
use hyperkit::vsock::Vsock;
use lexopt::prelude::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uuid::Uuid;

const HELP: &str = "\
Boots a kernel and an initrd, with the guest's console on this terminal.

Usage: boot --kernel FILE [OPTION]...

  --kernel FILE        bzImage or ELF vmlinux (x86-64), Image (arm64)
  --initrd FILE        initial RAM disk
  --cmdline TEXT       kernel command line [console=hvc0 with --console virtio, else ttyS0 (x86-64) or ttyAMA0 (arm64)]
  --cpus N             vCPUs [1]
  --memory SIZE        guest memory, with K, M or G [512M]
  --huge-pages         ask the host for transparent huge pages
  --uuid UUID          the machine's UUID: in SMBIOS on x86-64, and cards' addresses are made of it [random]
  --disk PATH[,OPTION]...
                       adds a disk (vda, vdb, ...): a file or block device. OPTIONs: format=raw or qcow2 [raw],
                       backing=PATH and backing-format=raw or qcow2 for a qcow2 image that needs it, ro,
                       flush=fsync, full or none [fsync], engine=auto, io_uring or threads [auto], serial=TEXT,
                       queues=N, mbps=N (at most N million bytes a second), iops=N (at most N requests a second).
                       A comma in a PATH is doubled.
  --cdrom PATH         adds a raw disk that is only read
  --net KIND[,OPTION]...
                       adds a network card (eth0, eth1, ...). KINDs: user, a network made of this process's sockets,
                       with the OPTIONs forward=tcp:[ADDRESS:]PORT:PORT, udp: the same, or unix:PATH:PORT (host to
                       guest), reach=tcp:PORT:ADDRESS:PORT, udp: the same, or unix:PORT:PATH (a port of the gateway
                       to the host), dns=ADDRESS, mtu=N, capture=FILE, no-loopback, no-ipv6; tap=NAME; stream=PATH
                       (passt, gvproxy); datagram=PATH[,magic] (gvproxy, vfkit); vpnkit=PATH[,uuid=UUID]
                       [,address=IPV4][,mac-file=PATH][,mtu=N]; on macOS vmnet, or vmnet=host or
                       vmnet=bridged:INTERFACE [,id=UUID]. All of them: mac=ADDRESS
  --share TAG=DIR[,ro][,owner=OWNER]
                       shares a folder: mount -t 9p -o trans=virtio,version=9p2000.L TAG /mnt. OWNERs: passthrough,
                       mapped (owner and mode in extended attributes), squash:UID:GID [passthrough]
  --share TAG,unix=PATH or TAG,tcp=ADDRESS:PORT
                       the same, served by another process's 9P server
  --vsock OPTION[,OPTION]...
                       sockets between programs of the host and the guest: hybrid=PATH (Firecracker's way: say
                       CONNECT PORT at PATH; the guest connects to PATH_PORT), hyperkit=DIR and forward=PORT...
                       (HyperKit's: DIR/connect, DIR/guest.PORT; DIR/00000002.PORT), guest=PORT:PATH and
                       host=PORT:PATH (a socket for each port of the guest or the host, as vfkit has them), cid=N
                       [3], connections=N [8192]
  --console KIND       what the terminal is in the guest: serial (ttyS0, ttyAMA0) or virtio (hvc0) [serial]
  --virtio-on-cmdline  announce virtio devices on the command line, for x86-64 kernels without ACPI
  --no-reboot          end when the guest asks for a reset, instead of booting again
  --probe              only tell whether this host can run an unmodified kernel
  --help               this text

Ctrl-] stops the machine at once. Input that is no terminal is fed to the guest's console.

Exit status: 0 the guest powered off; 2 it asked for a reset (--no-reboot); 3 it crashed (triple fault);
4 it halted; 5 it was stopped with Ctrl-]; 64 wrong usage, or a disk that is not there; 65 kernel or initrd cannot be
booted; 66 a disk cannot be opened; 69 no usable accelerator on this host; 70 the accelerator failed, or cannot run
such a machine; 71 the host refused something else: memory, terminal, network, folder or socket.
";

const USAGE: u8 = 64;
const BAD_PAYLOAD: u8 = 65;
const NO_DISK: u8 = 66;
const NO_ACCELERATOR: u8 = 69;
const ACCELERATOR_FAILED: u8 = 70;
const HOST_REFUSED: u8 = 71;

/// Ctrl-]
const ESCAPE: u8 = 0x1d;

struct Options {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: Option<String>,
    cpus: u32,
    memory: u64,
    huge_pages: bool,
    uuid: Uuid,
    disks: Vec<Disk>,
    nets: Vec<Net>,
    shares: Vec<Share>,
    vsock: Option<Vsock>,
    virtio_console: bool,
    virtio_on_cmdline: bool,
    reboot: bool,
}

enum Task {
    Boot(Box<Options>),
    Probe,
    Help,
}

fn main() -> ExitCode {
    env_logger::init();
    match parse() {
        Ok(Task::Help) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Task::Probe) => probe(),
        Ok(Task::Boot(options)) => boot(*options),
        Err(error) => {
            eprintln!("boot: {error}; see --help");
            ExitCode::from(USAGE)
        }
    }
}

fn parse() -> Result<Task, lexopt::Error> {
    let (mut kernel, mut initrd, mut cmdline) = (None, None, None);
    let (mut cpus, mut memory, mut uuid) = (1, 512 << 20, Uuid::new_v4());
    let (mut huge_pages, mut virtio_console, mut virtio_on_cmdline) = (false, false, false);
    let (mut reboot, mut vsock) = (true, None);
    let (mut disks, mut nets, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("kernel") => kernel = Some(PathBuf::from(args.value()?)),
            Long("initrd") => initrd = Some(PathBuf::from(args.value()?)),
            Long("cmdline") => cmdline = Some(args.value()?.string()?),
            Long("cpus") => cpus = args.value()?.parse()?,
            Long("memory") => memory = args.value()?.parse_with(size)?,
            Long("huge-pages") => huge_pages = true,
            Long("uuid") => uuid = args.value()?.parse()?,
            Long("disk") => disks.push(disk::disk(&args.value()?.string()?)?),
            Long("cdrom") => {
                let image = Disk::raw(PathBuf::from(args.value()?)).map_err(|e| e.to_string())?;
                disks.push(image.read_only());
            }
            Long("net") => nets.push(net::net(&args.value()?.string()?)?),
            Long("share") => shares.push(share::share(&args.value()?.string()?)?),
            Long("vsock") => vsock = Some(vsock::vsock(&args.value()?.string()?)?),
            Long("console") => {
                virtio_console = args.value()?.parse_with(|kind| match kind {
                    "serial" => Ok(false),
                    "virtio" => Ok(true),
                    _ => Err("the terminal is a serial or a virtio console"),
                })?;
            }
            Long("virtio-on-cmdline") => virtio_on_cmdline = true,
            Long("no-reboot") => reboot = false,
            Long("probe") => return Ok(Task::Probe),
            Long("help") | Short('h') => return Ok(Task::Help),
            _ => return Err(arg.unexpected()),
        }
    }
    Ok(Task::Boot(Box::new(Options {
        kernel: kernel.ok_or("--kernel is missing")?,
        initrd,
        cmdline,
        cpus,
        memory,
        huge_pages,
        uuid,
        disks,
        nets,
        shares,
        vsock,
        virtio_console,
        virtio_on_cmdline,
        reboot,
    })))
}

/// The words of an argument, which are separated by commas; two commas are one in a word.
fn words(text: &str) -> Vec<String> {
    // No argument can hold a NUL, so it can stand for a comma that is meant.
    let text = text.replace(",,", "\0");
    text.split(',').map(|word| word.replace('\0', ",")).collect()
}

/// `512M` and the like, in bytes.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("{text:?} is not a size like 512M or 2G"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is more than 64 bits can say"))
}

fn probe() -> ExitCode {
    match probe::probe() {
        Ok(()) => {
            println!("this host runs unmodified kernels");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("boot: {error}");
            ExitCode::from(NO_ACCELERATOR)
        }
    }
}

fn boot(options: Options) -> ExitCode {
    match run(options) {
        Ok(end) => {
            // The guest may have left the cursor anywhere.
            eprintln!("\r\nboot: {end}");
            ExitCode::from(match end {
                End::PowerOff => 0,
                End::Reset => 2,
                End::Crashed => 3,
                End::Halted => 4,
                _ => 5,
            })
        }
        Err(error) => {
            eprintln!("boot: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                log::info!("caused by: {error}");
                cause = error.source();
            }
            ExitCode::from(status(&error))
        }
    }
}

fn status(error: &Error) -> u8 {
    match error {
        Error::Config(_) => USAGE,
        Error::Boot(_) => BAD_PAYLOAD,
        Error::Disk(_) => NO_DISK,
        Error::Accelerator(error) => match **error {
            accel::Error::Unavailable { .. } | accel::Error::MissingCapability { .. } => {
                NO_ACCELERATOR
            }
            _ => ACCELERATOR_FAILED,
        },
        _ => HOST_REFUSED,
    }
}

/// Lets this process have more descriptors than the 1024 or 256 that a host begins with: a guest's connections and the files
/// of its shares take one each.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // macOS says that there is no limit, and does not take that for an answer.
    for most in [1 << 20, 10_240] {
        let most = limit.maximum.map_or(most, |maximum| most.min(maximum));
        if limit.current.is_none_or(|now| now >= most)
            || setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit }).is_ok()
        {
            return;
        }
    }
}

fn run(options: Options) -> Result<End, Error> {
    allow_descriptors();
    let (stop, stopped) = mpsc::channel();
    let terminal = Console::stdio().on_escape(ESCAPE, move || {
        // Nobody listens once the machine has ended.
        let _ = stop.send(());
    });
    let console = if options.virtio_console { "hvc0" } else { SERIAL_CONSOLE };
    let cmdline = options.cmdline.unwrap_or_else(|| format!("console={console}"));
    let mut kernel = Kernel::linux(options.kernel).cmdline(cmdline);
    if let Some(initrd) = options.initrd {
        kernel = kernel.initrd(initrd);
    }
    let mut builder = Vm::builder()
        .cpus(options.cpus)
        .memory(options.memory)
        .huge_pages(options.huge_pages)
        .kernel(kernel)
        .uuid(options.uuid)
        .virtio_on_cmdline(options.virtio_on_cmdline)
        .on_reset(if options.reboot { OnReset::Reboot } else { OnReset::End });
    builder = match options.virtio_console {
        true => builder.console(terminal),
        false => builder.serial(terminal),
    };
    for disk in options.disks {
        builder = builder.disk(disk);
    }
    for net in options.nets {
        builder = builder.net(net);
    }
    for share in options.shares {
        builder = builder.share(share);
    }
    if let Some(vsock) = options.vsock {
        builder = builder.vsock(vsock);
    }
    let running = builder.build()?.start()?;
    std::thread::scope(|scope| {
        let running = &running;
        scope.spawn(move || {
            // The sender goes with the console, when the machine has ended.
            if stopped.recv().is_ok() {
                running.stop();
            }
        });
        running.wait()
    })
}
