//! A level-triggered interrupt line, as a device drives it.

use std::sync::Arc;

use crate::accel::IrqLine;

/// An interrupt line that is told of changes only. To be set with the device's lock held, so that levels reach the
/// line in the order they came about.
pub(super) struct Level {
    irq: Arc<dyn IrqLine>,
    high: bool,
}

impl Level {
    pub fn new(irq: Arc<dyn IrqLine>) -> Self {
        Self { irq, high: false }
    }

    pub fn set(&mut self, high: bool) {
        if high != self.high {
            self.high = high;
            self.irq.set_level(high);
        }
    }
}
