//! The user-mode network under the stack of a guest, and under frames that no stack sends.
//!
//! Everything stays in this process and on the loopback interface.

#![cfg(feature = "user-net")]

mod addresses;
mod datagrams;
mod flows;
mod frames;
mod guest;
mod hostile;
mod leaks;
mod names;
mod names_tcp;
#[cfg(target_os = "linux")]
mod outside;
