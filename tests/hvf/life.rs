//! Machines and vCPUs coming and going, kicks, resets.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use hyperkit::accel::hvf::Hvf;
use hyperkit::accel::{AccelVcpu, AccelVm, Accelerator, Exit, VmSpec};
use hyperkit::arch::CpuState;
use hyperkit::boot::Kernel;
use hyperkit::vm::{End, Vm};

use crate::guest::{CODE, Devices, Machine, guest};

guest!(spins, "2: add x1, x1, #1", "b 2b");

#[test]
fn a_second_machine_of_the_process_is_refused_until_the_first_is_gone() {
    for _ in 0..3 {
        let Machine { vm, ram: _ram, only: _only } = Machine::with(spins());
        let another = || Hvf.create_vm(&VmSpec::new(1)).err().map(|error| error.to_string());
        let error = another().unwrap();
        assert!(error.contains("one virtual machine a process"), "{error}");
        // Not gone before its last vCPU and its last line.
        let vcpu = vm.vcpu(0).unwrap().bind().unwrap();
        let line = vm.interrupts().unwrap().line(0).unwrap();
        drop(vm);
        assert!(another().is_some());
        drop(vcpu);
        assert!(another().is_some());
        drop(line);
        assert_eq!(another(), None);
    }
}

guest!(turns_off, "movz x0, #0x8400, lsl #16", "movk x0, #0x0008", "hvc #0", "b .");

#[test]
fn the_next_machine_needs_the_end_of_the_last_and_not_of_its_handle() {
    let Machine { vm, ram: _ram, only: _only } = Machine::new(1);
    drop(vm);
    for _ in 0..2 {
        let kernel = Kernel::flat(turns_off(), CODE, CpuState::entry(CODE, 0));
        let machine = Vm::builder().accelerator(Hvf).memory(4 << 20).kernel(kernel);
        let running = machine.build().unwrap().start().unwrap();
        assert_eq!(running.wait().unwrap(), End::PowerOff);
        drop(Hvf.create_vm(&VmSpec::new(1)).unwrap());
        running.power_button();
    }
}

#[test]
fn a_machine_has_as_many_vcpus_as_it_was_made_with() {
    let machine = Machine::new(2);
    let error = machine.vm.vcpu(2).err().unwrap().to_string();
    assert!(error.contains("no vCPU 2"), "{error}");
    let _first = machine.vcpu(0);
    std::thread::scope(|scope| {
        let twice = scope.spawn(|| machine.vm.vcpu(0).unwrap().bind().err().map(|e| e.to_string()));
        let error = twice.join().unwrap().unwrap();
        assert!(error.contains("a vCPU 0 already"), "{error}");
    });
    drop(_first);
    let Machine { vm, ram: _ram, only: _only } = machine;
    drop(vm);
    for cpus in [0, 100_000] {
        let error = Hvf.create_vm(&VmSpec::new(cpus)).err().unwrap().to_string();
        assert!(error.contains(&format!("{cpus} vCPUs")), "{error}");
    }
}

#[test]
fn a_kick_ends_a_run_whenever_it_comes() {
    let machine = Machine::with(spins());
    let mut vcpu = machine.vcpu(0);
    vcpu.reset(Some(&CpuState::entry(CODE, 0))).unwrap();
    let kicker = vcpu.kicker();
    let mut devices = Devices::default();
    // Before a run: it returns without a guest instruction.
    kicker.kick();
    kicker.kick();
    assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::Interrupted);
    assert_eq!(vcpu.state().unwrap().x[1], 0);
    // During one, and kicks that come before the return count as one. A busy machine may be so late with the run that
    // the kick comes before it, for once.
    let mut delay = Duration::from_millis(50);
    while vcpu.state().unwrap().x[1] == 0 {
        assert!(delay < Duration::from_secs(10), "no run has got to an instruction");
        std::thread::scope(|scope| {
            let (going, goes) = mpsc::channel();
            let kicks = kicker.clone();
            scope.spawn(move || {
                goes.recv().unwrap();
                std::thread::sleep(delay);
                kicks.kick();
            });
            going.send(()).unwrap();
            assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::Interrupted);
        });
        delay *= 2;
    }
    // Nothing is left of it for the next.
    std::thread::scope(|scope| {
        let kicks = kicker.clone();
        let kicked = scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            let now = Instant::now();
            kicks.kick();
            now
        });
        assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::Interrupted);
        let ended = Instant::now();
        assert!(ended >= kicked.join().unwrap());
    });
    drop(vcpu);
    kicker.kick();
}

#[test]
fn no_kick_is_lost_among_many() {
    let machine = Machine::with(spins());
    let mut vcpu = machine.vcpu(0);
    vcpu.reset(Some(&CpuState::entry(CODE, 0))).unwrap();
    let kicker = vcpu.kicker();
    let (answered, answers) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Each waits for the run before it to have ended, so each is to end a run of its own.
            for round in 0..500 {
                if round % 3 == 0 {
                    std::thread::sleep(Duration::from_micros(round));
                }
                kicker.kick();
                answers.recv_timeout(Duration::from_secs(10)).expect("the kick ends a run");
            }
        });
        for _ in 0..500 {
            assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Interrupted);
            answered.send(()).unwrap();
        }
    });
}

#[test]
fn a_vcpu_that_is_off_can_be_kicked() {
    let machine = Machine::with(spins());
    let mut vcpu = machine.vcpu(0);
    vcpu.reset(None).unwrap();
    let kicker = vcpu.kicker();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            kicker.kick();
        });
        assert_eq!(vcpu.run(&mut Devices::default()).unwrap(), Exit::Interrupted);
    });
    assert_eq!(vcpu.state().unwrap().x[1], 0, "it has not run");
}

guest!(
    dirties,
    // What the registers were, then something else in all of them.
    "mrs x1, sctlr_el1",
    "str x1, [x20]",
    "mrs x1, vbar_el1",
    "str x1, [x20]",
    "mrs x1, tpidr_el0",
    "str x1, [x20]",
    "mrs x1, contextidr_el1",
    "str x1, [x20]",
    "mrs x1, cpacr_el1",
    "str x1, [x20]",
    "mrs x1, cntkctl_el1",
    "str x1, [x20]",
    "mov x1, sp",
    "str x1, [x20]",
    "str x19, [x20]",
    "mov x1, #0x3800",
    "msr vbar_el1, x1",
    "msr tpidr_el0, x1",
    "msr contextidr_el1, x1",
    "mov sp, x1",
    "mov x19, x1",
    "mov x1, #0x300000",
    "msr cpacr_el1, x1",
    "mov x1, #3",
    "msr cntkctl_el1, x1",
    // Alignment checks.
    "mrs x1, sctlr_el1",
    "orr x1, x1, #2",
    "msr sctlr_el1, x1",
    "isb",
    "str wzr, [x21]",
);

#[test]
fn a_reset_puts_every_register_back() {
    let machine = Machine::with(dirties());
    let mut vcpu = machine.vcpu(0);
    let first = machine.run(&mut vcpu);
    assert_eq!(first[0] & 1, 0, "the MMU is off");
    assert_eq!(first[6..], [0, 0]);
    assert_eq!(vcpu.state().unwrap().x[19], 0x3800);
    assert_eq!(machine.run(&mut vcpu), first);
    let state = CpuState { sp: 0x1230, ..CpuState::entry(CODE + 4, 7) };
    vcpu.reset(Some(&state)).unwrap();
    assert_eq!(vcpu.state().unwrap(), state);
}
