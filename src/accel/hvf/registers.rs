//! A vCPU's registers, and how they are when it is new.

use std::marker::PhantomData;

use super::sys::*;
use crate::accel::Error;
use crate::accel::hvf_error::{check, hv_return_t};
use crate::arch::CpuState;
use crate::arch::aarch64::sysreg::{GIC_INTERFACE, SysReg};

/// A vCPU of the framework, on its thread.
pub struct Handle {
    vcpu: hv_vcpu_t,
    exit: *const hv_vcpu_exit_t,
    id: u32,
    /// The framework takes calls from the thread that made the vCPU, and from no other.
    _bound: PhantomData<*const ()>,
}

impl Handle {
    /// Makes vCPU number `id` of the machine, on the calling thread.
    pub fn new(id: u32) -> Result<Self, Error> {
        let (mut vcpu, mut exit) = (0, std::ptr::null());
        // SAFETY: the call writes the two; without a configuration the vCPU is as the framework likes it best.
        let answer = unsafe { hv_vcpu_create(&mut vcpu, &mut exit, std::ptr::null_mut()) };
        check(answer, "hv_vcpu_create", || format!(" for vCPU {id}"))?;
        Ok(Self { vcpu, exit, id, _bound: PhantomData })
    }

    /// What `hv_vcpus_exit` knows it by.
    pub fn vcpu(&self) -> hv_vcpu_t {
        self.vcpu
    }

    /// Runs guest code, and tells why that ended.
    #[inline]
    pub fn run(&mut self) -> Result<hv_vcpu_exit_t, Error> {
        // SAFETY: guest memory that the run writes is only accessed volatilely.
        self.check(unsafe { hv_vcpu_run(self.vcpu) }, "hv_vcpu_run")?;
        // SAFETY: the framework's structure for this vCPU, filled in before the call returned.
        Ok(unsafe { self.exit.read() })
    }

    /// A register, by its number in `hv_reg_t`.
    #[inline]
    pub fn get(&self, register: hv_reg_t) -> Result<u64, Error> {
        let mut value = 0;
        // SAFETY: the call writes the value.
        let answer = unsafe { hv_vcpu_get_reg(self.vcpu, register, &mut value) };
        self.check(answer, "hv_vcpu_get_reg").map(|()| value)
    }

    /// Sets a register.
    #[inline]
    pub fn set(&mut self, register: hv_reg_t, value: u64) -> Result<(), Error> {
        // SAFETY: a register of the guest's is no concern of this process's memory.
        let answer = unsafe { hv_vcpu_set_reg(self.vcpu, register, value) };
        self.check(answer, "hv_vcpu_set_reg")
    }

    /// A system register.
    pub fn get_system(&self, register: SysReg) -> Result<u64, Error> {
        let mut value = 0;
        // SAFETY: the call writes the value.
        let answer = unsafe { hv_vcpu_get_sys_reg(self.vcpu, register.pack(), &mut value) };
        let on = || format!(" for {register} of vCPU {}", self.id);
        check(answer, "hv_vcpu_get_sys_reg", on).map(|()| value)
    }

    /// Sets a system register.
    pub fn set_system(&mut self, register: SysReg, value: u64) -> Result<(), Error> {
        // SAFETY: as for `set`.
        let answer = unsafe { hv_vcpu_set_sys_reg(self.vcpu, register.pack(), value) };
        let on = || format!(" for {register} = {value:#x} of vCPU {}", self.id);
        check(answer, "hv_vcpu_set_sys_reg", on)
    }

    /// A register of the interface to the interrupt controller.
    fn get_interface(&self, register: SysReg) -> Result<u64, Error> {
        let mut value = 0;
        // SAFETY: the call writes the value.
        let answer = unsafe { hv_gic_get_icc_reg(self.vcpu, register.pack(), &mut value) };
        let on = || format!(" for {register} of vCPU {}", self.id);
        check(answer, "hv_gic_get_icc_reg", on).map(|()| value)
    }

    /// Sets a register of the interface to the interrupt controller.
    fn set_interface(&mut self, register: SysReg, value: u64) -> Result<(), Error> {
        // SAFETY: as for `set`.
        let answer = unsafe { hv_gic_set_icc_reg(self.vcpu, register.pack(), value) };
        let on = || format!(" for {register} of vCPU {}", self.id);
        check(answer, "hv_gic_set_icc_reg", on)
    }

    /// Where the vCPU's redistributor is. It has a place once MPIDR_EL1 was set.
    pub fn redistributor(&self) -> Result<u64, Error> {
        let mut base = 0;
        // SAFETY: the call writes the address.
        let answer = unsafe { hv_gic_get_redistributor_base(self.vcpu, &mut base) };
        self.check(answer, "hv_gic_get_redistributor_base").map(|()| base)
    }

