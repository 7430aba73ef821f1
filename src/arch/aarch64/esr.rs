//! What an exception to EL2 says of itself: the syndrome in ESR_EL2 (Arm ARM, DDI 0487, D24.2.39), taken apart and
//! put together.
//!
//! An accelerator whose exits are the architecture's own exceptions gives every syndrome to [`Exception::decode`],
//! does what the value says, and moves the program counter by [`Exception::advance`]. Where loads, stores and
//! register numbers have their traps (register 31, sign extension), there are methods, so that no accelerator has
//! to know them. [`Exception::encode`] is the way back.
//!
//! Guests are AArch64 and little-endian. Any syndrome decodes to something.

use std::fmt;

use super::sysreg::SysReg;

#[cfg(test)]
mod tests;

/// Exception classes, ESR_EL2.EC.
mod class {
    pub const UNKNOWN: u8 = 0x00;
    pub const WFX: u8 = 0x01;
    pub const HVC64: u8 = 0x16;
    pub const SMC64: u8 = 0x17;
    pub const SYSREG: u8 = 0x18;
    pub const INSTRUCTION_ABORT: u8 = 0x20;
    pub const DATA_ABORT: u8 = 0x24;
    pub const BRK64: u8 = 0x3c;
}

const CLASS_SHIFT: u32 = 26;
/// The trapped instruction has 32 bits, or there is none.
const IL: u64 = 1 << 25;
const ISS_MASK: u32 = (1 << 25) - 1;

// Data aborts; an instruction abort has the status and S1PTW at the same places.
const ISV: u32 = 1 << 24;
const SAS_SHIFT: u32 = 22;
const SSE: u32 = 1 << 21;
const SRT_SHIFT: u32 = 16;
const SF: u32 = 1 << 15;
const CM: u32 = 1 << 8;
const S1PTW: u32 = 1 << 7;
const WNR: u32 = 1 << 6;
const STATUS_MASK: u32 = 0x3f;
const TRANSLATION_FAULT_LEVEL_3: u32 = 0x07;

// Trapped system registers.
const OP0_SHIFT: u32 = 20;
const OP2_SHIFT: u32 = 17;
const OP1_SHIFT: u32 = 14;
const CRN_SHIFT: u32 = 10;
const RT_SHIFT: u32 = 5;
const CRM_SHIFT: u32 = 1;
const READ: u32 = 1 << 0;

// Waits.
const RN_SHIFT: u32 = 5;
const RV: u32 = 1 << 2;
const TIMED: u32 = 1 << 1;
const EVENT: u32 = 1 << 0;
/// The trapped instruction has no condition that could fail: CV, and COND "always".
const ALWAYS: u32 = 1 << 24 | 0xe << 20;

/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;

/// Why a processor left its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exception {
    /// A load or store where no memory is, and the processor has taken it apart: a device is to answer.
    Mmio(MmioAccess),
    /// Any other data abort, one that only decoding the instruction would explain among them.
    DataAbort(DataAbort),
    /// The guest executes where no memory is. With the fault status code.
    InstructionAbort(u8),
    /// A hypervisor call, with its immediate.
    Hvc(u16),
    /// A secure monitor call, with its immediate.
    Smc(u16),
    /// MSR, MRS or a system instruction.
    SysReg(SysRegAccess),
    /// The guest has nothing to do.
    Wait(Wait),
    /// A breakpoint instruction, with its immediate.
    Brk(u16),
    /// An instruction that the guest may not use, by its exception class: undefined to the guest.
    Forbidden(u8),
    /// Anything else.
    Other {
        /// The exception class.
        class: u8,
        /// The rest, 25 bits.
        iss: u32,
    },
}

/// A load or store of one general register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioAccess {
    /// Is it a store?
    pub write: bool,
    /// Bytes: 1, 2, 4 or 8.
    pub len: usize,
    /// The register, 0 to 30; `None` is XZR, which reads as zero and forgets what is written.
    pub register: Option<u8>,
    /// A load's value is signed.
    pub sign_extend: bool,
    /// The register is an X one: a sign goes up to bit 63 rather than 31.
    pub sixty_four: bool,
}

/// A data abort that is not a plain access to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataAbort {
    /// The data fault status code.
    pub status: u8,
    /// Was it a write?
    pub write: bool,
    /// Was it the guest's page tables that are where no memory is?
    pub walk: bool,
    /// Was it a cache maintenance instruction? There is nothing to clean where no memory is: it is done.
    pub cache_maintenance: bool,
}

/// An access to a system register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SysRegAccess {
    /// Which one.
    pub register: SysReg,
    /// Is it written?
    pub write: bool,
    /// The general register, 0 to 30; `None` is XZR.
    pub rt: Option<u8>,
}

