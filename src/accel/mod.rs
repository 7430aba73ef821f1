//! The accelerator traits: what the rest of the crate asks of a hypervisor, and nothing of any one of them.
//!
//! An [`Accelerator`] makes virtual machines ([`AccelVm`]), which map guest memory, hand out interrupts and vCPUs.
//! Four facts about the accelerators that exist shaped the traits:
//!
//! * On macOS a vCPU belongs to the thread that made it. So a VM gives out a [`VcpuBinder`], which is `Send`, and
//!   the thread that binds it gets the [`AccelVcpu`], which need not be.
//! * Not every accelerator can turn a register write into a wake-up by itself: [`AccelVm::doorbells`] may be `None`.
//! * Not every accelerator has an interrupt controller: [`AccelVm::interrupts`] is how devices reach whatever
//!   controller there is, in the kernel or in this process.
//! * Leaving a vCPU for every register access costs more than the access: [`AccelVcpu::run`] answers port and
//!   memory accesses through an [`ExitHandler`] and only returns for what ends or interrupts the run.

use std::sync::Arc;

use crate::arch::CpuState;
use crate::bus::Flow;
use crate::memory::GuestRam;
use crate::sys::Notifier;

#[cfg(any(all(target_os = "macos", target_arch = "aarch64"), hyperkit_hvf_standin))]
pub mod hvf;
// By itself, as it is tested on any host.
#[cfg(any(test, all(target_os = "macos", target_arch = "aarch64"), hyperkit_hvf_standin))]
#[path = "hvf/error.rs"]
mod hvf_error;
#[cfg(target_os = "linux")]
pub mod kvm;
#[cfg_attr(all(target_os = "linux", not(hyperkit_hvf_standin)), path = "native_linux.rs")]
#[cfg_attr(
    any(all(target_os = "macos", target_arch = "aarch64"), hyperkit_hvf_standin),
    path = "native_macos_aarch64.rs"
)]
#[cfg_attr(all(target_os = "macos", target_arch = "x86_64"), path = "native_macos_x86_64.rs")]
mod native;
pub mod scripted;

pub use native::Native;

/// What an accelerator needs to know before it makes a virtual machine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VmSpec {
    /// How many vCPUs it will have, at least 1.
    pub cpus: u32,
}

impl VmSpec {
    /// A machine with `cpus` vCPUs.
    pub fn new(cpus: u32) -> Self {
        Self { cpus }
    }
}

/// A hypervisor of the host.
pub trait Accelerator {
    /// The machines it makes.
    type Vm: AccelVm;

    /// Makes a virtual machine with no memory and no vCPUs yet.
    fn create_vm(&self, spec: &VmSpec) -> Result<Self::Vm, Error>;
}

/// A virtual machine of an accelerator: guest memory, interrupts, vCPUs.
pub trait AccelVm: Send + Sync + 'static {
    /// Its vCPUs.
    type Vcpu: AccelVcpu + 'static;

    /// Maps all of `ram` at its guest-physical addresses, and keeps it alive as long as the machine.
    fn map(&self, ram: &GuestRam) -> Result<(), Error>;

    /// Prepares vCPU `id` (0 boots the machine); [`VcpuBinder::bind`] on its thread finishes the work.
    fn vcpu(&self, id: u32) -> Result<VcpuBinder<Self::Vcpu>, Error>;

    /// The interrupt lines of the machine; `None` if it was made without an interrupt controller.
    fn interrupts(&self) -> Option<&dyn Interrupts>;

    /// Register writes that the accelerator turns into wake-ups by itself, if it can.
    fn doorbells(&self) -> Option<&dyn Doorbells>;

    /// Puts what the accelerator itself emulates (interrupt controllers, timers) back to its power-on state.
    /// No vCPU runs while it is called.
    fn reset(&self) -> Result<(), Error>;
}

/// A vCPU on its way to its thread.
pub struct VcpuBinder<V>(Box<dyn FnOnce() -> Result<V, Error> + Send>);

impl<V> VcpuBinder<V> {
    /// Wraps what makes the vCPU.
    pub fn new(bind: impl FnOnce() -> Result<V, Error> + Send + 'static) -> Self {
        Self(Box::new(bind))
    }

    /// Makes the vCPU. It lives on the calling thread from here on.
    pub fn bind(self) -> Result<V, Error> {
        (self.0)()
    }
}

/// A vCPU, on the thread it is bound to.
pub trait AccelVcpu {
    /// Runs guest code until something ends or interrupts the run, and answers every register access through `io`.
    ///
    /// When it returns, the instruction that led to the last access is complete: registers can be read, written
    /// and saved, and the next `run` goes on behind it.
    fn run(&mut self, io: &mut impl ExitHandler) -> Result<Exit, Error>;

    /// A handle that makes `run` return from any thread.
    fn kicker(&self) -> Kicker;

    /// Puts the vCPU back to its power-on state, then into `state`; with `None` it waits until another vCPU
    /// starts it, as application processors do.
    fn reset(&mut self, state: Option<&CpuState>) -> Result<(), Error>;

