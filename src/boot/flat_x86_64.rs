//! What bare code finds in the memory of a PC.

use std::ops::Range;

use vm_memory::{GuestMemoryError, GuestMemoryMmap};

use crate::arch::x86_64::state::CpuState;
use crate::arch::x86_64::{entry, layout};

pub(super) use layout::ram_regions;

/// Where code may not go, and what is there.
pub(super) fn reserved(state: &CpuState) -> impl Iterator<Item = (Range<u64>, &'static str)> {
    let tables = (layout::GDT..layout::PAGE_TABLES_END, "descriptors, stack and page tables");
    let legacy = (layout::EBDA..layout::HIGH_RAM, "the machine's own tables");
    [legacy].into_iter().chain(state.uses_boot_tables().then_some(tables))
}

/// Writes the tables that `state` refers to.
pub(super) fn prepare(memory: &GuestMemoryMmap, state: &CpuState) -> Result<(), GuestMemoryError> {
    if state.uses_boot_tables() { entry::write_tables(memory) } else { Ok(()) }
}
