//! Kernels, and how they get into guest memory.
//!
//! A [`Kernel`] says what to boot. [`Kernel::open`] opens its files and checks everything that can be checked
//! without a machine; the [`Payload`] it returns keeps the files open, not their contents, and
//! is loaded at each start and reset with one pass of reads from the files into guest memory.
//!
//! What is in the files is not trusted: headers are read once and checked, and only the checked copies decide what
//! goes where. The format of a kernel is told by its own magic number; the host's user chose the file.

mod bzimage;
mod elf;
mod error;
mod file;
#[cfg(target_arch = "x86_64")]
mod load;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::Error;

use crate::arch::x86_64::layout;
use crate::arch::x86_64::state::CpuState;
use bzimage::BzImage;
use elf::Elf;
use file::Source;

/// What a machine boots.
///
/// ```
/// use hyperkit::boot::Kernel;
///
/// let kernel = Kernel::linux("vmlinuz").initrd("initrd.img").cmdline("console=ttyS0");
/// let error = kernel.open().unwrap_err();
/// assert!(error.to_string().contains("vmlinuz"));
/// ```
#[derive(Debug, Clone)]
pub struct Kernel {
    code: Code,
    initrd: Option<PathBuf>,
    cmdline: String,
}

#[derive(Debug, Clone)]
enum Code {
    Linux(PathBuf),
    Flat(Arc<Flat>),
}

/// Bare code, and the state it is entered in.
#[derive(Debug)]
struct Flat {
    bytes: Vec<u8>,
    address: u64,
    state: CpuState,
}

impl Kernel {
    /// A Linux kernel: a bzImage, as distributions install it, or an ELF vmlinux. An ELF kernel with
    /// a PVH entry point is entered by it, and need not be Linux.
    pub fn linux(path: impl Into<PathBuf>) -> Self {
        Self { code: Code::Linux(path.into()), initrd: None, cmdline: String::new() }
    }

    /// Bare machine code, loaded at guest-physical `address` and entered in `state`, such as
    /// [`CpuState::real_mode`] or [`CpuState::long_mode`].
    pub fn flat(code: impl Into<Vec<u8>>, address: u64, state: CpuState) -> Self {
        Self {
            code: Code::Flat(Arc::new(Flat { bytes: code.into(), address, state })),
            initrd: None,
            cmdline: String::new(),
        }
    }

    /// The initial RAM disk.
    #[must_use]
    pub fn initrd(mut self, path: impl Into<PathBuf>) -> Self {
        self.initrd = Some(path.into());
        self
    }

    /// The kernel command line.
    #[must_use]
    pub fn cmdline(mut self, cmdline: impl Into<String>) -> Self {
        self.cmdline = cmdline.into();
        self
    }

    /// Opens and checks the files.
    pub fn open(&self) -> Result<Payload, Error> {
        let initrd = self.initrd.as_deref().map(|path| Source::open("initrd", path));
        let (image, initrd) = match &self.code {
            Code::Linux(path) => (open_linux(path)?, initrd.transpose()?),
            Code::Flat(_) if initrd.is_some() => return Err(Error::CodeTakesNo { what: "initrd" }),
            Code::Flat(_) if !self.cmdline.is_empty() => {
                return Err(Error::CodeTakesNo { what: "command line" });
            }
            Code::Flat(flat) => (Image::Flat(Arc::clone(flat)), None),
        };
        let payload = Payload { image, initrd, cmdline: self.cmdline.clone() };
        payload.check_cmdline(&self.cmdline)?;
        Ok(payload)
    }
}

fn open_linux(path: &Path) -> Result<Image, Error> {
    let source = Source::open("kernel", path)?;
    let start = source.start(0x210)?;
    if BzImage::recognises(&start) {
        return BzImage::open(source).map(Image::BzImage);
    }
    if start.starts_with(elf::MAGIC) {
        return Elf::open(source).map(Image::Elf);
    }
    Err(source.not_a_kernel(describe(&start)))
}

/// What a file that is no kernel seems to be, by its first bytes.
fn describe(start: &[u8]) -> &'static str {
    let has = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if has(0x38, b"ARM\x64") {
        "an arm64 Image"
    } else if has(0x38, b"RSC\x05") {
        "a RISC-V Image"
    } else if has(4, b"zimg") {
        "a compressed EFI image for another processor"
    } else if has(0, b"\x1f\x8b") {
        "compressed by gzip, so unpack it first"
    } else if has(0, b"\x28\xb5\x2f\xfd") {
        "compressed by zstd, so unpack it first"
    } else if has(0, b"\xfd7zXZ\0") {
        "compressed by xz, so unpack it first"
    } else if has(0, b"070701") {
        "a cpio archive, perhaps the initrd"
    } else {
        "no format that is known here"
    }
}

/// A kernel with what belongs to it, opened and checked.
#[derive(Debug)]
pub struct Payload {
    image: Image,
    initrd: Option<Source>,
    cmdline: String,
}

#[derive(Debug)]
enum Image {
    BzImage(BzImage),
    Elf(Elf),
    Flat(Arc<Flat>),
}

