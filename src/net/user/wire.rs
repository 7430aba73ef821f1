//! The way to the guest: who is there, and what waits for it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smoltcp::wire::{EthernetProtocol, IpProtocol};

use super::counters::Tally;
use super::forward::Shared;
use super::outbox::{Ends, Outbox};
use crate::net::MacAddr;

/// The guest's side of the network.
#[derive(Debug)]
pub struct Wire {
    pub ends: Ends,
    pub outbox: Outbox,
    pub shared: Arc<Shared>,
}

impl Wire {
    pub fn count(&self) -> &Tally {
        &self.shared.counters
    }

    /// Sends the guest an Ethernet frame.
    pub fn ethernet(&mut self, to: MacAddr, kind: EthernetProtocol, payload: &[u8]) {
        self.outbox.ethernet(&self.ends, to, kind, payload);
    }

    /// Sends the guest an IP packet.
    pub fn ip(&mut self, addresses: (IpAddr, IpAddr), protocol: IpProtocol, hops: u8, data: &[u8]) {
        self.outbox.ip(&self.ends, addresses, protocol, hops, data);
    }

    /// Sends the guest a UDP datagram.
    pub fn udp(&mut self, from: SocketAddr, to: SocketAddr, data: &[u8]) {
        self.outbox.udp(&self.ends, from, to, data);
    }
}
