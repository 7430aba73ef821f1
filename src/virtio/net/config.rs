//! The configuration space of a network card (struct virtio_net_config, §5.1.4).

use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;

use super::super::ConfigSpace;
use crate::net::MacAddr;

// Offsets.
pub(super) const MAC: usize = 0;
pub(super) const STATUS: usize = 6;

/// The space of a card whose link is up.
pub(super) fn space(mac: MacAddr, pairs: u16, mtu: u16) -> ConfigSpace {
    let mut bytes = mac.0.to_vec();
    bytes.extend(status(true));
    bytes.extend(pairs.to_le_bytes());
    bytes.extend(mtu.to_le_bytes());
    ConfigSpace::new(bytes)
}

/// The `status` field.
pub(super) fn status(up: bool) -> [u8; 2] {
    let status = if up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
    status.to_le_bytes()
}
