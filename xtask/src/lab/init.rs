//! The first process of the lab's machine: turns a bare kernel into something that looks like the
//! host with a /dev/kvm, and runs one command in it.
//!
//! The host's `/` is mounted over 9p, read-only on the host's side, below an overlay whose upper half
//! is in memory: the command sees the host's files where they are and may write anywhere, but
//! what it writes is gone with the machine, apart from the folders the job names as writable.
//!
//! A panic here ends the first process; the kernel then panics and QEMU leaves, which xtask reports
//! along with the console's log, where the panic's text is.

use super::job::{self, Outgoing};
use super::wire::{self, Job, Kind};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::system::{RebootCommand, reboot};
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the virtio-serial ports show up.
const PORT: &str = "/dev/vport0p1";
const POKES: &str = "/dev/vport0p2";

/// Where the scratch disk is mounted.
const SCRATCH: &str = "/run/scratch";

/// How the host's folders are mounted. The host hardly changes them meanwhile, so pages may be
/// kept; what the command writes is written back before its end is told.
const PLAN9: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=loose";

pub fn main() -> ! {
    if let Err(error) = run() {
        eprintln!("lab: {error:#}");
    }
    // Not reached in a run that went well: xtask has ended the machine by now.
    std::thread::sleep(Duration::from_secs(5));
    let _ = reboot(RebootCommand::PowerOff);
    std::process::exit(1)
}

fn run() -> Result<()> {
    load_modules()?;
    attach("dev", "/dev", "devtmpfs", "")?;
    let mut port = open_port(PORT)?;
    let mut pokes = open_port(POKES)?;
    // All that matters has been done when a byte comes: there was an interrupt.
    std::thread::spawn(move || {
        loop {
            // A port whose other end is not known of yet is at its end at once.
            if let Ok(0) | Err(_) = pokes.read(&mut [0; 64]) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    });
    let outgoing = Outgoing::new(port.try_clone()?);
    outgoing.send(Kind::Hello, &[])?;
    let job = match wire::receive(&mut port)? {
        (Kind::Job, bytes) => Job::from_bytes(&bytes).context("the job is garbled")?,
        (kind, _) => bail!("a {kind:?} where the job was to come"),
    };
    let ready = become_the_host(&job).and_then(|()| set_up(&job));
    match ready.and_then(|()| job::run(&job, &port, &outgoing)) {
        Ok(status) => {
            rustix::fs::sync();
            outgoing.send(Kind::Exit, &[status])?;
        }
        Err(error) => outgoing.send(Kind::Failed, format!("{error:#}").as_bytes())?,
    }
    Ok(())
}

/// Loads `/modules/*`, whose names sort in the order to load them in.
fn load_modules() -> Result<()> {
    let list = fs::read_dir("/modules").context("there is no /modules")?;
    let mut list: Vec<_> = list.flatten().map(|entry| entry.path()).collect();
    list.sort();
    for path in list {
        let bytes = fs::read(&path)?;
        rustix::system::init_module(&bytes, c"")
            .with_context(|| format!("cannot load {}", path.display()))?;
        let _ = fs::remove_file(&path);
    }
    Ok(())
}

fn open_port(name: &str) -> Result<File> {
    let start = Instant::now();
    loop {
        match File::options().read(true).write(true).open(name) {
            Ok(port) => return Ok(port),
            Err(_) if start.elapsed() < Duration::from_secs(20) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error).with_context(|| format!("cannot open {name}")),
        }
    }
}

fn attach(source: &str, target: impl AsRef<Path>, kind: &str, options: &str) -> Result<()> {
    let target = target.as_ref();
    let options = CString::new(options)?;
    mount(source, target, kind, MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("cannot mount {source} on {}", target.display()))
}

fn become_the_host(job: &Job) -> Result<()> {
    for dir in ["/host", "/memory", "/new"] {
        fs::create_dir_all(dir)?;
    }
    attach("host", "/host", "9p", PLAN9)?;
    attach("memory", "/memory", "tmpfs", "mode=755,size=75%")?;
    for dir in ["/memory/upper", "/memory/work"] {
        fs::create_dir(dir)?;
    }
    let layers = "lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work";
    attach("root", "/new", "overlay", layers)?;
    for dir in ["dev", "proc", "sys", "run"] {
        fs::create_dir_all(Path::new("/new").join(dir))?;
    }
    mount_move("/dev", "/new/dev").context("cannot move /dev")?;
    attach("proc", "/new/proc", "proc", "")?;
    attach("sys", "/new/sys", "sysfs", "")?;
    attach("run", "/new/run", "tmpfs", "mode=755")?;
    for dir in ["/new/dev/pts", "/new/dev/shm", "/new/run/tmp"] {
        fs::create_dir_all(dir)?;
    }
    attach("devpts", "/new/dev/pts", "devpts", "ptmxmode=666,mode=620")?;
    attach("shm", "/new/dev/shm", "tmpfs", "mode=1777")?;
    attach("tmp", "/new/run/tmp", "tmpfs", "mode=1777")?;
    for (index, path) in job.writable.iter().enumerate() {
        let mut target = OsString::from("/new");
        target.push(path);
        attach(&format!("w{index}"), &target, "9p", PLAN9)?;
    }
    std::env::set_current_dir("/new")?;
    mount_move(".", "/").context("cannot move /")?;
    rustix::process::chroot(".").context("cannot change the root")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

fn set_up(job: &Job) -> Result<()> {
    let now = rustix::time::Timespec {
        tv_sec: i64::try_from(job.time.as_secs())?,
        tv_nsec: job.time.subsec_nanos().into(),
    };
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, now)?;
    rustix::system::sethostname(b"lab")?;
    // Below /run it hides none of the host's files.
    fs::create_dir(SCRATCH)?;
    attach("/dev/vda", SCRATCH, "ext4", "")?;
    loopback_up()?;
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let target = format!("/proc/self/fd{target}");
        let _ = rustix::fs::symlinkat(target, CWD, format!("/dev/{name}"));
    }
    // A guest's memory may be larger than this machine's: only what it touches counts.
    fs::write("/proc/sys/vm/overcommit_memory", "1")?;
    let files = rustix::process::Rlimit { current: Some(1024), maximum: Some(1 << 19) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files)?;
    for device in ["/dev/kvm", "/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock"] {
        ensure!(Path::new(device).exists(), "there is no {device}");
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::chmod(device, mode).with_context(|| format!("cannot open up {device}"))?;
    }
    Ok(())
}

/// Brings the loopback interface up, by a netlink message: a host need not have `ip`.
fn loopback_up() -> Result<()> {
    use rustix::net::{AddressFamily, SocketType, socket};
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const IFF_UP: u32 = 1;
    // No protocol number is number 0, which is that of links and routes.
    let route = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let mut message = Vec::new();
    message.extend(32u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]); // sequence number and sender
    message.extend([0; 4]); // family and device type
    message.extend(1i32.to_ne_bytes()); // lo is always the first interface
    message.extend(IFF_UP.to_ne_bytes()); // flags …
    message.extend(IFF_UP.to_ne_bytes()); // … and which of them to change
    rustix::io::write(&route, &message).context("cannot bring lo up")?;
    Ok(())
}
