//! Hypervisor.framework, the accelerator of macOS, on Apple silicon.
//!
//! macOS 15 or later: the interrupt controller, GICv3, is the framework's own. With it the framework delivers interrupts
//! and the virtual timer by itself and waits where a guest waits for an interrupt. Everything else that ends a run is
//! answered here, by the plain logic of [`arch::aarch64`](crate::arch::aarch64): accesses to devices, PSCI, trapped
//! registers. Doorbells are exits.
//!
//! A process has one machine at a time. A program that uses it must be signed with the entitlement
//! `com.apple.security.hypervisor`.
//!
//! The same code runs on arm64 Linux in tests, with `--cfg hyperkit_hvf_standin`: see `tests/hvf_standin`.

mod registers;
mod seat;
mod sys;
mod vcpu;
mod vm;

#[cfg(all(test, hyperkit_hvf_standin))]
use hvf_standin as _;

use super::{Accelerator, Error, VmSpec};

pub use vcpu::HvfVcpu;
pub use vm::HvfVm;

/// The host's Hypervisor.framework.
///
/// ```no_run
/// # fn main() -> Result<(), hyperkit::accel::Error> {
/// use hyperkit::accel::{Accelerator, VmSpec, hvf::Hvf};
/// let vm = Hvf.create_vm(&VmSpec::new(2))?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Hvf;

impl Accelerator for Hvf {
    type Vm = HvfVm;

    fn create_vm(&self, spec: &VmSpec) -> Result<HvfVm, Error> {
        HvfVm::new(spec)
    }
}
