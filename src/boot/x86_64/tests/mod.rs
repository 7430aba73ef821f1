//! Kernels made byte by byte, and what becomes of them.

mod bzimage;
mod elf;
mod files;
mod flat;
mod mutations;
mod stock;

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::arch::x86_64::state::CpuState;
use crate::boot::Kernel;
use crate::boot::tests::{Files, Random, assert_names_kernel, bytes_at, fetched, pattern, put};
use crate::memory::{Backing, GuestRam};

impl Files {
    fn kernel(&self, bytes: &[u8]) -> Kernel {
        Kernel::linux(self.write("kernel", bytes))
    }
}

/// A kernel that can be loaded.
pub(in crate::boot) fn image() -> Vec<u8> {
    bzimage::image()
}

/// What opening a kernel of these bytes fails with.
fn refusal(bytes: &[u8]) -> Error {
    let files = Files::new();
    let error = files.kernel(bytes).open().unwrap_err();
    assert_names_kernel(&error, &files);
    error
}

fn ram(size: u64) -> GuestRam {
    GuestRam::new(&layout::ram_regions(size), Backing::Anonymous, false).unwrap()
}

fn u8_at(ram: &GuestRam, at: u64) -> u8 {
    ram.memory().read_obj(GuestAddress(at)).unwrap()
}

fn u32_at(ram: &GuestRam, at: u64) -> u32 {
    ram.memory().read_obj(GuestAddress(at)).unwrap()
}

fn u64_at(ram: &GuestRam, at: u64) -> u64 {
    ram.memory().read_obj(GuestAddress(at)).unwrap()
}

/// Every address below 1 MiB that a load may write to.
fn low_places() -> [Range<u64>; 5] {
    [
        layout::GDT..layout::GDT + 0x30,
        layout::PVH_INFO..layout::PVH_INFO + 0x1000,
        layout::ZERO_PAGE..layout::ZERO_PAGE + 0x1000,
        layout::PAGE_TABLES..layout::PAGE_TABLES_END,
        layout::CMDLINE..layout::CMDLINE + layout::CMDLINE_MAX,
    ]
}

/// Nothing below 1 MiB was written but the places for it.
fn assert_low_memory_is_untouched(ram: &GuestRam) {
    let mut low = bytes_at(ram, 0, layout::HIGH_RAM as usize);
    for place in low_places() {
        low[place.start as usize..place.end as usize].fill(0);
    }
    assert!(
        low == vec![0; low.len()],
        "something was written at {:#x?}",
        low.iter().position(|&byte| byte != 0)
    );
}

/// The memory map of a machine of `size` bytes, as a zero page or a PVH start info at `at` is to hold it, its entries
/// `stride` bytes apart.
fn assert_memory_map(ram: &GuestRam, at: u64, stride: u64, count: u64) {
    let expected = layout::memory_map(ram.size());
    assert_eq!(count, expected.len() as u64);
    for (entry, range) in (0..).map(|n| at + n * stride).zip(expected) {
        assert_eq!(u64_at(ram, entry), range.start);
        assert_eq!(u64_at(ram, entry + 8), range.len);
        assert_eq!(u32_at(ram, entry + 16), range.kind as u32);
    }
}
