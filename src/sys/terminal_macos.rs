//! Pseudo-terminals on macOS, where `posix_openpt` cannot set the close-on-exec flag by itself.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pty::{OpenptFlags, openpt};

pub(super) fn open_master() -> io::Result<OwnedFd> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    fcntl_setfd(&master, FdFlags::CLOEXEC)?;
    Ok(master)
}
