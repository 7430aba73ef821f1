//! What the tests of all kernels share.

mod files;

use std::ops::Range;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{Backing, GuestRam};

/// A folder with the files of one boot.
pub(super) struct Files(pub(super) TempDir);

impl Files {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// Fails if the error of opening a kernel does not name it.
pub(super) fn assert_names_kernel(error: &Error, files: &Files) {
    let path = files.0.path().join("kernel");
    assert!(error.to_string().contains(&*path.to_string_lossy()), "{error} names no file");
}

pub(super) fn bytes_at(ram: &GuestRam, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

pub(super) fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The kernels that `cargo xtask guest` has put under `target/guest`, for arm64 or for x86-64.
pub(super) fn fetched(arm64: bool) -> Vec<PathBuf> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() && name.to_string_lossy().starts_with("vmlinu") => {
                    found.push(path);
                }
                _ => {}
            }
        }
    }
    found.retain(|path| {
        let start = Source::open("kernel", path).unwrap().start(0x40).unwrap();
        arm64 == (start.get(4..8) == Some(b"zimg") || start.get(0x38..0x3c) == Some(b"ARM\x64"))
    });
    if found.is_empty() {
        eprintln!("skipped: no kernel under target/guest; `cargo xtask guest` fetches them");
    }
    found
}

/// Bytes that are unlike zeros and unlike each other.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8 | 1).collect()
}

/// xorshift64*, from a fixed start: what fails once fails again.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Changes a few fields, anywhere in these ranges, to values that tend to be at the edge of something.
    pub(super) fn mutate(&mut self, image: &mut [u8], ranges: &[Range<usize>]) {
        for _ in 0..1 + self.below(3) {
            let range = &ranges[self.below(ranges.len())];
            let at = range.start + self.below(range.len());
            let bits = self.below(64) as u32;
            let value = match self.below(6) {
                0 => 0,
                1 => u64::MAX,
                2 => 1_u64.wrapping_shl(bits),
                3 => 1_u64.wrapping_shl(bits).wrapping_sub(1),
                4 => self.next() & 0xff_ffff,
                _ => self.next(),
            };
            let len = [1, 2, 4, 8][self.below(4)].min(image.len() - at);
            put(image, at, &value.to_le_bytes()[..len]);
        }
    }
}
