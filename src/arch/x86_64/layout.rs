//! Where everything is in guest-physical memory, on ports and on interrupt lines.
//!
//! ```text
//! 0x0000_0000  RAM; boot structures from 0x500, command line from 0x2_0000
//! 0x0009_fc00  end of conventional memory
//! 0x000e_0000  ACPI tables, SMBIOS from 0xf_0000 (RAM, reserved in the memory map)
//! 0x0010_0000  RAM: kernel, initrd, everything else, up to 3 GiB
//! 0xc000_0000  the hole: no RAM until 4 GiB
//! 0xd000_0000    virtio-mmio register pages
//! 0xfec0_0000    I/O APIC
//! 0xfee0_0000    local APICs
//! 0x1_0000_0000 the rest of RAM
//! ```

/// First address without RAM below 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// First address behind the hole, where the rest of RAM goes.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Global descriptor table that a kernel is entered with.
pub const GDT: u64 = 0x500;
/// PVH start-info structure (Xen `hvm_start_info`), followed by its module list and memory map.
pub const PVH_INFO: u64 = 0x6000;
/// Linux `boot_params`, the "zero page".
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial page tables: one PML4, one PDPT, four page directories, from here to 0xf000.
pub const PAGE_TABLES: u64 = 0x9000;
/// Where the initial page tables end.
pub const PAGE_TABLES_END: u64 = PAGE_TABLES + 6 * 0x1000;
/// Stack pointer at entry.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes for the command line with its terminating NUL.
pub const CMDLINE_MAX: u64 = 0x1_0000;
/// End of conventional memory; up to 0xa_0000 is reserved as the extended BIOS data area.
pub const EBDA: u64 = 0x9_fc00;
/// ACPI firmware control structure: 64 bytes of reserved memory, because the guest may write there for ever.
pub const FACS: u64 = EBDA;
/// ACPI tables, RSDP first.
pub const ACPI: u64 = 0xe_0000;
/// Bytes for the ACPI tables.
pub const ACPI_LEN: u64 = 0x1_0000;
/// SMBIOS entry point and structures.
pub const SMBIOS: u64 = 0xf_0000;
/// Bytes for SMBIOS.
pub const SMBIOS_LEN: u64 = 0x1_0000;
/// Memory above the first megabyte: where kernels go.
pub const HIGH_RAM: u64 = 0x10_0000;

/// First virtio-mmio register page; the next devices follow at [`VIRTIO_MMIO_STRIDE`].
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Distance from one virtio-mmio device to the next.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// I/O APIC registers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page that KVM on Intel uses to run real-mode code, and the three pages behind it for its task state segment.
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// See [`KVM_IDENTITY_MAP`].
pub const KVM_TSS: u64 = KVM_IDENTITY_MAP + 0x1000;

/// Ports of COM1 to COM4, eight each.
pub const COM_PORTS: [u16; 4] = [0x3f8, 0x2f8, 0x3e8, 0x2e8];
/// Interrupt lines of COM1 to COM4. COM3 and COM4 do not share those of COM1 and COM2, as they do on a PC: edges
/// of one would hide those of the other. The ACPI tables tell the guest.
pub const COM_GSIS: [u32; 4] = [4, 3, 5, 7];
/// CMOS index and data ports.
pub const CMOS_PORT: u16 = 0x70;
/// The real-time clock's interrupt line.
pub const RTC_GSI: u32 = 8;
/// Keyboard controller status and command port.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// Reset control register.
pub const RESET_PORT: u16 = 0xcf9;
/// ACPI PM1a event block (4 bytes), PM1a control block (2 bytes) at +4, PM timer (4 bytes) at +8.
pub const ACPI_PM_PORT: u16 = 0x600;
/// ACPI system control interrupt; level-triggered, active high.
pub const SCI_GSI: u32 = 9;

/// Interrupt lines for virtio devices, in the order they are given out: first those that no PC device ever had.
pub const VIRTIO_GSIS: [u32; 14] = [16, 17, 18, 19, 20, 21, 22, 23, 10, 11, 12, 14, 15, 6];

/// Kinds of memory in an e820 map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// Free for the kernel.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables, which the kernel may reclaim once it has read them.
    Acpi = 3,
}

/// One entry of the memory map that a kernel is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// Where `size` bytes of RAM go: `(guest-physical address, length)` of one or two regions.
pub fn ram_regions(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(HOLE_START);
    let mut regions = vec![(0, low)];
    if size > low {
        regions.push((HOLE_END, size - low));
    }
    regions
}

/// The memory map of a machine with `size` bytes of RAM, ascending.
pub fn memory_map(size: u64) -> Vec<MemoryRange> {
    let range = |start, end: u64, kind| MemoryRange { start, len: end.saturating_sub(start), kind };
    let low_end = size.min(HOLE_START);
    let mut map = vec![
        range(0, EBDA, MemoryKind::Ram),
        range(EBDA, 0xa_0000, MemoryKind::Reserved),
        range(ACPI, ACPI + ACPI_LEN, MemoryKind::Acpi),
        range(SMBIOS, SMBIOS + SMBIOS_LEN, MemoryKind::Reserved),
        range(HIGH_RAM, low_end, MemoryKind::Ram),
    ];
    if size > HOLE_START {
        map.push(range(HOLE_END, HOLE_END + (size - HOLE_START), MemoryKind::Ram));
    }
    map.retain(|range| range.len > 0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(ram_regions(256 << 20), [(0, 256 << 20)]);
        assert_eq!(ram_regions(3 << 30), [(0, 3 << 30)]);
        assert_eq!(ram_regions(6 << 30), [(0, 3 << 30), (4 << 30, 3 << 30)]);
    }

    #[test]
    fn the_memory_map_is_ascending_and_holds_all_high_memory() {
        for size in [16 << 20, 3 << 30, 6u64 << 30] {
            let map = memory_map(size);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].len <= pair[1].start, "{pair:x?}");
            }
            let high: u64 = map
                .iter()
                .filter(|range| range.kind == MemoryKind::Ram && range.start >= HIGH_RAM)
                .map(|range| range.len)
                .sum();
            assert_eq!(high, size - HIGH_RAM);
        }
    }
}
