//! Building a machine, starting it, and holding on to it while it runs.
//!
//! [`Vm::builder`] collects a configuration; [`VmBuilder::build`] checks it whole, opens what it names and puts the
//! machine together; [`Vm::start`] gives the [`Running`] machine.
//!
//! A supervisor's thread carries out pauses, resets and the end. Each vCPU has a thread, and so have each virtio
//! device, each console with a terminal, a file or a `Read` behind it, and each of these `Read`s and `Write`s. Further
//! ones come when there is work for them: a clock's, once the guest sets an alarm; those of a disk or a share, for
//! requests that take time. The names of all of them begin with `hk-`.

mod assemble;
#[cfg(target_arch = "aarch64")]
#[path = "board_aarch64.rs"]
mod board;
#[cfg(target_arch = "x86_64")]
#[path = "board_x86_64.rs"]
mod board;
mod builder;
mod control;
mod error;
mod parts;
mod running;

use std::fmt;

pub use builder::{OnReset, VmBuilder};
pub use error::Error;
pub use running::Running;

use assemble::Startable;

/// A machine that has been built and not started.
pub struct Vm(Box<dyn Startable>);

impl Vm {
    /// A machine with one vCPU, 512 MiB of memory, an entropy device, and nothing else.
    pub fn builder() -> VmBuilder {
        VmBuilder::default()
    }

    /// Loads the kernel and starts the vCPUs.
    pub fn start(self) -> Result<Running, Error> {
        self.0.start()
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").finish_non_exhaustive()
    }
}

/// Why a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The guest turned it off.
    PowerOff,
    /// The guest asked for a reset, and [`OnReset::End`] was chosen.
    Reset,
    /// The guest crashed: a triple fault on x86.
    Crashed,
    /// Every vCPU halted, and nothing could wake one.
    Halted,
    /// [`Running::stop`] was called, or the handle dropped.
    Stopped,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "the guest powered off",
            Self::Reset => "the guest asked for a reset",
            Self::Crashed => "the guest crashed",
            Self::Halted => "the guest halted",
            Self::Stopped => "the machine was stopped",
        })
    }
}
