//! Terminals: raw mode that is always undone, pseudo-terminal pairs, sizes.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::pty::{grantpt, ptsname, unlockpt};
use rustix::termios::{
    OptionalActions, OutputModes, Termios, tcgetattr, tcgetwinsize, tcsetattr, ttyname,
};

#[cfg(target_os = "linux")]
use super::terminal_linux::open_master;
#[cfg(target_os = "macos")]
use super::terminal_macos::open_master;
use super::without_signals;

/// A terminal in raw mode: every key is input, nothing is echoed. Dropping this puts it back as it was.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    fd: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Puts `fd`'s terminal into raw mode. Output goes on being post-processed (a line feed returns the carriage),
    /// because the host's own messages share the screen with the guest's.
    pub fn enable(fd: impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&fd)?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes |= before.output_modes & OutputModes::OPOST;
        tcsetattr(&fd, OptionalActions::Now, &raw)?;
        Ok(Self { fd, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A process in the background would be stopped (SIGTTOU) in the middle of its clean-up. A terminal that has
        // gone needs no mode.
        let _ = without_signals(|| tcsetattr(&self.fd, OptionalActions::Now, &self.before));
    }
}

/// A pseudo-terminal pair, made raw: bytes pass unchanged in both directions.
#[derive(Debug)]
pub(crate) struct PtyPair {
    /// Our end. Non-blocking.
    pub master: OwnedFd,
    /// The other end, held open so that a user who leaves does not hang up the line.
    pub slave: OwnedFd,
    /// Where users find the other end.
    pub path: PathBuf,
}

impl PtyPair {
    pub fn open() -> io::Result<Self> {
        let master = open_master()?;
        fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = open(name.as_c_str(), flags, Mode::empty())?;
        let mut raw = tcgetattr(&slave)?;
        raw.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &raw)?;
        Ok(Self { master, slave, path: Path::new(OsStr::from_bytes(name.as_bytes())).to_owned() })
    }
}

/// Opens `fd`'s terminal once more for writing, so that it can be made non-blocking without making it so for
/// everybody who shares `fd`.
pub(crate) fn reopen_for_output(fd: impl AsFd) -> io::Result<File> {
    let name = ttyname(fd, Vec::new())?;
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(open(name.as_c_str(), flags, Mode::empty())?.into())
}

/// Columns and rows of `fd`'s terminal, if it has them.
pub(crate) fn size(fd: impl AsFd) -> Option<(u16, u16)> {
    let size = tcgetwinsize(fd).ok()?;
    (size.ws_col != 0 && size.ws_row != 0).then_some((size.ws_col, size.ws_row))
}
