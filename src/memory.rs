//! Guest memory: the RAM of a machine, mapped into this process.
//!
//! RAM is taken from the host only when it is touched, and on Linux given back by [`GuestRam::clear`]. What the guest writes
//! there can change at any moment, so nothing in this crate holds a Rust reference into it: all access goes
//! through vm-memory's volatile accessors.

mod buffers;
#[cfg(target_os = "linux")]
#[path = "memory/host_linux.rs"]
mod host;
#[cfg(target_os = "macos")]
#[path = "memory/host_macos.rs"]
mod host;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

pub use buffers::{BufferList, Buffers};

/// The least RAM a machine can have: one megabyte for tables and legacy addresses, and one for a kernel.
pub const MIN_SIZE: u64 = 2 << 20;

/// How guest RAM is backed on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Backing {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// A memfd for each region, which other processes can map once they are given its descriptor. Whoever makes a
    /// [`GuestRam`] has the descriptors from [`GuestRam::descriptors`]. A machine gives them to nobody, but for its
    /// devices, which see its memory in [`Context::memory`](crate::virtio::Context::memory). Linux only.
    Memfd,
}

/// Why guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The size cannot work.
    #[error("cannot give the guest {size} bytes of memory: {why}")]
    Size {
        /// What was asked for.
        size: u64,
        /// Why not.
        why: String,
    },
    /// The host refused.
    #[error("cannot map {len} bytes of guest memory: {source}")]
    Map {
        /// Length of the region.
        len: u64,
        /// What the host answered.
        source: io::Error,
    },
    /// This host has no such backing.
    #[error("memory backed by a memfd needs Linux")]
    NoMemfd,
}

/// The RAM of a machine. Copies share it.
#[derive(Debug, Clone)]
pub struct GuestRam {
    memory: GuestMemoryMmap,
    backing: Backing,
    size: u64,
}

impl GuestRam {
    /// RAM in `regions`, each `(guest-physical address, length)`, ascending. With `huge_pages` the host is asked to
    /// use transparent huge pages, which a host without them ignores.
    pub fn new(regions: &[(u64, u64)], backing: Backing, huge_pages: bool) -> Result<Self, Error> {
        let size = regions.iter().map(|region| region.1).fold(0, u64::saturating_add);
        let refuse = |why: String| Err(Error::Size { size, why });
        let page = rustix::param::page_size() as u64;
        if size < MIN_SIZE {
            return refuse(format!("a machine needs at least {} MiB", MIN_SIZE >> 20));
        }
        if regions.iter().any(|&(start, len)| start % page != 0 || len % page != 0) {
            return refuse(format!("it must be a multiple of the host's page size, {page} bytes"));
        }
        let mut mapped = Vec::with_capacity(regions.len());
        for &(start, len) in regions {
            mapped.push(map(start, len, backing, huge_pages)?);
        }
        match GuestMemoryMmap::from_regions(mapped) {
            Ok(memory) => Ok(Self { memory, backing, size }),
            Err(error) => refuse(error.to_string()),
        }
    }

    /// The memory itself.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Bytes of RAM in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Every region: guest-physical address, host address, length. The host address is good as long as this value
    /// or a copy lives.
    pub fn regions(&self) -> impl Iterator<Item = (u64, *mut u8, u64)> {
        self.memory.iter().map(|region| (region.start_addr().0, region.as_ptr(), region.len()))
    }

    /// Zeroes all of it, on Linux by giving every page back to the host.
    pub fn clear(&self) -> io::Result<()> {
        self.memory.iter().try_for_each(|region| host::clear(region, self.backing))
    }

    /// Has the guest run the `len` bytes of code that were just written at guest-physical `address`, to memory that was new
    /// or [cleared](Self::clear), and not what was there before. For whoever loads code by itself: the loaders of
    /// [`boot`](crate::boot) do this.
    pub fn sync_code(&self, address: u64, len: u64) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let slices = self.memory.get_slices(GuestAddress(address), len);
        // Behind the end of memory there is no code.
        slices.map_while(Result::ok).for_each(|slice| host::sync_code(&slice));
    }
}

