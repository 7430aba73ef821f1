use std::mem::MaybeUninit;

/// How often this thread has given the processor up because it had to wait; nothing if the host does not tell.
pub(crate) fn waits() -> Option<u64> {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the call fills the structure, unless it fails.
    match unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) } {
        // SAFETY: it did not.
        0 => u64::try_from(unsafe { usage.assume_init() }.ru_nvcsw).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn to_sleep_is_to_wait_and_to_be_busy_is_not() {
        let before = waits().unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(20) {}
        assert_eq!(waits(), Some(before));
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(waits(), Some(before + 1));
    }
}
