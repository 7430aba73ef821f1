use super::*;
use crate::random::Random;

/// Syndromes as the fields of ESR_EL2 lie in the Arm ARM's pictures of it, most significant first.
fn syndrome(class: u32, fields: &[(u32, u32)]) -> u64 {
    let iss = fields.iter().fold(0, |iss, &(value, bits)| iss << bits | value);
    assert_eq!(fields.iter().map(|field| field.1).sum::<u32>(), 25);
    u64::from(class) << 26 | 1 << 25 | u64::from(iss)
}

/// ISV, SAS, SSE, SRT, SF, AR, VNCR, SET, FnV, EA, CM, S1PTW, WnR, DFSC.
const DATA_ABORT: [u32; 14] = [1, 2, 1, 5, 1, 1, 1, 2, 1, 1, 1, 1, 1, 6];

fn data_abort(fields: [u32; 14]) -> Exception {
    let fields: Vec<_> = fields.into_iter().zip(DATA_ABORT).collect();
    Exception::decode(syndrome(0x24, &fields))
}

fn load(len: usize, sign_extend: bool, sixty_four: bool) -> MmioAccess {
    MmioAccess { write: false, len, register: Some(0), sign_extend, sixty_four }
}

fn store(len: usize) -> MmioAccess {
    MmioAccess { write: true, ..load(len, false, true) }
}

/// Any value there can be, but what does not survive its syndrome by design.
fn exception(random: &mut Random) -> Exception {
    let register = |random: &mut Random| Some(random.below(32) as u8).filter(|&n| n != 31);
    let flag = |random: &mut Random| random.below(2) == 1;
    match random.below(11) {
        0 => Exception::Mmio(MmioAccess {
            write: flag(random),
            len: 1 << random.below(4),
            register: register(random),
            sign_extend: flag(random),
            sixty_four: flag(random),
        }),
        1 => Exception::DataAbort(DataAbort {
            status: random.below(64) as u8,
            write: flag(random),
            walk: flag(random),
            cache_maintenance: flag(random),
        }),
        2 => Exception::InstructionAbort(random.below(64) as u8),
        3 => Exception::Hvc(random.next() as u16),
        4 => Exception::Smc(random.next() as u16),
        5 => Exception::SysReg(SysRegAccess {
            register: SysReg::unpack(random.next() as u16),
            write: flag(random),
            rt: register(random),
        }),
        6 => Exception::Wait([Wait::Interrupt, Wait::Event][random.below(2) as usize]),
        7 => Exception::Wait(Wait::InterruptUntil(register(random))),
        8 => Exception::Wait(Wait::EventUntil(register(random))),
        9 => Exception::Brk(random.next() as u16),
        _ => Exception::Other { class: 0x2f, iss: random.below(1 << 25) as u32 },
    }
}

#[test]
fn every_exception_survives_its_syndrome() {
    let mut random = Random(1);
    for _ in 0..200_000 {
        let exception = exception(&mut random);
        let syndrome = exception.encode();
        assert_eq!(Exception::decode(syndrome), exception, "{syndrome:#x}");
        assert_eq!(syndrome >> 26 << 26 | syndrome & 0x3ff_ffff, syndrome, "nothing else is set");
        assert_ne!(syndrome & 1 << 25, 0, "IL");
    }
}

/// Every class with any bits, those above the syndrome's too.
#[test]
fn every_syndrome_says_something_and_says_it_again() {
    let mut random = Random(2);
    for class in 0..64 {
        for _ in 0..10_000 {
            let syndrome = random.next() & !(0x3f << 26) | class << 26;
            let exception = Exception::decode(syndrome);
            assert_eq!(Exception::decode(exception.encode()), exception, "{syndrome:#x}");
            assert_eq!(exception.encode() >> 26, class, "{syndrome:#x}");
            assert!(matches!(exception.advance(), 0 | 4));
            assert!(!exception.to_string().is_empty());
        }
    }
}

