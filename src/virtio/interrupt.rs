//! How a device reaches its driver: what the transports (MMIO now, PCI later) do alike.

use std::fmt::Display;

/// The notifications a device sends (§2.3), and the one bit of the device status that is the device's to set.
pub trait Interrupt: Send + Sync {
    /// Used buffer notification for queue `index`.
    fn queue(&self, index: u16);

    /// Configuration change notification.
    fn config(&self);

    /// Sets DEVICE_NEEDS_RESET (§2.1) and sends a configuration change notification. `why` is for the log.
    fn needs_reset(&self, why: &dyn Display);
}
