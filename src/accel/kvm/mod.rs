//! KVM, the accelerator of Linux.
//!
//! Registers, memory and interrupts go through the ioctls of the kernel's `Documentation/virt/kvm/api.rst`. The
//! interrupt controllers and the timer are KVM's own unless [`Kvm::without_irqchip`] is asked for, interrupts are
//! irqfds, doorbells are ioeventfds. No signal handler is installed: see `kick.rs`.

#[cfg(target_arch = "aarch64")]
#[path = "aarch64/mod.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod arch;
mod kick;
#[cfg(target_arch = "aarch64")]
#[path = "probe_aarch64.rs"]
mod probe;
#[cfg(target_arch = "x86_64")]
#[path = "probe_x86_64.rs"]
mod probe;
mod vcpu;
mod vm;

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

/// What this crate cannot do without on any architecture, by the kernel's names.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
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
        let mut required = REQUIRED.iter().chain(arch::REQUIRED);
        if let Some(&(_, capability)) = required.find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(Error::MissingCapability {
                accelerator: "KVM",
                capability,
                hint: "use Linux 4.14 or later, with KVM's default options",
            });
        }
        Ok(Self { kvm, irqchip: true })
    }

    /// Makes machines without KVM's interrupt controllers and timer (x86 only). A vCPU that halts then ends its run with
    /// [`Exit::Halted`](super::Exit::Halted).
    #[cfg(target_arch = "x86_64")]
    pub fn without_irqchip(mut self) -> Self {
        self.irqchip = false;
        self
    }

    /// Tells whether unmodified operating systems can run here.
    ///
    /// Some KVMs without hardware below them emulate what the guest's kernel does, and fail on instructions that
    /// every kernel uses. A guest of a few instructions finds out in milliseconds; the error names what failed.
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