/// An instruction that waits. A wait may end early, for any reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// WFI: for an interrupt.
    Interrupt,
    /// WFE: for an event, which another processor may send without leaving the guest.
    Event,
    /// WFIT: for an interrupt, or until the virtual count is what this register says. `None`, XZR or a register
    /// that the processor does not tell, is the past.
    InterruptUntil(Option<u8>),
    /// WFET: for an event, or until then.
    EventUntil(Option<u8>),
}

impl Exception {
    /// What `syndrome`, a value of ESR_EL2, says.
    pub fn decode(syndrome: u64) -> Self {
        let class = (syndrome >> CLASS_SHIFT) as u8 & 0x3f;
        let iss = syndrome as u32 & ISS_MASK;
        match class {
            class::DATA_ABORT => MmioAccess::decode(iss)
                .map_or_else(|| Self::DataAbort(DataAbort::decode(iss)), Self::Mmio),
            class::INSTRUCTION_ABORT => Self::InstructionAbort((iss & STATUS_MASK) as u8),
            class::HVC64 => Self::Hvc(iss as u16),
            class::SMC64 => Self::Smc(iss as u16),
            class::SYSREG => Self::SysReg(SysRegAccess::decode(iss)),
            class::WFX => Self::Wait(Wait::decode(iss)),
            class::BRK64 => Self::Brk(iss as u16),
            _ if is_forbidden(class) => Self::Forbidden(class),
            _ => Self::Other { class, iss },
        }
    }

    /// The syndrome that says this.
    pub fn encode(&self) -> u64 {
        let (class, iss) = match *self {
            Self::Mmio(access) => (class::DATA_ABORT, access.encode()),
            Self::DataAbort(abort) => (class::DATA_ABORT, abort.encode()),
            Self::InstructionAbort(status) => (class::INSTRUCTION_ABORT, u32::from(status)),
            Self::Hvc(immediate) => (class::HVC64, u32::from(immediate)),
            Self::Smc(immediate) => (class::SMC64, u32::from(immediate)),
            Self::SysReg(access) => (class::SYSREG, access.encode()),
            Self::Wait(wait) => (class::WFX, wait.encode()),
            Self::Brk(immediate) => (class::BRK64, u32::from(immediate)),
            Self::Forbidden(class) => (class, 0),
            Self::Other { class, iss } => (class, iss),
        };
        u64::from(class & 0x3f) << CLASS_SHIFT | IL | u64::from(iss & ISS_MASK)
    }

    /// How far the program counter is from the next instruction, once what was asked for is done. A hypervisor call
    /// returns behind itself already; a secure monitor call, trapped before it executes, does not. What the guest
    /// has to be told of (see [`inject`](super::inject)) stays where it is.
    pub fn advance(&self) -> u64 {
        match self {
            Self::Mmio(_) | Self::Smc(_) | Self::SysReg(_) | Self::Wait(_) => INSTRUCTION,
            Self::DataAbort(abort) if abort.cache_maintenance => INSTRUCTION,
            _ => 0,
        }
    }
}

/// Classes of instructions that a hypervisor takes away: those of AArch32's coprocessors, floating point, SVE, SME,
/// pointer authentication, 64-byte stores, ERET, and whatever has no class of its own.
fn is_forbidden(class: u8) -> bool {
    matches!(class, class::UNKNOWN | 0x03..=0x0a | 0x0c | 0x14 | 0x19 | 0x1a | 0x1d)
}

impl MmioAccess {
    /// `None` if the processor has not taken the instruction apart, or the access is none that a device could
    /// answer.
    fn decode(iss: u32) -> Option<Self> {
        // Translation, access flag and permission faults, with the level in the low bits; translation at level -1.
        let status = iss & STATUS_MASK;
        let absent = matches!(status, 0x04..=0x0f | 0x2b);
        (iss & ISV != 0 && absent && iss & (S1PTW | CM) == 0).then(|| Self {
            write: iss & WNR != 0,
            len: 1 << (iss >> SAS_SHIFT & 0b11),
            register: register(iss >> SRT_SHIFT),
            sign_extend: iss & SSE != 0,
            sixty_four: iss & SF != 0,
        })
    }

    fn encode(&self) -> u32 {
        ISV | (self.len.trailing_zeros() & 0b11) << SAS_SHIFT
            | flag(self.sign_extend, SSE)
            | number(self.register) << SRT_SHIFT
            | flag(self.sixty_four, SF)
            | flag(self.write, WNR)
            | TRANSLATION_FAULT_LEVEL_3
    }

    /// What a store of a register with `value` writes: bytes, and how many of them.
    pub fn store_bytes(&self, value: u64) -> ([u8; 8], usize) {
        (value.to_le_bytes(), self.len.min(8))
    }

