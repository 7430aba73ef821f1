//! What this crate calls of Hypervisor.framework on Apple silicon, declared after Apple's headers.
//!
//! The values are those of `Hypervisor/hv_vm.h`, `hv_vm_config.h`, `hv_vcpu.h`, `hv_vcpu_types.h`, `hv_gic.h`,
//! `hv_gic_config.h`, `hv_gic_parameters.h`, `hv_gic_types.h` and `arm64/hv/hv_kern_types.h`. Everything is there from
//! macOS 11 on but `hv_vm_config_*` (13) and `hv_gic_*` (15).
//!
//! On Linux there is no framework: the library in `tests/hvf_standin` has functions of these names.

#![allow(non_camel_case_types)]

use std::ffi::c_void;

use crate::accel::hvf_error::hv_return_t;

/// A vCPU, good on the thread that made it and in `hv_vcpus_exit`.
pub type hv_vcpu_t = u64;
/// A guest-physical address.
pub type hv_ipa_t = u64;
/// A register of `hv_vcpu_get_reg`: 0 to 30 are X0 to X30.
pub type hv_reg_t = u32;
/// A system register: `op0 << 14 | op1 << 11 | CRn << 7 | CRm << 3 | op2`.
pub type hv_sys_reg_t = u16;

pub const HV_MEMORY_READ: u64 = 1 << 0;
pub const HV_MEMORY_WRITE: u64 = 1 << 1;
pub const HV_MEMORY_EXEC: u64 = 1 << 2;

pub const HV_REG_X0: hv_reg_t = 0;
pub const HV_REG_PC: hv_reg_t = 31;
pub const HV_REG_FPCR: hv_reg_t = 32;
pub const HV_REG_FPSR: hv_reg_t = 33;
pub const HV_REG_CPSR: hv_reg_t = 34;

/// `hv_vcpus_exit` was called.
pub const HV_EXIT_REASON_CANCELED: u32 = 0;
/// The guest trapped; the syndrome says how.
pub const HV_EXIT_REASON_EXCEPTION: u32 = 1;
/// The virtual timer is due, and masked until `hv_vcpu_set_vtimer_mask` lets it through again.
pub const HV_EXIT_REASON_VTIMER_ACTIVATED: u32 = 2;

/// Why `hv_vcpu_run` returned. The framework fills it in before it does.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct hv_vcpu_exit_t {
    pub reason: u32,
    pub exception: hv_vcpu_exit_exception_t,
}

/// The exception behind `HV_EXIT_REASON_EXCEPTION`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct hv_vcpu_exit_exception_t {
    /// As in ESR_EL2.
    pub syndrome: u64,
    /// As in FAR_EL2.
    pub virtual_address: u64,
    /// The guest-physical address, for aborts.
    pub physical_address: hv_ipa_t,
}

#[cfg_attr(target_os = "macos", link(name = "Hypervisor", kind = "framework"))]
unsafe extern "C" {
    pub fn hv_vm_get_max_vcpu_count(count: *mut u32) -> hv_return_t;
    pub fn hv_vm_config_create() -> *mut c_void;
    pub fn hv_vm_config_get_max_ipa_size(bits: *mut u32) -> hv_return_t;
    pub fn hv_vm_config_set_ipa_size(config: *mut c_void, bits: u32) -> hv_return_t;
    pub fn hv_vm_create(config: *mut c_void) -> hv_return_t;
    pub fn hv_vm_destroy() -> hv_return_t;
    pub fn hv_vm_map(host: *mut c_void, ipa: hv_ipa_t, len: usize, flags: u64) -> hv_return_t;

    pub fn hv_vcpu_create(
        vcpu: *mut hv_vcpu_t,
        exit: *mut *const hv_vcpu_exit_t,
        config: *mut c_void,
    ) -> hv_return_t;
    pub fn hv_vcpu_destroy(vcpu: hv_vcpu_t) -> hv_return_t;
    pub fn hv_vcpu_run(vcpu: hv_vcpu_t) -> hv_return_t;
    pub fn hv_vcpus_exit(vcpus: *const hv_vcpu_t, count: u32) -> hv_return_t;
    pub fn hv_vcpu_get_reg(vcpu: hv_vcpu_t, reg: hv_reg_t, value: *mut u64) -> hv_return_t;
    pub fn hv_vcpu_set_reg(vcpu: hv_vcpu_t, reg: hv_reg_t, value: u64) -> hv_return_t;
    pub fn hv_vcpu_get_sys_reg(vcpu: hv_vcpu_t, reg: hv_sys_reg_t, value: *mut u64) -> hv_return_t;
    pub fn hv_vcpu_set_sys_reg(vcpu: hv_vcpu_t, reg: hv_sys_reg_t, value: u64) -> hv_return_t;
    pub fn hv_vcpu_set_vtimer_mask(vcpu: hv_vcpu_t, masked: bool) -> hv_return_t;
    pub fn hv_vcpu_set_vtimer_offset(vcpu: hv_vcpu_t, offset: u64) -> hv_return_t;

    pub fn hv_gic_config_create() -> *mut c_void;
    pub fn hv_gic_config_set_distributor_base(config: *mut c_void, ipa: hv_ipa_t) -> hv_return_t;
    pub fn hv_gic_config_set_redistributor_base(config: *mut c_void, ipa: hv_ipa_t) -> hv_return_t;
    pub fn hv_gic_config_set_msi_region_base(config: *mut c_void, ipa: hv_ipa_t) -> hv_return_t;
    pub fn hv_gic_config_set_msi_interrupt_range(
        config: *mut c_void,
        first: u32,
        count: u32,
    ) -> hv_return_t;
    pub fn hv_gic_get_distributor_size(bytes: *mut usize) -> hv_return_t;
    pub fn hv_gic_get_redistributor_region_size(bytes: *mut usize) -> hv_return_t;
    pub fn hv_gic_get_msi_region_size(bytes: *mut usize) -> hv_return_t;
    pub fn hv_gic_get_spi_interrupt_range(first: *mut u32, count: *mut u32) -> hv_return_t;
    pub fn hv_gic_create(config: *mut c_void) -> hv_return_t;
    pub fn hv_gic_reset() -> hv_return_t;
    pub fn hv_gic_set_spi(intid: u32, level: bool) -> hv_return_t;
    pub fn hv_gic_get_icc_reg(vcpu: hv_vcpu_t, reg: hv_sys_reg_t, value: *mut u64) -> hv_return_t;
    pub fn hv_gic_set_icc_reg(vcpu: hv_vcpu_t, reg: hv_sys_reg_t, value: u64) -> hv_return_t;
    pub fn hv_gic_get_redistributor_base(vcpu: hv_vcpu_t, base: *mut hv_ipa_t) -> hv_return_t;

    /// Lets go of a configuration object (`os/object.h`, in libSystem).
    pub fn os_release(object: *mut c_void);
    /// The clock that the virtual counter counts (`mach/mach_time.h`, in libSystem).
    pub fn mach_absolute_time() -> u64;
}
