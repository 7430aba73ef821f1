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