#[test]
fn a_load_or_store_is_taken_apart() {
    // strb w7, [x1]: level 2 translation fault.
    let fields = [1, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x06];
    let expected = MmioAccess {
        write: true,
        len: 1,
        register: Some(7),
        sign_extend: false,
        sixty_four: false,
    };
    assert_eq!(data_abort(fields), Exception::Mmio(expected));
    // ldrsw x30, [x1], with acquire semantics for good measure: level 3 permission fault.
    let fields = [1, 2, 1, 30, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0x0f];
    let expected = MmioAccess {
        write: false,
        len: 4,
        register: Some(30),
        sign_extend: true,
        sixty_four: true,
    };
    assert_eq!(data_abort(fields), Exception::Mmio(expected));
    // str xzr, [x1]: level -1 translation fault.
    let fields = [1, 3, 0, 31, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0x2b];
    let expected =
        MmioAccess { write: true, len: 8, register: None, sign_extend: false, sixty_four: true };
    assert_eq!(data_abort(fields), Exception::Mmio(expected));
}

/// `ldr w0, [x1]`, which drivers do more than anything else, as the whole number.
#[test]
fn the_syndrome_of_a_plain_load_is_a_load_of_four_bytes() {
    assert_eq!(Exception::decode(0x9380_0007), Exception::Mmio(load(4, false, false)));
}

#[test]
fn what_no_device_can_answer_is_not_an_access() {
    let plain = [1, 2, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0x07];
    assert!(matches!(data_abort(plain), Exception::Mmio(_)));
    let with = |at: usize, value| {
        let mut fields = plain;
        fields[at] = value;
        match data_abort(fields) {
            Exception::DataAbort(abort) => abort,
            other => panic!("{other:?}"),
        }
    };
    let abort = DataAbort { status: 7, write: true, walk: false, cache_maintenance: false };
    assert_eq!(with(0, 0), abort, "ldp, stp, vector registers, write-back");
    assert_eq!(with(10, 1), DataAbort { cache_maintenance: true, ..abort });
    assert_eq!(with(11, 1), DataAbort { walk: true, ..abort });
    // Address size, external abort, external abort on a walk, alignment, exclusive, TLB conflict.
    for status in [0x00, 0x03, 0x10, 0x14, 0x17, 0x21, 0x35, 0x30] {
        assert_eq!(with(13, status), DataAbort { status: status as u8, ..abort });
    }
}

#[test]
fn a_store_writes_the_low_bytes_of_its_register() {
    for len in [1, 2, 4, 8] {
        let (bytes, count) = store(len).store_bytes(0x8877_6655_4433_2211);
        assert_eq!(count, len);
        assert_eq!(bytes[..len], [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88][..len]);
    }
}

#[test]
fn a_load_fills_its_register() {
    const BYTES: [u8; 8] = [0x81, 0x92, 0xa3, 0xb4, 0xc5, 0xd6, 0xe7, 0xf8];
    for (len, sign_extend, sixty_four, value) in [
        (1, false, false, 0x81),
        (1, false, true, 0x81),
        (1, true, false, 0xffff_ff81),          // ldrsb w
        (1, true, true, 0xffff_ffff_ffff_ff81), // ldrsb x
        (2, false, false, 0x9281),
        (2, true, false, 0xffff_9281),          // ldrsh w
        (2, true, true, 0xffff_ffff_ffff_9281), // ldrsh x
        (4, false, false, 0xb4a3_9281),
        (4, true, true, 0xffff_ffff_b4a3_9281), // ldrsw
        (4, true, false, 0xb4a3_9281),          // no instruction has it
        (8, false, true, 0xf8e7_d6c5_b4a3_9281),
        (8, true, true, 0xf8e7_d6c5_b4a3_9281), // nor this
    ] {
        let access = load(len, sign_extend, sixty_four);
        assert_eq!(access.load_value(&BYTES[..len]), value, "{access:?}");
        assert_eq!(access.load_value(&BYTES), value, "with bytes to spare, {access:?}");
    }
}

#[test]
fn a_positive_number_has_no_sign_to_extend() {
    for len in [1, 2, 4, 8] {
        let mut data = [0xff; 8];
        data[len - 1] = 0x7f;
        let expected = u64::MAX >> (64 - 8 * len) >> 1;
        assert_eq!(load(len, true, true).load_value(&data[..len]), expected);
    }
}

/// A value made by hand, rather than decoded, is answered too.
#[test]
fn lengths_and_bytes_that_no_instruction_has_are_survived() {
    for len in [0, 3, 5, 9, usize::MAX] {
        let access = load(len, true, true);
        assert_eq!(access.load_value(&[]), 0);
        assert_eq!(access.load_value(&[0; 100]), 0);
        assert!(access.store_bytes(0).1 <= 8);
        assert!(matches!(Exception::decode(Exception::Mmio(access).encode()), Exception::Mmio(_)));
    }
}

