use super::*;

#[test]
fn every_number_is_a_register_and_back() {
    for packed in 0..=u16::MAX {
        assert_eq!(SysReg::unpack(packed).pack(), packed);
    }
}

/// Three of `hv_sys_reg_t`, `hv_vcpu_types.h`.
#[test]
fn numbers_are_those_of_the_framework() {
    for (register, number) in [
        (SysReg::new(2, 0, 0, 0, 4), 0x8004),  // DBGBVR0_EL1
        (SysReg::new(3, 0, 0, 0, 5), 0xc005),  // MPIDR_EL1
        (SysReg::new(3, 3, 14, 3, 2), 0xdf1a), // CNTV_CVAL_EL0
    ] {
        assert_eq!(register.pack(), number, "{register}");
    }
}

#[test]
fn a_register_is_written_as_assemblers_do() {
    assert_eq!(SysReg::new(3, 3, 14, 3, 2).to_string(), "S3_3_C14_C3_2");
}

const OSLAR: SysReg = SysReg::new(2, 0, 1, 0, 4);
const OSLSR: SysReg = SysReg::new(2, 0, 1, 1, 4);
const CNTPCT: SysReg = SysReg::new(3, 3, 14, 0, 1);

fn no_count() -> u64 {
    panic!("nobody reads the count")
}

#[test]
fn what_a_kernel_touches_at_boot_reads_as_zero_and_forgets() {
    for (name, register) in [
        ("MDSCR_EL1", SysReg::new(2, 0, 0, 2, 2)),
        ("DBGBVR0_EL1", SysReg::new(2, 0, 0, 0, 4)),
        ("DBGBCR15_EL1", SysReg::new(2, 0, 0, 15, 5)),
        ("DBGWVR3_EL1", SysReg::new(2, 0, 0, 3, 6)),
        ("DBGWCR0_EL1", SysReg::new(2, 0, 0, 0, 7)),
        ("OSDLR_EL1", SysReg::new(2, 0, 1, 3, 4)),
        ("PMCR_EL0", SysReg::new(3, 3, 9, 12, 0)),
        ("PMCCNTR_EL0", SysReg::new(3, 3, 9, 13, 0)),
        ("PMUSERENR_EL0", SysReg::new(3, 3, 9, 14, 0)),
        ("PMINTENCLR_EL1", SysReg::new(3, 0, 9, 14, 2)),
        ("PMEVCNTR0_EL0", SysReg::new(3, 3, 14, 8, 0)),
        ("PMEVTYPER30_EL0", SysReg::new(3, 3, 14, 15, 6)),
        ("PMCCFILTR_EL0", SysReg::new(3, 3, 14, 15, 7)),
        ("ACTLR_EL1", SysReg::new(3, 0, 1, 0, 1)),
        ("LORC_EL1", SysReg::new(3, 0, 10, 4, 3)),
    ] {
        let mut trapped = Trapped::default();
        assert_eq!(trapped.write(register, u64::MAX), Ok(()), "{name}");
        assert_eq!(trapped.read(register, no_count), Ok(0), "{name}");
        assert_eq!(trapped, Trapped::default(), "{name}");
    }
}

#[test]
fn features_that_nobody_knows_are_not_there() {
    let mut trapped = Trapped::default();
    for crm in 0..16 {
        for op2 in 0..8 {
            let register = SysReg::new(3, 0, 0, crm, op2);
            // MIDR_EL1, MPIDR_EL1: nobody can answer for the processor. REVIDR_EL1 says nothing.
            let there = matches!(crm, 1..=7) || (crm, op2) == (0, 6);
            assert_eq!(trapped.read(register, no_count).ok(), there.then_some(0), "{register}");
            let refused = Undefined { register, write: true };
            assert_eq!(trapped.write(register, 0), Err(refused), "{register}");
        }
    }
}

