//! The interrupt controller: `hv_gic_*` over KVM's vGICv3 (`Documentation/virt/kvm/devices/arm-vgic-v3.rst`).

use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::DeviceFd;

use crate::abi::*;
use crate::vm::{CALLS, MAX_VCPUS, Object, Vm, current};

/// Shared interrupts, by interrupt ID: as many as KVM has.
const SPIS: Range<u32> = 32..992;
/// Bytes of the distributor and the message frame, and what their addresses are multiples of.
const FRAME: usize = 64 << 10;
/// Bytes of a vCPU's redistributor: two frames.
const REDISTRIBUTOR: usize = 2 * FRAME;

// Registers of the distributor; the shared interrupts' parts of them, but for IROUTER, begin behind the private ones'.
const GICD_CTLR: u32 = 0x0000;
const GICD_ICENABLER: u32 = 0x0180;
const GICD_ISPENDR: u32 = 0x0200;
const GICD_ICACTIVER: u32 = 0x0380;
const GICD_IPRIORITYR: u32 = 0x0400;
const GICD_ICFGR: u32 = 0x0c00;
const GICD_IROUTER: u32 = 0x6000;
/// A redistributor's second frame, with the same registers for its private interrupts.
const SGI_BASE: u32 = 0x1_0000;

/// What `hv_gic_config_create` makes.
#[derive(Default, Clone)]
pub struct GicConfig {
    distributor: Option<u64>,
    redistributors: Option<u64>,
    message_frame: Option<u64>,
    messages: Range<u32>,
}

/// The machine's interrupt controller.
pub struct Gic {
    device: DeviceFd,
    redistributors: u64,
    messages: Range<u32>,
    /// Lines that were raised before KVM's device is initialised, or `None` once it is.
    early: Mutex<Option<Vec<u32>>>,
}