    /// What a load that found `data` leaves in its register, all 64 bits of it.
    pub fn load_value(&self, data: &[u8]) -> u64 {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data).take(self.len) {
            *to = *from;
        }
        let value = u64::from_le_bytes(bytes);
        let extended = match (self.sign_extend, self.len) {
            (true, 1) => value as i8 as u64,
            (true, 2) => value as i16 as u64,
            (true, 4) => value as i32 as u64,
            _ => return value,
        };
        if self.sixty_four { extended } else { extended & u64::from(u32::MAX) }
    }
}

impl DataAbort {
    fn decode(iss: u32) -> Self {
        Self {
            status: (iss & STATUS_MASK) as u8,
            write: iss & WNR != 0,
            walk: iss & S1PTW != 0,
            cache_maintenance: iss & CM != 0,
        }
    }

    fn encode(&self) -> u32 {
        u32::from(self.status) & STATUS_MASK
            | flag(self.write, WNR)
            | flag(self.walk, S1PTW)
            | flag(self.cache_maintenance, CM)
    }
}

impl SysRegAccess {
    fn decode(iss: u32) -> Self {
        let field = |shift: u32, mask: u8| (iss >> shift) as u8 & mask;
        let register = SysReg {
            op0: field(OP0_SHIFT, 0b11),
            op1: field(OP1_SHIFT, 0b111),
            crn: field(CRN_SHIFT, 0xf),
            crm: field(CRM_SHIFT, 0xf),
            op2: field(OP2_SHIFT, 0b111),
        };
        Self { register, write: iss & READ == 0, rt: self::register(iss >> RT_SHIFT) }
    }

    fn encode(&self) -> u32 {
        let field = |value: u8, mask: u8, shift: u32| u32::from(value & mask) << shift;
        let SysReg { op0, op1, crn, crm, op2 } = self.register;
        field(op0, 0b11, OP0_SHIFT)
            | field(op1, 0b111, OP1_SHIFT)
            | field(crn, 0xf, CRN_SHIFT)
            | field(crm, 0xf, CRM_SHIFT)
            | field(op2, 0b111, OP2_SHIFT)
            | number(self.rt) << RT_SHIFT
            | flag(!self.write, READ)
    }
}

impl Wait {
    fn decode(iss: u32) -> Self {
        let until = if iss & RV != 0 { register(iss >> RN_SHIFT) } else { None };
        match (iss & TIMED != 0, iss & EVENT != 0) {
            (false, false) => Self::Interrupt,
            (false, true) => Self::Event,
            (true, false) => Self::InterruptUntil(until),
            (true, true) => Self::EventUntil(until),
        }
    }

    fn encode(&self) -> u32 {
        let until = |register| RV | TIMED | number(register) << RN_SHIFT;
        ALWAYS
            | match *self {
                Self::Interrupt => 0,
                Self::Event => EVENT,
                Self::InterruptUntil(register) => until(register),
                Self::EventUntil(register) => until(register) | EVENT,
            }
    }
}

/// XZR's number.
const ZERO_REGISTER: u8 = 31;

/// The register in the low five bits.
fn register(field: u32) -> Option<u8> {
    Some(field as u8 & 0x1f).filter(|&n| n != ZERO_REGISTER)
}

fn number(register: Option<u8>) -> u32 {
    u32::from(register.unwrap_or(ZERO_REGISTER)) & 0x1f
}

fn flag(set: bool, bit: u32) -> u32 {
    if set { bit } else { 0 }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mmio(MmioAccess { write: true, len, .. }) => write!(f, "a store of {len} bytes"),
            Self::Mmio(MmioAccess { len, .. }) => write!(f, "a load of {len} bytes"),
            Self::DataAbort(DataAbort { status, walk: true, .. }) => {
                write!(f, "page tables where no memory is, fault status {status:#x}")
            }
            Self::DataAbort(DataAbort { status, write, .. }) => {
                let what = if *write { "writes" } else { "reads" };
                write!(f, "an instruction that {what} in no simple way, fault status {status:#x}")
            }
            Self::InstructionAbort(status) => {
                write!(f, "execution where no memory is, fault status {status:#x}")
            }
            Self::Hvc(immediate) => write!(f, "HVC #{immediate}"),
            Self::Smc(immediate) => write!(f, "SMC #{immediate}"),
            Self::SysReg(SysRegAccess { register, write: true, .. }) => write!(f, "MSR {register}"),
            Self::SysReg(SysRegAccess { register, .. }) => write!(f, "MRS {register}"),
            Self::Wait(wait) => write!(f, "a wait: {wait:?}"),
            Self::Brk(immediate) => write!(f, "BRK #{immediate}"),
            Self::Forbidden(class) => write!(f, "an instruction of exception class {class:#x}"),
            Self::Other { class, iss } => write!(f, "exception class {class:#x}, ISS {iss:#x}"),
        }
    }
}
