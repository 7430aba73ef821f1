//! Why a share cannot be had.

use std::io;
use std::path::PathBuf;

/// Why a share could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host refused something.
    #[error("cannot {what} {}: {source}", path.display())]
    Host {
        /// What was tried.
        what: &'static str,
        /// On which folder, file or socket.
        path: PathBuf,
        /// What the host answered.
        source: io::Error,
    },
    /// The options make no sense, or contradict each other.
    #[error("{0}")]
    Config(String),
    /// The host has no descriptor left to be told by that a message has been answered.
    #[error("cannot make a notifier for a share: {0}")]
    NoNotifier(io::Error),
}
