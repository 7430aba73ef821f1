//! Threads that leave the embedder's signals alone.
//!
//! A library's threads live in somebody else's process. A signal that is sent to the process may be delivered to
//! any thread that does not block it, so a thread of ours could run the embedder's handlers, have its system calls
//! interrupted, or kill the process with SIGPIPE. [`spawn`] starts threads that block every signal but those that
//! a thread raises against itself by a fault.

use std::io;
use std::mem::MaybeUninit;
use std::thread::{Builder, JoinHandle};

/// Raised by the instruction a thread is at. Blocking them would end the process without the embedder's handler.
const SYNCHRONOUS: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

/// Starts a thread with a `name` (what tools show; Linux shows 15 bytes of it) and all asynchronous signals
/// blocked. They are blocked from the first instruction on.
pub fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    without_signals(|| Builder::new().name(name.to_owned()).spawn(run))
}

/// Calls `call` on this thread with all asynchronous signals blocked; threads started meanwhile inherit that.
pub(crate) fn without_signals<T>(call: impl FnOnce() -> T) -> T {
    struct Restore(libc::sigset_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: the set was filled by `pthread_sigmask`; the old set is not asked for.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
        }
    }

    let mut block = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initialises the set that the calls behind it use, all pointers are to live memory, and
    // none of these calls can fail with valid signal numbers; so `before` is initialised as well.
    let _restore = unsafe {
        libc::sigfillset(block.as_mut_ptr());
        for signal in SYNCHRONOUS {
            libc::sigdelset(block.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, block.as_ptr(), before.as_mut_ptr());
        Restore(before.assume_init())
    };
    call()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked() -> Vec<libc::c_int> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: with no new set, `pthread_sigmask` only stores the current one.
        let set = unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), set.as_mut_ptr());
            set.assume_init()
        };
        // SAFETY: the set is initialised and the numbers are valid.
        (1..32).filter(|&signal| unsafe { libc::sigismember(&set, signal) } == 1).collect()
    }

    #[test]
    fn threads_block_signals_from_outside_and_no_others() {
        let mine = blocked();
        let (name, theirs) =
            spawn("a-name", || (std::thread::current().name().map(str::to_owned), blocked()))
                .unwrap()
                .join()
                .unwrap();
        assert_eq!(name.as_deref(), Some("a-name"));
        for signal in [libc::SIGPIPE, libc::SIGINT, libc::SIGTERM, libc::SIGWINCH, libc::SIGCHLD] {
            assert!(theirs.contains(&signal), "{signal} is not blocked");
        }
        for signal in SYNCHRONOUS {
            assert!(!theirs.contains(&signal), "{signal} is blocked");
        }
        assert_eq!(blocked(), mine, "the caller's mask has changed");
    }

    #[test]
    fn the_mask_is_restored_when_the_call_panics() {
        let mine = blocked();
        let result = std::panic::catch_unwind(|| without_signals(|| panic!("on purpose")));
        assert!(result.is_err());
        assert_eq!(blocked(), mine);
    }
}
