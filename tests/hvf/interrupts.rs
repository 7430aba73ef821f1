//! Interrupts: lines, the virtual timer, and what a reset leaves of them.

use std::sync::mpsc;
use std::time::Duration;

use hyperkit::accel::{AccelVcpu, AccelVm, Exit, IrqLine};
use hyperkit::arch::CpuState;

use crate::guest::{CODE, Devices, Machine, guest};

/// A line in the middle, interrupt ID 52.
const LINE: u32 = 20;

macro_rules! waits {
    ($name:ident, $configuration:literal, $($line:expr),* $(,)?) => {
        guest!(
            $name,
            // The distributor: interrupts of group 1, the line enabled, edge or level.
            "movz x0, #0x0800, lsl #16",
            "mov w1, #0x12",
            "str w1, [x0]",
            "mov w1, #0xffffffff",
            "str w1, [x0, #0x84]",
            "mov w1, #1 << 20",
            "str w1, [x0, #0x104]",
            $configuration,
            "movz w2, #0xc0c",
            "str w1, [x0, x2]",
            // The redistributor: private interrupts of group 1, the virtual timer enabled.
            "movz x0, #0x1000, lsl #16",
            "str wzr, [x0, #0x14]",
            "movk x0, #0x1001, lsl #16",
            "mov w1, #0xffffffff",
            "str w1, [x0, #0x80]",
            "mov w1, #1 << 27",
            "str w1, [x0, #0x100]",
            // The interface: ICC_SRE_EL1, ICC_PMR_EL1, ICC_IGRPEN1_EL1.
            "mov x1, #7",
            "msr S3_0_C12_C12_5, x1",
            "isb",
            "mov x1, #0xff",
            "msr S3_0_C4_C6_0, x1",
            "mov x1, #1",
            "msr S3_0_C12_C12_7, x1",
            "isb",
            // The test raises the line once it hears this.
            "str x1, [x20]",
            $($line,)*
            "2: wfi",
            "mrs x1, S3_0_C12_C12_0",
            "and x1, x1, #0xffffff",
            "cmp x1, #1020",
            "b.hs 2b",
            "str x1, [x20]",
            // The timer off, and the interrupt done with: ICC_EOIR1_EL1.
            "msr cntv_ctl_el0, xzr",
            "isb",
            "msr S3_0_C12_C12_1, x1",
            "isb",
            "str wzr, [x21]",
            "b 2b",
        );
    };
}
waits!(waits_for_edge, "mov w1, #0x200",);
waits!(waits_for_level, "mov w1, #0",);
waits!(
    waits_for_timer,
    "mov w1, #0",
    // 20 ms from now.
    "mrs x1, cntvct_el0",
    "mrs x2, cntfrq_el0",
    "mov x3, #50",
    "udiv x2, x2, x3",
    "add x1, x1, x2",
    "msr cntv_cval_el0, x1",
    "mov x1, #1",
    "msr cntv_ctl_el0, x1",
    "isb",
);

/// Runs from where the guest is to its next stop, and does something a while after.
fn run(vcpu: &mut impl AccelVcpu, meanwhile: impl FnOnce() + Send) -> Vec<u64> {
    run_after(vcpu, Devices::default(), || (), meanwhile)
}

/// The same where the guest begins, and reports once it has set its interrupts up: until then an edge is lost.
fn run_first(vcpu: &mut impl AccelVcpu, meanwhile: impl FnOnce() + Send) -> Vec<u64> {
    let (told, reports) = mpsc::channel();
    let devices = Devices { told: Some(told), ..Devices::default() };
    // One that does not report in time is found out by what it has reported in the end.
    let wait = move || {
        let _ = reports.recv_timeout(Duration::from_secs(60));
    };
    run_after(vcpu, devices, wait, meanwhile)
}

fn run_after(
    vcpu: &mut impl AccelVcpu,
    mut devices: Devices,
    wait: impl FnOnce() + Send,
    meanwhile: impl FnOnce() + Send,
) -> Vec<u64> {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wait();
            // It is to sleep by then.
            std::thread::sleep(Duration::from_millis(50));
            meanwhile();
        });
        assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::PowerOff);
    });
    devices.reports()
}

