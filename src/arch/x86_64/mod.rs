//! The PC-like x86-64 machine: where things are, what its tables say, how a processor starts.

pub mod acpi;
pub mod cpuid;
pub mod entry;
pub mod layout;
pub mod smbios;
pub mod state;

/// The interrupt controller of a machine whose accelerator leaves the choice.
pub const CONTROLLER: crate::accel::Controller = crate::accel::Controller::Apic;

/// What Linux calls the first serial port.
pub const SERIAL_CONSOLE: &str = "ttyS0";
