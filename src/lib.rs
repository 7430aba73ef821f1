//! Virtual machines inside a program.

pub mod accel;
pub mod arch;
pub mod boot;
pub mod bus;
pub mod console;
pub mod device;
pub mod memory;
pub mod sys;
pub mod vcpu;
pub mod virtio;
