//! Kernel files for arm64: any bytes, or an Image, plain or packed, that was good before some of its bytes were changed.
//!
//! What `check` accepts, `load` loads, unless it cannot be unpacked; and then the initrd and the device tree arrive
//! whole, with nothing behind them, however much there was to unpack.

use std::io::Write;
use std::sync::{LazyLock, Mutex};

use arbitrary::Unstructured;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyperkit::arch::aarch64::layout;
use hyperkit::boot::Error;
use hyperkit::boot::aarch64::{Linux, LoadParams};
use hyperkit::memory::{Backing, GuestRam};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use vm_memory::{Bytes, GuestAddress};

use crate::fields;
use crate::file::{Scratch, change};

fields! {
    /// The start of an input.
    pub struct Head {
        /// What the file is at first: the rest of the input, or one of [`FILES`].
        pub kind: u8,
        /// Which of [`MEMORY`] the machine has.
        pub memory: u8,
        /// Length of the device tree.
        pub tree: u16,
        /// Length of the initrd in units of 512 bytes; none if zero.
        pub initrd: u8,
    }
}

/// Sizes of memory: the least there can be, enough for a kernel and no initrd, enough, odd.
pub const MEMORY: [u64; 4] = [2 << 20, 4 << 20, 8 << 20, (6 << 20) + 0x1000];

/// Where the unpacked kernel's header is in the frame of zstd that is not compressed.
pub const RAW: usize = 9;

/// Good files: an Image; the same as gzip and zstd have it, and as a zboot image of each; and in a frame of zstd that
/// leaves it as it is, so that what is changed in it stays so when it is unpacked.
static FILES: LazyLock<[(Vec<u8>, usize); 6]> = LazyLock::new(|| {
    let image = image();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&image).expect("a vector takes everything");
    let gzip = gzip.finish().expect("a vector takes everything");
    let zstd = compress_to_vec(&*image, CompressionLevel::Fastest);
    let zboots = [zboot("gzip", &gzip), zboot("zstd22", &zstd)];
    let [zboot_gzip, zboot_zstd] = zboots;
    [(image.clone(), 0), (gzip, 0), (zstd, 0), (zboot_gzip, 0), (zboot_zstd, 0), (raw(&image), RAW)]
});

/// The kernel's file, and the initrd's.
static SCRATCH: LazyLock<Mutex<[Scratch; 2]>> =
    LazyLock::new(|| Mutex::new([Scratch::new("fuzz-kernel"), Scratch::new("fuzz-initrd")]));

/// An Image of 8 KiB that asks for 64, some of it easy to compress and some not.
fn image() -> Vec<u8> {
    let mut image: Vec<u8> =
        (0..0x2000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> (n / 64 % 32)) as u8).collect();
    image[..0x40].fill(0);
    image[0x10..0x18].copy_from_slice(&0x1_0000_u64.to_le_bytes());
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    image
}

/// A zboot image.
fn zboot(compression: &str, payload: &[u8]) -> Vec<u8> {
    let mut file = b"MZ\0\0zimg".to_vec();
    for field in [0x40, payload.len() as u32, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    file.extend(compression.as_bytes());
    file.resize(0x40, 0);
    file.extend(payload);
    file
}

/// A frame of zstd with a window of 128 MiB and one raw block (RFC 8878, 3.1.1).
fn raw(bytes: &[u8]) -> Vec<u8> {
    let block = 1 | (bytes.len() as u32) << 3;
    let mut file = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3];
    file.extend(&block.to_le_bytes()[..3]);
    file.extend(bytes);
    file
}

/// Carries out an input.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let head: Head = u.arbitrary().unwrap_or_default();
    let kind = usize::from(head.kind) % (FILES.len() + 1);
    let file = match kind.checked_sub(1).and_then(|kind| FILES.get(kind)) {
        None => u.peek_bytes(u.len()).unwrap_or_default().to_vec(),
        Some((file, fields)) => change(file.clone(), *fields, &mut u),
    };
    // Numbered, so that a part in another's place is noticed.
    let initrd: Vec<u8> = (0..head.initrd).flat_map(|n| [n | 1; 512]).collect();
    // After an input that failed the process ends, so a poisoned lock is never met.
    let mut files = SCRATCH.lock().expect("no input has failed");
    let [kernel_file, initrd_file] = &mut *files;
    let kernel_path = kernel_file.fill(&file);
    let initrd_path = (!initrd.is_empty()).then(|| initrd_file.fill(&initrd));
    let Ok(linux) = Linux::open(&kernel_path, initrd_path.as_deref()) else { return };
    let size = MEMORY[usize::from(head.memory) % MEMORY.len()];
    if linux.check(size, "").is_ok() {
        load(&linux, size, &vec![0x7e; head.tree.into()], &initrd);
    }
}

fn load(linux: &Linux, size: u64, tree: &[u8], initrd: &[u8]) {
    let regions = layout::ram_regions(size);
    let ram = GuestRam::new(&regions, Backing::Anonymous, false).expect("memory can be had");
    let place = Mutex::new(None);
    let make = |initrd| {
        *place.lock().expect("nothing panics with it") = initrd;
        Ok(tree.to_vec())
    };
    let state = match linux.load(&ram, &LoadParams::new("").device_tree(&make)) {
        Ok(state) => state,
        Err(Error::Corrupt { .. }) => return,
        Err(error) => panic!("what was checked is loaded: {error}"),
    };
    let read = |at, len: usize| {
        let mut bytes = vec![0; len];
        ram.memory().read_slice(&mut bytes, GuestAddress(at)).expect("RAM is there");
        bytes
    };
    let at = state.x[0];
    assert!(at.is_multiple_of(8) && state.pc < at, "kernel at {:#x}, tree at {at:#x}", state.pc);
    // The block that the kernel maps for the tree.
    let mut expected = tree.to_vec();
    expected.resize(2 << 20, 0);
    assert!(read(at, expected.len()) == expected, "something else is with the device tree");
    let place = *place.lock().expect("nothing panics with it");
    assert_eq!(place.is_some(), !initrd.is_empty());
    if let Some((at, len)) = place {
        assert!(read(at, len as usize) == initrd, "the initrd is not what it was");
    }
    let end = place.map_or(at + (2 << 20), |(at, len)| at + len);
    let rest = (layout::RAM_START + size - end) as usize;
    assert!(read(end, rest) == vec![0; rest], "something is behind everything");
}
