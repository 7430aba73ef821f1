//! What the exit loop adds to an exit.
//!
//! A guest does nothing but write to a port, or to a register in memory. `bare` is `ioctl(KVM_RUN)` in a loop;
//! `loop` is this crate's loop with a device on the bus. Both drive the same vCPU, in turns of some hundred exits,
//! so that whatever else the machine does falls on both. The medians are printed last, and that of the ratios of
//! turns that follow each other.

#[path = "../support/clock.rs"]
mod clock;
#[path = "../support/guest.rs"]
mod guest;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use criterion::Criterion;
use guest::load;
use hyperkit::accel::kvm::{Kvm, KvmVcpu, KvmVm};
use hyperkit::accel::{AccelVcpu, AccelVm, Accelerator, Exit, VmSpec};
use hyperkit::bus::{Bus, BusDevice, Flow};
use hyperkit::memory::GuestRam;
use hyperkit::vcpu::VcpuBus;
use kvm_bindings::*;
use kvm_ioctls::{VcpuFd, VmFd};

const PORT: u16 = 0x500;
const REGISTER: u64 = 0xd000_0000;
/// `_IO(KVMIO, 0x80)`
const KVM_RUN: u64 = 0xae80;
/// Exits in one turn.
const TURN: u64 = 400;
const TURNS: usize = 200;

/// `mov dx, 0x500; 1: out dx, al; jmp 1b`
const PORT_WRITES: &[u8] = &[0x66, 0xba, 0x00, 0x05, 0xee, 0xeb, 0xfd];
/// `mov ebx, 0xd0000000; 1: mov [rbx], eax; jmp 1b`
const MMIO_WRITES: &[u8] = &[0xbb, 0x00, 0x00, 0x00, 0xd0, 0x89, 0x03, 0xeb, 0xfc];

/// Lets a number of writes pass, then ends the run.
struct Countdown(AtomicU64);

impl BusDevice for Countdown {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, _data: &[u8]) -> Flow {
        // One vCPU writes here.
        let left = self.0.load(Ordering::Relaxed) - 1;
        self.0.store(left, Ordering::Relaxed);
        match left {
            0 => Flow::Break(Exit::Interrupted),
            _ => Flow::Continue(()),
        }
    }
}

struct Idle;

impl BusDevice for Idle {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, _data: &[u8]) -> Flow {
        Flow::Continue(())
    }
}

/// A vCPU in this crate's loop, on a bus with a machine's worth of devices.
struct Looped {
    vcpu: KvmVcpu,
    bus: VcpuBus,
    countdown: Arc<Countdown>,
    _vm: KvmVm,
}

impl Looped {
    fn new(code: &[u8]) -> Self {
        let (ram, entry) = load(code);
        let vm = Kvm::open().unwrap().create_vm(&VmSpec::new(1)).unwrap();
        vm.map(&ram).unwrap();
        let mut vcpu = vm.vcpu(0).unwrap().bind().unwrap();
        vcpu.reset(Some(&entry)).unwrap();

        let countdown = Arc::new(Countdown(AtomicU64::new(0)));
        let (mut pio, mut mmio) = (Bus::new(), Bus::new());
        pio.insert("countdown", PORT.into(), 8, countdown.clone()).unwrap();
        mmio.insert("countdown", REGISTER, 0x200, countdown.clone()).unwrap();
        for n in 1..16 {
            pio.insert("idle", u64::from(PORT) + n * 16, 8, Arc::new(Idle)).unwrap();
            mmio.insert("idle", REGISTER + n * 0x1000, 0x200, Arc::new(Idle)).unwrap();
        }
        let bus = VcpuBus::new(Arc::new(pio), Arc::new(mmio));
        Self { vcpu, bus, countdown, _vm: vm }
    }

    fn run(&mut self, exits: u64) -> Duration {
        self.countdown.0.store(exits, Ordering::Relaxed);
        let (exit, took) = clock::time(|| self.vcpu.run(&mut self.bus).unwrap());
        assert_eq!(exit, Exit::Interrupted);
        took
    }
}

