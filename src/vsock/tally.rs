//! What went through a device, counted.

use crate::count::counters;

counters! {
    /// What a device has done, and what it does.
    struct Counters {
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
}
