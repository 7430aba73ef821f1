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
    pub fn uses_boot_tables(&self) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_tables(&memory).unwrap();
        memory
    }

    fn word(memory: &GuestMemoryMmap, at: u64) -> u64 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Translates as the processor does with 4-level paging.
    fn translate(memory: &GuestMemoryMmap, cr3: u64, address: u64) -> Option<u64> {
        let mut table = cr3;
        for shift in [39, 30, 21] {
            let entry = word(memory, table + (address >> shift & 0x1ff) * 8);
            if entry & 0b11 != 0b11 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            if entry & 1 << 7 != 0 {
                return Some(table + (address & ((1 << shift) - 1)));
            }
        }
        panic!("{address:#x} is mapped by a small page");
    }

    #[test]
    fn the_first_4_gib_are_mapped_to_themselves_and_nothing_else_is() {
        let memory = tables();
        let cr3 = CpuState::long_mode(0).system.cr3;
        for address in
            [0, 0x7000, 0x1f_ffff, 0x20_0000, 0x3fff_ffff, 0x4000_0000, 0xc000_0000, 0xffff_ffff]
        {
            assert_eq!(translate(&memory, cr3, address), Some(address));
        }
        for address in [1 << 32, 1 << 38, 1 << 39, 0xffff_8000_0000_0000, u64::MAX] {
            assert_eq!(translate(&memory, cr3, address), None, "{address:#x}");
        }
    }

    #[test]
    fn the_tables_stay_in_their_places() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        memory.write_slice(&[0xa5; 1 << 20], GuestAddress(0)).unwrap();
        write_tables(&memory).unwrap();
        let mut bytes = vec![0; 1 << 20];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        let gdt = layout::GDT..layout::GDT + 48;
        let pages = layout::PAGE_TABLES..layout::PAGE_TABLES_END;
        for (at, byte) in (0..).zip(bytes) {
            let free = !gdt.contains(&at) && !pages.contains(&at);
            assert!(!free || byte == 0xa5, "{at:#x}");
        }
        assert!((pages.start..pages.end).contains(&CpuState::long_mode(0).system.cr3));
        assert!(
            layout::BOOT_STACK <= pages.start && layout::BOOT_STACK > layout::ZERO_PAGE + 0x1000
        );
    }

    #[test]
    fn the_hidden_parts_of_the_segments_are_what_the_table_says() {
        let memory = tables();
        for state in [CpuState::long_mode(0), CpuState::protected_mode(0)] {
            let system = state.system;
            assert_eq!((system.gdt.base, system.gdt.limit), (layout::GDT, 47));
            assert_eq!(word(&memory, system.gdt.base), 0, "the null descriptor");
            for segment in
                [system.cs, system.ds, system.es, system.fs, system.gs, system.ss, system.tr]
            {
                let raw = word(&memory, system.gdt.base + u64::from(segment.selector));
                let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
                let whole = if raw & 1 << 55 != 0 { limit << 12 | 0xfff } else { limit };
                assert_eq!((raw >> 40 & 0xf0ff) as u16, segment.access);
                assert_eq!(whole, segment.limit);
                assert_eq!((raw >> 16 & 0xff_ffff) | (raw >> 56) << 24, segment.base);
            }
        }
        // As Linux's boot protocol has them: __BOOT_CS and __BOOT_DS.
        assert_eq!(word(&memory, layout::GDT + 0x10), 0x00af_9b00_0000_ffff);
        assert_eq!(word(&memory, layout::GDT + 0x18), 0x00cf_9300_0000_ffff);
        let system = CpuState::long_mode(0).system;
        assert_eq!((system.cs.selector, system.ds.selector), (0x10, 0x18));
    }

    #[test]
    fn a_descriptor_holds_base_and_limit_where_the_processor_looks_for_them() {
        let segment = Segment { base: 0x1234_5678, limit: 0x9_abcd, selector: 8, access: 0x409b };
        assert_eq!(descriptor(&segment), 0x1249_9b34_5678_abcd);
        let large = Segment { limit: 0x9abc_dfff, ..segment };
        assert_eq!(descriptor(&Segment { access: 0xc09b, ..large }), 0x12c9_9b34_5678_abcd);
    }

    #[test]
    fn each_mode_has_its_control_bits() {
        let bits = |state: CpuState| {
            let system = state.system;
            (system.cr0 & 1, system.cr0 >> 31 & 1, system.cr4 >> 5 & 1, system.efer >> 8 & 0b101)
        };
        assert_eq!(bits(CpuState::real_mode(0)), (0, 0, 0, 0));
        assert_eq!(bits(CpuState::protected_mode(0)), (1, 0, 0, 0));
        assert_eq!(bits(CpuState::long_mode(0)), (1, 1, 1, 0b101));
        for state in [CpuState::real_mode(9), CpuState::protected_mode(9), CpuState::long_mode(9)] {
            assert_eq!((state.regs.rip, state.regs.rflags), (9, 2), "interrupts are off");
        }
    }

    #[test]
    fn states_that_need_no_tables_are_told_apart() {
        assert!(!CpuState::real_mode(0).uses_boot_tables());
        assert!(!CpuState::default().uses_boot_tables());
        assert!(CpuState::protected_mode(0).uses_boot_tables());
        let mut own_gdt = CpuState::long_mode(0);
        own_gdt.system.gdt.base = 0x10_0000;
        assert!(own_gdt.uses_boot_tables(), "it still has the page tables");
    }
}
