//! A socket of ours in the file system.
//!
//! It is for its owner only whatever the umask, and nobody can connect to it before it is. It is removed at the end,
//! if it is still the one that was made. One that a process has left behind is taken over: nobody answers there. Two
//! processes that start at the same time never end up with one socket, though both may be told that it is in use.

use std::fs::{self, FileType, Metadata, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::SocketType;
use uuid::Uuid;

use super::Error;
use super::spec::check_path;
use crate::sys::unix;

/// Connections that may wait to be accepted, where the system allows as many.
const BACKLOG: i32 = 1024;

/// How often a name is tried for that others take and leave at the same time.
const TRIES: usize = 4;

const MODE: u32 = 0o600;

/// A unix socket that listens, and its file.
#[derive(Debug)]
pub(super) struct Bound {
    path: PathBuf,
    socket: OwnedFd,
    identity: (u64, u64),
}

impl Bound {
    /// Listens at `path`.
    pub fn new(path: &Path) -> Result<Self, Error> {
        check_path(path)?;
        for _ in 0..TRIES {
            match unix::bind(path) {
                Ok(socket) => return Self::listen(path, socket),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => take_over(path)?,
                Err(source) => return Err(cannot("listen at", path, source)),
            }
        }
        Err(Error::InUse { path: path.to_owned() })
    }

    fn listen(path: &Path, socket: OwnedFd) -> Result<Self, Error> {
        let failed = |source| cannot("listen at", path, source);
        let file = fs::symlink_metadata(path).map_err(failed)?;
        let bound = Self { path: path.to_owned(), socket, identity: identity(&file) };
        if file.mode() & 0o777 != MODE {
            let mode = Permissions::from_mode(MODE);
            fs::set_permissions(path, mode).map_err(failed)?;
        }
        rustix::net::listen(&bound.socket, BACKLOG).map_err(|error| failed(error.into()))?;
        // Up to here it looked like one that was left behind.
        if bound.is_ours() { Ok(bound) } else { Err(Error::InUse { path: path.to_owned() }) }
    }

    /// Whether its file is still the one that was made.
    fn is_ours(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|file| identity(&file) == self.identity)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.is_ours() {
            // Nothing that a caller could do about one that stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes what a process that is gone has left at `path`, and nothing else.
fn take_over(path: &Path) -> Result<(), Error> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(cannot("look at", path, source)),
    };
    if !file.file_type().is_socket() {
        return Err(Error::NotASocket { path: path.to_owned(), what: describe(file.file_type()) });
    }
    let in_use = || Error::InUse { path: path.to_owned() };
    if !is_dead(path)? {
        return Err(in_use());
    }
    // Meanwhile somebody else may have found it dead, and be at work in its place: it is looked at again where only
    // this process knows it.
    let number = Uuid::new_v4().as_u64_pair().0 >> 36;
    let aside = path.with_file_name(format!(".{number:07x}"));
    check_path(&aside)?;
    match fs::rename(path, &aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(cannot("remove", path, source)),
    }
    let same = fs::symlink_metadata(&aside).is_ok_and(|now| identity(&now) == identity(&file));
    let dead = same && is_dead(&aside)?;
    if !dead {
        // If the name has been taken again, that one can stay as well as the other.
        let _ = fs::hard_link(&aside, path);
    }
    fs::remove_file(&aside).map_err(|source| cannot("remove", &aside, source))?;
    if dead { Ok(()) } else { Err(in_use()) }
}

/// Whether nobody has the socket at `path` open any more.
fn is_dead(path: &Path) -> Result<bool, Error> {
    let Err(error) = unix::connect(path, SocketType::STREAM) else { return Ok(false) };
    match Errno::from_io_error(&error) {
        Some(Errno::CONNREFUSED | Errno::NOENT) => Ok(true),
        // So many wait already, or it is a socket of another kind.
        Some(Errno::AGAIN | Errno::PROTOTYPE) => Ok(false),
        _ => Err(cannot("tell whether anybody listens at", path, error)),
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn describe(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a folder",
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_file() => "a file",
        _ => "something that is no socket",
    }
}

pub(super) fn cannot(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Host { what, path: path.to_owned(), source }
}
