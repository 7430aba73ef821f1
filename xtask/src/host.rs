//! Where things lie in the checkout, and the few file operations every verb needs.
//!
//! What xtask makes goes below the checkout's own `target/`, whatever `CARGO_TARGET_DIR` says: the
//! guests are large, belong to no build profile, and are worth sharing between target directories.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The exit status for a failure of xtask itself, apart from that of any command it ran.
pub const FAILED: u8 = 125;

/// The checkout.
pub fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let own = manifest.filter(|dir| dir.ends_with("xtask") && dir.is_dir());
    let xtask = own.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    xtask.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// `target/NAME` of the checkout, made if it is not there.
pub fn target(name: &str) -> Result<PathBuf> {
    let dir = root().join("target").join(name);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Where cargo puts what it builds.
pub fn cargo_target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(&dir).unwrap_or_else(|_| dir.into()),
        None => root().join("target"),
    }
}

/// Holds a lock file until it is dropped; waits for another holder, saying so.
pub struct Lock {
    _file: File,
}

impl Lock {
    pub fn take(path: &Path) -> Result<Lock> {
        let open = || File::options().create(true).truncate(false).write(true).open(path);
        let file = open().with_context(|| format!("cannot open {}", path.display()))?;
        if file.try_lock().is_err() {
            eprintln!("xtask: waiting for another xtask that holds {}", path.display());
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(Lock { _file: file })
    }
}

/// Writes a file so that it is there whole or not at all.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}", std::process::id()));
    let part = PathBuf::from(part);
    fs::write(&part, bytes)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Runs a command for what it prints; its failure is an error that holds its standard error.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = format!("{command:?}");
    let done = command.output().with_context(|| format!("cannot run {name}"))?;
    if !done.status.success() {
        bail!("{name}: {}\n{}", done.status, String::from_utf8_lossy(&done.stderr).trim_end());
    }
    Ok(done.stdout)
}

/// The file `name` on the caller's `PATH`, or in one of the folders a plain user's path leaves out.
pub fn find_tool(name: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let dirs = std::env::split_paths(&path).chain(more);
    dirs.map(|dir| dir.join(name.as_ref())).find(|file| file.is_file())
}
