//! Instructions per operation, which depend neither on the machine nor on what else it does.
//!
//! Called with a name and a number, this does that operation that many times. Called without, it calls itself under
//! callgrind, with two numbers for each operation, and divides the difference by the difference: what happens once
//! cancels out. Beside each figure it prints the one that the table in `benches/README.md` has.

#[path = "support/net.rs"]
mod net;
#[path = "support/p9.rs"]
mod p9;
#[path = "support/vsock.rs"]
mod vsock;

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use hyperkit::accel::scripted::{Scripted, Step};
use hyperkit::accel::{AccelVcpu, AccelVm, Accelerator, Exit, VmSpec};
use hyperkit::bus::{Bus, BusDevice, BusView, Flow};
use hyperkit::console::{Console, Port, RingBuffer};
use hyperkit::device::serial::Serial;
use hyperkit::disk::{Disk, MemoryDisk};
use hyperkit::vcpu::VcpuBus;
use hyperkit::virtio::testing::{Buffer, CountingLine, Guest};
use hyperkit::virtio::{
    ConfigSpace, Context, Error, HostEvent, MmioTransport, Sources, VirtioDevice, blk, console,
    feature, rng,
};
use virtio_bindings::virtio_blk::*;
use vm_memory::{Bytes, GuestAddress};

/// How often an operation is done in each of the two runs. Multiples of [`SCRIPT`] and of [`BURST`].
const RUNS: [u64; 2] = [3_200, 16_000];
/// Accesses in one script of the scripted accelerator.
const SCRIPT: u64 = 1_600;
/// Requests that are made available before one kick.
const BURST: u64 = 64;
/// Bytes in a request.
const REQUEST: u32 = 64;

const PORT: u16 = 0x3f8;
const REGISTER: u64 = 0xd000_0000;
const README: &str = include_str!("README.md");

/// What is measured.
struct Operation {
    name: &'static str,
    run: fn(u64),
    /// The function that the count is limited to, with all it calls; elsewhere are the instructions of a driver.
    within: Option<&'static str>,
}

const OPERATIONS: [Operation; 32] = [
    Operation { name: "port write", run: port_writes, within: None },
    Operation { name: "MMIO write", run: mmio_writes, within: None },
    Operation { name: "serial byte", run: |n| serial_bytes(n, Port::default()), within: None },
    Operation { name: "serial byte to memory", run: serial_bytes_to_memory, within: None },
    Operation { name: "QueueNotify", run: kicks, within: None },
    Operation { name: "rng request", run: rng_requests, within: Some(TURN) },
    Operation { name: "console output request", run: console_requests, within: Some(TURN) },
    turn("disk in memory, 4 KiB read", |n| disk_requests(n, false, VIRTIO_BLK_T_IN, 4 << 10)),
    turn("disk in memory, 4 KiB write", |n| disk_requests(n, false, VIRTIO_BLK_T_OUT, 4 << 10)),
    turn("disk in memory, 128 KiB read", |n| disk_requests(n, false, VIRTIO_BLK_T_IN, 128 << 10)),
    turn("disk in memory, flush", |n| disk_requests(n, false, VIRTIO_BLK_T_FLUSH, 0)),
    turn("disk in a file, 4 KiB read", |n| disk_requests(n, true, VIRTIO_BLK_T_IN, 4 << 10)),
    turn("disk in a file, 4 KiB write", |n| disk_requests(n, true, VIRTIO_BLK_T_OUT, 4 << 10)),
    turn("disk in a file, 128 KiB read", |n| disk_requests(n, true, VIRTIO_BLK_T_IN, 128 << 10)),
    turn("disk in a file, flush", |n| disk_requests(n, true, VIRTIO_BLK_T_FLUSH, 0)),
    turn("frame of 64 bytes sent", |n| frames(n, 64, net::Driver::send)),
    turn("frame of 1500 bytes sent", |n| frames(n, 1514, net::Driver::send)),
    turn("frame of 64 KiB sent", |n| frames(n, 65550, net::Driver::send)),
    turn("frame of 64 bytes received", |n| frames(n, 64, net::Driver::receive)),
    turn("frame of 1500 bytes received", |n| frames(n, 1514, net::Driver::receive)),
    turn("frame of 64 KiB received", |n| frames(n, 65550, net::Driver::receive)),
    turn("packet of 64 bytes sent", |n| packets(n, 64, vsock::Driver::send)),
    turn("packet of 4 KiB sent", |n| packets(n, 4 << 10, vsock::Driver::send)),
    turn("packet of 64 KiB sent", |n| packets(n, 64 << 10, vsock::Driver::send)),
    turn("packet of 64 bytes received", |n| packets(n, 64, vsock::Driver::receive)),
    turn("packet of 4 KiB received", |n| packets(n, 4 << 10, vsock::Driver::receive)),
    turn("packet of 64 KiB received", |n| packets(n, 64 << 10, vsock::Driver::receive)),
    turn("file attributes in a share", |n| messages(n, p9::Kind::Getattr)),
    turn("walk in a share and clunk", |n| messages(n, p9::Kind::Walk)),
    turn("4 KiB read in a share", |n| messages(n, p9::Kind::Read(4 << 10))),
    turn("128 KiB read in a share", |n| messages(n, p9::Kind::Read(p9::MOST))),
    turn("128 KiB write in a share", |n| messages(n, p9::Kind::Write(p9::MOST))),
];

