//! Virtio: paravirtual devices, as version 1.3 of the specification has them; section numbers are that version's.
//!
//! A [`VirtioDevice`] knows what requests mean. An [`MmioTransport`] puts registers in front of it, gives it a thread,
//! and moves the [`Queue`]s there once the driver has laid them out. A request travels one way: the guest's ring →
//! [`Queue::pop`] → the device and its host side → [`Queue::push`] → an interrupt.

mod buffer;
mod chain;
mod config;
mod device;
mod interrupt;
pub mod mmio;
mod queue;
mod ram;
mod ring;
mod setup;
mod worker;

pub mod blk;
pub mod console;
pub mod net;
pub mod p9;
pub mod rng;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod vsock;

pub use buffer::{Reader, Writer};
pub use chain::Chain;
pub use config::ConfigSpace;
pub use device::{Context, Error, HostEvent, Sources, VirtioDevice, feature};
pub use interrupt::Interrupt;
pub use mio::Interest;
pub use mmio::MmioTransport;
pub use queue::{Error as QueueError, Layout, Queue, Settled};
