//! Small guests on the host's own KVM, a few instructions each, through the library as a program links it.
//!
//! They keep to instructions that every x86-64 KVM runs, those included that emulate ring 0.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(missing_docs)]

mod guest;

mod access;
mod interrupts;
mod leaks;
mod life;
