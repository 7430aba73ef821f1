//! The process's descriptors, of which others need some too.
//!
//! Whatever the guest holds takes a descriptor, and a process may have only so many of them (RLIMIT_NOFILE). The host
//! gives out the lowest that is free; so a high number says that few are left, whoever has them, and then the guest gets
//! no more until there are lower ones again. What is left is for what is done for the guest in passing, for its other
//! devices, and for the rest of the process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// What part of the process's descriptors is not for the guest to hold.
const SPARED: u64 = 8;

/// Keeps the guest from taking all of them by one of its devices.
#[derive(Debug)]
pub(crate) struct Descriptors {
    /// The guest gets those below it.
    end: RawFd,
    /// The last one was not.
    few: AtomicBool,
}

impl Descriptors {
    /// As many as the process may have now.
    pub fn of_process() -> Self {
        let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let end = RawFd::try_from(all - all / SPARED).unwrap_or(RawFd::MAX);
        Self { end, few: AtomicBool::new(false) }
    }

    /// The guest has got one.
    pub fn given(&self, number: RawFd) {
        if number >= self.end {
            self.few.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the guest can have another; EMFILE if not. `any` descriptor tells.
    pub fn check(&self, any: impl AsFd) -> io::Result<()> {
        if self.few.load(Ordering::Relaxed) {
            let next = any.as_fd().try_clone_to_owned()?;
            if next.as_raw_fd() >= self.end {
                return Err(Errno::MFILE.into());
            }
            self.few.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}
