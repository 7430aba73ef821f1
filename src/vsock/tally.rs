//! What went through a device, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread writes and any reads.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// So many more.
    pub fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }

    /// As many.
    pub fn set(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a device has done, and what it does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// [`Counters`] that the device's thread is counting.
        #[derive(Debug, Default)]
        pub(crate) struct Tally {
            $(pub $name: Count,)*
        }

        impl Tally {
            /// The numbers of now.
            pub fn read(&self) -> Counters {
                Counters { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Connections that are there now.
    open,
    /// Connections from the host to the guest that were made, from the beginning on.
    to_guest,
    /// Connections from the guest to the host that were made.
    from_guest,
    /// Connections that were refused, by either side or for want of room.
    refused,
    /// Connections that ended in a reset: one side broke the rules, or vanished.
    resets,
    /// Bytes, or parts of messages, from the guest to the host.
    sent,
    /// Bytes, or parts of messages, from the host to the guest.
    received,
    /// Packets of the guest that were not for the host, or belonged to nothing.
    dropped,
}