impl Gic {
    fn new(vm: &Vm, config: &GicConfig) -> Result<Self> {
        let (Some(distributor), Some(redistributors)) = (config.distributor, config.redistributors)
        else {
            return Err(HV_BAD_ARGUMENT);
        };
        let mut device =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 };
        let device = vm.fd.create_device(&mut device).map_err(refused("KVM_CREATE_DEVICE"))?;
        let gic = Self {
            device,
            redistributors,
            messages: config.messages.clone(),
            early: Mutex::new(Some(Vec::new())),
        };
        gic.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &SPIS.end)?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST.into(), &distributor)?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST.into(), &redistributors)?;
        Ok(gic)
    }

    fn set<T>(&self, group: u32, attr: u64, value: &T) -> Result {
        let attr = kvm_device_attr { group, attr, addr: value as *const T as u64, flags: 0 };
        let _calls = CALLS.lock();
        self.device.set_device_attr(&attr).map_err(refused("KVM_SET_DEVICE_ATTR"))
    }

    /// Before the first run: KVM initialises its device once all vCPUs are there.
    pub fn start(&self, vm: &Vm) -> Result {
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lines) = &*early else {
            return Ok(());
        };
        let attr = kvm_device_attr {
            group: KVM_DEV_ARM_VGIC_GRP_CTRL,
            attr: KVM_DEV_ARM_VGIC_CTRL_INIT.into(),
            addr: 0,
            flags: 0,
        };
        let calls = CALLS.lock();
        self.device.set_device_attr(&attr).map_err(refused("KVM_DEV_ARM_VGIC_CTRL_INIT"))?;
        drop(calls);
        for line in lines {
            inject(vm, *line, true)?;
        }
        *early = None;
        Ok(())
    }

    fn is_started(&self) -> bool {
        self.early.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn set_spi(&self, vm: &Vm, intid: u32, level: bool) -> Result {
        if !SPIS.contains(&intid) || self.messages.contains(&intid) {
            return Err(HV_BAD_ARGUMENT);
        }
        let mut early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lines) = &mut *early else {
            return inject(vm, intid, level);
        };
        lines.retain(|line| *line != intid);
        if level {
            lines.push(intid);
        }
        Ok(())
    }

    /// Back to the state after power-on. KVM has no call for that: every register is written.
    fn reset(&self, vm: &Vm) -> Result {
        if !self.is_started() {
            return Ok(());
        }
        let distributor =
            |at: u32, value: u32| self.set(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, at.into(), &value);
        distributor(GICD_CTLR, 0)?;
        for at in (4..128).step_by(4) {
            distributor(GICD_ICENABLER + at, u32::MAX)?;
            distributor(GICD_ISPENDR + at, 0)?;
            distributor(GICD_ICACTIVER + at, u32::MAX)?;
        }
        for intid in SPIS.step_by(4) {
            distributor(GICD_IPRIORITYR + intid, 0)?;
        }
        for intid in SPIS.step_by(16) {
            distributor(GICD_ICFGR + intid / 4, 0)?;
        }
        for intid in SPIS {
            distributor(GICD_IROUTER + 8 * intid, 0)?;
            distributor(GICD_IROUTER + 8 * intid + 4, 0)?;
        }
        let vcpus = vm.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        for vcpu in vcpus.iter().flatten() {
            let private =
                |at: u32, value: u32| self.set_redistributor(vcpu.affinity(), SGI_BASE + at, value);
            private(GICD_ICENABLER, u32::MAX)?;
            private(GICD_ISPENDR, 0)?;
            private(GICD_ICACTIVER, u32::MAX)?;
            for at in (0..32).step_by(4) {
                private(GICD_IPRIORITYR + at, 0)?;
            }
        }
        Ok(())
    }

    fn set_redistributor(&self, affinity: u32, at: u32, value: u32) -> Result {
        self.set(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, address(affinity, at), &value)
    }

    /// A register of a vCPU's interface. KVM lets nobody at it before its device is initialised, when it is as after
    /// power-on, nor while a vCPU runs; then it reads as zero and forgets what is written.
    pub fn get_interface(&self, affinity: u32, register: u16) -> Result<u64> {
        let mut value = 0_u64;
        if self.is_started() {
            let mut attr = kvm_device_attr {
                group: KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
                attr: address(affinity, register.into()),
                addr: &raw mut value as u64,
                flags: 0,
            };
            let _calls = CALLS.lock();
            // SAFETY: the kernel writes 8 bytes to `value`.
            match unsafe { self.device.get_device_attr(&mut attr) } {
                Err(error) if error.errno() != libc::EBUSY => {
                    return Err(refused("KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS")(error));
                }
                _ => {}
            }
        }
        Ok(value)
    }

    /// The same, written.
    pub fn set_interface(&self, affinity: u32, register: u16, value: u64) -> Result {
        if !self.is_started() {
            return if value == 0 { Ok(()) } else { Err(HV_UNSUPPORTED) };
        }
        let attr = kvm_device_attr {
            group: KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
            attr: address(affinity, register.into()),
            addr: &raw const value as u64,
            flags: 0,
        };
        let _calls = CALLS.lock();
        match self.device.set_device_attr(&attr) {
            Err(error) if error.errno() != libc::EBUSY => {
                Err(refused("KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS")(error))
            }
            _ => Ok(()),
        }
    }

    /// Where the redistributor of the `number`th vCPU is: KVM puts them side by side, in the order in which vCPUs are made.
    pub fn redistributor(&self, number: u64) -> u64 {
        self.redistributors + number * REDISTRIBUTOR as u64
    }
}

/// Where a vCPU's register is for KVM.
fn address(affinity: u32, register: u32) -> u64 {
    u64::from(affinity) << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT | u64::from(register)
}

fn inject(vm: &Vm, intid: u32, level: bool) -> Result {
    let line = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | intid;
    vm.fd.set_irq_line(line, level).map_err(refused("KVM_IRQ_LINE"))
}

/// Runs `set` on a configuration.
///
/// # Safety
/// As for [`Object::of`].
unsafe fn configure(config: *mut c_void, set: impl FnOnce(&mut GicConfig)) -> Answer {
    // SAFETY: the caller's promise.
    match unsafe { Object::of(config) } {
        Some(Object::Gic(config)) => set(config),
        _ => return HV_BAD_ARGUMENT,
    }
    HV_SUCCESS
}

