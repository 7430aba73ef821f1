//! ARP (RFC 826): the gateway and the host have an Ethernet address, and nobody else.

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol};

use super::config::Plan;
use super::wire::Wire;
use crate::net::MacAddr;

/// Answers a request; `None` if it makes no sense.
pub fn input(wire: &mut Wire, plan: &Plan, bytes: &[u8]) -> Option<()> {
    let packet = ArpPacket::new_checked(bytes).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = ArpRepr::parse(&packet).ok()?
    else {
        return None;
    };
    if operation != ArpOperation::Request || !plan.is_ours(target_protocol_addr.into()) {
        return Some(());
    }
    // Probes come from nobody (RFC 5227).
    let source = source_protocol_addr;
    if !source.is_unspecified() && !plan.may_be_guest(source.into()) {
        wire.count().spoofed.one();
        return Some(());
    }
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(wire.ends.gateway.0),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source,
    };
    let mut reply = vec![0; repr.buffer_len()];
    repr.emit(&mut ArpPacket::new_unchecked(&mut reply[..]));
    wire.ethernet(MacAddr(source_hardware_addr.0), EthernetProtocol::Arp, &reply);
    Some(())
}
