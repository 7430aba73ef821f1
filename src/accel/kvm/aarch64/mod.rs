//! What is particular to KVM on arm64: processor state and the in-kernel interrupt controller.
//!
//! vCPUs are all made before the interrupt controller is brought up, and it before the first interrupt line is asked
//! for: the kernel will have it in no other order. PSCI, the timers and WFI are the kernel's.

mod gic;
mod regs;

use std::sync::{Mutex, PoisonError};

use kvm_bindings::*;
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use super::Kvm;
use crate::accel::{Controller, Error, Exit};
use crate::arch::CpuState;
use crate::arch::aarch64::layout;
use crate::memory::GuestRam;
use gic::Gic;

/// Interrupt lines of the machine: shared peripheral interrupts.
pub(super) const LINES: u32 = layout::LINES;

/// What this crate cannot do without, by the kernel's names, besides what every architecture has.
pub(super) const REQUIRED: &[(Cap, &str)] = &[
    (Cap::OneReg, "KVM_CAP_ONE_REG"),
    (Cap::ArmPsci02, "KVM_CAP_ARM_PSCI_0_2"),
    (Cap::DeviceCtrl, "KVM_CAP_DEVICE_CTRL"),
];

/// The vCPUs that wait for their threads, and the VM's own chips.
pub(super) struct Platform {
    init: kvm_vcpu_init,
    vcpus: Mutex<Vec<Option<VcpuFd>>>,
    gic: Gic,
}

impl Platform {
    pub fn new(_kvm: &Kvm, vm: &VmFd, cpus: u32) -> Result<Self, Error> {
        // What the guest does with registers in a way that the syndrome does not tell is for us to answer, not an error
        // of KVM_RUN. Kernels before 5.5 have it no other way.
        let cap = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() };
        if let Err(error) = vm.enable_cap(&cap) {
            log::debug!("KVM_CAP_ARM_NISV_TO_USER cannot be had: {error}");
        }
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init).map_err(super::call("KVM_ARM_PREFERRED_TARGET"))?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        let mut vcpus = Vec::new();
        for id in 0..cpus {
            let fd = vm.create_vcpu(id.into()).map_err(on_vcpu("KVM_CREATE_VCPU", id))?;
            initialise(&fd, init, id)?;
            vcpus.push(Some(fd));
        }
        let gic = Gic::create(vm, cpus)?;
        Ok(Self { init, vcpus: Mutex::new(vcpus), gic })
    }

    /// Hands out vCPU `id`.
    pub fn vcpu(&self, _vm: &VmFd, id: u32) -> Result<VcpuFd, Error> {
        let mut vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.get_mut(id as usize).and_then(Option::take).ok_or_else(|| {
            Error::Unsupported(format!("there is no vCPU {id}, or it was handed out before"))
        })
    }

    pub fn controller(&self) -> Controller {
        self.gic.controller()
    }

    pub fn reset(&self, _vm: &VmFd) -> Result<(), Error> {
        self.gic.reset()
    }

    pub fn prepare_vcpu(&self, _fd: &VcpuFd, _id: u32, _cpus: u32) -> Result<Pristine, Error> {
        Ok(Pristine { init: self.init })
    }
}

/// Puts a vCPU to its power-on state (KVM_ARM_VCPU_INIT). All but the first are off until the guest turns them on.
fn initialise(fd: &VcpuFd, mut init: kvm_vcpu_init, id: u32) -> Result<(), Error> {
    if id > 0 {
        init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    fd.vcpu_init(&init).map_err(on_vcpu("KVM_ARM_VCPU_INIT", id))
}

/// What brings a vCPU back to power-on: the kernel knows how.
pub(super) struct Pristine {
    init: kvm_vcpu_init,
}

impl Pristine {
    pub fn load(&self, fd: &VcpuFd, id: u32) -> Result<(), Error> {
        initialise(fd, self.init, id)
    }
}

fn on_vcpu(call: &'static str, id: u32) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |error| Error::Call { call, on: format!(" for vCPU {id}"), source: error.into() }
}

/// The number of an interrupt line for KVM_IRQ_LINE (`Documentation/virt/kvm/api.rst`, 4.25).
pub(super) fn irq(gsi: u32) -> u32 {
    KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (gic::FIRST_LINE + gsi)
}

/// An exit that is not the same on every architecture.
pub(super) fn other_exit(fd: &VcpuFd, reason: u32, vcpu: u32) -> Result<Option<Exit>, Error> {
    match reason {
        // A load or store of several registers, or one that writes its address back: no driver uses them on
        // registers. On a bus without anything behind it such an access is an external abort.
        KVM_EXIT_ARM_NISV => {
            let mut events = fd.get_vcpu_events().map_err(on_vcpu("KVM_GET_VCPU_EVENTS", vcpu))?;
            events.exception.ext_dabt_pending = 1;
            fd.set_vcpu_events(&events).map_err(on_vcpu("KVM_SET_VCPU_EVENTS", vcpu))?;
            Ok(None)
        }
        _ => Err(Error::UnexpectedExit { vcpu, reason }),
    }
}

/// Where the guest is; 0 if that cannot be had.
pub(super) fn program_counter(fd: &VcpuFd) -> u64 {
    regs::get(fd, regs::PC).unwrap_or(0)
}

/// The instruction at `pc`, if the MMU is off there or maps it to itself; empty if it cannot be had.
pub(super) fn instruction_at(_fd: &VcpuFd, ram: &GuestRam, pc: u64) -> Vec<u8> {
    ram.memory().read_obj::<[u8; 4]>(GuestAddress(pc)).map_or_else(|_| Vec::new(), Vec::from)
}

pub(super) fn set_state(fd: &VcpuFd, state: &CpuState, id: u32) -> Result<(), Error> {
    let general = (0..).zip(state.x).map(|(number, value)| (regs::x(number), value));
    let special = [(regs::SP_EL1, state.sp), (regs::PC, state.pc), (regs::PSTATE, state.pstate)];
    for (register, value) in general.chain(special) {
        regs::set(fd, register, value).map_err(on_vcpu("KVM_SET_ONE_REG", id))?;
    }
    Ok(())
}

pub(super) fn state(fd: &VcpuFd, id: u32) -> Result<CpuState, Error> {
    let get = |register| regs::get(fd, register).map_err(on_vcpu("KVM_GET_ONE_REG", id));
    let mut x = [0; 31];
    for (number, value) in (0..).zip(&mut x) {
        *value = get(regs::x(number))?;
    }
    Ok(CpuState { x, sp: get(regs::SP_EL1)?, pc: get(regs::PC)?, pstate: get(regs::PSTATE)? })
}
