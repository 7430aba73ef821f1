//! How long a kick takes to reach a device's thread.
//!
//! A driver writes a queue's number to QueueNotify, and some time later the device's `queue_ready` runs on its own
//! thread, which was asleep. Beside it, in the same run and in turns, the least that a wake-up can cost: an eventfd
//! is written, and another thread returns from `epoll_wait`.
//!
//! With KVM the driver is a guest: its write either leaves to this process and takes the way of all register accesses,
//! or is turned into the eventfd by the kernel. Their times begin when the guest is entered, just before it writes.

#[path = "../support/guest.rs"]
mod guest;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guest::load;
use hyperkit::accel::kvm::{Kvm, KvmVcpu, KvmVm};
use hyperkit::accel::{AccelVcpu, AccelVm, Accelerator, Exit, VmSpec};
use hyperkit::bus::{Bus, BusDevice, Flow};
use hyperkit::sys::Notifier;
use hyperkit::vcpu::VcpuBus;
use hyperkit::virtio::testing::Guest;
use hyperkit::virtio::{Context, Error, MmioTransport, VirtioDevice};
use rustix::event::epoll;

/// Kicks in one turn, and turns.
const TURN: u64 = 50;
const TURNS: usize = 60;
/// After each wake-up, so that the thread is asleep again at the next.
const REST: Duration = Duration::from_micros(50);

const REGISTERS: u64 = 0xd000_0000;
const PORT: u16 = 0x500;
/// `mov ebx, 0xd0000050; mov dx, 0x500; xor eax, eax; 1: mov [rbx], eax; out dx, al; jmp 1b`
const KICKS: &[u8] = &[
    0xbb, 0x50, 0x00, 0x00, 0xd0, 0x66, 0xba, 0x00, 0x05, 0x31, 0xc0, 0x89, 0x03, 0xee, 0xeb, 0xfb,
];

/// When a thread was last awake.
struct Alarm {
    start: Instant,
    count: AtomicU64,
    nanos: AtomicU64,
}

impl Alarm {
    fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), count: AtomicU64::new(0), nanos: AtomicU64::new(0) })
    }

    /// Called by the thread that was woken.
    fn ring(&self) {
        self.nanos.store(self.start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Release);
    }

    /// Waits for ring number `count` and tells how long after `kicked` it came.
    fn wait(&self, count: u64, kicked: Instant) -> Duration {
        while self.count.load(Ordering::Acquire) < count {
            std::hint::spin_loop();
        }
        let rung = self.start + Duration::from_nanos(self.nanos.load(Ordering::Relaxed));
        rung.saturating_duration_since(kicked)
    }
}

fn rest() {
    let end = Instant::now() + REST;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// One way to wake a thread.
trait Doorbell {
    /// Wakes it so often, one time after the other, and adds how long each took.
    fn turn(&mut self, kicks: u64, times: &mut Vec<Duration>);
}

/// An eventfd and a thread in `epoll_wait`.
struct Bare {
    alarm: Arc<Alarm>,
    notifier: Arc<Notifier>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bare {
    fn new() -> Self {
        let (alarm, notifier) = (Alarm::new(), Arc::new(Notifier::new().unwrap()));
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, bell, end) = (alarm.clone(), notifier.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let data = epoll::EventData::new_u64(0);
            epoll::add(&poll, &*bell, data, epoll::EventFlags::IN | epoll::EventFlags::ET).unwrap();
            let mut events = Vec::with_capacity(8);
            while !end.load(Ordering::Relaxed) {
                events.clear();
                epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
                bell.clear();
                theirs.ring();
            }
        });
        Self { alarm, notifier, stop, thread: Some(thread) }
    }
}

