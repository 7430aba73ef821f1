//! Linux's bzImage, as far as a loader must understand it to enter the kernel in 64-bit mode.
//!
//! The header and the rules are those of Linux's `Documentation/arch/x86/boot.rst`, protocol 2.12 and later: older
//! ones have no 64-bit entry point.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::arch::x86_64::layout;
use crate::boot::Error;
use crate::boot::file::{Image, Source};

/// Where the setup header starts in the file.
const HEADER_START: usize = 0x1f1;
/// Where it ends: the last field of protocol 2.15 and a byte more would be the start of the setup code.
const HEADER_END: usize = 0x26c;
/// `header` of every kernel since 1995.
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const BOOT_FLAG: u16 = 0xaa55;
/// The first protocol with `xloadflags`.
const MIN_VERSION: u16 = 0x020c;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry point, counted from the load address.
const ENTRY_64: u64 = 0x200;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SetupHeader {
    setup_sects: u8,
    root_flags: U16,
    syssize: U32,
    ram_size: U16,
    vid_mode: U16,
    root_dev: U16,
    boot_flag: U16,
    jump: u8,
    /// Counted from `header`: where the setup header ends.
    length: u8,
    header: U32,
    version: U16,
    realmode_swtch: U32,
    start_sys: U16,
    kernel_version: U16,
    type_of_loader: u8,
    loadflags: u8,
    setup_move_size: U16,
    code32_start: U32,
    ramdisk_image: U32,
    ramdisk_size: U32,
    bootsect_kludge: U32,
    heap_end_ptr: U16,
    ext_loader_ver: u8,
    ext_loader_type: u8,
    cmd_line_ptr: U32,
    initrd_addr_max: U32,
    kernel_alignment: U32,
    relocatable_kernel: u8,
    min_alignment: u8,
    xloadflags: U16,
    cmdline_size: U32,
    hardware_subarch: U32,
    hardware_subarch_data: U64,
    payload_offset: U32,
    payload_length: U32,
    setup_data: U64,
    pref_address: U64,
    init_size: U32,
    handover_offset: U32,
    kernel_info_offset: U32,
}

const _: () = assert!(size_of::<SetupHeader>() == HEADER_END - HEADER_START);

/// A bzImage whose header was checked.
#[derive(Debug)]
pub(super) struct BzImage {
    pub(super) source: Source,
    /// The file up to the end of the header; what this version of the header does not define is zero.
    head: Vec<u8>,
    /// Length of the file up to the end of the 64-bit kernel.
    len: u64,
    /// Where the 64-bit kernel is loaded.
    pub(super) start: u64,
    /// The address behind what it needs to unpack itself.
    pub(super) end: u64,
    /// Highest address that an initrd may occupy.
    pub(super) initrd_max: u64,
    /// Bytes of command line, without its NUL.
    pub(super) cmdline_max: usize,
}

impl BzImage {
    /// Whether the first bytes of a file are those of a bzImage.
    pub(super) fn recognises(start: &[u8]) -> bool {
        start.get(0x202..0x206) == Some(&MAGIC.to_le_bytes())
    }

    pub(super) fn open(source: Source) -> Result<Self, Error> {
        source.reaches("the setup header", HEADER_END as u64)?;
        let mut head = source.read(0, HEADER_END)?;
        // A header shorter than the newest is followed by code. It has to reach `init_size`, the last field of 2.12.
        let end = 0x202 + usize::from(head[0x201]);
        if end < 0x264 {
            return Err(source.corrupt(format!("its setup header ends at {end:#x}")));
        }
        if let Some(code) = head.get_mut(end..) {
            code.fill(0);
        }
        let header = SetupHeader::read_from_bytes(&head[HEADER_START..])
            .map_err(|_| source.corrupt("its setup header has no known form"))?;

        if header.boot_flag.get() != BOOT_FLAG {
            return Err(source.corrupt("its boot flag is not 0xaa55"));
        }
        let version = header.version.get();
        if version < MIN_VERSION {
            let (major, minor) = (version >> 8, version & 0xff);
            return Err(source.unsupported(format!(
                "it speaks boot protocol {major}.{minor:02}; 2.12 is needed, that of Linux 3.8"
            )));
        }
        if header.xloadflags.get() & XLF_KERNEL_64 == 0 {
            return Err(source.unsupported(
                "it has no 64-bit entry point (XLF_KERNEL_64), so it was built for 32-bit processors",
            ));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(source.unsupported("it is a zImage, which loads below 1 MiB"));
        }
        Self::place(source, head, &header)
    }

    fn place(source: Source, head: Vec<u8>, header: &SetupHeader) -> Result<Self, Error> {
        // Zero stands for four, as in every protocol; sectors have 512 bytes, and the boot sector comes before.
        let sectors = match header.setup_sects {
            0 => 4,
            n => u64::from(n),
        };
        let setup_len = (sectors + 1) * 512;
        let kernel_len = u64::from(header.syssize.get()) * 16;
        let len = setup_len + kernel_len;
        source.reaches("the 64-bit kernel", len)?;
        if setup_len < HEADER_END as u64 || kernel_len <= ENTRY_64 {
            return Err(source.corrupt(format!(
                "it announces {setup_len} bytes of setup code and {kernel_len} of kernel"
            )));
        }
        let payload_end =
            u64::from(header.payload_offset.get()) + u64::from(header.payload_length.get());
        if payload_end > kernel_len {
            return Err(source.corrupt(format!(
                "its payload ends at byte {payload_end} of a kernel of {kernel_len} bytes"
            )));
        }

        let alignment = u64::from(header.kernel_alignment.get());
        let start = header.pref_address.get();
        if !alignment.is_power_of_two()
            || !start.is_multiple_of(alignment)
            || start < layout::HIGH_RAM
        {
            return Err(source
                .corrupt(format!("it asks for address {start:#x}, aligned to {alignment:#x}")));
        }
        let Some(end) = start.checked_add(kernel_len.max(header.init_size.get().into())) else {
            return Err(source.corrupt(format!("it asks for address {start:#x}")));
        };
        Ok(Self {
            len,
            start,
            end,
            initrd_max: header.initrd_addr_max.get().into(),
            cmdline_max: usize::try_from(header.cmdline_size.get()).unwrap_or(usize::MAX),
            source,
            head,
        })
    }

    /// The file for a loader that puts it at [`start`](Self::start).
    pub(super) fn image(&self) -> Image<'_> {
        let Self { head, source, len, .. } = self;
        Image { head, source, resume: head.len() as u64, len: *len, at: 0 }
    }

    pub(super) fn entry(&self) -> u64 {
        self.start + ENTRY_64
    }
}
