//! What a guest calls of firmware.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use hyperkit::accel::{AccelVcpu, Exit};
use hyperkit::arch::CpuState;

use crate::guest::{CODE, Devices, Machine, guest};

const NOT_SUPPORTED: u64 = u64::MAX;

macro_rules! calls {
    ($name:ident, $call:literal) => {
        guest!(
            $name,
            // PSCI_VERSION.
            "movz x0, #0x8400, lsl #16",
            $call,
            "str x0, [x20]",
            // PSCI_FEATURES of CPU_ON for 64 bits, and of something that there is not.
            "movz x0, #0x8400, lsl #16",
            "movk x0, #0x000a",
            "movz x1, #0xc400, lsl #16",
            "movk x1, #0x0003",
            $call,
            "str x0, [x20]",
            "movz x0, #0x8400, lsl #16",
            "movk x0, #0x000a",
            "movz x1, #0x8400, lsl #16",
            "movk x1, #0x00ff",
            $call,
            "str x0, [x20]",
            // What nobody has.
            "movz x0, #0xc600, lsl #16",
            "movk x0, #0xff01",
            $call,
            "str x0, [x20]",
            // CPU_SUSPEND.
            "movz x0, #0xc400, lsl #16",
            "movk x0, #0x0001",
            "mov x1, #0",
            $call,
            "str x0, [x20]",
            "str wzr, [x21]",
        );
    };
}
calls!(by_hvc, "hvc #0");
calls!(by_smc, "smc #0");

#[test]
fn calls_are_answered_by_hvc_and_by_smc() {
    for code in [by_hvc(), by_smc()] {
        let machine = Machine::with(code);
        let mut vcpu = machine.vcpu(0);
        let asked = Instant::now();
        let answers = machine.run(&mut vcpu);
        assert_eq!(answers, [0x1_0001, 0, NOT_SUPPORTED, NOT_SUPPORTED, 0]);
        assert!(asked.elapsed() < Duration::from_secs(60), "a suspended vCPU wakes by itself");
    }
}

macro_rules! ends {
    ($name:ident, $function:literal) => {
        guest!($name, "movz x0, #0x8400, lsl #16", $function, "hvc #0", "str wzr, [x21]");
    };
}
ends!(system_off, "movk x0, #0x0008");
ends!(system_reset, "movk x0, #0x0009");

#[test]
fn power_off_and_reset_end_the_run() {
    for (code, end) in [(system_off(), Exit::PowerOff), (system_reset(), Exit::Reset)] {
        let machine = Machine::with(code);
        let mut vcpu = machine.vcpu(0);
        vcpu.reset(Some(&CpuState::entry(CODE, 0))).unwrap();
        assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), end);
        let behind = vcpu.state().unwrap().pc;
        assert_eq!(behind, CODE + 20, "the call itself, not the store behind it");
    }
}

guest!(
    starts_another,
    // CPU_ON of the second processor, twice, then AFFINITY_INFO until it is off; all of that two times.
    "mov x10, #2",
    "3: movz x0, #0xc400, lsl #16",
    "movk x0, #0x0003",
    "mov x1, #1",
    "adr x2, 4f",
    "add x3, x10, #0x700",
    "hvc #0",
    "str x0, [x20]",
    "2: movz x0, #0xc400, lsl #16",
    "movk x0, #0x0004",
    "mov x1, #1",
    "mov x2, #0",
    "hvc #0",
    "cmp x0, #1",
    "b.ne 2b",
    "subs x10, x10, #1",
    "b.ne 3b",
    // There is no third.
    "movz x0, #0xc400, lsl #16",
    "movk x0, #0x0003",
    "mov x1, #2",
    "adr x2, 4f",
    "hvc #0",
    "str x0, [x20]",
    "str wzr, [x21]",
    // The other processor: its argument, its number, what it is to be started with again, CPU_OFF.
    "4: movz x20, #0x2000, lsl #16",
    "str x0, [x20]",
    "mrs x1, mpidr_el1",
    "str x1, [x20]",
    "mrs x1, tpidr_el1",
    "str x1, [x20]",
    "msr tpidr_el1, x0",
    "movz x0, #0x8400, lsl #16",
    "movk x0, #0x0002",
    "hvc #0",
    "b .",
);

#[test]
fn one_vcpu_starts_another_which_goes_off_and_comes_back_as_new() {
    let machine = Machine::new(2);
    machine.load(starts_another(), CODE);
    let (ready, bound) = mpsc::channel();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut vcpu = machine.vcpu(1);
            vcpu.reset(None).unwrap();
            ready.send(vcpu.kicker()).unwrap();
            let mut devices = Devices::default();
            assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::Interrupted);
            devices.reports()
        });
        let mut vcpu = machine.vcpu(0);
        let kicker = bound.recv().unwrap();
        let reports = machine.run(&mut vcpu);
        assert_eq!(reports, [0, 0, -2_i64 as u64]);
        // It is off, and can be had out of that.
        kicker.kick();
        let [first, mpidr, register, second, same, again] =
            other.join().unwrap().try_into().unwrap();
        assert_eq!((first, second), (0x702, 0x701));
        assert_eq!((mpidr, same), (0x8000_0001, 0x8000_0001));
        assert_eq!(again, register, "what it left there is gone");
    });
}
