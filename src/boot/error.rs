//! What can be wrong with a kernel, an initrd or a command line.

use std::io;
use std::path::PathBuf;

/// Why a machine cannot be booted with what it was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be opened.
    #[error("cannot open the {what} {}: {source}", path.display())]
    Open {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the host answered.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read the {what} {}: {source}", path.display())]
    Read {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the host answered.
        source: io::Error,
    },
    /// The path names something whose bytes cannot be read twice: a directory, a pipe, a device.
    #[error("the {what} {} is not a regular file; give a file", path.display())]
    NotAFile {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("the {what} {} is empty", path.display())]
    Empty {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
    },
    /// The file is something else than a kernel that this machine can boot.
    #[error(
        "the kernel {} cannot boot here: it is {found}; give {wanted}",
        path.display()
    )]
    NotAKernel {
        /// Which file.
        path: PathBuf,
        /// What it looks like.
        found: String,
        /// What to give instead.
        wanted: &'static str,
    },
    /// The file ends before what its header announces.
    #[error(
        "the kernel {} is truncated: {part} ends at byte {needs}, the file at {len}; copy it again",
        path.display()
    )]
    Truncated {
        /// Which file.
        path: PathBuf,
        /// Which part of it is missing.
        part: &'static str,
        /// How long it would have to be at least.
        needs: u64,
        /// How long it is.
        len: u64,
    },
    /// The header contradicts itself.
    #[error("the kernel {} is corrupt: {why}; copy or build it again", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The kernel is sound but lacks what this machine needs.
    #[error("the kernel {} is not supported: {why}", path.display())]
    Unsupported {
        /// Which file.
        path: PathBuf,
        /// What it lacks, and what to do.
        why: String,
    },
    /// The machine's memory is too small for the kernel.
    #[error(
        "the kernel {} needs memory from {start:#x} to {end:#x}, but {why}",
        path.display()
    )]
    KernelDoesNotFit {
        /// Which file.
        path: PathBuf,
        /// First address it occupies.
        start: u64,
        /// The address behind it.
        end: u64,
        /// What is in the way.
        why: String,
    },
    /// There is no room for the initrd.
    #[error(
        "the initrd {} has {size} bytes, but there is room for {room} between the kernel's end and \
         {limit:#x}; give the machine more memory, or use a smaller initrd",
        path.display()
    )]
    InitrdDoesNotFit {
        /// Which file.
        path: PathBuf,
        /// How large it is.
        size: u64,
        /// How much room there is.
        room: u64,
        /// Where the room ends.
        limit: u64,
    },
    /// The command line is longer than the kernel can take.
    #[error("the command line has {len} bytes, but the kernel {} takes at most {max}", path.display())]
    CmdlineTooLong {
        /// Which kernel.
        path: PathBuf,
        /// How long the command line is, with what the machine added.
        len: usize,
        /// How long it may be.
        max: usize,
    },
    /// The command line contains a NUL byte.
    #[error("the command line has a NUL at byte {at}, where the kernel would stop reading")]
    CmdlineNul {
        /// Where.
        at: usize,
    },
    /// Bare code cannot go where it is asked to.
    #[error("{len} bytes of code do not fit at {address:#x}: {why}")]
    CodeDoesNotFit {
        /// Where it should go.
        address: u64,
        /// How long it is.
        len: u64,
        /// What is in the way.
        why: String,
    },
    /// Bare code has no protocol by which it could be given an initrd or a command line.
    #[error("bare code takes no {what}; leave it out, or give a Linux kernel")]
    CodeTakesNo {
        /// `initrd` or `command line`.
        what: &'static str,
    },
    /// The file passed all checks when it was opened, and cannot be loaded now.
    #[error("cannot load the {what} {}: {why}; has it changed since?", path.display())]
    Load {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What failed.
        why: String,
    },
    /// Guest memory lacks a place that every machine has.
    #[error("cannot write the {what} to guest memory: {why}")]
    Memory {
        /// What was written.
        what: &'static str,
        /// What failed.
        why: String,
    },
}
