//! The framework's registers among KVM's (`KVM_GET_ONE_REG` in the kernel's `Documentation/virt/kvm/api.rst`).

use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U32, KVM_REG_SIZE_U64,
};
use kvm_ioctls::VcpuFd;

use crate::abi::{HV_BAD_ARGUMENT, REG_CPSR, REG_FPCR, REG_FPSR, REG_PC, Result, refused};
use crate::vm::CALLS;

/// A register of KVM's.
#[derive(Clone, Copy)]
pub struct Register(u64);

impl Register {
    pub const PC: Self = Self::core(0x40);

    /// One of `struct kvm_regs`, at so many times four bytes.
    const fn core(at: u64) -> Self {
        Self(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | at)
    }

    const fn core_word(at: u64) -> Self {
        Self(KVM_REG_ARM64 | KVM_REG_SIZE_U32 | KVM_REG_ARM_CORE as u64 | at)
    }

    /// X0 to X30.
    pub const fn general(number: u32) -> Self {
        Self::core(2 * number as u64)
    }

    /// The one that is `hv_reg_t` to the framework.
    pub fn of(register: u32) -> Result<Self> {
        Ok(match register {
            0..=30 => Self::general(register),
            REG_PC => Self::PC,
            REG_CPSR => Self::core(0x42),
            REG_FPSR => Self::core_word(0xd4),
            REG_FPCR => Self::core_word(0xd5),
            _ => return Err(HV_BAD_ARGUMENT),
        })
    }

    /// The one that is `hv_sys_reg_t`. The encodings agree, but for registers that KVM has elsewhere.
    pub fn of_system(register: u16) -> Self {
        match register {
            0xc208 => Self::core(0x3e),     // SP_EL0
            0xe208 => Self::core(0x44),     // SP_EL1
            0xc201 => Self::core(0x46),     // ELR_EL1
            0xc200 => Self::core(0x48),     // SPSR_EL1
            0xdf1a => Self::system(0xdf02), // CNTV_CVAL_EL0: KVM_REG_ARM_TIMER_CVAL
            _ => Self::system(register),
        }
    }

    /// The counter of the virtual timer, `KVM_REG_ARM_TIMER_CNT`: setting it sets the machine's offset.
    pub const fn counter() -> Self {
        Self::system(0xdf1a)
    }

    const fn system(encoding: u16) -> Self {
        Self(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | encoding as u64)
    }

    fn bytes(self) -> usize {
        kvm_ioctls::reg_size(self.0)
    }

    /// Its value; 0 if this processor has no such register.
    pub fn get(self, vcpu: &VcpuFd) -> Result<u64> {
        let mut value = [0; 8];
        let _calls = CALLS.lock();
        match vcpu.get_one_reg(self.0, &mut value[..self.bytes()]) {
            Err(error) if error.errno() != libc::ENOENT => Err(refused("KVM_GET_ONE_REG")(error)),
            _ => Ok(u64::from_le_bytes(value)),
        }
    }

    /// Sets it, if this processor has it.
    pub fn set(self, vcpu: &VcpuFd, value: u64) -> Result {
        let _calls = CALLS.lock();
        match vcpu.set_one_reg(self.0, &value.to_le_bytes()[..self.bytes()]) {
            Err(error) if error.errno() != libc::ENOENT => {
                eprintln!("hvf_standin: register {:#x} = {value:#x}", self.0);
                Err(refused("KVM_SET_ONE_REG")(error))
            }
            _ => Ok(()),
        }
    }
}
