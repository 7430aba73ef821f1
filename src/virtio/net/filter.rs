//! Which frames the driver wants (§5.1.6.5.1, §5.1.6.5.2).

use virtio_bindings::virtio_net::*;

use crate::net::MacAddr;

/// Addresses that are kept of each kind. A driver that lists more gets all frames of the kind.
const TABLE: usize = 64;

/// The addresses of one kind that the driver listed.
#[derive(Debug, Default)]
pub(super) struct Table {
    addresses: Vec<MacAddr>,
    /// There were more than are kept.
    overflown: bool,
}

impl Table {
    /// Adds an address, and tells whether more can be added.
    pub fn add(&mut self, address: MacAddr) -> bool {
        if self.addresses.len() < TABLE {
            self.addresses.push(address);
        } else {
            self.overflown = true;
        }
        !self.overflown
    }

    fn has(&self, address: MacAddr) -> bool {
        self.overflown || self.addresses.contains(&address)
    }
}

/// What the driver wants.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// One bit for each VIRTIO_NET_CTRL_RX command that is on.
    modes: u8,
    pub unicast: Table,
    pub multicast: Table,
}

impl Filter {
    /// Turns one of the modes on or off, and tells whether there is such a mode. Only the first two are there without
    /// VIRTIO_NET_F_CTRL_RX_EXTRA.
    pub fn set_mode(&mut self, command: u8, on: bool, extra: bool) -> bool {
        let last = match extra {
            true => VIRTIO_NET_CTRL_RX_NOBCAST,
            false => VIRTIO_NET_CTRL_RX_ALLMULTI,
        };
        if u32::from(command) > last {
            return false;
        }
        let bit = 1 << command;
        self.modes = if on { self.modes | bit } else { self.modes & !bit };
        true
    }

    fn is_on(&self, command: u32) -> bool {
        self.modes & 1 << command != 0
    }

    /// Whether a frame to `address` goes to the driver, whose own address is `own`.
    pub fn wants(&self, address: MacAddr, own: MacAddr) -> bool {
        if self.is_on(VIRTIO_NET_CTRL_RX_PROMISC) {
            true
        } else if address == MacAddr::BROADCAST {
            !self.is_on(VIRTIO_NET_CTRL_RX_NOBCAST)
        } else if address.is_multicast() {
            !self.is_on(VIRTIO_NET_CTRL_RX_NOMULTI)
                && (self.is_on(VIRTIO_NET_CTRL_RX_ALLMULTI) || self.multicast.has(address))
        } else {
            !self.is_on(VIRTIO_NET_CTRL_RX_NOUNI)
                && (address == own
                    || self.is_on(VIRTIO_NET_CTRL_RX_ALLUNI)
                    || self.unicast.has(address))
        }
    }
}
