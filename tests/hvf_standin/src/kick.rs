//! `hv_vcpus_exit`: getting a vCPU out of `KVM_RUN`.
//!
//! A signal that is blocked on the vCPU's thread and let through inside `KVM_RUN` alone (`KVM_SET_SIGNAL_MASK`) ends a run that
//! is under way, or stays pending and ends the next at once. It is never delivered.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 6
}

vmm_sys_util::ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, kvm_bindings::KVMIO, 0x8b, u32);

/// The kernel's `struct kvm_signal_mask` with its 64-bit signal set.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
}

/// A vCPU's thread, and whether its run is to end.
pub struct Kick {
    thread: libc::pid_t,
    wanted: AtomicBool,
}

impl Kick {
    /// For `vcpu`, which will run on the calling thread.
    pub fn on_this_thread(vcpu: &impl AsRawFd) -> io::Result<Self> {
        // SAFETY: the sets are plain memory that the calls initialise; they only change this thread's mask.
        let old = unsafe {
            let mut kick = MaybeUninit::uninit();
            let mut old = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(kick.as_mut_ptr());
            libc::sigaddset(kick.as_mut_ptr(), signal());
            match libc::pthread_sigmask(libc::SIG_BLOCK, kick.as_ptr(), old.as_mut_ptr()) {
                0 => old.assume_init(),
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        };
        let mut mask = SignalMask { len: 8, set: [0; 8] };
        for number in (1..=64).filter(|number| *number != signal()) {
            // SAFETY: `old` was initialised above.
            if unsafe { libc::sigismember(&old, number) } == 1 {
                let bit = number as usize - 1;
                mask.set[bit / 8] |= 1 << (bit % 8);
            }
        }
        // SAFETY: the kernel reads `len` and then `len` bytes behind it, all inside `mask`.
        if unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK() as _, &mask) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: gettid has no arguments and cannot fail.
        Ok(Self { thread: unsafe { libc::gettid() }, wanted: AtomicBool::new(false) })
    }

    /// Ends the run, or the next one. The caller keeps the vCPU, and so its thread, from going away meanwhile.
    pub fn kick(&self) {
        self.wanted.store(true, Ordering::Release);
        // SAFETY: the thread lives; a signal that it blocks has no effect but to interrupt KVM_RUN.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread, signal()) };
    }

    /// After EINTR: takes the signal off the queue, and tells whether the run is to end.
    pub fn take(&self) -> bool {
        // SAFETY: plain memory, initialised by sigemptyset; a null siginfo is allowed; the wait does not block.
        unsafe {
            let mut kick = MaybeUninit::uninit();
            libc::sigemptyset(kick.as_mut_ptr());
            libc::sigaddset(kick.as_mut_ptr(), signal());
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            while libc::sigtimedwait(kick.as_ptr(), std::ptr::null_mut(), &now) > 0 {}
        }
        self.wanted.swap(false, Ordering::AcqRel)
    }
}