const fn turn(name: &'static str, run: fn(u64)) -> Operation {
    Operation { name, run, within: Some(TURN) }
}

/// A device with registers that do nothing.
struct Idle;

impl BusDevice for Idle {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, _data: &[u8]) -> Flow {
        Flow::Continue(())
    }
}

/// From the scripted accelerator's exit through the exit loop's handler to a device and back.
fn exits(count: u64, step: Step) {
    let mut script = vec![step; SCRIPT as usize];
    script.push(Step::Exit(Exit::Interrupted));
    let vm = Scripted::new([script]).create_vm(&VmSpec::new(1)).unwrap();
    let mut vcpu = vm.vcpu(0).unwrap().bind().unwrap();
    let (mut pio, mut mmio) = (Bus::new(), Bus::new());
    for n in 0..16 {
        pio.insert("idle", u64::from(PORT) + n * 16, 8, Arc::new(Idle)).unwrap();
        mmio.insert("idle", REGISTER + n * 0x1000, 0x200, Arc::new(Idle)).unwrap();
    }
    let mut bus = VcpuBus::new(Arc::new(pio), Arc::new(mmio));
    for _ in 0..count / SCRIPT {
        assert_eq!(vcpu.run(&mut bus).unwrap(), Exit::Interrupted);
        vcpu.reset(None).unwrap();
    }
}

fn port_writes(count: u64) {
    exits(count, Step::PioWrite(PORT + 3 * 16, vec![0]));
}

fn mmio_writes(count: u64) {
    exits(count, Step::MmioWrite(REGISTER + 3 * 0x1000, vec![0; 4]));
}

/// One device, on a bus of its own.
fn alone(device: Arc<dyn BusDevice>, start: u64, len: u64) -> BusView {
    let mut bus = Bus::new();
    bus.insert("device", start, len, device).unwrap();
    BusView::new(Arc::new(bus))
}

fn serial_bytes(count: u64, port: Port) {
    let serial = Serial::new(port, Arc::new(CountingLine::default()));
    let mut bus = alone(serial, PORT.into(), Serial::PORTS);
    for _ in 0..count {
        assert!(bus.write(PORT.into(), b"a").is_continue());
    }
}

fn serial_bytes_to_memory(count: u64) {
    let console = Console::ring(RingBuffer::new()).open().unwrap();
    serial_bytes(count, console.port());
}

