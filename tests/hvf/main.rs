//! The Hypervisor.framework backend with guests of a few instructions each: on Macs with Apple silicon, and on arm64 Linux over
//! the stand-in.

#![cfg(any(all(target_os = "macos", target_arch = "aarch64"), hyperkit_hvf_standin))]
#![allow(missing_docs)]

#[cfg(hyperkit_hvf_standin)]
use hvf_standin as _;

mod guest;

mod access;
mod firmware;
mod interrupts;
mod life;
