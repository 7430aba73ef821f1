//! Neighbours and routers in IPv6 (RFC 4861): what ARP is for IPv4, and half of what DHCP is.
//!
//! The guest makes an address of its own from our prefix (RFC 4862), and learns of the name server and its domain by
//! the same advertisement (RFC 8106). It is sent when the guest asks, when the link comes up, and a few times a day,
//! before it would expire.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use smoltcp::wire::{
    Icmpv6Message, Icmpv6Packet, IpProtocol, NdiscNeighborFlags, NdiscOption, NdiscOptionRepr,
    NdiscRepr, RawHardwareAddress,
};

use super::config::{Plan, Plan6};
use super::frame::{Packet, copy};
use super::icmp;
use super::wire::Wire;

/// All nodes on the link.
const ALL: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// For how long we are a router after an advertisement: the longest that it can say.
const LIFETIME: u16 = u16::MAX;
/// When another advertisement is due.
pub const AGAIN: Duration = Duration::from_secs(LIFETIME as u64 / 3);

/// Whether it is one of these messages.
pub fn is_for_us(message: &Icmpv6Packet<&[u8]>) -> bool {
    matches!(
        message.msg_type(),
        Icmpv6Message::NeighborSolicit
            | Icmpv6Message::NeighborAdvert
            | Icmpv6Message::RouterSolicit
            | Icmpv6Message::RouterAdvert
            | Icmpv6Message::Redirect
    )
}

/// Answers a solicitation; `None` if it makes no sense.
pub fn input(
    wire: &mut Wire,
    plan: &Plan,
    domain: Option<&str>,
    packet: &Packet,
    message: &Icmpv6Packet<&[u8]>,
) -> Option<()> {
    let v6 = plan.v6?;
    // Whatever was sent from elsewhere would have lost a hop.
    if packet.hops != 255 || message.msg_code() != 0 {
        return None;
    }
    match message.msg_type() {
        Icmpv6Message::NeighborSolicit => {
            options(message)?;
            let NdiscRepr::NeighborSolicit { target_addr, .. } = NdiscRepr::parse(message).ok()?
            else {
                return None;
            };
            if plan.is_ours(target_addr.into()) {
                advertise_neighbour(wire, packet.source, target_addr);
            }
        }
        Icmpv6Message::RouterSolicit => {
            options(message)?;
            advertise_router(wire, &v6, domain);
        }
        _ => {}
    }
    Some(())
}

/// Checks the lengths of all options: none may be zero.
fn options(message: &Icmpv6Packet<&[u8]>) -> Option<()> {
    let mut rest = message.payload();
    while !rest.is_empty() {
        let length = 8 * usize::from(NdiscOption::new_checked(rest).ok()?.data_len());
        rest = rest.get(length..).filter(|_| length > 0)?;
    }
    Some(())
}

fn advertise_neighbour(wire: &mut Wire, to: IpAddr, target: Ipv6Addr) {
    // Somebody who has no address yet wants to know whether this one is taken.
    let (to, solicited) = match to.is_unspecified() {
        true => (ALL.into(), NdiscNeighborFlags::empty()),
        false => (to, NdiscNeighborFlags::SOLICITED),
    };
    let repr = NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE | solicited,
        target_addr: target,
        lladdr: Some(RawHardwareAddress::from_bytes(&wire.ends.gateway.0)),
    };
    let mut message = vec![0; repr.buffer_len()];
    repr.emit(&mut Icmpv6Packet::new_unchecked(&mut message[..]));
    icmp::seal(&mut message, target.into(), to);
    wire.ip((target.into(), to), IpProtocol::Icmpv6, 255, &message);
}

/// Tells the guest about its prefix, its router and its name server.
pub fn advertise_router(wire: &mut Wire, v6: &Plan6, domain: Option<&str>) {
    let mut message = vec![0; 16];
    // Other configuration is to be had by DHCPv6, for guests that do not look for name servers here.
    const OTHER: u8 = 0x40;
    let [a, b] = LIFETIME.to_be_bytes();
    copy(&mut message, 0, &[134, 0, 0, 0, 64, OTHER, a, b]);
    let options = [
        NdiscOptionRepr::SourceLinkLayerAddr(RawHardwareAddress::from_bytes(&wire.ends.gateway.0)),
        NdiscOptionRepr::Mtu(wire.ends.mtu.into()),
        NdiscOptionRepr::PrefixInformation(smoltcp::wire::NdiscPrefixInformation {
            prefix_len: 64,
            flags: smoltcp::wire::NdiscPrefixInfoFlags::ON_LINK
                | smoltcp::wire::NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: smoltcp::time::Duration::from_secs(u32::MAX.into()),
            preferred_lifetime: smoltcp::time::Duration::from_secs(u32::MAX.into()),
            prefix: v6.prefix,
        }),
    ];
    for option in options {
        let at = message.len();
        message.resize(at + option.buffer_len(), 0);
        if let Some(room) = message.get_mut(at..) {
            option.emit(&mut NdiscOption::new_unchecked(room));
        }
    }
    // The name server: RDNSS (25), for ever.
    message.extend([25, 3, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    message.extend(v6.gateway.octets());
    if let Some(domain) = domain {
        let mut names = labels(domain);
        names.resize(names.len().next_multiple_of(8), 0);
        // The domain: DNSSL (31).
        message.extend([31, 1 + (names.len() / 8) as u8, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        message.extend(names);
    }
    icmp::seal(&mut message, v6.link.into(), ALL.into());
    wire.ip((v6.link.into(), ALL.into()), IpProtocol::Icmpv6, 255, &message);
}

/// A name as DNS has it. It has been checked before.
pub fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}