#[test]
fn the_lock_is_what_was_written_last() {
    let mut trapped = Trapped::default();
    assert_eq!(trapped.read(OSLSR, no_count), Ok(0b1010), "locked by a reset");
    for (value, status) in [(0, 0b1000), (1, 0b1010), (u64::MAX - 1, 0b1000), (u64::MAX, 0b1010)] {
        assert_eq!(trapped.write(OSLAR, value), Ok(()));
        assert_eq!(trapped.read(OSLSR, no_count), Ok(status));
    }
    let refused = |register, write| Undefined { register, write };
    assert_eq!(trapped.read(OSLAR, no_count), Err(refused(OSLAR, false)));
    assert_eq!(trapped.write(OSLSR, 0), Err(refused(OSLSR, true)));
    assert_eq!(trapped.read(OSLSR, no_count), Ok(0b1010));
}

#[test]
fn the_physical_count_is_the_accelerators_to_tell() {
    let mut trapped = Trapped::default();
    assert_eq!(trapped.read(CNTPCT, || 0x1234_5678_9abc), Ok(0x1234_5678_9abc));
    assert_eq!(trapped.write(CNTPCT, 0), Err(Undefined { register: CNTPCT, write: true }));
}

/// Directions that an instruction set has no instruction for.
#[test]
fn what_is_only_read_or_only_written_is_refused_the_other_way() {
    let mut trapped = Trapped::default();
    for (name, register) in [
        ("MDRAR_EL1", SysReg::new(2, 0, 1, 0, 0)),
        ("DBGAUTHSTATUS_EL1", SysReg::new(2, 0, 7, 14, 6)),
        ("PMCEID0_EL0", SysReg::new(3, 3, 9, 12, 6)),
        ("LORID_EL1", SysReg::new(3, 0, 10, 4, 7)),
    ] {
        assert_eq!(trapped.read(register, no_count), Ok(0), "{name}");
        assert!(trapped.write(register, 0).is_err(), "{name}");
    }
    for (name, register) in [
        ("PMSWINC_EL0", SysReg::new(3, 3, 9, 12, 4)),
        ("DC ISW", SysReg::new(1, 0, 7, 6, 2)),
        ("DC CISW", SysReg::new(1, 0, 7, 14, 2)),
    ] {
        assert_eq!(trapped.write(register, u64::MAX), Ok(()), "{name}");
        assert!(trapped.read(register, no_count).is_err(), "{name}");
    }
}

/// Of every register that instructions can name. What is answered is little, and nothing but the lock remembers.
#[test]
fn every_register_is_answered_or_undefined() {
    let mut answered = 0;
    for register in (0..=u16::MAX).map(SysReg::unpack) {
        let mut trapped = Trapped::default();
        let read = trapped.read(register, || 7);
        match read {
            Ok(value) => assert!(matches!(value, 0 | 7 | 0b1010), "{register}: {value}"),
            Err(undefined) => assert_eq!(undefined, Undefined { register, write: false }),
        }
        let write = trapped.write(register, 0);
        if let Err(undefined) = write {
            assert_eq!(undefined, Undefined { register, write: true });
        }
        assert_eq!(trapped == Trapped::default(), register != OSLAR, "{register}");
        answered += u32::from(read.is_ok() || write.is_ok());
    }
    assert!((200..300).contains(&answered), "{answered}");
    // Memory management, the interrupt controller and the timers are the accelerator's; SVE nobody's.
    for register in [(3, 0, 1, 0, 0), (3, 0, 12, 11, 5), (3, 3, 14, 3, 2), (3, 0, 1, 2, 0)] {
        let (op0, op1, crn, crm, op2) = register;
        let register = SysReg::new(op0, op1, crn, crm, op2);
        assert!(Trapped::default().read(register, no_count).is_err(), "{register}");
    }
}

#[test]
fn a_refusal_says_what_the_guest_did() {
    let refused = Undefined { register: SysReg::new(3, 0, 15, 4, 0), write: true };
    assert!(refused.to_string().contains("writes S3_0_C15_C4_0,"), "{refused}");
}