/// Sets an address that is a multiple of a frame.
///
/// # Safety
/// As for [`Object::of`].
unsafe fn place(config: *mut c_void, at: u64, set: impl FnOnce(&mut GicConfig)) -> Answer {
    if !at.is_multiple_of(FRAME as u64) {
        return HV_BAD_ARGUMENT;
    }
    // SAFETY: the caller's promise.
    unsafe { configure(config, set) }
}

/// A configuration of an interrupt controller, for `os_release` to free.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_config_create() -> *mut c_void {
    Object::Gic(GicConfig::default()).into_pointer()
}

/// Where the distributor is.
///
/// # Safety
/// `config` is from `hv_gic_config_create`, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_config_set_distributor_base(
    config: *mut c_void,
    at: u64,
) -> Answer {
    // SAFETY: the caller's promise.
    unsafe { place(config, at, |config| config.distributor = Some(at)) }
}

/// Where the redistributors begin.
///
/// # Safety
/// `config` is from `hv_gic_config_create`, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_config_set_redistributor_base(
    config: *mut c_void,
    at: u64,
) -> Answer {
    // SAFETY: the caller's promise.
    unsafe { place(config, at, |config| config.redistributors = Some(at)) }
}

/// Where the frame for messages is.
///
/// # Safety
/// `config` is from `hv_gic_config_create`, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_config_set_msi_region_base(config: *mut c_void, at: u64) -> Answer {
    // SAFETY: the caller's promise.
    unsafe { place(config, at, |config| config.message_frame = Some(at)) }
}

/// Which interrupts are messages.
///
/// # Safety
/// `config` is from `hv_gic_config_create`, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_config_set_msi_interrupt_range(
    config: *mut c_void,
    first: u32,
    count: u32,
) -> Answer {
    let end = first.saturating_add(count);
    if first < SPIS.start || end > SPIS.end {
        return HV_BAD_ARGUMENT;
    }
    // SAFETY: the caller's promise.
    unsafe { configure(config, |config| config.messages = first..end) }
}

/// Bytes of the distributor.
///
/// # Safety
/// `bytes` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_distributor_size(bytes: *mut usize) -> Answer {
    // SAFETY: the caller's promise.
    unsafe { *bytes = FRAME };
    HV_SUCCESS
}

/// Bytes of all redistributors that there can be.
///
/// # Safety
/// `bytes` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_redistributor_region_size(bytes: *mut usize) -> Answer {
    // SAFETY: the caller's promise.
    unsafe { *bytes = REDISTRIBUTOR * MAX_VCPUS as usize };
    HV_SUCCESS
}

/// Bytes of the frame for messages.
///
/// # Safety
/// `bytes` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_msi_region_size(bytes: *mut usize) -> Answer {
    // SAFETY: the caller's promise.
    unsafe { *bytes = FRAME };
    HV_SUCCESS
}

/// Which interrupts are shared.
///
/// # Safety
/// Both can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_spi_interrupt_range(
    first: *mut u32,
    count: *mut u32,
) -> Answer {
    // SAFETY: the caller's promise.
    unsafe {
        *first = SPIS.start;
        *count = SPIS.end - SPIS.start;
    }
    HV_SUCCESS
}

/// Makes the interrupt controller of the machine, before its vCPUs.
///
/// # Safety
/// `config` is from `hv_gic_config_create`, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_create(config: *mut c_void) -> Answer {
    // SAFETY: the caller's promise.
    let Some(Object::Gic(config)) = (unsafe { Object::of(config) }) else {
        return HV_BAD_ARGUMENT;
    };
    let create = |vm: &Vm| {
        let vcpus = vm.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        if !vcpus.is_empty() || vm.gic.get().is_some() {
            return Err(HV_BUSY);
        }
        vm.gic.set(Gic::new(vm, config)?).map_err(|_| HV_BUSY)
    };
    answer(current().and_then(|vm| create(&vm)))
}

/// Resets it.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_reset() -> Answer {
    answer(current().and_then(|vm| vm.gic.get().ok_or(HV_NO_DEVICE)?.reset(&vm)))
}

/// Raises or lowers a shared interrupt.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_set_spi(intid: u32, level: bool) -> Answer {
    let set = |vm: &Vm| vm.gic.get().ok_or(HV_NO_DEVICE)?.set_spi(vm, intid, level);
    answer(current().and_then(|vm| set(&vm)))
}