impl Doorbell for Bare {
    fn turn(&mut self, kicks: u64, times: &mut Vec<Duration>) {
        let before = self.alarm.count.load(Ordering::Acquire);
        for n in 1..=kicks {
            let kicked = Instant::now();
            self.notifier.notify();
            times.push(self.alarm.wait(before + n, kicked));
            rest();
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.notifier.notify();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A device that only tells when it was kicked.
struct Bell(Arc<Alarm>);

impl VirtioDevice for Bell {
    fn id(&self) -> u32 {
        42
    }

    fn name(&self) -> &str {
        "bell"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn queue_ready(&mut self, _index: u16, _cx: &mut Context<'_>) -> Result<(), Error> {
        self.0.ring();
        Ok(())
    }
}

/// A device with a queue that works, and its alarm, which has rung for the set-up.
fn device() -> (Guest, Arc<Alarm>) {
    let alarm = Alarm::new();
    let mut guest = Guest::new(Bell(alarm.clone()));
    guest.start(0, 8);
    alarm.wait(1, Instant::now());
    (guest, alarm)
}

/// A write to the transport's register, in this process.
struct Register(Guest, Arc<Alarm>);

impl Doorbell for Register {
    fn turn(&mut self, kicks: u64, times: &mut Vec<Duration>) {
        let Self(guest, alarm) = self;
        let before = alarm.count.load(Ordering::Acquire);
        for n in 1..=kicks {
            rest();
            let kicked = Instant::now();
            let _ = guest.transport.write(MmioTransport::QUEUE_NOTIFY, &[0; 4]);
            times.push(alarm.wait(before + n, kicked));
        }
    }
}

/// What the guest touches after each kick: waits for the alarm, and lets the guest go on or not.
struct Gate {
    alarm: Arc<Alarm>,
    state: std::sync::Mutex<Turn>,
}

struct Turn {
    left: u64,
    count: u64,
    entered: Instant,
    times: Vec<Duration>,
}

impl BusDevice for Gate {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, _data: &[u8]) -> Flow {
        let mut turn = self.state.lock().unwrap();
        turn.count += 1;
        let took = self.alarm.wait(turn.count, turn.entered);
        turn.times.push(took);
        turn.left -= 1;
        rest();
        turn.entered = Instant::now();
        match turn.left {
            0 => Flow::Break(Exit::Interrupted),
            _ => Flow::Continue(()),
        }
    }
}

/// A guest that kicks.
struct Kicking {
    vcpu: KvmVcpu,
    bus: VcpuBus,
    gate: Arc<Gate>,
    _vm: KvmVm,
    _device: Guest,
}

impl Kicking {
    fn new(doorbells: bool) -> Self {
        let (ram, entry) = load(KICKS);
        let vm = Kvm::open().unwrap().create_vm(&VmSpec::new(1)).unwrap();
        vm.map(&ram).unwrap();
        let mut vcpu = vm.vcpu(0).unwrap().bind().unwrap();
        vcpu.reset(Some(&entry)).unwrap();
        let (guest, alarm) = device();
        if doorbells {
            let notifier = guest.transport.doorbell(0).unwrap();
            let address = REGISTERS + MmioTransport::QUEUE_NOTIFY;
            vm.doorbells().unwrap().attach(address, 0, notifier).unwrap();
        }
        let count = alarm.count.load(Ordering::Acquire);
        let turn = Turn { left: 0, count, entered: Instant::now(), times: Vec::new() };
        let gate = Arc::new(Gate { alarm, state: turn.into() });
        let (mut pio, mut mmio) = (Bus::new(), Bus::new());
        pio.insert("gate", PORT.into(), 1, gate.clone()).unwrap();
        let transport = guest.transport.clone();
        mmio.insert("device", REGISTERS, MmioTransport::SIZE, transport).unwrap();
        let bus = VcpuBus::new(Arc::new(pio), Arc::new(mmio));
        Self { vcpu, bus, gate, _vm: vm, _device: guest }
    }
}

impl Doorbell for Kicking {
    fn turn(&mut self, kicks: u64, times: &mut Vec<Duration>) {
        {
            let mut turn = self.gate.state.lock().unwrap();
            turn.left = kicks;
            turn.entered = Instant::now();
        }
        assert_eq!(self.vcpu.run(&mut self.bus).unwrap(), Exit::Interrupted);
        times.append(&mut self.gate.state.lock().unwrap().times);
    }
}

/// The middle one, in microseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_nanos() as f64 / 1000.0
}

pub fn main() {
    let (guest, alarm) = device();
    let mut ways: Vec<(&str, Box<dyn Doorbell>)> = vec![
        ("bare eventfd and epoll", Box::new(Bare::new())),
        ("register write", Box::new(Register(guest, alarm))),
    ];
    match Kvm::open() {
        Ok(_) => {
            ways.push(("guest, through the exit loop", Box::new(Kicking::new(false))));
            ways.push(("guest, through ioeventfd", Box::new(Kicking::new(true))));
        }
        Err(error) => println!("skipped the guest's kicks: {error}"),
    }
    let mut times = vec![Vec::new(); ways.len()];
    for _ in 0..TURNS {
        for ((_, way), times) in ways.iter_mut().zip(&mut times) {
            way.turn(TURN, times);
        }
    }
    println!(
        "from a kick to the device's thread, medians of {} each, taken in turn:",
        TURN * TURNS as u64
    );
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    for ((name, _), micros) in ways.iter().zip(&medians) {
        println!("  {name}: {micros:.2} µs, {:.2} of bare", micros / medians[0]);
    }
}