/// A vCPU with nothing around it but the ioctl.
struct Bare {
    vcpu: VcpuFd,
    _vm: VmFd,
    _ram: GuestRam,
}

impl Bare {
    fn new(code: &[u8]) -> Self {
        let (ram, entry) = load(code);
        let kvm = kvm_ioctls::Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.set_tss_address(0xfeff_d000).unwrap();
        vm.create_irq_chip().unwrap();
        for (slot, (gpa, host, len)) in ram.regions().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: gpa,
                memory_size: len,
                userspace_addr: host as u64,
            };
            // SAFETY: the memory is kept as long as the machine.
            unsafe { vm.set_user_memory_region(region) }.unwrap();
        }
        let vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        let system = &entry.system;
        (sregs.cr0, sregs.cr3) = (system.cr0, system.cr3);
        (sregs.cr4, sregs.efer) = (system.cr4, system.efer);
        for (to, from, code) in [
            (&mut sregs.cs, &system.cs, true),
            (&mut sregs.ds, &system.ds, false),
            (&mut sregs.es, &system.es, false),
            (&mut sregs.ss, &system.ss, false),
        ] {
            (to.base, to.limit, to.selector) = (from.base, from.limit, from.selector);
            (to.present, to.s, to.g) = (1, 1, 1);
            (to.type_, to.l, to.db) = if code { (11, 1, 0) } else { (3, 0, 1) };
        }
        vcpu.set_sregs(&sregs).unwrap();
        let regs =
            kvm_regs { rip: entry.regs.rip, rsp: entry.regs.rsp, rflags: 2, ..Default::default() };
        vcpu.set_regs(&regs).unwrap();
        Self { vcpu, _vm: vm, _ram: ram }
    }

    fn run(&mut self, exits: u64) -> Duration {
        let fd = self.vcpu.as_raw_fd();
        let run: *const kvm_run = self.vcpu.get_kvm_run();
        let ((), took) = clock::time(|| {
            for _ in 0..exits {
                // SAFETY: KVM_RUN takes no argument.
                let result = unsafe { libc::ioctl(fd, KVM_RUN, 0) };
                // SAFETY: the mapping lives as long as the vCPU; the kernel wrote it before the call returned.
                let reason = unsafe { (*run).exit_reason };
                assert!(result == 0 && (reason == KVM_EXIT_IO || reason == KVM_EXIT_MMIO));
            }
        });
        took
    }
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    if let Err(error) = Kvm::open() {
        println!("skipped: {error}");
        return;
    }
    let mut table = Vec::new();
    for (kind, code) in [("port write", PORT_WRITES), ("MMIO write", MMIO_WRITES)] {
        let (mut bare, mut looped) = (Bare::new(code), Looped::new(code));
        let mut group = criterion.benchmark_group(kind);
        group.bench_function("bare ioctl(KVM_RUN)", |b| b.iter_custom(|exits| bare.run(exits)));
        group.bench_function("exit loop", |b| b.iter_custom(|exits| looped.run(exits)));
        group.finish();

        let nanos = |time: Duration| time.as_nanos() as f64 / TURN as f64;
        let turns: Vec<_> =
            (0..TURNS).map(|_| (nanos(bare.run(TURN)), nanos(looped.run(TURN)))).collect();
        let median = |value: fn(&(f64, f64)) -> f64| median(turns.iter().map(value).collect());
        let ratio = median(|(bare, looped)| looped / bare);
        table.push((kind, median(|turn| turn.0), median(|turn| turn.1), ratio));
    }
    criterion.final_summary();
    println!("\nexit round trip, medians of {TURNS} turns of {TURN} exits each, taken in turn:");
    for (kind, bare, looped, ratio) in table {
        println!("  {kind}: bare {bare:.0} ns, loop {looped:.0} ns, ratio {ratio:.3}");
    }
}
