//! Tests of files as disks, and of the engines that carry requests out.

mod buffers;
mod cancel;
mod engines;
mod flushes;
mod open;
mod options;
mod raw;
mod rig;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::*;
use crate::disk::raw::RawFile;
use crate::random::Random;
use rig::*;

/// Folders on file systems that differ: memory, and what the sources are on.
fn folders() -> Vec<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tmp");
    std::fs::create_dir_all(&target).unwrap();
    let memory = Path::new("/dev/shm");
    [memory.to_owned(), target].into_iter().filter(|folder| folder.is_dir()).collect()
}

/// A file in `folder` that goes with the test.
fn file_in(folder: &Path) -> NamedTempFile {
    tempfile::Builder::new().prefix("hk-disk-").tempfile_in(folder).unwrap()
}

/// A file of zeros that needs no storage.
fn sparse(folder: &Path, len: u64) -> NamedTempFile {
    let file = file_in(folder);
    file.as_file().set_len(len).unwrap();
    file
}

/// A file that holds `bytes`.
fn file_of(folder: &Path, bytes: &[u8]) -> NamedTempFile {
    let mut file = file_in(folder);
    file.write_all(bytes).unwrap();
    file
}

fn raw(path: &Path) -> RawFile {
    RawFile::open(path, false, Flush::Fsync).unwrap()
}

/// Bytes of storage that a file takes.
fn stored(file: &File) -> u64 {
    // What was written may not have its place yet.
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

fn read(backend: &impl BlockBackend, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; len];
    backend.read(offset, BufferList::from(&mut bytes[..]).all()).unwrap();
    bytes
}

fn write(backend: &impl BlockBackend, offset: u64, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    backend.write(offset, BufferList::from(&mut bytes[..]).all()).unwrap();
}
