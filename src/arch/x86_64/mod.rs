//! The PC-like x86-64 machine: where things are, what its tables say, how a processor starts.

pub mod acpi;
pub mod cpuid;
pub mod entry;
pub mod layout;
pub mod smbios;
pub mod state;
