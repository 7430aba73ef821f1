//! Symbolic links to what is there only as long as this process is.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A symbolic link that is removed when it is dropped, if it is still ours.
#[derive(Debug)]
pub(crate) struct Link {
    path: PathBuf,
    target: PathBuf,
}

impl Link {
    /// Makes one, in place of another symbolic link if there is one.
    pub fn make(path: &Path, target: &Path) -> io::Result<Self> {
        if fs::symlink_metadata(path).is_ok_and(|old| old.is_symlink()) {
            fs::remove_file(path)?;
        }
        symlink(target, path)?;
        Ok(Self { path: path.to_owned(), target: target.to_owned() })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if fs::read_link(&self.path).is_ok_and(|target| target == self.target) {
            // Nothing that a caller could do about a link that stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}
