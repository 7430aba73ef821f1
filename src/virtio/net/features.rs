//! The features of a network card (§5.1.3), what they need of one another (§5.1.3.1), and what they need of the host
//! side.

use crate::net::{Offloads, Properties};

bitflags::bitflags! {
    /// Features of a network card, each at its bit.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Features: u64 {
        /// The driver sends frames whose checksum is not complete.
        const CSUM = 1 << 0;
        /// The driver takes frames whose checksum is not complete.
        const GUEST_CSUM = 1 << 1;
        /// The driver can change its mind about what it takes.
        const CTRL_GUEST_OFFLOADS = 1 << 2;
        /// The driver is told the MTU.
        const MTU = 1 << 3;
        /// The driver is told its address.
        const MAC = 1 << 5;
        /// The driver takes large TCP packets over IPv4.
        const GUEST_TSO4 = 1 << 7;
        /// The driver takes large TCP packets over IPv6.
        const GUEST_TSO6 = 1 << 8;
        /// The driver sends large TCP packets over IPv4.
        const HOST_TSO4 = 1 << 11;
        /// The driver sends large TCP packets over IPv6.
        const HOST_TSO6 = 1 << 12;
        /// A received frame may be spread over several buffers.
        const MRG_RXBUF = 1 << 15;
        /// The driver sees the link go up and down.
        const STATUS = 1 << 16;
        /// There is a control queue.
        const CTRL_VQ = 1 << 17;
        /// The driver says which frames it wants.
        const CTRL_RX = 1 << 18;
        /// It can also say that it wants no frames of a kind.
        const CTRL_RX_EXTRA = 1 << 20;
        /// There are several pairs of queues.
        const MQ = 1 << 22;
        /// The driver can change its address.
        const CTRL_MAC_ADDR = 1 << 23;
        /// The driver takes large UDP packets over IPv4.
        const GUEST_USO4 = 1 << 54;
        /// The driver takes large UDP packets over IPv6.
        const GUEST_USO6 = 1 << 55;
        /// The driver sends large UDP packets.
        const HOST_USO = 1 << 56;
    }
}

/// The smallest MTU that can be told (§5.1.4.1).
const LEAST_MTU: u16 = 68;

/// What goes together with what the host side keeps.
const OFFLOADS: [(Features, Offloads); 9] = [
    (Features::CSUM, Offloads::CSUM),
    (Features::HOST_TSO4, Offloads::TSO4),
    (Features::HOST_TSO6, Offloads::TSO6),
    (Features::HOST_USO, Offloads::USO),
    (Features::GUEST_CSUM, Offloads::GUEST_CSUM),
    (Features::GUEST_TSO4, Offloads::GUEST_TSO4),
    (Features::GUEST_TSO6, Offloads::GUEST_TSO6),
    (Features::GUEST_USO4, Offloads::GUEST_USO4),
    (Features::GUEST_USO6, Offloads::GUEST_USO6),
];

impl Features {
    /// Large packets that the driver takes.
    pub(super) const GUEST_LARGE: Self =
        Self::GUEST_TSO4.union(Self::GUEST_TSO6).union(Self::GUEST_USO4).union(Self::GUEST_USO6);
    /// What CTRL_GUEST_OFFLOADS is about.
    pub(super) const GUEST_OFFLOADS: Self = Self::GUEST_CSUM.union(Self::GUEST_LARGE);

    const HOST_LARGE: Self = Self::HOST_TSO4.union(Self::HOST_TSO6).union(Self::HOST_USO);