    /// The state that [`reset`](Self::reset) sets, as it is now.
    fn state(&self) -> Result<CpuState, Error>;
}

/// Makes a vCPU's `run` return [`Exit::Interrupted`].
///
/// A kick cannot be lost: if the vCPU is not running, its next `run` returns at once. Kicks that come before that
/// return count as one. A kick after the vCPU has gone does nothing.
#[derive(Clone)]
pub struct Kicker(Arc<dyn Fn() + Send + Sync>);

impl Kicker {
    /// Wraps what does the kicking.
    pub fn new(kick: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(kick))
    }

    /// Kicks the vCPU.
    pub fn kick(&self) {
        (self.0)()
    }
}

/// What answers a vCPU's register accesses: the bus, or a test.
///
/// `data` is 1 to 8 bytes, little-endian, one element at a time also for string instructions. A write that breaks
/// makes `run` return that exit.
pub trait ExitHandler {
    /// `in`: fills `data` from `port`.
    fn pio_read(&mut self, port: u16, data: &mut [u8]);
    /// `out`: writes `data` to `port`.
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Flow;
    /// A load from guest-physical address `gpa`, which no memory backs.
    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]);
    /// A store to guest-physical address `gpa`, which no memory backs.
    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow;
}

/// Why [`AccelVcpu::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// The vCPU halted, and the accelerator has no interrupt controller that could wake it.
    Halted,
    /// The guest turned the machine off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest crashed so that a processor resets: a triple fault on x86, a crash event on others.
    Crashed,
    /// [`Kicker::kick`] was called.
    Interrupted,
}

/// The kind of a machine's interrupt controller, which the guest has to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Controller {
    /// An I/O APIC and local APICs, beside the PC's older ones (x86).
    Apic,
    /// An Arm GIC of version 2 (IHI 0048).
    GicV2,
    /// An Arm GIC of version 3, with a redistributor for each vCPU (IHI 0069).
    GicV3,
}

/// The machine's interrupt lines.
pub trait Interrupts: Send + Sync {
    /// What they lead to.
    fn controller(&self) -> Controller;

    /// The line with global system interrupt number `gsi`.
    fn line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, Error>;
}

/// One interrupt line. Use it as an edge or as a level, not both.
pub trait IrqLine: Send + Sync {
    /// Sends one edge: the line goes up and down again.
    fn pulse(&self);
    /// Holds the line up, or lets it down.
    fn set_level(&self, high: bool);
}

/// Register writes that wake a device without leaving the accelerator.
pub trait Doorbells: Send + Sync {
    /// From now on a 4-byte write of `value` at guest-physical address `gpa` only notifies `notifier`: no vCPU
    /// leaves [`AccelVcpu::run`] for it.
    fn attach(&self, gpa: u64, value: u32, notifier: &Notifier) -> Result<(), Error>;
}

/// What went wrong in an accelerator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host has no usable accelerator.
    #[error("cannot use {what}: {why}; {hint}")]
    Unavailable {
        /// What was tried, such as `/dev/kvm`.
        what: String,
        /// What it answered.
        why: String,
        /// What to do.
        hint: String,
    },
    /// The accelerator lacks something this crate cannot do without.
    #[error("{accelerator} lacks {capability}; {hint}")]
    MissingCapability {
        /// Which accelerator.
        accelerator: &'static str,
        /// The capability, by the accelerator's own name for it.
        capability: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A call into the accelerator failed.
    #[error("{call} failed{on}: {source}")]
    Call {
        /// The call, by its name in the accelerator's documentation.
        call: &'static str,
        /// What it was about (" for vCPU 1"), or nothing.
        on: String,
        /// What it answered.
        source: std::io::Error,
    },
    /// The processor refused the guest state (KVM_EXIT_FAIL_ENTRY).
    #[error("the processor refused to enter the guest on vCPU {vcpu}: hardware reason {reason:#x}")]
    FailEntry {
        /// Which vCPU.
        vcpu: u32,
        /// `hardware_entry_failure_reason`.
        reason: u64,
    },
    /// The accelerator gave up (KVM_EXIT_INTERNAL_ERROR).
    #[error(
        "the accelerator gave up on vCPU {vcpu} at PC {pc:#x}, instruction bytes {bytes:02x?}: {reason}"
    )]
    Internal {
        /// Which vCPU.
        vcpu: u32,
        /// What kind of failure.
        reason: String,
        /// Where the guest was.
        pc: u64,
        /// The instruction there, as far as it is known.
        bytes: Vec<u8>,
    },
    /// An exit that this crate never asked for.
    #[error("vCPU {vcpu} left the guest for a reason that is not handled: {reason}")]
    UnexpectedExit {
        /// Which vCPU.
        vcpu: u32,
        /// The exit, by number.
        reason: u32,
    },
    /// Something that the caller asked for and this accelerator or host cannot do.
    #[error("{0}")]
    Unsupported(String),
}
