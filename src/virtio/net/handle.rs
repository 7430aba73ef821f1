//! What can be done with a card while its machine runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;

use super::super::ConfigSpace;
use super::config;
use crate::count::Count;
use crate::net::MacAddr;
use crate::sys::Notifier;

/// A handle on a network card. Copies are handles on the same one.
#[derive(Clone)]
pub struct CardHandle(pub(super) Arc<Shared>);

/// What card and handles share.
pub(super) struct Shared {
    pub config: Arc<ConfigSpace>,
    /// The cable is in, as far as the owner is concerned.
    pub plugged: AtomicBool,
    /// Set when that has changed.
    pub changed: Notifier,
    pub tally: Tally,
}

/// What went through a card, and what did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Frames that the host side took from the guest.
    pub sent: Traffic,
    /// Frames that the guest was given.
    pub received: Traffic,
    /// Frames of the guest that went nowhere.
    pub send_drops: SendDrops,
    /// Frames for the guest that it was not given.
    pub receive_drops: ReceiveDrops,
}

/// Frames, and the bytes in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Frames.
    pub frames: u64,
    /// Bytes, from the Ethernet header on.
    pub bytes: u64,
}

/// Frames of the guest that went nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SendDrops {
    /// The frame is too short, or its header says something impossible.
    pub malformed: u64,
    /// The frame is longer than the MTU allows.
    pub too_large: u64,
    /// The link is down.
    pub link_down: u64,
    /// The host side could not send it.
    pub failed: u64,
}

/// Frames for the guest that it was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ReceiveDrops {
    /// The guest does not want frames to this address.
    pub filtered: u64,
    /// The frame is too short, or is one that the guest was promised not to get.
    pub malformed: u64,
    /// The host side lost it, most likely because the guest's buffers are too small.
    pub failed: u64,
}

/// [`Counters`] that are being counted.
#[derive(Default)]
pub(super) struct Tally {
    sent: Count,
    sent_bytes: Count,
    received: Count,
    received_bytes: Count,
    pub malformed_sent: Count,
    pub too_large: Count,
    pub link_down: Count,
    pub failed_sends: Count,
    pub filtered: Count,
    pub malformed_received: Count,
    pub failed_receives: Count,
}

impl Tally {
    /// Counts a frame that was sent.
    pub fn send(&self, bytes: usize) {
        self.sent.add(1);
        self.sent_bytes.add(bytes as u64);
    }

    /// Counts a frame that the driver was given.
    pub fn receive(&self, bytes: usize) {
        self.received.add(1);
        self.received_bytes.add(bytes as u64);
    }
}

impl CardHandle {
    /// Pulls the cable, or plugs it in. While it is out, what the guest sends goes nowhere, and nothing is received.
    pub fn set_link(&self, up: bool) {
        self.0.plugged.store(up, Ordering::Relaxed);
        self.0.changed.notify();
    }

    /// Whether the guest sees a link: the cable is in, and there is somebody on the other side.
    pub fn link(&self) -> bool {
        let mut status = [0];
        self.0.config.read(config::STATUS, &mut status);
        let [status] = status;
        status & VIRTIO_NET_S_LINK_UP as u8 != 0
    }

    /// The address of the card, as its driver sees it or has set it.
    pub fn mac(&self) -> MacAddr {
        let mut address = [0; 6];
        self.0.config.read(config::MAC, &mut address);
        MacAddr(address)
    }

    /// What went through, from the beginning on. Counts that are read while frames pass need not belong to the same
    /// instant.
    pub fn counters(&self) -> Counters {
        let tally = &self.0.tally;
        let traffic =
            |frames: &Count, bytes: &Count| Traffic { frames: frames.get(), bytes: bytes.get() };
        Counters {
            sent: traffic(&tally.sent, &tally.sent_bytes),
            received: traffic(&tally.received, &tally.received_bytes),
            send_drops: SendDrops {
                malformed: tally.malformed_sent.get(),
                too_large: tally.too_large.get(),
                link_down: tally.link_down.get(),
                failed: tally.failed_sends.get(),
            },
            receive_drops: ReceiveDrops {
                filtered: tally.filtered.get(),
                malformed: tally.malformed_received.get(),
                failed: tally.failed_receives.get(),
            },
        }
    }
}

impl std::fmt::Debug for CardHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CardHandle")
            .field("mac", &self.mac())
            .field("link", &self.link())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