    /// What a card offers in front of a host side that is so, but for `without`.
    pub(super) fn offered(properties: &Properties, without: Self) -> Self {
        let mut all = Self::MAC
            | Self::MRG_RXBUF
            | Self::STATUS
            | Self::CTRL_VQ
            | Self::CTRL_RX
            | Self::CTRL_RX_EXTRA
            | Self::CTRL_MAC_ADDR
            | Self::CTRL_GUEST_OFFLOADS;
        all.set(Self::MTU, properties.mtu >= LEAST_MTU);
        all.set(Self::MQ, properties.queues > 1);
        for (feature, offload) in OFFLOADS {
            all.set(feature, properties.offloads.contains(offload));
        }
        let offered = (all - without).consistent();
        if offered.intersects(Self::GUEST_OFFLOADS) {
            offered
        } else {
            offered - Self::CTRL_GUEST_OFFLOADS
        }
    }

    /// These features without those that need others that are not there.
    pub(super) fn consistent(mut self) -> Self {
        let control = Self::CTRL_RX | Self::CTRL_MAC_ADDR | Self::CTRL_GUEST_OFFLOADS | Self::MQ;
        for (features, needed) in [
            (Self::HOST_LARGE, Self::CSUM),
            (Self::GUEST_LARGE, Self::GUEST_CSUM),
            (control, Self::CTRL_VQ),
            (Self::CTRL_RX_EXTRA, Self::CTRL_RX),
        ] {
            if !self.contains(needed) {
                self -= features;
            }
        }
        self
    }

    /// What the host side is to keep.
    pub(super) fn offloads(self) -> Offloads {
        OFFLOADS.iter().filter(|(feature, _)| self.contains(*feature)).map(|(_, it)| *it).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(offloads: Offloads, queues: u16, mtu: u16) -> Properties {
        Properties { mac: None, mtu, offloads, queues }
    }

    #[test]
    fn no_more_is_offered_than_the_host_side_keeps() {
        let plain = Features::offered(&properties(Offloads::empty(), 1, 1500), Features::empty());
        let expected = Features::MAC
            | Features::MRG_RXBUF
            | Features::STATUS
            | Features::CTRL_VQ
            | Features::CTRL_RX
            | Features::CTRL_RX_EXTRA
            | Features::CTRL_MAC_ADDR
            | Features::MTU;
        assert_eq!(plain, expected);
        let all = Features::offered(&properties(Offloads::all(), 2, 1500), Features::empty());
        assert_eq!(all, Features::all());
        for (feature, offload) in OFFLOADS {
            let without = properties(Offloads::all() - offload, 2, 1500);
            assert!(!Features::offered(&without, Features::empty()).contains(feature));
        }
        let small = Features::offered(&properties(Offloads::all(), 2, 67), Features::empty());
        assert_eq!(small, Features::all() - Features::MTU);
    }

    #[test]
    fn what_is_left_out_takes_along_what_needs_it() {
        let properties = properties(Offloads::all(), 2, 1500);
        for feature in Features::all().iter() {
            let offered = Features::offered(&properties, feature);
            assert!(!offered.contains(feature));
            assert_eq!(offered, offered.consistent(), "without {feature:?}");
        }
        let without = |feature| Features::all() - Features::offered(&properties, feature);
        assert_eq!(without(Features::CSUM), Features::CSUM | Features::HOST_LARGE);
        assert_eq!(
            without(Features::GUEST_CSUM),
            Features::GUEST_OFFLOADS | Features::CTRL_GUEST_OFFLOADS
        );
        assert_eq!(
            without(Features::CTRL_VQ),
            Features::CTRL_VQ
                | Features::CTRL_RX
                | Features::CTRL_RX_EXTRA
                | Features::CTRL_MAC_ADDR
                | Features::CTRL_GUEST_OFFLOADS
                | Features::MQ
        );
        assert_eq!(without(Features::MTU), Features::MTU);
    }

    #[test]
    fn the_host_side_is_told_of_what_was_accepted() {
        assert_eq!(Features::all().offloads(), Offloads::all());
        let some = Features::CSUM | Features::GUEST_USO6 | Features::MQ;
        assert_eq!(some.offloads(), Offloads::CSUM | Offloads::GUEST_USO6);
    }
}