/// What a vCPU does for a kick where the accelerator has no doorbells. The device's thread has ended.
fn kicks(count: u64) {
    let guest = Guest::new(rng::Rng::new());
    guest.transport.stop();
    let mut bus = alone(guest.transport.clone(), REGISTER, MmioTransport::SIZE);
    for _ in 0..count {
        let queue = 0_u32.to_le_bytes();
        assert!(bus.write(REGISTER + MmioTransport::QUEUE_NOTIFY, &queue).is_continue());
    }
}

/// A device whose turns are counted.
struct Counted<D>(D);

/// The name of [`hyperkit_bench_turn`] for callgrind.
const TURN: &str = "hyperkit_bench_turn";

// SAFETY: no other function has this name.
#[unsafe(no_mangle)]
#[inline(never)]
fn hyperkit_bench_turn(call: &mut dyn FnMut() -> Result<(), Error>) -> Result<(), Error> {
    call()
}

impl<D: VirtioDevice> VirtioDevice for Counted<D> {
    fn id(&self) -> u32 {
        self.0.id()
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn features(&self) -> u64 {
        self.0.features()
    }

    fn queue_sizes(&self) -> &[u16] {
        self.0.queue_sizes()
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.0.config()
    }

    fn start(&mut self, sources: Sources<'_>) -> std::io::Result<()> {
        self.0.start(sources)
    }

    fn activate(&mut self, features: u64, cx: &mut Context<'_>) -> Result<(), Error> {
        self.0.activate(features, cx)
    }

    fn queue_ready(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error> {
        hyperkit_bench_turn(&mut || self.0.queue_ready(index, cx))
    }

    fn host_ready(&mut self, event: HostEvent, cx: &mut Context<'_>) -> Result<(), Error> {
        hyperkit_bench_turn(&mut || self.0.host_ready(event, cx))
    }

    fn reset(&mut self) {
        self.0.reset();
    }
}

/// Requests on queue `queue`, [`BURST`] at a time.
fn requests(count: u64, device: impl VirtioDevice + 'static, queue: usize, write: bool) {
    let mut guest = Guest::new(Counted(device));
    let features = feature::INDIRECT_DESC | feature::EVENT_IDX;
    let ring = &mut guest.start(features, BURST as u16)[queue];
    ring.event_idx = true;
    let at = guest.alloc(REQUEST as usize);
    let buffer = if write { Buffer::In(at, REQUEST) } else { Buffer::Out(at, REQUEST) };
    for _ in 0..count / BURST {
        for _ in 0..BURST {
            ring.request(&[buffer]);
        }
        guest.kick(ring);
        for _ in 0..BURST {
            guest.wait(ring);
        }
    }
}

fn rng_requests(count: u64) {
    requests(count, rng::Rng::new(), 0, true);
}

fn console_requests(count: u64) {
    requests(count, console::Console::new(Port::default()), 1, false);
}

/// Requests to a disk of 1 MiB, in memory or in a file that the host has in its own, [`BURST`] at a time: header, data
/// and status in an indirect table, as Linux does it.
fn disk_requests(count: u64, in_file: bool, kind: u32, len: u32) {
    const SIZE: usize = 1 << 20;
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(file.path(), vec![0x5a; SIZE]).unwrap();
    let disk = match in_file {
        true => Disk::raw(file.path()).unwrap(),
        false => Disk::backend(MemoryDisk::new(SIZE)),
    };
    let device = blk::Block::new(disk.queues(1).open().unwrap(), 1).unwrap();
    let mut guest = Guest::new(Counted(device));
    let own =
        [VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_CONFIG_WCE].iter().fold(0, |all, bit| all | 1 << bit);
    let features = feature::INDIRECT_DESC | feature::EVENT_IDX | own;
    let ring = &mut guest.start(features, BURST as u16)[0];
    ring.event_idx = true;
    let [table, header, data] = [0x1000, 0x1000, len as usize].map(|len| guest.alloc(len));
    let status = header + 16;
    guest.memory.write_slice(&kind.to_le_bytes(), GuestAddress(header)).unwrap();
    let data = match kind {
        VIRTIO_BLK_T_IN => vec![Buffer::In(data, len)],
        VIRTIO_BLK_T_OUT => vec![Buffer::Out(data, len)],
        _ => vec![],
    };
    let buffers = [&[Buffer::Out(header, 16)][..], &data, &[Buffer::In(status, 1)]].concat();
    for _ in 0..count / BURST {
        for _ in 0..BURST {
            ring.request_indirect(table, &buffers);
        }
        guest.kick(ring);
        for _ in 0..BURST {
            guest.wait(ring);
        }
        assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(status)).unwrap(), 0);
    }
}

