//! The host's own accelerator on Linux: KVM.

use super::kvm::{Kvm, KvmVm};
use super::{Accelerator, Error, VmSpec};

/// The host's own accelerator, opened when a machine is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Native;

impl Accelerator for Native {
    type Vm = KvmVm;

    fn create_vm(&self, spec: &VmSpec) -> Result<KvmVm, Error> {
        Kvm::open()?.create_vm(spec)
    }
}
