use super::*;
use crate::random::Random;

/// Linux, in its kernel: EL1h, all interrupts enabled, PAN; SPAN clear, as it has it.
const KERNEL: Before = Before {
    pc: 0xffff_8000_0801_2340,
    pstate: 0x0040_0005,
    vbar: 0xffff_8000_0801_0800,
    sctlr: 0x30d0_0800 & !SPAN,
};
/// A program of it, with carry and zero set.
const PROGRAM: Before = Before { pc: 0xaaaa_0000_1000, pstate: 0x6000_0000, ..KERNEL };
const ADDRESS: u64 = 0xffff_8000_1234_5678;

#[test]
fn a_kernel_is_told_of_an_undefined_instruction() {
    let after = Fault::Undefined.enter(&KERNEL);
    let expected = After {
        pc: KERNEL.vbar + 0x200,
        pstate: 0x0040_03c5,
        elr: KERNEL.pc,
        spsr: KERNEL.pstate,
        esr: 0x0200_0000,
        far: None,
    };
    assert_eq!(after, expected);
}

#[test]
fn a_kernel_is_told_of_what_its_programs_do() {
    let after = Fault::Data { address: ADDRESS, write: true }.enter(&PROGRAM);
    let expected = After {
        pc: KERNEL.vbar + 0x400,
        pstate: 0x6040_03c5,
        elr: PROGRAM.pc,
        spsr: PROGRAM.pstate,
        esr: 0x9200_0050,
        far: Some(ADDRESS),
    };
    assert_eq!(after, expected);
}

#[test]
fn syndromes_say_from_where_and_what() {
    let address = ADDRESS;
    for (fault, kernel, program) in [
        (Fault::Undefined, 0x0200_0000, 0x0200_0000),
        (Fault::Data { address, write: false }, 0x9600_0010, 0x9200_0010),
        (Fault::Data { address, write: true }, 0x9600_0050, 0x9200_0050),
        (Fault::Instruction { address }, 0x8600_0010, 0x8200_0010),
    ] {
        assert_eq!(fault.enter(&KERNEL).esr, kernel, "{fault:?}");
        assert_eq!(fault.enter(&PROGRAM).esr, program, "{fault:?}");
        let far = (fault != Fault::Undefined).then_some(ADDRESS);
        assert_eq!(fault.enter(&KERNEL).far, far, "{fault:?}");
    }
}

#[test]
fn the_vector_is_chosen_by_stack_level_and_width() {
    for (mode, vector) in [
        (0b0_0100, 0x000), // EL1t
        (0b0_0101, 0x200), // EL1h
        (0b0_0000, 0x400), // EL0
        (0b1_0000, 0x600), // User mode of AArch32
    ] {
        let before = Before { pstate: mode, ..KERNEL };
        assert_eq!(Fault::Undefined.enter(&before).pc, KERNEL.vbar + vector, "{mode:#b}");
    }
    // Low bits of VBAR_EL1 are not there, and its top is one.
    let before = Before { vbar: u64::MAX, ..KERNEL };
    assert_eq!(Fault::Undefined.enter(&before).pc, !0x7ff + 0x200);
}

#[test]
fn pan_and_ssbs_are_what_sctlr_says() {
    let pstate = |pstate, sctlr| Fault::Undefined.enter(&Before { pstate, sctlr, ..KERNEL }).pstate;
    const HANDLER: u64 = 0x3c5;
    assert_eq!(pstate(5, SPAN), HANDLER);
    assert_eq!(pstate(5 | PAN, SPAN), HANDLER | PAN);
    assert_eq!(pstate(5, 0), HANDLER | PAN);
    assert_eq!(pstate(5 | SSBS, SPAN), HANDLER);
    assert_eq!(pstate(5, SPAN | DSSBS), HANDLER | SSBS);
}

/// Single step, illegal state, branch targets, and whatever future bits mean are not the handler's.
#[test]
fn a_handler_never_starts_with_anything_else() {
    let mut random = Random(1);
    for _ in 0..100_000 {
        let [pc, pstate, vbar, sctlr] = [(); 4].map(|()| random.next());
        let after = Fault::Undefined.enter(&Before { pc, pstate, vbar, sctlr });
        assert_eq!(after.pstate & 0x3df, 0x3c5, "EL1h, masked");
        let kept = 0xf300_0000;
        assert_eq!(after.pstate & kept, pstate & kept);
        assert_eq!(after.pstate & !(kept | 0x3df | PAN | SSBS), 0);
        assert_eq!((after.elr, after.spsr), (pc, pstate));
        assert_eq!(after.pc & 0x7ff & !0x600, 0);
    }
}

#[test]
fn exceptions_that_nobody_carries_out_are_the_guests() {
    let abort = DataAbort { status: 7, write: true, walk: false, cache_maintenance: false };
    let address = ADDRESS;
    for (exception, fault) in [
        (Exception::DataAbort(abort), Some(Fault::Data { address, write: true })),
        (Exception::DataAbort(DataAbort { cache_maintenance: true, ..abort }), None),
        (Exception::InstructionAbort(7), Some(Fault::Instruction { address })),
        (Exception::Forbidden(0x19), Some(Fault::Undefined)),
        (Exception::Hvc(0), None),
        (Exception::Other { class: 0x2f, iss: 0 }, None),
    ] {
        assert_eq!(Fault::of(&exception, ADDRESS), fault, "{exception}");
        // Either it is told, or the program goes on behind it, or it is an error.
        assert!(fault.is_none() || exception.advance() == 0, "{exception}");
    }
}
