//! Numbers that one thread counts and any thread reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread writes and any reads.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// One more.
    #[cfg(feature = "user-net")]
    pub fn one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        // Only one thread writes, so that nothing needs to be locked.
        self.set(self.get().wrapping_add(count));
    }

    /// As many.
    pub fn set(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes `Counters`, and `Tally`, in which one thread counts them.
macro_rules! counters {
    ($(#[$about:meta])* struct Counters { $($(#[$doc:meta])* $name:ident,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// [`Counters`] that one thread writes and others read.
        #[derive(Debug, Default)]
        pub(crate) struct Tally {
            $(pub $name: $crate::count::Count,)*
        }

        impl Tally {
            /// The numbers of now.
            pub fn read(&self) -> Counters {
                Counters { $($name: self.$name.get(),)* }
            }
        }
    };
}

pub(crate) use counters;