fn map(start: u64, len: u64, backing: Backing, huge_pages: bool) -> Result<GuestRegionMmap, Error> {
    let fail = |source: io::Error| Error::Map { len, source };
    let bytes = usize::try_from(len)
        .map_err(|_| Error::Size { size: len, why: "the host cannot address that much".into() })?;
    let flags = match backing {
        Backing::Anonymous => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        Backing::Memfd => libc::MAP_SHARED | libc::MAP_NORESERVE,
    };
    let mut builder = MmapRegionBuilder::new(bytes)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags);
    if backing == Backing::Memfd {
        builder = builder.with_file_offset(FileOffset::new(memfd(len)?, 0));
    }
    let region = builder.build().map_err(|error| match error {
        vm_memory::mmap::MmapRegionError::Mmap(source) => fail(source),
        other => fail(io::Error::other(other.to_string())),
    })?;
    let region = GuestRegionMmap::new(region, GuestAddress(start)).ok_or_else(|| Error::Size {
        size: len,
        why: "it passes the end of the address space".into(),
    })?;
    host::prepare(&region, huge_pages).map_err(fail)?;
    Ok(region)
}

fn memfd(len: u64) -> Result<File, Error> {
    host::memfd(len).map_err(|source| match source.kind() {
        io::ErrorKind::Unsupported => Error::NoMemfd,
        _ => Error::Map { len, source },
    })
}

impl GuestRam {
    /// The descriptors behind the RAM, region by region, for other processes to map; empty without
    /// [`Backing::Memfd`].
    pub fn descriptors(&self) -> impl Iterator<Item = std::os::fd::RawFd> {
        self.memory.iter().filter_map(|region| region.file_offset().map(|at| at.file().as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn is_readable_writable_and_cleared() {
        let count = if cfg!(target_os = "linux") { 2 } else { 1 };
        for backing in [Backing::Anonymous, Backing::Memfd].into_iter().take(count) {
            let ram = GuestRam::new(&[(0, 4 << 20), (1 << 32, 2 << 20)], backing, true).unwrap();
            assert_eq!(ram.size(), 6 << 20);
            for address in [GuestAddress(0x1234), GuestAddress((1 << 32) + 0x1f_fff0)] {
                ram.memory().write_obj(0xdead_beef_u32, address).unwrap();
                assert_eq!(ram.memory().read_obj::<u32>(address).unwrap(), 0xdead_beef);
            }
            assert!(ram.memory().write_obj(0_u32, GuestAddress(4 << 20)).is_err());
            // Outside memory, and beyond the end of a region.
            for (address, len) in [(4 << 20, 1), (0x1234, 1 << 33), (1 << 32, u64::MAX)] {
                ram.sync_code(address, len);
            }
            assert_eq!(ram.memory().read_obj::<u32>(GuestAddress(0x1234)).unwrap(), 0xdead_beef);
            ram.clear().unwrap();
            assert_eq!(ram.memory().read_obj::<u32>(GuestAddress(0x1234)).unwrap(), 0);
            assert_eq!(ram.descriptors().count(), if backing == Backing::Memfd { 2 } else { 0 });
        }
    }

    #[test]
    #[cfg(not(target_os = "linux"))]
    fn there_is_no_memfd_but_on_linux() {
        let ram = GuestRam::new(&[(0, 4 << 20)], Backing::Memfd, false);
        assert!(matches!(ram, Err(Error::NoMemfd)), "{ram:?}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn is_taken_from_the_host_only_when_touched() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        };
        let before = resident();
        let ram = GuestRam::new(&[(0, 8 << 30)], Backing::Anonymous, false).unwrap();
        ram.memory().write_obj(1_u8, GuestAddress(5 << 30)).unwrap();
        assert!(resident() - before.min(resident()) < 256 << 20);
    }

    #[test]
    fn sizes_that_cannot_work_are_refused_with_the_reason() {
        for (regions, word) in [
            (&[(0, 0)][..], "at least"),
            (&[(0, MIN_SIZE - 4096)], "at least"),
            (&[(0, MIN_SIZE + 1)], "page size"),
            (&[(0, 1 << 60)], "cannot map"),
            (&[(0, 4 << 20), (2 << 20, 4 << 20)], "intersect"),
        ] {
            let error = GuestRam::new(regions, Backing::Anonymous, false).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
