//! The arm64 machine: where things are, how a processor starts, and what its exits mean.
//!
//! All of it is plain logic on every host: an accelerator passes in what it learned from a processor, and does what
//! it is told.

pub mod esr;
pub mod fdt;
pub mod inject;
pub mod layout;
pub mod mpidr;
pub mod psci;
pub mod state;
pub mod sysreg;
pub mod vtimer;

/// The interrupt controller of a machine whose accelerator leaves the choice.
pub const CONTROLLER: crate::accel::Controller = crate::accel::Controller::GicV3;

/// What Linux calls the first serial port.
pub const SERIAL_CONSOLE: &str = "ttyAMA0";
