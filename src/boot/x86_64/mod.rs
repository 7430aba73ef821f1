//! Linux kernels for x86-64, and whatever else has a PVH entry point.
//!
//! A kernel says itself where it goes. The initrd goes as high as it may, where it is least in the way of a kernel
//! that moves itself; what the boot protocols tell a kernel goes below 1 MiB, as
//! [`layout`] has it.

mod bzimage;
mod elf;
mod load;

use std::path::Path;

use self::bzimage::BzImage;
use self::elf::Elf;
use super::describe::{START, describe};
use super::file::Source;
use super::{Error, check_cmdline};
use crate::arch::x86_64::layout;

/// What to give instead of a file that is no kernel.
const WANTED: &str = "a bzImage, or an ELF vmlinux, for x86-64";

/// What the machine tells a kernel at each load.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LoadParams {
    /// The whole command line: [`Payload::cmdline`](super::Payload::cmdline) with what the machine adds.
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

/// A kernel and its initrd, opened and checked.
#[derive(Debug)]
pub struct Linux {
    kernel: Image,
    initrd: Option<Source>,
}

#[derive(Debug)]
enum Image {
    BzImage(BzImage),
    Elf(Elf),
}

/// What a kernel needs of the memory it is loaded to.
struct Needs<'a> {
    source: &'a Source,
    start: u64,
    end: u64,
    initrd_max: u64,
    cmdline_max: usize,
}

impl Linux {
    /// Opens and checks the files.
    pub fn open(kernel: &Path, initrd: Option<&Path>) -> Result<Self, Error> {
        let source = Source::open("kernel", kernel)?;
        let start = source.start(START)?;
        let kernel = if BzImage::recognises(&start) {
            Image::BzImage(BzImage::open(source)?)
        } else if start.starts_with(elf::MAGIC) {
            Image::Elf(Elf::open(source)?)
        } else {
            return Err(source.not_a_kernel(describe(&start), WANTED));
        };
        let initrd = initrd.map(|path| Source::open("initrd", path)).transpose()?;
        Ok(Self { kernel, initrd })
    }

    /// Whether a machine with `ram_size` bytes of memory can be booted with this, and with `cmdline` for the
    /// whole command line.
    pub fn check(&self, ram_size: u64, cmdline: &str) -> Result<(), Error> {
        self.check_cmdline(cmdline)?;
        self.place(ram_size).map(|_| ())
    }

    /// Whether the kernel takes `cmdline`.
    pub fn check_cmdline(&self, cmdline: &str) -> Result<(), Error> {
        let Needs { source, cmdline_max, .. } = self.needs();
        check_cmdline(source, cmdline, cmdline_max.min(layout::CMDLINE_MAX as usize - 1))
    }

    fn needs(&self) -> Needs<'_> {
        match &self.kernel {
            Image::BzImage(BzImage { source, start, end, initrd_max, cmdline_max, .. })
            | Image::Elf(Elf { source, start, end, initrd_max, cmdline_max, .. }) => Needs {
                source,
                start: *start,
                end: *end,
                initrd_max: *initrd_max,
                cmdline_max: *cmdline_max,
            },
        }
    }

    /// Where the initrd goes in a machine with `ram_size` bytes of memory: its address and length.
    fn place(&self, ram_size: u64) -> Result<Option<(u64, u64)>, Error> {
        let needs = self.needs();
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

#[cfg(test)]
pub(super) mod tests;
