//! A socket of ours in the file system.
//!
//! It is for its owner only whatever the umask. It is removed at the end, if it is still the one that was made.
//!
//! One that a process has left behind is taken over: nobody answers there. So that this is never true of one that is
//! about to be used, a socket is made under another name, and gets its own once it listens. Of two that start at the
//! same time, one at most has it, and the other is told that it is in use.

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
        let failed = |source| cannot("listen at", path, source);
        let (draft, socket) = draft(path)?;
        let file = fs::symlink_metadata(&draft.0).map_err(failed)?;
        if file.mode() & 0o777 != MODE {
            fs::set_permissions(&draft.0, Permissions::from_mode(MODE)).map_err(failed)?;
        }
        rustix::net::listen(&socket, BACKLOG).map_err(|error| failed(error.into()))?;
        for _ in 0..TRIES {
            match unix::name(&draft.0, path) {
                Ok(()) => {
                    return Ok(Self { path: path.to_owned(), socket, identity: identity(&file) });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => take_over(path)?,
                Err(source) => return Err(failed(source)),
            }
        }
        Err(in_use(path))
    }

    /// Its file, if that is still the one that was made.
    fn file(&self) -> Option<Metadata> {
        fs::symlink_metadata(&self.path).ok().filter(|file| identity(file) == self.identity)
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
        if self.file().is_some() {
            // Nothing that a caller could do about one that stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A name that a socket has for a moment. The file is removed when this is dropped.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // Nothing that a caller could do about one that stays.
        let _ = fs::remove_file(&self.0);
    }
}

/// A socket that will be at `path`, and where it is until then.
fn draft(path: &Path) -> Result<(Draft, OwnedFd), Error> {
    for _ in 0..TRIES {
        let draft = beside(path)?;
        match unix::bind(&draft) {
            Ok(socket) => return Ok((Draft(draft), socket)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(source) => return Err(cannot("listen at", path, source)),
        }
    }
    Err(in_use(path))
}

/// A name in the same folder that nobody has.
fn beside(path: &Path) -> Result<PathBuf, Error> {
    let number = Uuid::new_v4().as_u64_pair().0 >> 36;
    let beside = path.with_file_name(format!(".{number:07x}"));
    check_path(&beside)?;
    Ok(beside)
}

/// Removes what a process that is gone has left at `path`, and nothing else.
fn take_over(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path).map(|file| file.file_type()) {
        Ok(kind) if kind.is_socket() => {}
        Ok(kind) => {
            return Err(Error::NotASocket { path: path.to_owned(), what: describe(kind) });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(cannot("look at", path, source)),
    }
    if is_dead(path)? { remove_dead(path) } else { Err(in_use(path)) }
}

/// Removes a socket at `path`, where nobody listened.
///
/// Meanwhile somebody else may have found that out too, and listen in its place. So it is looked at again where only
/// this process knows it.
pub(super) fn remove_dead(path: &Path) -> Result<(), Error> {
    let aside = Draft(beside(path)?);
    match fs::rename(path, &aside.0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(cannot("remove", path, source)),
    }
    if is_dead(&aside.0)? {
        return Ok(());
    }
    // If a third one has taken the name even now, it is theirs.
    let _ = unix::name(&aside.0, path);
    Err(in_use(path))
}

/// Whether nobody has the socket at `path` open any more.
fn is_dead(path: &Path) -> Result<bool, Error> {
    // One for datagrams: whoever listens does not notice it, and has no need to have room for it.
    let Err(error) = unix::connect(path, SocketType::DGRAM) else { return Ok(false) };
    match Errno::from_io_error(&error) {
        Some(Errno::CONNREFUSED | Errno::NOENT) => Ok(true),
        // It is a socket of another kind.
        Some(Errno::PROTOTYPE) => Ok(false),
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

fn in_use(path: &Path) -> Error {
    Error::InUse { path: path.to_owned() }
}

pub(super) fn cannot(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Host { what, path: path.to_owned(), source }
}
