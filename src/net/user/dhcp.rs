//! DHCP (RFC 2131) and the half of DHCPv6 that hands out no addresses (RFC 8415, §6.1).
//!
//! There is one address, and whoever asks gets it: there is one guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr};

use super::config::{Plan, Plan6};
use super::ndp::labels;
use super::wire::Wire;

/// Ports of server and client.
pub const PORTS: (u16, u16) = (67, 68);
/// Those of DHCPv6.
pub const PORTS6: (u16, u16) = (547, 546);
/// Where DHCPv6's clients send to: all servers on the link.
pub const SERVERS6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// A lease is as good as for ever, but some clients take the largest number for an error.
const LEASE: u32 = i32::MAX as u32;

/// What there is to know.
#[derive(Debug, Clone, Default)]
pub struct Names {
    pub domain: Option<String>,
    pub hostname: Option<String>,
}

/// Answers a client; `None` if its message makes no sense.
pub fn input(wire: &mut Wire, plan: &Plan, names: &Names, bytes: &[u8]) -> Option<()> {
    use DhcpMessageType::{Ack, Discover, Inform, Nak, Offer, Request};

    let packet = DhcpPacket::new_checked(bytes).ok()?;
    let request = DhcpRepr::parse(&packet).ok()?;
    if packet.opcode() != smoltcp::wire::DhcpOpCode::Request {
        return None;
    }
    let none = Ipv4Addr::UNSPECIFIED;
    let wanted = request.requested_ip.unwrap_or(request.client_ip);
    let for_us = request.server_identifier.is_none_or(|server| server == plan.gateway);
    let (answer, your_ip) = match request.message_type {
        Discover => (Offer, plan.guest),
        Request if !for_us => return Some(()),
        Request if wanted == plan.guest => (Ack, plan.guest),
        Request => (Nak, none),
        Inform => (Ack, none),
        // The address stays reserved, so nothing is to be done about a release or a decline.
        _ => return Some(()),
    };
    let mtu = wire.ends.mtu.to_be_bytes();
    let (broadcast, gateway) = (plan.broadcast().octets(), plan.gateway.octets());
    let [a, b, c, d] = gateway;
    // The default route once more, for clients that ignore the router where there are such routes (RFC 3442).
    let routes = [0, a, b, c, d];
    let wants =
        |kind: u8| request.parameter_request_list.is_some_and(|wanted| wanted.contains(&kind));
    let mut options = Vec::new();
    let mut add = |kind, data| options.push(DhcpOption { kind, data });
    if answer != Nak {
        add(28, &broadcast[..]);
        add(26, &mtu[..]);
        if wants(121) {
            add(121, &routes[..]);
        }
        if let Some(hostname) = &names.hostname {
            add(12, hostname.as_bytes());
        }
        if let Some(domain) = &names.domain {
            add(15, domain.as_bytes());
        }
    }
    let search = names.domain.as_deref().map(labels);
    if let Some(search) = &search
        && answer != Nak
        && wants(119)
    {
        add(119, search);
    }
    let known = answer != Nak;
    let leased = known && answer_has_lease(request.message_type);
    let reply = DhcpRepr {
        message_type: answer,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: if answer == Ack { request.client_ip } else { none },
        your_ip,
        server_ip: if known { plan.gateway } else { none },
        router: known.then_some(plan.gateway),
        subnet_mask: known.then_some(plan.mask),
        relay_agent_ip: none,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(plan.gateway),
        parameter_request_list: None,
        dns_servers: known.then(|| [plan.gateway].into_iter().collect()),
        max_size: None,
        lease_duration: leased.then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &options,
    };
    let mut bytes = vec![0; reply.buffer_len().max(300)];
    reply.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).ok()?;
    // To the address that it has, if it has one; else to all, which each client understands.
    let to = match request.client_ip {
        address if answer == Ack && plan.may_be_guest(address.into()) => address,
        _ => Ipv4Addr::BROADCAST,
    };
    let from = SocketAddr::new(plan.gateway.into(), PORTS.0);
    wire.udp(from, SocketAddr::new(to.into(), PORTS.1), &bytes);
    Some(())
}

fn answer_has_lease(request: DhcpMessageType) -> bool {
    request != DhcpMessageType::Inform
}

/// Types of DHCPv6 messages.
const INFORMATION_REQUEST: u8 = 11;
const REPLY: u8 = 7;

/// Answers a DHCPv6 client that wants no address; `None` if its message makes no sense.
pub fn input6(
    wire: &mut Wire,
    v6: &Plan6,
    names: &Names,
    client: IpAddr,
    bytes: &[u8],
) -> Option<()> {
    let (&[kind, a, b, c], mut options) = bytes.split_first_chunk::<4>()?;
    if kind != INFORMATION_REQUEST {
        return Some(());
    }
    let [m, n, o, p, q, r] = wire.ends.gateway.0;
    // We are known by our Ethernet address: DUID-LL.
    let duid = [0, 3, 0, 1, m, n, o, p, q, r];
    let mut reply = vec![REPLY, a, b, c];
    while let Some((&[kind, code, high, low], rest)) = options.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (data, rest) = rest.split_at_checked(length)?;
        match u16::from_be_bytes([kind, code]) {
            // The client's identifier comes back.
            1 => option(&mut reply, 1, data),
            2 if data != duid => return Some(()),
            _ => {}
        }
        options = rest;
    }
    option(&mut reply, 2, &duid);
    option(&mut reply, 23, &v6.gateway.octets());
    if let Some(domain) = &names.domain {
        option(&mut reply, 24, &labels(domain));
    }
    let from = SocketAddr::new(v6.link.into(), PORTS6.0);
    wire.udp(from, SocketAddr::new(client, PORTS6.1), &reply);
    Some(())
}

fn option(message: &mut Vec<u8>, code: u16, data: &[u8]) {
    message.extend(code.to_be_bytes());
    message.extend((data.len() as u16).to_be_bytes());
    message.extend_from_slice(data);
}
