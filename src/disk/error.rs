//! Why a disk cannot be had.

use std::io;
use std::path::PathBuf;

/// Why a disk could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host refused something.
    #[error("cannot {what} {}: {source}", path.display())]
    Host {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the host answered.
        source: io::Error,
    },
    /// The file may not be written.
    #[error(
        "cannot open {} for writing: {source}; a disk that is only read wants `read_only`",
        path.display()
    )]
    NotWritable {
        /// Which file.
        path: PathBuf,
        /// What the host answered.
        source: io::Error,
    },
    /// It is neither a regular file nor a block device.
    #[error("{} cannot be a disk: it is {what}", path.display())]
    NotADisk {
        /// Which one.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// Somebody else has the image open, in a way that does not go with this one.
    #[error(
        "{} is in use as a disk by this or another process; two of them would destroy what is on it",
        path.display()
    )]
    Locked {
        /// Which file.
        path: PathBuf,
    },
    /// The image is not what it should be.
    #[error("{} is no usable {format} image: {why}", path.display())]
    Image {
        /// Which file.
        path: PathBuf,
        /// The format that it was named as.
        format: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The options contradict each other, or what is opened.
    #[error("{0}")]
    Config(String),
    /// The host has no io_uring, or keeps it from this process.
    #[error("cannot set up io_uring: {0}; `Engine::Auto` does without where there is none")]
    NoIoUring(io::Error),
    /// The host has no descriptor left to be told by that requests have ended.
    #[error("cannot make a notifier for a disk: {0}")]
    NoNotifier(io::Error),
}
