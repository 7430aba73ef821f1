//! Pseudo-terminals on Linux.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pty::{OpenptFlags, openpt};

pub(super) fn open_master() -> io::Result<OwnedFd> {
    Ok(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?)
}
