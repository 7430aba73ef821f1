//! The host's own accelerator on Macs with Apple silicon: Hypervisor.framework.

/// The host's own accelerator, used when a machine is made.
pub use super::hvf::Hvf as Native;
