//! Exceptions that a guest's kernel takes because of what only its hypervisor saw: the state of a processor at the
//! first instruction of its handler (Arm ARM, D1.3: exception entry, AArch64.TakeException).

use super::esr::{DataAbort, Exception};

#[cfg(test)]
mod tests;

/// What the guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The instruction is none that it has.
    Undefined,
    /// There is nothing where it reads or writes, or nothing that can be read or written so.
    Data {
        /// The virtual address.
        address: u64,
        /// Does it write?
        write: bool,
    },
    /// There is nothing where it executes.
    Instruction {
        /// The virtual address.
        address: u64,
    },
}

/// The processor as it was when the instruction failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// The failed instruction.
    pub pc: u64,
    /// PSTATE, as SPSR_EL1 has it.
    pub pstate: u64,
    /// VBAR_EL1.
    pub vbar: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
}

/// The registers that change; all others stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct After {
    /// The handler.
    pub pc: u64,
    /// PSTATE.
    pub pstate: u64,
    /// ELR_EL1.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1, if it changes.
    pub far: Option<u64>,
}

// PSTATE, as C5.2.19 (SPSR_EL1) has it.
const NZCV: u64 = 0xf << 28;
const TCO: u64 = 1 << 25;
const DIT: u64 = 1 << 24;
const PAN: u64 = 1 << 22;
const SSBS: u64 = 1 << 12;
/// D, A, I and F.
const MASKED: u64 = 0xf << 6;
const AARCH32: u64 = 1 << 4;
const EL_MASK: u64 = 0b11 << 2;
const EL1: u64 = 1 << 2;
/// The exception level's own stack pointer.
const SP_ELX: u64 = 1 << 0;

// SCTLR_EL1.
const SPAN: u64 = 1 << 23;
const DSSBS: u64 = 1 << 44;

// Where the synchronous exceptions are in the table of vectors (table D1-7).
const VBAR_MASK: u64 = !0x7ff;
const VECTOR_SP_EL0: u64 = 0x000;
const VECTOR_SP_ELX: u64 = 0x200;
const VECTOR_LOWER_AARCH64: u64 = 0x400;
const VECTOR_LOWER_AARCH32: u64 = 0x600;

// ESR_EL1. Classes of aborts are those from a lower exception level; from the same one it is the next.
const CLASS_SHIFT: u32 = 26;
const CLASS_UNKNOWN: u64 = 0x00;
const CLASS_INSTRUCTION_ABORT: u64 = 0x20;
const CLASS_DATA_ABORT: u64 = 0x24;
const IL: u64 = 1 << 25;
const WNR: u64 = 1 << 6;
/// Synchronous external abort, not on a walk of page tables: what a bus answers where nothing is.
const EXTERNAL_ABORT: u64 = 0x10;

impl Fault {
    /// What the guest is told of an exception that nobody can carry out for it; `None` if that is not for the guest.
    /// `address` is the virtual address in FAR_EL2.
    pub fn of(exception: &Exception, address: u64) -> Option<Self> {
        match *exception {
            Exception::Forbidden(_) => Some(Self::Undefined),
            Exception::DataAbort(DataAbort { cache_maintenance: true, .. }) => None,
            Exception::DataAbort(DataAbort { write, .. }) => Some(Self::Data { address, write }),
            Exception::InstructionAbort(_) => Some(Self::Instruction { address }),
            _ => None,
        }
    }

    /// The processor at the first instruction of the handler.
    pub fn enter(&self, before: &Before) -> After {
        let &Before { pc, pstate, vbar, sctlr } = before;
        let same_level = pstate & AARCH32 == 0 && pstate & EL_MASK != 0;
        let vector = match (same_level, pstate & SP_ELX != 0, pstate & AARCH32 != 0) {
            (true, true, _) => VECTOR_SP_ELX,
            (true, false, _) => VECTOR_SP_EL0,
            (false, _, false) => VECTOR_LOWER_AARCH64,
            (false, _, true) => VECTOR_LOWER_AARCH32,
        };
        let abort = |class: u64| (class + u64::from(same_level)) << CLASS_SHIFT | EXTERNAL_ABORT;
        let (syndrome, far) = match *self {
            Self::Undefined => (CLASS_UNKNOWN << CLASS_SHIFT, None),
            Self::Data { address, write } => {
                (abort(CLASS_DATA_ABORT) | if write { WNR } else { 0 }, Some(address))
            }
            Self::Instruction { address } => (abort(CLASS_INSTRUCTION_ABORT), Some(address)),
        };
        After {
            pc: (vbar & VBAR_MASK).wrapping_add(vector),
            pstate: handler_pstate(pstate, sctlr),
            elr: pc,
            spsr: pstate,
            esr: syndrome | IL,
            far,
        }
    }
}

/// PSTATE of a handler at EL1. On a processor without the feature behind a bit, the bit of SCTLR_EL1 is fixed to the
/// value that leaves it alone. TCO stays, which only a processor with memory tags would see.
fn handler_pstate(old: u64, sctlr: u64) -> u64 {
    let mut new = old & (NZCV | TCO | DIT | PAN) | MASKED | EL1 | SP_ELX;
    if sctlr & SPAN == 0 {
        new |= PAN;
    }
    if sctlr & DSSBS != 0 {
        new |= SSBS;
    }
    new
}
