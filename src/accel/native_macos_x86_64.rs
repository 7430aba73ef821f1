//! The host's own accelerator on a Mac with an Intel processor: none yet.
//!
//! Hypervisor.framework has VMX there, without an interrupt controller and without a decoder of instructions; both
//! would be this crate's. The rest of the crate works there: devices, disks, networks, the file server.

use super::{AccelVcpu, AccelVm, Accelerator, Doorbells, Error, Exit, ExitHandler, Interrupts};
use super::{Kicker, VcpuBinder, VmSpec};
use crate::arch::CpuState;
use crate::memory::GuestRam;

/// The host's own accelerator, which makes no machines: [`create_vm`](Accelerator::create_vm) says why.
#[derive(Debug, Clone, Copy, Default)]
pub struct Native;

/// A machine, or a vCPU, that cannot be.
#[derive(Debug)]
pub enum Never {}

impl Accelerator for Native {
    type Vm = Never;

    fn create_vm(&self, _: &VmSpec) -> Result<Never, Error> {
        Err(Error::Unavailable {
            what: "Hypervisor.framework".into(),
            why: "Macs with Intel processors are not supported yet".into(),
            hint: "use a Mac with Apple silicon, or Linux with KVM on this one".into(),
        })
    }
}

impl AccelVm for Never {
    type Vcpu = Never;

    fn map(&self, _: &GuestRam) -> Result<(), Error> {
        match *self {}
    }

    fn vcpu(&self, _: u32) -> Result<VcpuBinder<Never>, Error> {
        match *self {}
    }

    fn interrupts(&self) -> Option<&dyn Interrupts> {
        match *self {}
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        match *self {}
    }

    fn reset(&self) -> Result<(), Error> {
        match *self {}
    }
}

impl AccelVcpu for Never {
    fn run(&mut self, _: &mut impl ExitHandler) -> Result<Exit, Error> {
        match *self {}
    }

    fn kicker(&self) -> Kicker {
        match *self {}
    }

    fn reset(&mut self, _: Option<&CpuState>) -> Result<(), Error> {
        match *self {}
    }

    fn state(&self) -> Result<CpuState, Error> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intel_mac_says_what_it_lacks() {
        let error = Native.create_vm(&VmSpec::new(1)).unwrap_err().to_string();
        assert!(error.contains("Intel") && error.contains("Apple silicon"), "{error}");
    }
}