/// Frames of `len` bytes through a card with nothing behind it; large ones come by eights.
fn frames(count: u64, len: usize, run: fn(&mut net::Driver, u64)) {
    let mut driver = net::Driver::new(len, Counted);
    let burst = if len > 1514 { 8 } else { BURST };
    (0..count / burst).for_each(|_| run(&mut driver, burst));
}

/// Packets of `len` bytes of a connection, as many at once as its socket takes.
fn packets(count: u64, len: usize, run: fn(&mut vsock::Driver, u64)) {
    let mut driver = vsock::Driver::new(len, Counted);
    let burst = (64 << 10) / len as u64;
    let burst = burst.clamp(2, BURST);
    (0..count / burst).for_each(|_| run(&mut driver, burst));
}

/// Messages to a share, as many at once as its queue takes.
fn messages(count: u64, kind: p9::Kind) {
    let mut driver = p9::Driver::new(Path::new(env!("CARGO_TARGET_TMPDIR")), Counted);
    for _ in 0..count / u64::from(p9::QUEUE) {
        driver.burst(p9::QUEUE, kind);
        driver.clunk(p9::QUEUE, kind);
    }
}

/// Instructions of this program doing `operation` so often.
fn instructions(operation: &Operation, count: u64) -> Result<u64, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    if let Some(function) = operation.within {
        valgrind.arg(format!("--toggle-collect={function}"));
    }
    valgrind.arg(program).args([operation.name, &count.to_string()]);
    let output = valgrind.output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected :"));
    collected
        .filter(|_| output.status.success())
        .and_then(|(_, number)| number.trim().parse().ok())
        .ok_or_else(|| format!("{valgrind:?} ended with {}:\n{text}", output.status))
}

/// What the table in the README says about `name`.
fn recorded(name: &str) -> Option<&'static str> {
    README.lines().find_map(|line| {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        (cells.next()? == name).then(|| cells.next())?
    })
}

fn measure() -> Result<(), String> {
    println!("{:<26}{:>12}{:>12}", "instructions per", "now", "in README");
    for operation in &OPERATIONS {
        let [few, many] = RUNS.map(|count| instructions(operation, count));
        let per = many?.saturating_sub(few?) as f64 / (RUNS[1] - RUNS[0]) as f64;
        let before = recorded(operation.name).unwrap_or("-");
        println!("{:<26}{per:>12.1}{before:>12}", operation.name);
    }
    Ok(())
}

fn main() -> ExitCode {
    // `cargo bench` passes an option of its own.
    let mut args = env::args().skip(1).filter(|arg| arg != "--bench");
    if let (Some(name), Some(count)) = (args.next(), args.next()) {
        let operation = OPERATIONS.iter().find(|operation| operation.name == name);
        let (Some(operation), Ok(count)) = (operation, count.parse()) else {
            eprintln!("instructions: no operation {name:?}, or no number {count:?}");
            return ExitCode::from(2);
        };
        (operation.run)(count);
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: instructions are counted by valgrind (Debian: apt install valgrind)");
        return ExitCode::SUCCESS;
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}