    /// Lets the virtual timer through, which an exit of its own has masked.
    pub fn unmask_timer(&mut self) -> Result<(), Error> {
        // SAFETY: as for `set`.
        let answer = unsafe { hv_vcpu_set_vtimer_mask(self.vcpu, false) };
        self.check(answer, "hv_vcpu_set_vtimer_mask")
    }

    /// Has the guest count as the host does: the same on every vCPU, as kernels expect.
    pub fn count_as_host(&mut self) -> Result<(), Error> {
        // SAFETY: as for `set`.
        let answer = unsafe { hv_vcpu_set_vtimer_offset(self.vcpu, 0) };
        self.check(answer, "hv_vcpu_set_vtimer_offset")
    }

    /// Moves the program counter on.
    #[inline]
    pub fn advance(&mut self, bytes: u64) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        let pc = self.get(HV_REG_PC)?;
        self.set(HV_REG_PC, pc.wrapping_add(bytes))
    }

    fn check(&self, answer: hv_return_t, call: &'static str) -> Result<(), Error> {
        check(answer, call, || format!(" on vCPU {}", self.id))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: this is the thread of the vCPU, and nothing uses it or its exit structure any more.
        if let Err(error) = self.check(unsafe { hv_vcpu_destroy(self.vcpu) }, "hv_vcpu_destroy") {
            log::error!("{error}");
        }
    }
}

/// The counter that an offset of zero makes the guest's virtual counter.
pub fn host_count() -> u64 {
    // SAFETY: the function has no conditions.
    unsafe { mach_absolute_time() }
}

/// How often it counts in a second.
pub fn host_frequency() -> u64 {
    let hertz: u64;
    // SAFETY: every program can read the register.
    unsafe {
        std::arch::asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack, preserves_flags));
    }
    hertz
}

// System registers by name (Arm ARM, D24).
pub const MPIDR_EL1: SysReg = SysReg::new(3, 0, 0, 0, 5);
pub const ID_AA64PFR0_EL1: SysReg = SysReg::new(3, 0, 0, 4, 0);
pub const SCTLR_EL1: SysReg = SysReg::new(3, 0, 1, 0, 0);
pub const SPSR_EL1: SysReg = SysReg::new(3, 0, 4, 0, 0);
pub const ELR_EL1: SysReg = SysReg::new(3, 0, 4, 0, 1);
pub const ESR_EL1: SysReg = SysReg::new(3, 0, 5, 2, 0);
pub const FAR_EL1: SysReg = SysReg::new(3, 0, 6, 0, 0);
pub const VBAR_EL1: SysReg = SysReg::new(3, 0, 12, 0, 0);
pub const CNTV_CTL_EL0: SysReg = SysReg::new(3, 3, 14, 3, 1);
pub const CNTV_CVAL_EL0: SysReg = SysReg::new(3, 3, 14, 3, 2);
const SP_EL1: SysReg = SysReg::new(3, 4, 4, 1, 0);

