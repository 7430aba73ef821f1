//! Files that an input changes, and names for them.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use arbitrary::Unstructured;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::operations;
use crate::ops::rest;

operations! {
    /// What is changed in a file.
    pub enum Op(3) {
        /// A little-endian number of 1 to 8 bytes.
        0 => Patch { at: u16, len: u8, value: u64 },
        /// The file ends here; or later, in zeros.
        1 => Cut { len: u16 },
        /// As [`Op::Patch`], in that part of the file which its headers are in.
        2 => Field { at: u8, len: u8, value: u64 },
    }
}

/// Does to `file`, whose headers are at `fields`, what the rest of an input says.
pub fn change(mut file: Vec<u8>, fields: usize, u: &mut Unstructured<'_>) -> Vec<u8> {
    for op in rest(u) {
        let (at, len, value) = match op {
            Op::Cut { len } => {
                file.resize(len.into(), 0);
                continue;
            }
            Op::Patch { at, len, value } => (usize::from(at), len, value),
            Op::Field { at, len, value } => (fields + usize::from(at), len, value),
        };
        let bytes = &value.to_le_bytes()[..=usize::from(len % 8)];
        for (to, from) in file.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
    file
}

/// A file that is made once, and has a name as long as the process lives.
pub struct Scratch(File);

impl Scratch {
    /// An empty file.
    pub fn new(name: &str) -> Self {
        Self(memfd_create(name, MemfdFlags::CLOEXEC).expect("memfds can be had").into())
    }

    /// Fills the file and returns its name.
    pub fn fill(&mut self, bytes: &[u8]) -> PathBuf {
        let write = |mut file: &File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(bytes)
        };
        write(&self.0).expect("a memfd takes what it is given");
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}
