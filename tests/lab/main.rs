//! Unmodified Debian kernels under KVM with nested paging: run by `cargo xtask lab`, which sets `HYPERKIT_LAB` and
//! says where kernels and initrds are. Anywhere else every test here says that it is skipped.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod dmesg;
mod session;

mod command;
mod consoles;
mod disks;
mod life;
mod linux;
mod nets;
mod shares;
mod vsock;