fn line(machine: &Machine) -> std::sync::Arc<dyn IrqLine> {
    machine.vm.interrupts().unwrap().line(LINE).unwrap()
}

#[test]
fn an_edge_wakes_a_vcpu_and_each_edge_is_one_interrupt() {
    let machine = Machine::with(waits_for_edge());
    let mut vcpu = machine.vcpu(0);
    let line = line(&machine);
    vcpu.reset(Some(&CpuState::entry(CODE, 0))).unwrap();
    assert_eq!(run_first(&mut vcpu, || line.pulse()), [1, 52]);
    assert_eq!(run(&mut vcpu, || line.pulse()), [52]);
    // One that comes while the vCPU does not run is there when it does.
    line.pulse();
    assert_eq!(run(&mut vcpu, || {}), [52]);
}

#[test]
fn a_level_interrupts_as_long_as_it_is_high() {
    let machine = Machine::with(waits_for_level());
    let mut vcpu = machine.vcpu(0);
    let line = line(&machine);
    vcpu.reset(Some(&CpuState::entry(CODE, 0))).unwrap();
    assert_eq!(run_first(&mut vcpu, || line.set_level(true)), [1, 52]);
    assert_eq!(run(&mut vcpu, || {}), [52]);
    line.set_level(false);
    assert_eq!(run(&mut vcpu, || line.set_level(true)), [52]);
}

#[test]
fn the_virtual_timer_interrupts_by_itself() {
    let machine = Machine::with(waits_for_timer());
    let mut vcpu = machine.vcpu(0);
    vcpu.reset(Some(&CpuState::entry(CODE, 0))).unwrap();
    assert_eq!(run(&mut vcpu, || {}), [1, 27]);
}

guest!(
    sets_nothing_up,
    // Is the line enabled, or pending? Is the timer's interrupt enabled? The timer? The interface?
    "movz x0, #0x0800, lsl #16",
    "ldr w1, [x0, #0x104]",
    "str x1, [x20]",
    "ldr w1, [x0, #0x204]",
    "str x1, [x20]",
    "movz x0, #0x1001, lsl #16",
    "ldr w1, [x0, #0x100]",
    "and w1, w1, #1 << 27",
    "str x1, [x20]",
    "mrs x1, cntv_ctl_el0",
    "and x1, x1, #3",
    "str x1, [x20]",
    "mrs x1, S3_0_C12_C12_7",
    "str x1, [x20]",
    "mrs x1, S3_0_C4_C6_0",
    "str x1, [x20]",
    "str wzr, [x21]",
);

#[test]
fn a_reset_leaves_nothing_enabled_or_pending() {
    let machine = Machine::with(waits_for_edge());
    let mut vcpu = machine.vcpu(0);
    let line = line(&machine);
    vcpu.reset(Some(&CpuState::entry(CODE, 0))).unwrap();
    assert_eq!(run_first(&mut vcpu, || line.pulse()), [1, 52]);
    line.pulse();
    machine.ram.clear().unwrap();
    machine.vm.reset().unwrap();
    machine.load(sets_nothing_up(), CODE);
    assert_eq!(machine.run(&mut vcpu), [0; 6]);
    // And all of it can be used again.
    machine.ram.clear().unwrap();
    machine.vm.reset().unwrap();
    machine.load(waits_for_edge(), CODE);
    vcpu.reset(Some(&CpuState::entry(CODE, 0))).unwrap();
    assert_eq!(run_first(&mut vcpu, || line.pulse()), [1, 52]);
}

#[test]
fn a_line_that_there_is_not_is_refused() {
    let machine = Machine::new(1);
    let lines = machine.vm.interrupts().unwrap();
    assert!(lines.line(95).is_ok());
    let error = lines.line(96).err().unwrap().to_string();
    assert!(error.contains("no interrupt line 96"), "{error}");
}
