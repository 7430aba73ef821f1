//! System registers: their names as numbers.

use std::fmt;

#[cfg(test)]
mod tests;

/// A system register, or a system instruction, as instructions encode it (Arm ARM, C5.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysReg {
    /// 2 bits; 2 for debug registers, 3 for the others, 1 for instructions.
    pub op0: u8,
    /// 3 bits.
    pub op1: u8,
    /// 4 bits.
    pub crn: u8,
    /// 4 bits.
    pub crm: u8,
    /// 3 bits.
    pub op2: u8,
}

impl SysReg {
    /// A register by its five numbers, in the order in which the Arm ARM gives them.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self { op0, op1, crn, crm, op2 }
    }

    /// One number of all five: Hypervisor.framework's `hv_sys_reg_t`, and the low bits of KVM's register ids.
    pub const fn pack(self) -> u16 {
        ((self.op0 & 0b11) as u16) << 14
            | ((self.op1 & 0b111) as u16) << 11
            | ((self.crn & 0xf) as u16) << 7
            | ((self.crm & 0xf) as u16) << 3
            | (self.op2 & 0b111) as u16
    }

    /// What [`pack`](Self::pack) made a number of.
    pub const fn unpack(packed: u16) -> Self {
        Self {
            op0: (packed >> 14) as u8 & 0b11,
            op1: (packed >> 11) as u8 & 0b111,
            crn: (packed >> 7) as u8 & 0xf,
            crm: (packed >> 3) as u8 & 0xf,
            op2: packed as u8 & 0b111,
        }
    }
}

/// As assemblers write a register that they have no name for.
impl fmt::Display for SysReg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op0, op1, crn, crm, op2 } = self;
        write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}")
    }
}