#[test]
fn calls_have_immediates() {
    let call = |class| Exception::decode(syndrome(class, &[(0x1ff, 9), (0xbeef, 16)]));
    assert_eq!(call(0x16), Exception::Hvc(0xbeef));
    assert_eq!(call(0x17), Exception::Smc(0xbeef));
    assert_eq!(call(0x3c), Exception::Brk(0xbeef));
}

#[test]
fn a_system_register_is_named_by_five_numbers() {
    // RES0, Op0, Op2, Op1, CRn, Rt, CRm, direction.
    let access = |op0, op2, op1, crn, rt, crm, read| {
        let fields = [(0, 3), (op0, 2), (op2, 3), (op1, 3), (crn, 4), (rt, 5), (crm, 4), (read, 1)];
        match Exception::decode(syndrome(0x18, &fields)) {
            Exception::SysReg(access) => access,
            other => panic!("{other:?}"),
        }
    };
    // mrs x5, CNTV_CVAL_EL0
    let cval = SysReg::new(3, 3, 14, 3, 2);
    let read = SysRegAccess { register: cval, write: false, rt: Some(5) };
    assert_eq!(access(3, 2, 3, 14, 5, 3, 1), read);
    // msr OSLAR_EL1, xzr
    let lock = SysReg::new(2, 0, 1, 0, 4);
    let write = SysRegAccess { register: lock, write: true, rt: None };
    assert_eq!(access(2, 4, 0, 1, 31, 0, 0), write);
}

#[test]
fn waits_say_for_what_and_until_when() {
    // CV, COND, RES0, RN, RES0, RV, TI.
    let wait = |rn, rv, ti| {
        let fields = [(1, 1), (0xe, 4), (0, 10), (rn, 5), (0, 2), (rv, 1), (ti, 2)];
        match Exception::decode(syndrome(0x01, &fields)) {
            Exception::Wait(wait) => wait,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(wait(0, 0, 0b00), Wait::Interrupt);
    assert_eq!(wait(0, 0, 0b01), Wait::Event);
    assert_eq!(wait(9, 1, 0b10), Wait::InterruptUntil(Some(9)));
    assert_eq!(wait(9, 1, 0b11), Wait::EventUntil(Some(9)));
    assert_eq!(wait(31, 1, 0b10), Wait::InterruptUntil(None));
    // A processor that does not say which register.
    assert_eq!(wait(9, 0, 0b10), Wait::InterruptUntil(None));
}

#[test]
fn the_program_counter_goes_on_unless_it_is_there_or_the_guest_is_to_look() {
    let maintenance = DataAbort { status: 7, write: true, walk: false, cache_maintenance: true };
    let register = SysReg::new(3, 0, 0, 0, 0);
    for (exception, advance) in [
        (Exception::Mmio(store(4)), 4),
        (Exception::Hvc(0), 0),
        (Exception::Smc(0), 4),
        (Exception::SysReg(SysRegAccess { register, write: false, rt: None }), 4),
        (Exception::Wait(Wait::Interrupt), 4),
        (Exception::DataAbort(maintenance), 4),
        (Exception::DataAbort(DataAbort { cache_maintenance: false, ..maintenance }), 0),
        (Exception::InstructionAbort(7), 0),
        (Exception::Brk(0), 0),
        (Exception::Forbidden(0x19), 0),
        (Exception::Other { class: 0x2f, iss: 0 }, 0),
    ] {
        assert_eq!(exception.advance(), advance, "{exception}");
    }
}

/// Floating point, SVE, SME, pointer authentication, ERET; but nothing that the architecture sends elsewhere.
#[test]
fn instructions_that_are_taken_away_are_told_from_the_rest() {
    for class in [0x00, 0x07, 0x09, 0x19, 0x1a, 0x1d] {
        assert_eq!(
            Exception::decode(syndrome(class, &[(7, 25)])),
            Exception::Forbidden(class as u8)
        );
    }
    for class in [0x0d, 0x0e, 0x11, 0x15, 0x21, 0x22, 0x25, 0x26, 0x2f, 0x30, 0x34, 0x3f] {
        let other = Exception::Other { class: class as u8, iss: 7 };
        assert_eq!(Exception::decode(syndrome(class, &[(7, 25)])), other);
    }
}