/// What the machine tells a kernel at each load.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LoadParams {
    /// The whole command line: [`Payload::cmdline`] with what the machine adds.
    pub cmdline: String,
    /// Guest-physical address of the ACPI RSDP, if the machine has ACPI tables.
    pub rsdp: Option<u64>,
}

impl LoadParams {
    /// A command line, and no ACPI tables.
    pub fn new(cmdline: impl Into<String>) -> Self {
        Self { cmdline: cmdline.into(), rsdp: None }
    }

    /// With ACPI tables whose RSDP is at guest-physical address `rsdp`.
    #[must_use]
    pub fn rsdp(mut self, rsdp: u64) -> Self {
        self.rsdp = Some(rsdp);
        self
    }
}

/// What a kernel needs of the memory it is loaded to.
struct Needs<'a> {
    source: &'a Source,
    start: u64,
    end: u64,
    initrd_max: u64,
    cmdline_max: usize,
}

impl Payload {
    /// The command line that the [`Kernel`] was given.
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// Whether a machine with `ram_size` bytes of memory can be booted with this, and with `cmdline` for the
    /// whole command line. What this accepts, [`load`](Self::load) loads, unless the files change.
    pub fn check(&self, ram_size: u64, cmdline: &str) -> Result<(), Error> {
        self.check_cmdline(cmdline)?;
        self.place(ram_size).map(|_| ())
    }

    fn needs(&self) -> Option<Needs<'_>> {
        match &self.image {
            Image::BzImage(BzImage { source, start, end, initrd_max, cmdline_max, .. })
            | Image::Elf(Elf { source, start, end, initrd_max, cmdline_max, .. }) => Some(Needs {
                source,
                start: *start,
                end: *end,
                initrd_max: *initrd_max,
                cmdline_max: *cmdline_max,
            }),
            Image::Flat(_) => None,
        }
    }

    fn check_cmdline(&self, cmdline: &str) -> Result<(), Error> {
        let Some(needs) = self.needs() else { return Ok(()) };
        if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
            return Err(Error::CmdlineNul { at });
        }
        let max = needs.cmdline_max.min(layout::CMDLINE_MAX as usize - 1);
        let len = cmdline.len();
        if len > max {
            let path = needs.source.path().to_path_buf();
            return Err(Error::CmdlineTooLong { path, len, max });
        }
        Ok(())
    }

    /// Where the initrd goes in a machine with `ram_size` bytes of memory: its address and length.
    fn place(&self, ram_size: u64) -> Result<Option<(u64, u64)>, Error> {
        match &self.image {
            Image::Flat(flat) => place_flat(flat, ram_size).map(|()| None),
            _ => self.place_linux(ram_size),
        }
    }

    fn place_linux(&self, ram_size: u64) -> Result<Option<(u64, u64)>, Error> {
        let Some(needs) = self.needs() else { return Ok(None) };
        let ram_end = ram_size.min(layout::HOLE_START);
        if needs.end > ram_end {
            return Err(Error::KernelDoesNotFit {
                path: needs.source.path().to_path_buf(),
                start: needs.start,
                end: needs.end,
                why: if needs.end > layout::HOLE_START {
                    format!("no machine has memory from {:#x} on", layout::HOLE_START)
                } else {
                    format!("the machine's ends at {ram_end:#x}; give it more")
                },
            });
        }
        let Some(initrd) = &self.initrd else { return Ok(None) };
        // As high as it may be, where it is least in the way of a kernel that moves itself.
        let limit = ram_end.min(needs.initrd_max.saturating_add(1));
        let size = initrd.len();
        let address = limit.checked_sub(size).map(|address| address & !0xfff);
        match address {
            Some(address) if address >= needs.end => Ok(Some((address, size))),
            _ => Err(Error::InitrdDoesNotFit {
                path: initrd.path().to_path_buf(),
                size,
                room: (limit & !0xfff).saturating_sub(needs.end),
                limit,
            }),
        }
    }
}

fn place_flat(flat: &Flat, ram_size: u64) -> Result<(), Error> {
    let (address, len) = (flat.address, flat.bytes.len() as u64);
    let refuse = |why: String| Err(Error::CodeDoesNotFit { address, len, why });
    let in_ram = |end: u64| {
        layout::ram_regions(ram_size)
            .iter()
            .any(|&(start, len)| address >= start && end <= start.saturating_add(len))
    };
    let Some(end) = address.checked_add(len).filter(|&end| in_ram(end)) else {
        return refuse(format!("the machine has no memory there, of {ram_size:#x} bytes in all"));
    };
    let overlaps = |range: &Range<u64>| address < range.end && end > range.start;
    let legacy = layout::EBDA..layout::HIGH_RAM;
    if overlaps(&legacy) {
        return refuse(format!("{legacy:#x?} is for the machine's own tables"));
    }
    let tables = layout::GDT..layout::PAGE_TABLES_END;
    if flat.state.uses_boot_tables() && overlaps(&tables) {
        return refuse(format!("{tables:#x?} is for descriptors, stack and page tables"));
    }
    Ok(())
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
