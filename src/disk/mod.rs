//! Disks: what is behind a virtio-blk device.
//!
//! A [`Disk`] says what a machine's disk is to be; nothing is opened before the machine is built. It names its format:
//! nothing here ever guesses one from bytes that a guest may have written. Behind it is a [`BlockBackend`], which
//! does what requests ask for, and an engine, which has it done without keeping the device waiting.

mod backend;
mod engine;
mod error;
mod flushes;
mod limit;
mod memory;
#[cfg(feature = "qcow2")]
mod qcow2;
mod raw;
mod spec;
#[cfg(test)]
mod tests;

pub use backend::{BlockBackend, BufferList, Buffers, Properties, SECTOR, Topology};
pub use engine::Engine;
pub use error::Error;
pub use memory::MemoryDisk;
#[cfg(feature = "qcow2")]
pub use qcow2::Qcow2;
pub use raw::RawFile;
pub use spec::{Disk, OpenDisk};

pub(crate) use engine::{Done, Extent, Front, Op, Request};
pub(crate) use limit::Limiter;
pub(crate) use spec::Target;

pub use crate::sys::file::Flush;
