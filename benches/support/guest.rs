//! Bare guest code, for benches that need a vCPU to do one thing over and over.

use hyperkit::arch::CpuState;
use hyperkit::boot::{Kernel, LoadParams};
use hyperkit::memory::{Backing, GuestRam};

const CODE: u64 = 0x10_0000;

/// RAM with 64-bit code in it, and the state that starts it.
pub fn load(code: &[u8]) -> (GuestRam, CpuState) {
    let ram = GuestRam::new(&[(0, 4 << 20)], Backing::Anonymous, false).unwrap();
    let payload = Kernel::flat(code, CODE, CpuState::long_mode(CODE)).open().unwrap();
    let entry = payload.load(&ram, &LoadParams::new("")).unwrap();
    (ram, entry)
}
