//! The registers a processor is started with, free of any accelerator's types.

/// PSTATE at the entry of a kernel: EL1 with its own stack pointer, and debug exceptions, SErrors, IRQs and FIQs
/// masked (`Documentation/arch/arm64/booting.rst`).
pub const PSTATE_EL1H_MASKED: u64 = 0x3c5;

/// A processor's state at the first instruction of a kernel: general registers, with the MMU and caches off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuState {
    /// X0 to X30.
    pub x: [u64; 31],
    /// SP_EL1.
    pub sp: u64,
    /// The next instruction.
    pub pc: u64,
    /// PSTATE, as SPSR_EL1 has it.
    pub pstate: u64,
}

impl Default for CpuState {
    fn default() -> Self {
        Self { x: [0; 31], sp: 0, pc: 0, pstate: PSTATE_EL1H_MASKED }
    }
}

impl CpuState {
    /// At the entry of a Linux kernel, with the address of the device tree in X0; or of any other code, with an
    /// argument, which is how PSCI's CPU_ON starts a processor.
    pub fn entry(pc: u64, x0: u64) -> Self {
        let mut state = Self { pc, ..Self::default() };
        state.x[0] = x0;
        state
    }
}
