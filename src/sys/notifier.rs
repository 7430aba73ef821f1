//! A flag that wakes an event loop.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

#[cfg(target_os = "linux")]
use super::notifier_linux::Inner;
#[cfg(target_os = "macos")]
use super::notifier_macos::Inner;

/// A flag that can be set from any thread and waited for in an event loop: readable while it is set.
///
/// Setting it twice before it is cleared is the same as setting it once. Copies share the flag.
#[derive(Debug)]
pub struct Notifier(Inner);

impl Notifier {
    /// A new flag, not set.
    pub fn new() -> io::Result<Self> {
        Inner::new().map(Self)
    }

    /// Sets the flag. Never blocks.
    pub fn notify(&self) {
        self.0.notify();
    }

    /// Clears the flag, and tells whether it was set. Never blocks.
    pub fn clear(&self) -> bool {
        self.0.clear()
    }

    /// Another handle on the same flag.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Notifier {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(notifier: &Notifier) -> bool {
        let mut fds = [PollFd::new(notifier, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn is_readable_while_set() {
        let notifier = Notifier::new().unwrap();
        assert!(!readable(&notifier));
        assert!(!notifier.clear());
        notifier.notify();
        notifier.notify();
        assert!(readable(&notifier));
        assert!(notifier.clear());
        assert!(!readable(&notifier));
        assert!(!notifier.clear());
    }

    #[test]
    fn copies_share_the_flag() {
        let notifier = Notifier::new().unwrap();
        let copy = notifier.try_clone().unwrap();
        std::thread::spawn(move || copy.notify()).join().unwrap();
        assert!(notifier.clear());
    }

    #[test]
    fn notifying_without_end_never_blocks() {
        let notifier = Notifier::new().unwrap();
        for _ in 0..200_000 {
            notifier.notify();
        }
        assert!(notifier.clear());
        assert!(!notifier.clear());
    }
}
