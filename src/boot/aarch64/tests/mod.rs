//! Kernels made byte by byte, packed and plain, and what becomes of them.

mod hostile;
mod image;
mod packed;
mod place;
mod stock;

use std::io::Write;

use super::*;
use crate::boot::tests::{Files, Random, assert_names_kernel, bytes_at, fetched, pattern, put};
use crate::memory::{Backing, GuestRam};

/// Bytes of a test's kernel in its file, and in memory.
const FILE: usize = 0x3_0000;
const SIZE: u64 = 0x5_0000;
const START: u64 = layout::RAM_START;
const TREE: u64 = START + DEVICE_TREE_MAX;
const INITRD: u64 = TREE + DEVICE_TREE_MAX;
/// Memory that is enough.
const RAM: u64 = 8 << 20;

/// An Image with nothing in it that a loader would not look at.
pub(in crate::boot) fn image() -> Vec<u8> {
    let mut image = pattern(FILE);
    image[..64].fill(0);
    put(&mut image, 0, &[0x0f, 0, 0, 0x14]);
    put(&mut image, 0x10, &SIZE.to_le_bytes());
    put(&mut image, 0x18, &0b1010_u64.to_le_bytes());
    put(&mut image, 0x38, b"ARM\x64");
    image
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image();
    put(&mut image, at, bytes);
    image
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// A zboot image as Linux makes it: the header, a program for EFI, the compressed kernel, its length.
fn zboot(compression: &str, payload: &[u8]) -> Vec<u8> {
    let mut image = b"MZ\0\0zimg".to_vec();
    for field in [0x400, payload.len() as u32, 0, 0] {
        image.extend_from_slice(&field.to_le_bytes());
    }
    image.extend_from_slice(compression.as_bytes());
    image.resize(0x38, 0);
    image.extend_from_slice(&[0xcd, 0x23, 0x82, 0x81, 0x40, 0, 0, 0]);
    image.resize(0x400, 0xcc);
    image.extend_from_slice(payload);
    image.extend_from_slice(&(FILE as u32).to_le_bytes());
    image
}

fn ram(size: u64) -> GuestRam {
    GuestRam::new(&layout::ram_regions(size), Backing::Anonymous, false).unwrap()
}

fn open(files: &Files, bytes: &[u8]) -> Result<Linux, Error> {
    Linux::open(&files.write("kernel", bytes), None)
}

/// What opening a kernel of these bytes fails with.
fn refusal(bytes: &[u8]) -> Error {
    let files = Files::new();
    let error = open(&files, bytes).unwrap_err();
    assert_names_kernel(&error, &files);
    error
}

/// The device tree of every test, which ends with what it was told of the initrd.
fn tree(initrd: Option<(u64, u64)>) -> Result<Vec<u8>, Box<dyn StdError + Send + Sync>> {
    let (address, len) = initrd.unwrap_or_default();
    Ok([pattern(1000), address.to_le_bytes().to_vec(), len.to_le_bytes().to_vec()].concat())
}

fn load(linux: &Linux, ram: &GuestRam) -> Result<CpuState, Error> {
    linux.load(ram, &LoadParams::new("console=ttyAMA0").device_tree(&tree))
}

/// Nothing in `ram` but `file` at `start`, a device tree at [`TREE`] and an initrd behind that.
fn assert_loaded(ram: &GuestRam, start: u64, file: &[u8], initrd: &[u8]) {
    let place = (!initrd.is_empty()).then_some((INITRD, initrd.len() as u64));
    let mut expected = vec![0; ram.size() as usize];
    let tree = tree(place).unwrap();
    for (at, bytes) in [(start, file), (TREE, &tree), (INITRD, initrd)] {
        put(&mut expected, (at - START) as usize, bytes);
    }
    let found = bytes_at(ram, START, expected.len());
    if found != expected {
        let wrong = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        panic!("{:#x?} is the first byte that is wrong", wrong.map(|at| START + at as u64));
    }
}
