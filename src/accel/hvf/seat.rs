//! A vCPU as other threads see it: where it is kicked, and where it waits while it does not run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::sys::{hv_vcpu_t, hv_vcpus_exit};
use crate::accel::Kicker;
use crate::accel::hvf_error::check;

/// A vCPU's place in the machine, whether it is there yet or not.
///
/// A kick sets a flag, ends the vCPU's wait if it waits, and calls `hv_vcpus_exit`. That ends the run that is under
/// way; of a vCPU that does not run, `hv_vcpu.h` says, the next run ends at once. So a kick that comes between a look
/// at the flag and `hv_vcpu_run` is not lost. One that was already answered may end a run for nothing, which is why the
/// flag has the last word.
#[derive(Default)]
pub struct Seat {
    kicked: AtomicBool,
    vcpu: Mutex<Option<hv_vcpu_t>>,
    /// Something changed that a waiting vCPU is to look at.
    changed: Condvar,
}

impl Seat {
    /// The vCPU is there; `false` if another is.
    #[must_use]
    pub fn take(&self, vcpu: hv_vcpu_t) -> bool {
        let mut place = self.lock();
        let free = place.is_none();
        if free {
            *place = Some(vcpu);
        }
        free
    }

    /// The vCPU goes: kicks do nothing from here on.
    pub fn leave(&self) {
        *self.lock() = None;
    }

    /// The handle that ends the vCPU's run.
    pub fn kicker(self: &Arc<Self>) -> Kicker {
        let seat = self.clone();
        Kicker::new(move || seat.kick())
    }

    fn kick(&self) {
        if self.kicked.swap(true, Ordering::AcqRel) {
            return;
        }
        // Held so that the vCPU does not go away meanwhile, nor begin to wait unnoticed.
        let vcpu = self.lock();
        self.changed.notify_all();
        if let Some(vcpu) = *vcpu {
            // SAFETY: the vCPU lives, and any thread may call.
            let answer = unsafe { hv_vcpus_exit(&vcpu, 1) };
            if let Err(error) = check(answer, "hv_vcpus_exit", String::new) {
                log::error!("{error}");
            }
        }
    }

    /// Tells whether there was a kick since the last time.
    #[inline]
    pub fn take_kick(&self) -> bool {
        // Most runs are not kicked: the plain load keeps the flag's cache line shared.
        self.kicked.load(Ordering::Acquire) && self.kicked.swap(false, Ordering::AcqRel)
    }

    /// Has the vCPU look whether what it waits for is there.
    pub fn wake(&self) {
        let _held = self.lock();
        self.changed.notify_all();
    }

    /// Waits, on the vCPU's thread, until `ready` returns something, a kick, or `deadline`.
    pub fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let mut held = self.lock();
        loop {
            if let Some(value) = ready() {
                return Some(value);
            }
            if self.kicked.load(Ordering::Acquire) {
                return None;
            }
            held = match deadline {
                None => self.changed.wait(held).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    let waited = self.changed.wait_timeout(held, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<hv_vcpu_t>> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
