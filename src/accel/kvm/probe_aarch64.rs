//! Whether this KVM can run an unmodified operating system. On arm64 there is none without hardware below it, so one
//! that makes a machine can.

use super::Kvm;
use crate::accel::{Accelerator, Error, VmSpec};

pub(super) fn probe(kvm: &Kvm) -> Result<(), Error> {
    kvm.create_vm(&VmSpec::new(1)).map(drop)
}
