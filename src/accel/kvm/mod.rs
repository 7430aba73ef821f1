//! KVM, the accelerator of Linux.
//!
//! Registers, memory and interrupts go through the ioctls of the kernel's `Documentation/virt/kvm/api.rst`. The
//! interrupt controllers and the timer are KVM's own unless [`Kvm::without_irqchip`] is asked for, interrupts are
//! irqfds, doorbells are ioeventfds. No signal handler is installed: see `kick.rs`.

mod kick;
#[cfg(target_arch = "x86_64")]
mod probe;
mod vcpu;
mod vm;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::io;

use kvm_ioctls::Cap;

use super::{Accelerator, Error, VmSpec};

pub use vcpu::KvmVcpu;
pub use vm::KvmVm;

const DEVICE: &str = "/dev/kvm";

/// The host's KVM.
///
/// ```no_run
/// # fn main() -> Result<(), hyperkit::accel::Error> {
/// let kvm = hyperkit::accel::kvm::Kvm::open()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Kvm {
    kvm: kvm_ioctls::Kvm,
    irqchip: bool,
}

/// What this crate cannot do without, by the kernel's names.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    #[cfg(target_arch = "x86_64")]
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    #[cfg(target_arch = "x86_64")]
    (Cap::Pit2, "KVM_CAP_PIT2"),
    #[cfg(target_arch = "x86_64")]
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    #[cfg(target_arch = "x86_64")]
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    #[cfg(target_arch = "x86_64")]
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    #[cfg(target_arch = "x86_64")]
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    #[cfg(target_arch = "x86_64")]
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    #[cfg(target_arch = "x86_64")]
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    #[cfg(target_arch = "x86_64")]
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
];

impl Kvm {
    /// Opens `/dev/kvm` and checks that it can do what is needed.
    pub fn open() -> Result<Self, Error> {
        let kvm = kvm_ioctls::Kvm::new().map_err(|error| unavailable(error.into()))?;
        match kvm.get_api_version() {
            12 => {}
            version => {
                return Err(Error::Unavailable {
                    what: DEVICE.into(),
                    why: format!("it speaks version {version} of the KVM API, not 12"),
                    hint: "use Linux 4.14 or later".into(),
                });
            }
        }
        if let Some(&(_, capability)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap))
        {
            return Err(Error::MissingCapability {
                accelerator: "KVM",
                capability,
                hint: "use Linux 4.14 or later, with KVM's default options",
            });
        }
        Ok(Self { kvm, irqchip: true })
    }

    /// Makes machines without KVM's interrupt controllers and timer. A vCPU that halts then ends its run with
    /// [`Exit::Halted`](super::Exit::Halted).
    pub fn without_irqchip(mut self) -> Self {
        self.irqchip = false;
        self
    }

    /// Tells whether unmodified operating systems can run here.
    ///
    /// Some KVMs without hardware below them emulate what the guest's kernel does, and fail on instructions that
    /// every kernel uses. A guest of a few instructions finds out in milliseconds; the error names what failed.
    #[cfg(target_arch = "x86_64")]
    pub fn probe(&self) -> Result<(), Error> {
        probe::probe(self)
    }
}

impl Accelerator for Kvm {
    type Vm = KvmVm;

    fn create_vm(&self, spec: &VmSpec) -> Result<KvmVm, Error> {
        KvmVm::new(self, spec)
    }
}

fn unavailable(source: io::Error) -> Error {
    let hint = match source.kind() {
        io::ErrorKind::NotFound => {
            "load the kvm_intel or kvm_amd module, enable virtualization in the firmware, or, in a virtual \
             machine, nested virtualization on its host"
        }
        io::ErrorKind::PermissionDenied => {
            "add your user to the group that owns it (usually `usermod -aG kvm $USER`) and log in again"
        }
        _ => "check that it is KVM's device node",
    };
    Error::Unavailable { what: DEVICE.into(), why: source.to_string(), hint: hint.into() }
}

/// Turns the error of an ioctl into ours.
fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |error| Error::Call { call, on: String::new(), source: error.into() }
}
