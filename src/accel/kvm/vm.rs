//! A KVM virtual machine: memory slots, interrupt lines, doorbells.

use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::sync::{Arc, Mutex};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::vcpu::KvmVcpu;
use super::{Kvm, arch, call};
use crate::accel::{
    AccelVm, Controller, Doorbells, Error, Interrupts, IrqLine, VcpuBinder, VmSpec,
};
use crate::memory::GuestRam;
use crate::sys::Notifier;

/// A virtual machine of [`Kvm`].
pub struct KvmVm(Arc<Shared>);

pub(super) struct Shared {
    pub vm: VmFd,
    pub cpus: u32,
    pub irqchip: bool,
    pub platform: arch::Platform,
    /// Kept because the memory slots point into it; KVM reads instructions from it for error reports.
    pub ram: Mutex<Option<GuestRam>>,
}

impl KvmVm {
    pub(super) fn new(kvm: &Kvm, spec: &VmSpec) -> Result<Self, Error> {
        let limit = kvm.kvm.get_max_vcpus();
        if spec.cpus == 0 || spec.cpus as usize > limit {
            let cpus = spec.cpus;
            return Err(Error::Unsupported(format!(
                "cannot make a machine with {cpus} vCPUs: KVM on this host runs 1 to {limit}"
            )));
        }
        let vm = loop {
            match kvm.kvm.create_vm() {
                Err(error) if error.errno() == libc::EINTR => {}
                result => break result.map_err(call("KVM_CREATE_VM"))?,
            }
        };
        let platform = arch::Platform::new(kvm, &vm, spec.cpus)?;
        Ok(Self(Arc::new(Shared {
            vm,
            cpus: spec.cpus,
            irqchip: kvm.irqchip,
            platform,
            ram: Mutex::new(None),
        })))
    }
}

impl AccelVm for KvmVm {
    type Vcpu = KvmVcpu;

    fn map(&self, ram: &GuestRam) -> Result<(), Error> {
        for (slot, (gpa, host, len)) in ram.regions().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: gpa,
                memory_size: len,
                userspace_addr: host as u64,
            };
            // SAFETY: the region is mapped as long as `ram` or a copy lives, and a copy is kept below, in what
            // every vCPU of this machine holds on to.
            unsafe { self.0.vm.set_user_memory_region(region) }.map_err(|error| Error::Call {
                call: "KVM_SET_USER_MEMORY_REGION",
                on: format!(" for {len} bytes at {gpa:#x}"),
                source: error.into(),
            })?;
        }
        *self.0.ram.lock().unwrap() = Some(ram.clone());
        Ok(())
    }

    fn vcpu(&self, id: u32) -> Result<VcpuBinder<KvmVcpu>, Error> {
        let fd = self.0.platform.vcpu(&self.0.vm, id)?;
        let shared = self.0.clone();
        Ok(VcpuBinder::new(move || KvmVcpu::new(shared, fd, id)))
    }

    fn interrupts(&self) -> Option<&dyn Interrupts> {
        self.0.irqchip.then_some(self)
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        Some(self)
    }

    fn reset(&self) -> Result<(), Error> {
        self.0.platform.reset(&self.0.vm)
    }
}

impl Interrupts for KvmVm {
    fn controller(&self) -> Controller {
        self.0.platform.controller()
    }

    fn line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, Error> {
        if gsi >= arch::LINES {
            return Err(Error::Unsupported(format!(
                "there is no interrupt line {gsi}: KVM's interrupt controller has lines 0 to {}",
                arch::LINES - 1
            )));
        }
        let on = || format!(" for interrupt line {gsi}");
        let irqfd = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(|source| Error::Call { call: "eventfd", on: on(), source })?;
        self.0.vm.register_irqfd(&irqfd, gsi).map_err(|error| Error::Call {
            call: "KVM_IRQFD",
            on: on(),
            source: error.into(),
        })?;
        Ok(Arc::new(Line { shared: self.0.clone(), gsi, irqfd }))
    }
}

struct Line {
    shared: Arc<Shared>,
    gsi: u32,
    irqfd: EventFd,
}

impl IrqLine for Line {
    fn pulse(&self) {
        // Fails only if 2^64 - 2 edges are waiting.
        let _ = self.irqfd.write(1);
    }

    fn set_level(&self, high: bool) {
        if let Err(error) = self.shared.vm.set_irq_line(arch::irq(self.gsi), high) {
            log::error!("KVM_IRQ_LINE failed for interrupt line {}: {error}", self.gsi);
        }
    }
}

impl Doorbells for KvmVm {
    fn attach(&self, gpa: u64, value: u32, notifier: &Notifier) -> Result<(), Error> {
        let failed = |call, source| Error::Call { call, on: format!(" for {gpa:#x}"), source };
        let copy = notifier.as_fd().try_clone_to_owned().map_err(|e| failed("dup", e))?;
        // SAFETY: the descriptor is an eventfd, as every notifier on Linux, and owned by nobody else.
        let event = unsafe { EventFd::from_raw_fd(copy.into_raw_fd()) };
        self.0
            .vm
            .register_ioevent(&event, &IoEventAddress::Mmio(gpa), value)
            .map_err(|error| failed("KVM_IOEVENTFD", error.into()))
    }
}
