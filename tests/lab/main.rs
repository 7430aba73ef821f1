//! Unmodified Debian kernels under KVM with nested paging: run by `cargo xtask lab`, which sets `HYPERKIT_LAB` and
//! says where kernels and initrds are. Anywhere else every test here says that it is skipped.

#![cfg(target_os = "linux")]
#![allow(missing_docs)]

#[cfg(hyperkit_hvf_standin)]
use hvf_standin as _;

#[path = "../common/mod.rs"]
mod common;
mod dmesg;
mod session;

mod command;
mod consoles;
mod devices;
mod life;
mod linux;

// These take a Debian with more than busybox, which there is for x86-64.
#[cfg(target_arch = "x86_64")]
mod descriptors;
#[cfg(target_arch = "x86_64")]
mod disks;
#[cfg(target_arch = "x86_64")]
mod nets;
#[cfg(target_arch = "x86_64")]
mod shares;
#[cfg(target_arch = "x86_64")]
mod vsock;
