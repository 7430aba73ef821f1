//! Loads and stores of device registers.

use hyperkit::accel::AccelVcpu;
use hyperkit::accel::Exit;
use hyperkit::arch::CpuState;

use crate::guest::{CODE, Devices, Machine, REPORT, guest};

guest!(
    loads,
    "ldrb w0, [x20, #1]",
    "ldrh w1, [x20, #2]",
    "ldr w2, [x20, #4]",
    "ldr x3, [x20, #8]",
    "ldr xzr, [x20, #16]",
    "ldr w9, [x20, x0, lsl #2]",
    "mov x30, #0x7000",
    "ldrb w30, [x20, #1]",
    "str x0, [x20]",
    "str x1, [x20]",
    "str x2, [x20]",
    "str x3, [x20]",
    "str x9, [x20]",
    "str x30, [x20]",
    "str wzr, [x21]",
);

#[test]
fn a_load_of_any_size_leaves_what_the_processor_would() {
    let machine = Machine::with(loads());
    let mut vcpu = machine.vcpu(0);
    let low = |bytes: u32| Devices::VALUE & (u64::MAX >> (64 - 8 * bytes));
    assert_eq!(machine.run(&mut vcpu), [low(1), low(2), low(4), low(8), low(4), low(1)]);
    let mut devices = Devices::default();
    vcpu.reset(Some(&CpuState::entry(CODE, 0))).unwrap();
    vcpu.run(&mut devices).unwrap();
    let at = |offset, len| (REPORT + offset, len);
    let first = [at(1, 1), at(2, 2), at(4, 4), at(8, 8), at(16, 8)];
    assert_eq!(devices.loads[..5], first);
    // With the address made of two registers.
    assert_eq!(devices.loads[5..], [at(4 * low(1), 4), at(1, 1)]);
}

guest!(
    signed_loads,
    "ldrsb w0, [x20]",
    "ldrsb x1, [x20]",
    "ldrsh w2, [x20]",
    "ldrsh x3, [x20]",
    "ldrsw x4, [x20]",
    "str x0, [x20]",
    "str x1, [x20]",
    "str x2, [x20]",
    "str x3, [x20]",
    "str x4, [x20]",
    "str wzr, [x21]",
);

/// Only on a Mac: the stand-in checks each load's extension by itself, but what the guest gets is KVM's work, and depends on
/// the processor below, which in the lab is one of QEMU 7.2's, that says of no load that it is signed.
#[test]
#[cfg_attr(hyperkit_hvf_standin, ignore = "QEMU 7.2 says of no load that it is signed")]
fn a_signed_load_fills_the_register_with_the_sign() {
    let machine = Machine::with(signed_loads());
    let mut vcpu = machine.vcpu(0);
    assert_eq!(
        machine.run(&mut vcpu),
        [
            0xffff_ff91,
            0xffff_ffff_ffff_ff91,
            0xffff_f291,
            0xffff_ffff_ffff_f291,
            0xffff_ffff_c433_f291,
        ]
    );
}

guest!(
    stores,
    "movz x0, #0x1122, lsl #48",
    "movk x0, #0x3344, lsl #32",
    "movk x0, #0x5566, lsl #16",
    "movk x0, #0x7788",
    "strb w0, [x20, #1]",
    "strh w0, [x20, #2]",
    "str w0, [x20, #4]",
    "str x0, [x20, #8]",
    "strb wzr, [x20]",
    "strh wzr, [x20]",
    "str wzr, [x20]",
    "str xzr, [x20]",
    "mov x30, #0",
    "str w30, [x20]",
    "str w30, [x20]",
    "str wzr, [x21]",
);

#[test]
fn a_store_of_any_size_gives_the_device_its_bytes() {
    let machine = Machine::with(stores());
    let mut vcpu = machine.vcpu(0);
    vcpu.reset(Some(&CpuState::entry(CODE, 0))).unwrap();
    let mut devices = Devices::default();
    assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::PowerOff);
    let word = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
    let expected: [(u64, &[u8]); 10] = [
        (1, &word[..1]),
        (2, &word[..2]),
        (4, &word[..4]),
        (8, &word),
        (0, &[0]),
        (0, &[0; 2]),
        (0, &[0; 4]),
        (0, &[0; 8]),
        (0, &[0; 4]),
        (0, &[0; 4]),
    ];
    let expected = expected.map(|(offset, data)| (REPORT + offset, data.to_vec()));
    assert_eq!(devices.stores, expected);
}

guest!(
    stops_twice,
    "mov x1, #5",
    "str wzr, [x21]",
    "add x1, x1, #1",
    "str wzr, [x21]",
    "str x1, [x20]",
    "str wzr, [x21]",
);

#[test]
fn a_run_that_a_store_ends_is_behind_the_store() {
    let machine = Machine::with(stops_twice());
    let mut vcpu = machine.vcpu(0);
    vcpu.reset(Some(&CpuState::entry(CODE, 0))).unwrap();
    let mut devices = Devices::default();
    assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::PowerOff);
    // Two instructions load the addresses.
    let stopped = vcpu.state().unwrap();
    assert_eq!((stopped.pc, stopped.x[1]), (CODE + 16, 5));
    // What is read there can be set again.
    let changed = CpuState {
        x: {
            let mut x = stopped.x;
            x[1] = 40;
            x
        },
        ..stopped
    };
    vcpu.reset(Some(&changed)).unwrap();
    assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::PowerOff);
    assert_eq!(vcpu.state().unwrap().x[1], 41);
    assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::PowerOff);
    assert_eq!(devices.reports(), [41]);
}

guest!(
    pair,
    "adr x0, 2f",
    "add x0, x0, #0x7ff",
    "and x0, x0, #~0x7ff",
    "msr vbar_el1, x0",
    "isb",
    "ldp x1, x2, [x20]",
    "b .",
    "2:",
    // The vector of EL1 with its own stack pointer, 0x200 behind the next multiple of 2 KiB: the test puts it there.
    "b .",
);

guest!(
    handler,
    "mrs x1, esr_el1",
    "str x1, [x20]",
    "mrs x1, elr_el1",
    "str x1, [x20]",
    "mrs x1, spsr_el1",
    "str x1, [x20]",
    "mrs x1, CurrentEL",
    "str x1, [x20]",
    "str wzr, [x21]",
);

/// On a bus with nothing that answers such an access, it is an external abort.
#[test]
fn an_access_that_no_device_has_is_the_guests_to_handle() {
    let machine = Machine::with(pair());
    machine.load(handler(), CODE + 0x800 + 0x200);
    let mut vcpu = machine.vcpu(0);
    // The load is the eighth instruction.
    let [esr, elr, spsr, level] = machine.run(&mut vcpu).try_into().unwrap();
    assert_eq!(esr, 0x9600_0010, "a data abort in EL1, external, of a read");
    assert_eq!((elr, spsr, level), (CODE + 28, 0x3c5, 1 << 2));
}
