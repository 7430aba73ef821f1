//! Getting a vCPU out of `KVM_RUN` from another thread, without a signal handler.
//!
//! A signal is what makes `KVM_RUN` return, but a handler for it would belong to the whole process, and the process
//! is the embedder's. So the kick signal stays blocked on the vCPU's thread and is let through by
//! `KVM_SET_SIGNAL_MASK` only inside `KVM_RUN`. There it ends the call with EINTR; outside it stays pending, and
//! the next `KVM_RUN` returns at once: a kick between two runs is not lost. It is never delivered, only taken from
//! the queue with `sigtimedwait`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::accel::{Error, Kicker};

/// The kick signal: one of the real-time signals, which hardly any program uses, sent to one thread.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

vmm_sys_util::ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, kvm_bindings::KVMIO, 0x8b, u32);

/// The kernel's `struct kvm_signal_mask` with room for the kernel's 64-bit signal set.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
}

struct Target {
    /// The vCPU's thread; `None` once it has let go of the vCPU, when its number may be another thread's.
    thread: Mutex<Option<libc::pid_t>>,
    kicked: AtomicBool,
}

/// The receiving end of kicks, on the vCPU's thread.
pub(super) struct Kicks(Arc<Target>);

impl Kicks {
    /// Lets the kick signal interrupt `KVM_RUN` on `vcpu`, which will run on the calling thread.
    pub fn on_this_thread(vcpu: &impl AsRawFd) -> Result<Self, Error> {
        let failed = |call, source| Error::Call { call, on: " on a vCPU's thread".into(), source };
        // SAFETY: the sets are plain memory that the calls initialise; they only change this thread's mask.
        let old = unsafe {
            let mut kick = MaybeUninit::uninit();
            let mut old = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(kick.as_mut_ptr());
            libc::sigaddset(kick.as_mut_ptr(), signal());
            match libc::pthread_sigmask(libc::SIG_BLOCK, kick.as_ptr(), old.as_mut_ptr()) {
                0 => old.assume_init(),
                error => {
                    return Err(failed("pthread_sigmask", io::Error::from_raw_os_error(error)));
                }
            }
        };
        let mut mask = SignalMask { len: 8, set: [0; 8] };
        for number in 1..=64 {
            // SAFETY: `old` was initialised above.
            let blocked = unsafe { libc::sigismember(&old, number) } == 1;
            if blocked && number != signal() {
                let bit = number as usize - 1;
                mask.set[bit / 8] |= 1 << (bit % 8);
            }
        }
        set_signal_mask(vcpu.as_raw_fd(), &mask)
            .map_err(|source| failed("KVM_SET_SIGNAL_MASK", source))?;
        // SAFETY: gettid has no arguments and cannot fail.
        let thread = unsafe { libc::gettid() };
        Ok(Self(Arc::new(Target {
            thread: Mutex::new(Some(thread)),
            kicked: AtomicBool::new(false),
        })))
    }

    pub fn kicker(&self) -> Kicker {
        let target = self.0.clone();
        Kicker::new(move || {
            if target.kicked.swap(true, Ordering::AcqRel) {
                return;
            }
            let thread = target.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if let Some(thread) = *thread {
                // SAFETY: the lock keeps the thread from ending, so the number is its own; a signal that it blocks
                // has no effect but to interrupt KVM_RUN.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
            }
        })
    }

    /// After EINTR: takes the signal off the queue, and tells whether it was a kick.
    pub fn take(&self) -> bool {
        // SAFETY: plain memory, initialised by sigemptyset; a null siginfo is allowed; the wait does not block.
        unsafe {
            let mut kick = MaybeUninit::uninit();
            libc::sigemptyset(kick.as_mut_ptr());
            libc::sigaddset(kick.as_mut_ptr(), signal());
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            while libc::sigtimedwait(kick.as_ptr(), std::ptr::null_mut(), &now) > 0 {}
        }
        self.0.kicked.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Kicks {
    fn drop(&mut self) {
        *self.0.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
        self.take();
    }
}

fn set_signal_mask(vcpu: RawFd, mask: &SignalMask) -> io::Result<()> {
    // SAFETY: the kernel reads `len` and then `len` bytes behind it, all inside `mask`.
    match unsafe { libc::ioctl(vcpu, KVM_SET_SIGNAL_MASK() as _, mask) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
