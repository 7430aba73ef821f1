//! What a driver settles with a device before it uses it (§3.1): status, features, where the queues are.
//!
//! These are the registers that all transports have in common, as a plain value: every write is checked against the
//! state the driver has reached, and one that comes at the wrong time goes nowhere. In particular nothing can be
//! changed any more once DRIVER_OK is set: the queues have left for the device by then.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
};

use super::feature;
use super::queue::Layout;

pub(super) const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
pub(super) const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
pub(super) const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
pub(super) const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
pub(super) const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// What a write to the device status asks of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    None,
    /// The driver has just set DRIVER_OK.
    Activate,
    /// The driver wants a reset; the transport calls [`Setup::clear`] once it is done.
    Reset,
}

/// One queue, as the driver describes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueSetup {
    pub layout: Layout,
    pub max: u16,
    pub ready: bool,
}

/// The registers that lead up to DRIVER_OK.
#[derive(Debug)]
pub(super) struct Setup {
    offered: u64,
    status: u32,
    accepted: u64,
    pub device_features_select: u32,
    pub driver_features_select: u32,
    pub queue_select: u32,
    queues: Box<[QueueSetup]>,
}

impl Setup {
    /// For a device with these features and queues.
    pub fn new(offered: u64, queue_sizes: &[u16]) -> Self {
        let queues = queue_sizes.iter().map(|&max| QueueSetup {
            layout: Layout { size: max.into(), ..Layout::default() },
            max,
            ready: false,
        });
        Self {
            offered,
            status: 0,
            accepted: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            queues: queues.collect(),
        }
    }

    /// Back to power-on.
    pub fn clear(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max).collect();
        *self = Self::new(self.offered, &sizes);
    }

    /// The device status, without DEVICE_NEEDS_RESET.
    pub fn status(&self) -> u32 {
        self.status
    }

    /// The features that driver and device have in common.
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// Every queue.
    pub fn queues(&self) -> &[QueueSetup] {
        &self.queues
    }

    /// The queue that is selected, if there is one of that number.
    pub fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// 32 of the features offered.
    pub fn device_features(&self) -> u32 {
        match self.device_features_select {
            0 => self.offered as u32,
            1 => (self.offered >> 32) as u32,
            _ => 0,
        }
    }

    /// The driver accepts 32 features.
    pub fn set_driver_features(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        self.accepted = match self.driver_features_select {
            0 => self.accepted & !0xffff_ffff | value,
            1 => self.accepted & 0xffff_ffff | value << 32,
            _ => return,
        };
    }

    /// Changes where the selected queue is, between FEATURES_OK and DRIVER_OK and as long as it is not ready.
    pub fn lay_out(&mut self, change: impl FnOnce(&mut Layout)) {
        if let Some(queue) = self.open_queue().filter(|queue| !queue.ready) {
            change(&mut queue.layout);
        }
    }

    /// Makes the selected queue ready, or not ready, between FEATURES_OK and DRIVER_OK. Afterwards a queue can only be
    /// given up (§4.2.2.2); this returns its index for the transport to take it away from the device.
    #[must_use]
    pub fn set_ready(&mut self, ready: bool) -> Option<usize> {
        if let Some(queue) = self.open_queue() {
            queue.ready = ready;
            return None;
        }
        let index = usize::try_from(self.queue_select).ok()?;
        let queue = self.queues.get_mut(index)?;
        let given_up = !ready && self.status & DRIVER_OK != 0 && queue.ready;
        queue.ready &= !given_up;
        given_up.then_some(index)
    }

    fn open_queue(&mut self) -> Option<&mut QueueSetup> {
        let open = self.status & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK;
        let index = usize::try_from(self.queue_select).ok()?;
        self.queues.get_mut(index).filter(|_| open)
    }

    /// The driver writes the device status. Bits can only be added, each after those that §3.1.1 puts before it;
    /// DEVICE_NEEDS_RESET may be among them, as it was read, and means nothing.
    pub fn set_status(&mut self, value: u32) -> Step {
        if value == 0 {
            return Step::Reset;
        }
        if self.status & !value != 0 {
            return Step::None;
        }
        let new = value & !self.status;
        let mut step = Step::None;
        for (bit, after) in [
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, DRIVER),
            (DRIVER_OK, FEATURES_OK),
            (FAILED, 0),
        ] {
            let possible = self.status & after == after && self.status & FAILED == 0;
            if new & bit == 0 || !possible || bit == FEATURES_OK && !self.acceptable() {
                continue;
            }
            self.status |= bit;
            if bit == DRIVER_OK {
                step = Step::Activate;
            }
        }
        step
    }

    /// VIRTIO_F_VERSION_1 is there, and nothing that was not offered.
    fn acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & feature::VERSION_1 != 0
    }
}
