//! What bare code finds in the memory of an arm64 machine: nothing but itself.

use std::ops::Range;

use vm_memory::{GuestMemoryError, GuestMemoryMmap};

use crate::arch::aarch64::layout;
use crate::arch::aarch64::state::CpuState;

pub(super) use layout::ram_regions;

/// Where code may not go, and what is there.
pub(super) fn reserved(_: &CpuState) -> impl Iterator<Item = (Range<u64>, &'static str)> {
    std::iter::empty()
}

/// The MMU is off, so there are no tables.
pub(super) fn prepare(_: &GuestMemoryMmap, _: &CpuState) -> Result<(), GuestMemoryError> {
    Ok(())
}
