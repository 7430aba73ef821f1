//! Images that `qemu-img` makes and judges. What is on them is compared with a model in memory.

mod crash;
mod hostile;
mod kinds;
mod order;
pub(super) mod probe;
mod space;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::super::backend::{BlockBackend, BufferList, Buffers};
use super::super::spec::Image;
use super::Qcow2;
use crate::disk::Error;
use crate::random::Random;
use crate::sys::file::Flush;

/// A folder for images, and QEMU's tool for them; `None`, and a word on it, where there is none.
pub(super) struct Bench(tempfile::TempDir);

impl Bench {
    pub fn new() -> Option<Self> {
        match Command::new("qemu-img").arg("--version").output() {
            Ok(_) => Some(Self(tempfile::tempdir().unwrap())),
            Err(error) => {
                eprintln!("skipped: qemu-img (package qemu-utils): {error}");
                None
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the tool, in the folder.
    pub fn run(&self, arguments: &[&str]) -> Output {
        Command::new("qemu-img").args(arguments).current_dir(self.0.path()).output().unwrap()
    }

    /// Runs the tool, which has to succeed.
    pub fn must(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        assert!(output.status.success(), "qemu-img {arguments:?}: {output:?}");
    }

    /// Makes an image.
    pub fn create(&self, name: &str, options: &str, size: u64) -> PathBuf {
        let size = size.to_string();
        let mut arguments = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        self.must(&[&arguments[..], &[name, &size]].concat());
        self.path(name)
    }

    /// An image with these bytes in it.
    pub fn convert(&self, name: &str, options: &[&str], bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path("bytes"), bytes).unwrap();
        let fixed = ["convert", "-q", "-f", "raw", "-O", "qcow2"];
        self.must(&[&fixed[..], options, &["bytes", name]].concat());
        self.path(name)
    }

    /// The image is sound, and nothing in it is lost.
    pub fn check(&self, name: &str) {
        let output = self.run(&["check", "-f", "qcow2", name]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }

    /// An image has these bytes, in QEMU's eyes.
    pub fn compare(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path("model"), bytes).unwrap();
        self.must(&["compare", "-f", "raw", "-F", "qcow2", "model", name]);
    }
}

/// Opens an image. Tests next to this one start programs: for a moment, those have the files that are open here, with
/// the locks on them.
pub(super) fn open_any(
    path: &Path,
    backing: Option<&Image>,
    read_only: bool,
    flush: Flush,
) -> Result<Qcow2, Error> {
    let start = Instant::now();
    loop {
        match Qcow2::open(path, backing, read_only, flush) {
            Err(Error::Locked { .. }) if start.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

/// Opens an image for writing.
pub(super) fn open(path: &Path) -> Qcow2 {
    open_any(path, None, false, Flush::None).unwrap()
}

pub(super) fn raw(path: PathBuf) -> Image {
    Image::Raw(path)
}

impl Random {
    /// An extent of whole sectors, most of them short.
    pub fn extent(&mut self, size: u64, longest: u64) -> (u64, u64) {
        let most = 1 << self.below(u64::from(longest.ilog2() - 8));
        let offset = self.below(size / 512);
        let len = 1 + self.below(most).min(size / 512 - offset - 1);
        (offset * 512, len * 512)
    }
}

/// Memory in several pieces, of odd lengths.
fn pieces(bytes: &mut [u8]) -> BufferList<'_> {
    let first = bytes.len() / 3 + 1;
    bytes.chunks_mut(first).map(vm_memory::VolatileSlice::from).collect()
}

pub(super) fn read(disk: &dyn BlockBackend, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0xaa; len as usize];
    disk.read(offset, pieces(&mut bytes).all()).unwrap();
    bytes
}

pub(super) fn write(disk: &dyn BlockBackend, offset: u64, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    disk.write(offset, pieces(&mut bytes).all()).unwrap();
}

/// Does random things to a disk and to a model of it, and compares.
pub(super) fn exercise(disk: &dyn BlockBackend, model: &mut [u8], random: &mut Random, steps: u32) {
    let size = model.len() as u64;
    for step in 0..steps {
        let (offset, len) = random.extent(size, (size / 3).max(1024));
        let place = &mut model[offset as usize..][..len as usize];
        match random.below(16) {
            0..6 => {
                let bytes = random.bytes(len as usize);
                write(disk, offset, &bytes);
                place.copy_from_slice(&bytes);
            }
            6..12 => {
                let found = read(disk, offset, len);
                assert!(found == place, "step {step}: {len} bytes at {offset:#x}");
            }
            12 => {
                disk.discard(offset, len).unwrap();
                // Anything may be there now, but it has to stay.
                place.copy_from_slice(&read(disk, offset, len));
            }
            13 | 14 => {
                disk.write_zeroes(offset, len, random.below(2) == 0).unwrap();
                place.fill(0);
            }
            _ => disk.flush().unwrap(),
        }
    }
    assert!(read(disk, 0, size) == model, "at the end");
}
