//! The PC-like x86-64 machine: where things are, what its tables say, how a processor starts.

pub mod cpuid;
pub mod layout;
pub mod state;
