//! Kernels into the memory of an x86-64 machine, through linux-loader.

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{self, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::elf::{self, Entry};
use super::{Image, Linux, LoadParams};
use crate::arch::x86_64::state::CpuState;
use crate::arch::x86_64::{entry, layout};
use crate::boot::file::{Image as Reader, Source};
use crate::boot::{Error, load_initrd, memory_error};
use crate::memory::GuestRam;

/// `type_of_loader` of a loader that has no number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
/// `loadflags`: the kernel is above 1 MiB.
const LOADED_HIGH: u8 = 1 << 0;

impl Linux {
    /// Puts everything into `ram` and returns the state in which the first processor enters the kernel.
    ///
    /// `ram` has the regions of [`layout::ram_regions`] and is all zeros: a kernel takes it for granted
    /// where its file holds nothing.
    pub fn load(&self, ram: &GuestRam, params: &LoadParams) -> Result<CpuState, Error> {
        self.check_cmdline(&params.cmdline)?;
        let initrd = self.place(ram.size())?;
        let memory = ram.memory();
        load_initrd(memory, self.initrd.as_ref(), initrd)?;
        let boot = Boot { memory, ram_size: ram.size(), params, initrd };
        match &self.kernel {
            Image::BzImage(kernel) => {
                let at = Some(GuestAddress(kernel.start));
                let header = run::<loader::BzImage>(memory, at, kernel.image(), &kernel.source)?;
                let header = header.ok_or_else(|| kernel.source.load_error("no setup header"))?;
                boot.linux(header, kernel.entry())
            }
            Image::Elf(kernel) => {
                run::<loader::Elf>(memory, None, kernel.image(), &kernel.source)?;
                match kernel.entry {
                    Entry::Linux(at) => boot.linux(setup_header::default(), at),
                    Entry::Pvh(at) => boot.pvh(at),
                }
            }
        }
    }
}

/// Loads a kernel by one of linux-loader's loaders.
fn run<L: KernelLoader>(
    memory: &GuestMemoryMmap,
    at: Option<GuestAddress>,
    mut image: Reader<'_>,
    source: &Source,
) -> Result<Option<setup_header>, Error> {
    L::load(memory, at, &mut image, None)
        .map(|result| result.setup_header)
        .map_err(|error| source.load_error(error))
}

/// What the boot protocols tell a kernel.
struct Boot<'a> {
    memory: &'a GuestMemoryMmap,
    ram_size: u64,
    params: &'a LoadParams,
    initrd: Option<(u64, u64)>,
}

impl Boot<'_> {
    fn write_cmdline(&self) -> Result<(), Error> {
        let cmdline = self.params.cmdline.as_bytes();
        self.memory
            .write_slice(cmdline, GuestAddress(layout::CMDLINE))
            .and_then(|()| {
                self.memory.write_obj(0_u8, GuestAddress(layout::CMDLINE + cmdline.len() as u64))
            })
            .map_err(|error| memory_error("command line", error))
    }

    /// Linux's 64-bit protocol (`Documentation/arch/x86/boot.rst`, "64-bit boot protocol").
    fn linux(&self, header: setup_header, entry: u64) -> Result<CpuState, Error> {
        let mut zero_page = boot_params { hdr: header, ..Default::default() };
        let hdr = &mut zero_page.hdr;
        if hdr.header == 0 {
            // An ELF kernel brings no header; these are the fields that Linux looks at.
            hdr.boot_flag = 0xaa55;
            hdr.header = u32::from_le_bytes(*b"HdrS");
            hdr.version = 0x020f;
            hdr.kernel_alignment = 0x20_0000;
            hdr.cmdline_size = elf::CMDLINE_MAX as u32;
        }
        hdr.type_of_loader = UNDEFINED_LOADER;
        hdr.loadflags |= LOADED_HIGH;
        hdr.setup_data = 0;
        hdr.cmd_line_ptr = layout::CMDLINE as u32;
        // Both below 4 GiB, so that the `ext_` halves stay zero.
        let (address, size) = self.initrd.unwrap_or_default();
        hdr.ramdisk_image = address as u32;
        hdr.ramdisk_size = size as u32;
        zero_page.acpi_rsdp_addr = self.params.rsdp.unwrap_or(0);

        let mut map = zero_page.e820_table;
        let ranges = layout::memory_map(self.ram_size);
        for (entry, range) in map.iter_mut().zip(&ranges) {
            *entry =
                boot_e820_entry { addr: range.start, size: range.len, r#type: range.kind as u32 };
        }
        zero_page.e820_entries = ranges.len().min(map.len()) as u8;
        zero_page.e820_table = map;

        self.write_cmdline()?;
        let params = BootParams::new(&zero_page, GuestAddress(layout::ZERO_PAGE));
        LinuxBootConfigurator::write_bootparams(&params, self.memory)
            .map_err(|error| memory_error("zero page", error))?;
        entry::write_tables(self.memory).map_err(|error| memory_error("tables", error))?;
        let mut state = CpuState::long_mode(entry);
        state.regs.rsi = layout::ZERO_PAGE;
        Ok(state)
    }

    /// PVH (Xen's `docs/misc/pvh.pandoc` and `public/arch-x86/hvm/start_info.h`).
    fn pvh(&self, entry: u64) -> Result<CpuState, Error> {
        const MODULES: u64 = layout::PVH_INFO + 0x40;
        const MEMORY_MAP: u64 = layout::PVH_INFO + 0x80;
        let map: Vec<_> = layout::memory_map(self.ram_size)
            .iter()
            .map(|range| hvm_memmap_table_entry {
                addr: range.start,
                size: range.len,
                type_: range.kind as u32,
                reserved: 0,
            })
            .collect();
        let modules: Vec<_> = self
            .initrd
            .iter()
            .map(|&(paddr, size)| hvm_modlist_entry { paddr, size, ..Default::default() })
            .collect();
        let info = hvm_start_info {
            magic: XEN_HVM_START_MAGIC_VALUE,
            version: 1,
            flags: 0,
            nr_modules: modules.len() as u32,
            modlist_paddr: if modules.is_empty() { 0 } else { MODULES },
            cmdline_paddr: layout::CMDLINE,
            rsdp_paddr: self.params.rsdp.unwrap_or(0),
            memmap_paddr: MEMORY_MAP,
            memmap_entries: map.len() as u32,
            reserved: 0,
        };

        self.write_cmdline()?;
        let mut params = BootParams::new(&info, GuestAddress(layout::PVH_INFO));
        params.set_sections(&map, GuestAddress(MEMORY_MAP));
        params.set_modules(&modules, GuestAddress(MODULES));
        PvhBootConfigurator::write_bootparams(&params, self.memory)
            .map_err(|error| memory_error("PVH start info", error))?;
        entry::write_tables(self.memory).map_err(|error| memory_error("tables", error))?;
        let mut state = CpuState::protected_mode(entry);
        state.regs.rbx = layout::PVH_INFO;
        Ok(state)
    }
}
