//! A machine that is quick to build and to start, for tests of what happens around it.

use std::time::Duration;

use hyperkit::accel::Accelerator;
use hyperkit::arch::CpuState;
use hyperkit::boot::Kernel;
use hyperkit::vm::{Running, Vm, VmBuilder};

/// Long enough for whatever such a machine does.
pub const SOON: Duration = Duration::from_secs(60);

/// One without devices of its own, and a kernel that halts.
pub fn builder() -> VmBuilder {
    let kernel = Kernel::flat([0xf4], 0x10_0000, CpuState::long_mode(0x10_0000));
    Vm::builder().memory(8 << 20).kernel(kernel).rng(false)
}

pub fn start<A: Accelerator>(builder: VmBuilder<A>) -> Running {
    builder.build().unwrap().start().unwrap()
}
