//! Kernels, and how they get into guest memory.
//!
//! A [`Kernel`] says what to boot. [`Kernel::open`] opens its files and checks everything that can be checked
//! without a machine; the [`Payload`] it returns keeps the files open, not their contents, and
//! is loaded at each start and reset with one pass of reads from the files into guest memory.
//!
//! What is in the files is not trusted: headers are read once and checked, and only the checked copies decide what
//! goes where. The format of a kernel is told by its own magic number; the host's user chose the file.
//!
//! What a kernel looks like, where it goes and what it is told is a matter of the processor's architecture:
//! [`aarch64`], and `x86_64` where linux-loader has it. A machine's kernels are those of the host's architecture.

pub mod aarch64;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

mod describe;
mod error;
mod file;
mod flat;

use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

#[cfg(target_arch = "aarch64")]
use self::aarch64 as native;
#[cfg(target_arch = "x86_64")]
use self::x86_64 as native;

pub use error::Error;
pub use native::LoadParams;

use crate::arch::CpuState;
use crate::memory::GuestRam;
use file::Source;
use flat::Flat;

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

impl Kernel {
    /// A Linux kernel for the host's architecture, as distributions install it.
    ///
    /// On x86-64: a bzImage, or an ELF vmlinux. An ELF kernel with a PVH entry point is entered by it, and need not
    /// be Linux. On arm64: an Image, as it is, compressed by gzip or zstd, or inside an EFI zboot image.
    pub fn linux(path: impl Into<PathBuf>) -> Self {
        Self { code: Code::Linux(path.into()), initrd: None, cmdline: String::new() }
    }

    /// Bare machine code, loaded at guest-physical `address` and entered in `state`: on x86-64 such as
    /// `CpuState::real_mode` or `CpuState::long_mode`, on arm64 such as `CpuState::entry`.
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
        let code = match &self.code {
            Code::Linux(path) => {
                let linux = native::Linux::open(path, self.initrd.as_deref())?;
                linux.check_cmdline(&self.cmdline)?;
                Opened::Linux(linux)
            }
            Code::Flat(_) if self.initrd.is_some() => {
                return Err(Error::CodeTakesNo { what: "initrd" });
            }
            Code::Flat(_) if !self.cmdline.is_empty() => {
                return Err(Error::CodeTakesNo { what: "command line" });
            }
            Code::Flat(flat) => Opened::Flat(Arc::clone(flat)),
        };
        Ok(Payload { code, cmdline: self.cmdline.clone() })
    }
}

/// A kernel with what belongs to it, opened and checked.
#[derive(Debug)]
pub struct Payload {
    code: Opened,
    cmdline: String,
}

#[derive(Debug)]
enum Opened {
    Linux(native::Linux),
    Flat(Arc<Flat>),
}

impl Payload {
    /// The command line that the [`Kernel`] was given.
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// Whether a machine with `ram_size` bytes of memory can be booted with this, and with `cmdline` for the
    /// whole command line. What this accepts, [`load`](Self::load) loads, unless the files change or a compressed
    /// one turns out to be damaged.
    pub fn check(&self, ram_size: u64, cmdline: &str) -> Result<(), Error> {
        match &self.code {
            Opened::Linux(linux) => linux.check(ram_size, cmdline),
            Opened::Flat(flat) => flat.check(ram_size),
        }
    }

    /// Puts everything into `ram` and returns the state in which the first processor enters the kernel.
    ///
    /// `ram` has the regions of the architecture's `layout::ram_regions` and is all zeros: a kernel takes it for
    /// granted where its file holds nothing.
    pub fn load(&self, ram: &GuestRam, params: &LoadParams) -> Result<CpuState, Error> {
        match &self.code {
            Opened::Linux(linux) => linux.load(ram, params),
            Opened::Flat(flat) => {
                flat.check(ram.size())?;
                let state = flat.load(ram.memory())?;
                ram.sync_code(flat.address, flat.bytes.len() as u64);
                Ok(state)
            }
        }
    }
}

/// Whether a kernel that takes `max` bytes can be given `cmdline`.
fn check_cmdline(kernel: &Source, cmdline: &str, max: usize) -> Result<(), Error> {
    if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(Error::CmdlineNul { at });
    }
    let len = cmdline.len();
    if len > max {
        return Err(Error::CmdlineTooLong { path: kernel.path().to_path_buf(), len, max });
    }
    Ok(())
}

/// Puts the initrd where it has been given a place: its address and length.
fn load_initrd(
    memory: &GuestMemoryMmap,
    initrd: Option<&Source>,
    place: Option<(u64, u64)>,
) -> Result<(), Error> {
    match (initrd, place) {
        (Some(source), Some((address, len))) => {
            file::Image::plain(source).load(memory, address, len)
        }
        _ => Ok(()),
    }
}

fn memory_error(what: &'static str, why: impl ToString) -> Error {
    Error::Memory { what, why: why.to_string() }
}

#[cfg(test)]
mod tests;
