//! System registers: their names as numbers, and what those say that a processor does not let its guest have.
//!
//! An accelerator takes registers away from its guests: those of debuggers, of performance monitors, the lock that
//! firmware holds for debuggers, the identification of features from after its time. Guests are written for processors
//! that have them all, and touch many at boot. So what is there but has nothing to say reads as zero and forgets
//! what is written ([`Trapped`]), as on a processor without the feature. Anything else the guest does not have:
//! that is [`Undefined`], which [`inject`](super::inject) tells the guest.

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

/// What a GICv3's processor interface keeps for a vCPU (IHI 0069, 12.2), all of it zero at power-on.
pub const GIC_INTERFACE: [SysReg; 7] = [
    SysReg::new(3, 0, 12, 12, 6), // ICC_IGRPEN0_EL1
    SysReg::new(3, 0, 12, 12, 7), // ICC_IGRPEN1_EL1
    SysReg::new(3, 0, 4, 6, 0),   // ICC_PMR_EL1
    SysReg::new(3, 0, 12, 8, 3),  // ICC_BPR0_EL1
    SysReg::new(3, 0, 12, 12, 3), // ICC_BPR1_EL1
    SysReg::new(3, 0, 12, 8, 4),  // ICC_AP0R0_EL1
    SysReg::new(3, 0, 12, 9, 0),  // ICC_AP1R0_EL1
];

/// OSLSR_EL1: there is a lock …
const OSLM_IMPLEMENTED: u64 = 1 << 3;
/// … and it is locked. The same in OSLAR_EL1 is bit 0.
const OSLK: u64 = 1 << 1;

/// The registers of one vCPU that its accelerator leaves to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trapped {
    os_lock: bool,
}

impl Default for Trapped {
    /// As they are after a cold reset: locked.
    fn default() -> Self {
        Self { os_lock: true }
    }
}

/// The guest does not have this register, or not for this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest {} {register}, a system register that it does not have",
    if *.write { "writes" } else { "reads" })]
pub struct Undefined {
    /// Which one.
    pub register: SysReg,
    /// Was it written?
    pub write: bool,
}

/// What there is to a register.
enum Meaning {
    /// Nothing: it reads as zero and forgets what is written, where it can be read and written.
    Nothing {
        read: bool,
        write: bool,
    },
    OsLockAccess,
    OsLockStatus,
    PhysicalCount,
}

impl Trapped {
    /// What the register reads as. `count` is asked for the physical count, if that is what is read.
    pub fn read(&self, register: SysReg, count: impl FnOnce() -> u64) -> Result<u64, Undefined> {
        match Meaning::of(register) {
            Some(Meaning::Nothing { read: true, .. }) => Ok(0),
            Some(Meaning::OsLockStatus) if self.os_lock => Ok(OSLM_IMPLEMENTED | OSLK),
            Some(Meaning::OsLockStatus) => Ok(OSLM_IMPLEMENTED),
            Some(Meaning::PhysicalCount) => Ok(count()),
            _ => Err(Undefined { register, write: false }),
        }
    }

    /// Writes the register.
    pub fn write(&mut self, register: SysReg, value: u64) -> Result<(), Undefined> {
        match Meaning::of(register) {
            Some(Meaning::Nothing { write: true, .. }) => {}
            Some(Meaning::OsLockAccess) => self.os_lock = value & 1 != 0,
            _ => return Err(Undefined { register, write: true }),
        }
        Ok(())
    }
}

impl Meaning {
    /// By the numbers of Arm ARM, D24; names are in the order of the numbers.
    fn of(register: SysReg) -> Option<Self> {
        const READ_WRITE: Meaning = Meaning::Nothing { read: true, write: true };
        const READ_ONLY: Meaning = Meaning::Nothing { read: true, write: false };
        const WRITE_ONLY: Meaning = Meaning::Nothing { read: false, write: true };
        let SysReg { op0, op1, crn, crm, op2 } = register;
        Some(match (op0, op1, crn, crm, op2) {
            // OSLAR_EL1, OSLSR_EL1.
            (2, 0, 1, 0, 4) => Self::OsLockAccess,
            (2, 0, 1, 1, 4) => Self::OsLockStatus,
            // DBGBVR, DBGBCR, DBGWVR, DBGWCR: breakpoints and watchpoints.
            (2, 0, 0, _, 4..=7) => READ_WRITE,
            // MDCCINT_EL1; OSDTRRX_EL1, MDSCR_EL1, OSDTRTX_EL1, OSECCR_EL1.
            (2, 0, 0, 2, 0) | (2, 0, 0, 0 | 2 | 3 | 6, 2) => READ_WRITE,
            // OSDLR_EL1, DBGPRCR_EL1; DBGCLAIMSET_EL1, DBGCLAIMCLR_EL1; DBGDTR_EL0, DBGDTRRX_EL0.
            (2, 0, 1, 3 | 4, 4) | (2, 0, 7, 8 | 9, 6) | (2, 3, 0, 4 | 5, 0) => READ_WRITE,
            // MDRAR_EL1; DBGAUTHSTATUS_EL1; MDCCSR_EL0.
            (2, 0, 1, 0, 0) | (2, 0, 7, 14, 6) | (2, 3, 0, 1, 0) => READ_ONLY,

            // REVIDR_EL1, AIDR_EL1, and the block of ID registers, those that have no name yet included.
            (3, 0, 0, 0, 6) | (3, 1, 0, 0, 7) | (3, 0, 0, 1..=7, _) => READ_ONLY,
            // ACTLR_EL1.
            (3, 0, 1, 0, 1) => READ_WRITE,
            // LORSA_EL1, LOREA_EL1, LORN_EL1, LORC_EL1; LORID_EL1: no limited ordering regions.
            (3, 0, 10, 4, 0..=3) => READ_WRITE,
            (3, 0, 10, 4, 7) => READ_ONLY,

            // Performance monitors: PMINTENSET_EL1, PMINTENCLR_EL1; PMCR_EL0, PMCNTENSET_EL0, PMCNTENCLR_EL0,
            // PMOVSCLR_EL0; PMSELR_EL0; PMCCNTR_EL0, PMXEVTYPER_EL0, PMXEVCNTR_EL0; PMUSERENR_EL0, PMOVSSET_EL0;
            // PMEVCNTR_EL0, PMEVTYPER_EL0, PMCCFILTR_EL0.
            (3, 0, 9, 14, 1 | 2)
            | (3, 3, 9, 12, 0..=3 | 5)
            | (3, 3, 9, 13, 0..=2)
            | (3, 3, 9, 14, 0 | 3)
            | (3, 3, 14, 8..=15, _) => READ_WRITE,
            // PMMIR_EL1; PMCEID0_EL0, PMCEID1_EL0: there are no events.
            (3, 0, 9, 14, 6) | (3, 3, 9, 12, 6 | 7) => READ_ONLY,
            // PMSWINC_EL0.
            (3, 3, 9, 12, 4) => WRITE_ONLY,

            // CNTPCT_EL0, CNTPCTSS_EL0.
            (3, 3, 14, 0, 1 | 5) => Self::PhysicalCount,

            // DC ISW, DC CSW, DC CISW: caches by set and way, which a guest never has to itself.
            (1, 0, 7, 6 | 10 | 14, 2) => WRITE_ONLY,
            _ => return None,
        })
    }
}
