//! The states in which a processor enters a kernel, and the tables in guest memory they refer to.
//!
//! There is one global descriptor table for all of them, with the selectors that Linux's 64-bit boot protocol
//! demands, and one set of page tables that maps the first 4 GiB to themselves by 2 MiB pages.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;
use super::state::{CpuState, DescriptorTable, Registers, Segment, SystemRegisters};

// Intel SDM volume 3, 2.5 (control registers) and 2.2.1 (IA32_EFER).
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set; interrupts are off.
const RFLAGS: u64 = 1 << 1;

// Intel SDM volume 3, 4.5 (4-level paging): present, writable, and for a page directory entry a page of its own.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

const CODE_32: Segment = Segment { base: 0, limit: u32::MAX, selector: 0x08, access: 0xc09b };
const CODE_64: Segment = Segment { base: 0, limit: u32::MAX, selector: 0x10, access: 0xa09b };
const DATA: Segment = Segment { base: 0, limit: u32::MAX, selector: 0x18, access: 0xc093 };
/// A busy task state segment. Nothing switches tasks, so none is at its address.
const TASK: Segment = Segment { base: 0, limit: 0x67, selector: 0x20, access: 0x008b };
/// Null, the four above, and the upper half of the last, which has 16 bytes in long mode.
const GDT_LEN: usize = 6;

impl CpuState {
    /// Real mode, all segments at zero, interrupts off, at address `ip`.
    pub fn real_mode(ip: u16) -> Self {
        let data = Segment { base: 0, limit: 0xffff, selector: 0, access: 0x0093 };
        let system = SystemRegisters {
            cr0: CR0_ET,
            cs: Segment { access: 0x009b, ..data },
            tr: Segment { access: 0x008b, ..data },
            ldt: Segment { access: 0x0082, ..data },
            // The interrupt vector table of the 8086: 256 far pointers.
            idt: DescriptorTable { base: 0, limit: 0x3ff },
            ..Self::flat(data)
        };
        Self { regs: Registers { rip: ip.into(), rflags: RFLAGS, ..Registers::default() }, system }
    }

    /// 32-bit protected mode without paging, flat segments, interrupts off, at address `ip`.
    ///
    /// The tables it refers to are there once a [`Payload`](crate::boot::Payload) is loaded.
    pub fn protected_mode(ip: u64) -> Self {
        let system = SystemRegisters {
            cr0: CR0_PE | CR0_ET,
            cs: CODE_32,
            tr: TASK,
            gdt: gdt_register(),
            ..Self::flat(DATA)
        };
        Self { regs: Registers { rip: ip, rflags: RFLAGS, ..Registers::default() }, system }
    }

    /// 64-bit mode at address `ip`, the first 4 GiB mapped to themselves, interrupts off, with a small stack.
    ///
    /// The tables it refers to are there once a [`Payload`](crate::boot::Payload) is loaded.
    pub fn long_mode(ip: u64) -> Self {
        let system = SystemRegisters {
            cr0: CR0_PE | CR0_ET | CR0_NE | CR0_PG,
            cr3: layout::PAGE_TABLES,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            cs: CODE_64,
            tr: TASK,
            gdt: gdt_register(),
            ..Self::flat(DATA)
        };
        let regs = Registers {
            rip: ip,
            rflags: RFLAGS,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            ..Registers::default()
        };
        Self { regs, system }
    }

    /// Whether this state needs what [`write_tables`] writes.
    pub(crate) fn uses_boot_tables(&self) -> bool {
        self.system.gdt == gdt_register() || self.system.cr3 == layout::PAGE_TABLES
    }

    fn flat(data: Segment) -> SystemRegisters {
        SystemRegisters { ds: data, es: data, fs: data, gs: data, ss: data, ..Default::default() }
    }
}

fn gdt_register() -> DescriptorTable {
    DescriptorTable { base: layout::GDT, limit: (GDT_LEN * 8 - 1) as u16 }
}

/// A segment as a descriptor (Intel SDM volume 3, 3.4.5).
fn descriptor(segment: &Segment) -> u64 {
    let access = u64::from(segment.access);
    let limit = match access & 1 << 15 {
        0 => segment.limit,
        _ => segment.limit >> 12,
    };
    let (base, limit) = (segment.base, u64::from(limit));
    (base & 0xff00_0000) << 32
        | access << 40
        | (limit & 0xf_0000) << 32
        | (base & 0xff_ffff) << 16
        | limit & 0xffff
}

/// Writes descriptor and page tables to their places in [`layout`].
pub fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let mut gdt = [0; GDT_LEN];
    for segment in [CODE_32, CODE_64, DATA, TASK] {
        gdt[usize::from(segment.selector / 8)] = descriptor(&segment);
    }
    write(memory, layout::GDT, &gdt)?;

    let page = |n: u64| layout::PAGE_TABLES + n * 0x1000;
    write(memory, page(0), &[page(1) | PRESENT_WRITABLE])?;
    write(memory, page(1), &[2, 3, 4, 5].map(|n| page(n) | PRESENT_WRITABLE))?;
    let directories: Vec<u64> =
        (0..4 * 512).map(|n| n << 21 | LARGE_PAGE | PRESENT_WRITABLE).collect();
    write(memory, page(2), &directories)
}

fn write(memory: &GuestMemoryMmap, at: u64, words: &[u64]) -> Result<(), GuestMemoryError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(at))
}
