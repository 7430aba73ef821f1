//! What a caller of the builder or the handle sees when something fails.

use std::sync::Arc;

use crate::{accel, boot, bus, console, disk, fs, memory, net, vsock};

/// Why a machine could not be built, started or kept running.
///
/// Copies share the cause, because several threads may wait for the same machine.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// The accelerator failed.
    #[error(transparent)]
    Accelerator(Arc<accel::Error>),
    /// Guest memory could not be had.
    #[error(transparent)]
    Memory(Arc<memory::Error>),
    /// The kernel or the initrd cannot be booted.
    #[error(transparent)]
    Boot(Arc<boot::Error>),
    /// A console's host side could not be opened.
    #[error(transparent)]
    Console(Arc<console::Error>),
    /// A disk could not be opened.
    #[error(transparent)]
    Disk(Arc<disk::Error>),
    /// A network card could not be had.
    #[error(transparent)]
    Net(Arc<net::Error>),
    /// A folder could not be shared.
    #[error(transparent)]
    Share(Arc<fs::Error>),
    /// The machine's sockets could not be opened on the host.
    #[error(transparent)]
    Vsock(Arc<vsock::Error>),
    /// Two devices want the same addresses.
    #[error(transparent)]
    Bus(Arc<bus::Error>),
    /// The host refused something.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: String,
        /// What the host answered.
        source: Arc<std::io::Error>,
    },
    /// A vCPU's thread panicked: a bug in this crate or in a device of the caller's.
    #[error(
        "a vCPU's thread panicked: a bug in hyperkit or in a device that was added to the machine"
    )]
    VcpuLost,
    /// The machine's own thread panicked: a bug in this crate or in a device of the caller's, as it was reset or dropped.
    #[error(
        "the machine's thread panicked: a bug in hyperkit or in a device that was added to the machine"
    )]
    SupervisorLost,
    /// The machine has ended, so it cannot do what was asked.
    #[error("the machine has ended")]
    Ended,
}

macro_rules! from {
    ($($source:ty => $variant:ident),*) => {$(
        impl From<$source> for Error {
            fn from(error: $source) -> Self {
                Self::$variant(Arc::new(error))
            }
        }
    )*};
}

from!(
    accel::Error => Accelerator,
    memory::Error => Memory,
    boot::Error => Boot,
    console::Error => Console,
    disk::Error => Disk,
    net::Error => Net,
    fs::Error => Share,
    vsock::Error => Vsock,
    bus::Error => Bus
);

impl Error {
    pub(super) fn host(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Host { what, source: Arc::new(source) }
    }
}