/// What a reset puts back beside the general registers: all system registers of EL0 and EL1 that the framework has, but for
/// identification, debug registers (which MDSCR_EL1 turns off) and CNTP_TVAL_EL0, which is CNTP_CVAL_EL0 seen otherwise.
/// Of vector registers nothing is said at a start, nor of what SME adds to PSTATE. Some are there from macOS 15.2 on.
const SYSTEM: &[SysReg] = &[
    SysReg::new(2, 0, 0, 2, 0), // MDCCINT_EL1
    SysReg::new(2, 0, 0, 2, 2), // MDSCR_EL1
    SCTLR_EL1,
    SysReg::new(3, 0, 1, 0, 1), // ACTLR_EL1, of which the framework has EnTSO
    SysReg::new(3, 0, 1, 0, 2), // CPACR_EL1
    SysReg::new(3, 0, 1, 2, 4), // SMPRI_EL1
    SysReg::new(3, 0, 1, 2, 6), // SMCR_EL1
    SysReg::new(3, 0, 2, 0, 0), // TTBR0_EL1
    SysReg::new(3, 0, 2, 0, 1), // TTBR1_EL1
    SysReg::new(3, 0, 2, 0, 2), // TCR_EL1
    SysReg::new(3, 0, 2, 1, 0), // APIAKeyLo_EL1
    SysReg::new(3, 0, 2, 1, 1), // APIAKeyHi_EL1
    SysReg::new(3, 0, 2, 1, 2), // APIBKeyLo_EL1
    SysReg::new(3, 0, 2, 1, 3), // APIBKeyHi_EL1
    SysReg::new(3, 0, 2, 2, 0), // APDAKeyLo_EL1
    SysReg::new(3, 0, 2, 2, 1), // APDAKeyHi_EL1
    SysReg::new(3, 0, 2, 2, 2), // APDBKeyLo_EL1
    SysReg::new(3, 0, 2, 2, 3), // APDBKeyHi_EL1
    SysReg::new(3, 0, 2, 3, 0), // APGAKeyLo_EL1
    SysReg::new(3, 0, 2, 3, 1), // APGAKeyHi_EL1
    SPSR_EL1,
    ELR_EL1,
    SysReg::new(3, 0, 4, 1, 0), // SP_EL0
    SysReg::new(3, 0, 5, 1, 0), // AFSR0_EL1
    SysReg::new(3, 0, 5, 1, 1), // AFSR1_EL1
    ESR_EL1,
    FAR_EL1,
    SysReg::new(3, 0, 7, 4, 0),  // PAR_EL1
    SysReg::new(3, 0, 10, 2, 0), // MAIR_EL1
    SysReg::new(3, 0, 10, 3, 0), // AMAIR_EL1
    VBAR_EL1,
    SysReg::new(3, 0, 13, 0, 1), // CONTEXTIDR_EL1
    SysReg::new(3, 0, 13, 0, 4), // TPIDR_EL1
    SysReg::new(3, 0, 13, 0, 7), // SCXTNUM_EL1
    SysReg::new(3, 0, 14, 1, 0), // CNTKCTL_EL1
    SysReg::new(3, 2, 0, 0, 0),  // CSSELR_EL1
    SysReg::new(3, 3, 13, 0, 2), // TPIDR_EL0
    SysReg::new(3, 3, 13, 0, 3), // TPIDRRO_EL0
    SysReg::new(3, 3, 13, 0, 5), // TPIDR2_EL0
    SysReg::new(3, 3, 13, 0, 7), // SCXTNUM_EL0
    SysReg::new(3, 3, 14, 2, 1), // CNTP_CTL_EL0
    SysReg::new(3, 3, 14, 2, 2), // CNTP_CVAL_EL0
    CNTV_CTL_EL0,
    CNTV_CVAL_EL0,
];

/// The registers of a vCPU that is new. The framework has no call that resets one, and only it knows what its own
/// registers are at first.
pub struct Pristine {
    system: Vec<(SysReg, u64)>,
    interface: Vec<(SysReg, u64)>,
    control: [(hv_reg_t, u64); 2],
}

impl Pristine {
    /// Remembers the registers of a new vCPU. One that this version of macOS does not show is left alone.
    pub fn of(handle: &Handle) -> Result<Self, Error> {
        let known = |register: SysReg, value: Result<u64, Error>| match value {
            Ok(value) => Some((register, value)),
            Err(error) => {
                log::debug!("{error}");
                None
            }
        };
        let system = SYSTEM.iter().filter_map(|&it| known(it, handle.get_system(it)));
        let interface = GIC_INTERFACE.iter().filter_map(|&it| known(it, handle.get_interface(it)));
        Ok(Self {
            system: system.collect(),
            interface: interface.collect(),
            control: [
                (HV_REG_FPCR, handle.get(HV_REG_FPCR)?),
                (HV_REG_FPSR, handle.get(HV_REG_FPSR)?),
            ],
        })
    }

    /// Makes `handle` as new, then puts it into `state`. What is as new already is not touched.
    pub fn load(&self, handle: &mut Handle, state: &CpuState) -> Result<(), Error> {
        for &(register, value) in &self.system {
            if handle.get_system(register)? != value {
                handle.set_system(register, value)?;
            }
        }
        for &(register, value) in &self.interface {
            if handle.get_interface(register)? != value {
                handle.set_interface(register, value)?;
            }
        }
        for &(register, value) in &self.control {
            handle.set(register, value)?;
        }
        for (register, &value) in (HV_REG_X0..).zip(&state.x) {
            handle.set(register, value)?;
        }
        handle.set_system(SP_EL1, state.sp)?;
        handle.set(HV_REG_CPSR, state.pstate)?;
        handle.set(HV_REG_PC, state.pc)
    }
}

/// What [`Pristine::load`] sets, as it is now.
pub fn state(handle: &Handle) -> Result<CpuState, Error> {
    let mut state = CpuState {
        sp: handle.get_system(SP_EL1)?,
        pc: handle.get(HV_REG_PC)?,
        pstate: handle.get(HV_REG_CPSR)?,
        ..CpuState::default()
    };
    for (register, value) in (HV_REG_X0..).zip(&mut state.x) {
        *value = handle.get(register)?;
    }
    Ok(state)
}
