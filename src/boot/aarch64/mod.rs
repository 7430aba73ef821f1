//! Linux kernels for arm64 (`Documentation/arch/arm64/booting.rst`), on any host.
//!
//! In memory the kernel comes first, as close to the start of RAM as its header allows, because old ones cannot use
//! what is below them; then the device tree, in 2 MiB of its own; then the initrd. A kernel is told of
//! all by the device tree, which the machine makes once it is known where the initrd is.

mod image;
mod pe;
mod unpack;
mod zboot;

use std::error::Error as StdError;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use self::image::Image;
use super::file::Source;
use super::{Error, check_cmdline, load_initrd, memory_error};
use crate::arch::aarch64::layout;
use crate::arch::aarch64::state::CpuState;
use crate::memory::GuestRam;

/// Longest device tree that a kernel takes, and what it may be aligned to: a block of the kernel's first page tables.
const DEVICE_TREE_MAX: u64 = 2 << 20;
/// An initrd has to be so near to the start of the gigabyte that the kernel is in.
const INITRD_WINDOW: u64 = 32 << 30;
/// Bytes of command line that Linux on arm64 keeps (`COMMAND_LINE_SIZE`), less the NUL.
const CMDLINE_MAX: usize = 2047;

/// Makes the device tree of a machine whose initrd has this address and length.
pub type DeviceTree<'a> =
    dyn Fn(Option<(u64, u64)>) -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>> + 'a;

/// What the machine tells a kernel at each load.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct LoadParams<'a> {
    /// The whole command line: [`Payload::cmdline`](super::Payload::cmdline) with what the machine adds. It gets to
    /// the kernel in the device tree.
    pub cmdline: String,
    /// Makes the device tree. A Linux kernel needs one.
    pub device_tree: Option<&'a DeviceTree<'a>>,
}

impl<'a> LoadParams<'a> {
    /// A command line, and no device tree.
    pub fn new(cmdline: impl Into<String>) -> Self {
        Self { cmdline: cmdline.into(), device_tree: None }
    }

    /// With the device tree that `make` returns.
    #[must_use]
    pub fn device_tree(mut self, make: &'a DeviceTree<'a>) -> Self {
        self.device_tree = Some(make);
        self
    }
}

/// A kernel and its initrd, opened and checked.
#[derive(Debug)]
pub struct Linux {
    kernel: Image,
    initrd: Option<Source>,
}

/// What goes where.
struct Place {
    kernel: u64,
    device_tree: u64,
    initrd: Option<(u64, u64)>,
}

impl Linux {
    /// Opens and checks the files.
    pub fn open(kernel: &Path, initrd: Option<&Path>) -> Result<Self, Error> {
        let kernel = Image::open(Source::open("kernel", kernel)?)?;
        let initrd = initrd.map(|path| Source::open("initrd", path)).transpose()?;
        Ok(Self { kernel, initrd })
    }

    /// Whether a machine with `ram_size` bytes of memory can be booted with this, and with `cmdline` for the
    /// whole command line. What is found out only while a compressed kernel is unpacked comes to light at
    /// [`load`](Self::load).
    pub fn check(&self, ram_size: u64, cmdline: &str) -> Result<(), Error> {
        self.check_cmdline(cmdline)?;
        self.place(ram_size).map(|_| ())
    }

    /// Whether the kernel takes `cmdline`.
    pub fn check_cmdline(&self, cmdline: &str) -> Result<(), Error> {
        check_cmdline(&self.kernel.source, cmdline, CMDLINE_MAX)
    }

    /// Puts everything into `ram` and returns the state in which the first processor enters the kernel.
    ///
    /// `ram` has the regions of [`layout::ram_regions`] and is all zeros.
    pub fn load(&self, ram: &GuestRam, params: &LoadParams<'_>) -> Result<CpuState, Error> {
        self.check_cmdline(&params.cmdline)?;
        let place = self.place(ram.size())?;
        let memory = ram.memory();
        load_initrd(memory, self.initrd.as_ref(), place.initrd)?;
        self.kernel.load(memory)?;
        ram.sync_code(place.kernel, self.kernel.end.saturating_sub(place.kernel));

        let failed = |why: String| memory_error("device tree", why);
        let make = params.device_tree.ok_or_else(|| failed("the machine has none".into()))?;
        let tree = make(place.initrd).map_err(|error| failed(error.to_string()))?;
        if tree.len() as u64 > DEVICE_TREE_MAX {
            let len = tree.len();
            return Err(failed(format!("it has {len} bytes, and may have {DEVICE_TREE_MAX}")));
        }
        memory
            .write_slice(&tree, GuestAddress(place.device_tree))
            .map_err(|error| failed(error.to_string()))?;
        Ok(CpuState::entry(place.kernel, place.device_tree))
    }

    fn place(&self, ram_size: u64) -> Result<Place, Error> {
        let Image { source, start, end, .. } = &self.kernel;
        let ram_end = layout::RAM_START.saturating_add(ram_size);
        let places = end.checked_next_multiple_of(DEVICE_TREE_MAX).and_then(|device_tree| {
            let behind = device_tree.checked_add(DEVICE_TREE_MAX)?;
            (behind <= ram_end).then_some((device_tree, behind))
        });
        let Some((device_tree, behind)) = places else {
            return Err(Error::KernelDoesNotFit {
                path: source.path().to_path_buf(),
                start: *start,
                end: *end,
                why: format!(
                    "the machine's ends at {ram_end:#x}, and {DEVICE_TREE_MAX:#x} bytes of it are \
                     for the device tree; give it more"
                ),
            });
        };
        let mut place = Place { kernel: *start, device_tree, initrd: None };
        if let Some(initrd) = &self.initrd {
            let (size, limit) = (initrd.len(), ram_end.min(layout::RAM_START + INITRD_WINDOW));
            let room = limit.saturating_sub(behind);
            if size > room {
                let path = initrd.path().to_path_buf();
                return Err(Error::InitrdDoesNotFit { path, size, room, limit });
            }
            place.initrd = Some((behind, size));
        }
        Ok(place)
    }
}

#[cfg(test)]
pub(super) mod tests;
