//! A folder of our own for a socket's path.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

/// A folder that nobody else can look into, with at most one file in it. Dropping it removes both.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub fn new() -> io::Result<Self> {
        // Short: a socket's path has no more than some hundred bytes.
        let id = uuid::Uuid::new_v4().as_u64_pair().0;
        let path = std::env::temp_dir().join(format!("hyperkit-{id:016x}"));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// The file in it.
    pub fn file(&self) -> PathBuf {
        self.0.join("net")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing that a caller could do about one that stays.
        let _ = fs::remove_file(self.file());
        let _ = fs::remove_dir(&self.0);
    }
}
