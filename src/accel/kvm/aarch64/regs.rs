//! The core registers as KVM_GET_ONE_REG and KVM_SET_ONE_REG number them: by their place in `struct kvm_regs`, in
//! words of 32 bits (`Documentation/virt/kvm/api.rst`, 4.68).

use std::mem::offset_of;

use kvm_bindings::*;
use kvm_ioctls::VcpuFd;

const fn core(offset: usize) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / size_of::<u32>()) as u64
}

const PSTATE_OFFSET: usize = offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, pstate);
const PC_OFFSET: usize = offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, pc);

/// The next instruction.
pub(super) const PC: u64 = core(PC_OFFSET);
/// PSTATE, as SPSR_EL1 has it.
pub(super) const PSTATE: u64 = core(PSTATE_OFFSET);
/// The stack pointer of EL1.
pub(super) const SP_EL1: u64 = core(offset_of!(kvm_regs, sp_el1));

/// General register X0 to X30.
pub(super) const fn x(number: usize) -> u64 {
    let registers = offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, regs);
    core(registers + number * size_of::<u64>())
}

pub(super) fn get(fd: &VcpuFd, register: u64) -> Result<u64, kvm_ioctls::Error> {
    let mut bytes = [0; 8];
    fd.get_one_reg(register, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

pub(super) fn set(fd: &VcpuFd, register: u64, value: u64) -> Result<(), kvm_ioctls::Error> {
    fd.set_one_reg(register, &value.to_le_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that every user of KVM on arm64 has compiled in.
    #[test]
    fn registers_have_the_numbers_that_the_kernel_gave_them() {
        assert_eq!(x(0), 0x6030_0000_0010_0000);
        assert_eq!(x(30), 0x6030_0000_0010_003c);
        assert_eq!(PC, 0x6030_0000_0010_0040);
        assert_eq!(PSTATE, 0x6030_0000_0010_0042);
        assert_eq!(SP_EL1, 0x6030_0000_0010_0044);
    }
}
