//! Who has which address: ARP, DHCP, neighbours and routers, and echoes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hyperkit::net::user::{Error, GATEWAY_MAC, UserNet};
use hyperkit::net::{NetBackend, Offloads};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, icmp};
use smoltcp::wire::*;

use crate::datagrams::{GATEWAY, GUEST, GUEST6, HOST, HOST6};
use crate::frames::{Reader, datagram, ethernet, ip, udp};
use crate::guest::{Guest, MAC, Net};

#[test]
fn a_stack_gets_its_address_by_dhcp() {
    let mut guest = Guest::bare(UserNet::new().mtu(9000).domain("vm.example"));
    let dhcp = guest.sockets.add(dhcpv4::Socket::new());
    let (address, router, servers) =
        guest.until(|guest| match guest.sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll() {
            Some(dhcpv4::Event::Configured(config)) => {
                Some((config.address, config.router, config.dns_servers.to_vec()))
            }
            _ => None,
        });
    assert_eq!(address.to_string(), "192.168.65.3/24");
    assert_eq!(router, Some(Ipv4Addr::new(192, 168, 65, 1)));
    assert_eq!(servers, [Ipv4Addr::new(192, 168, 65, 1)]);
}

/// Sends a DHCP message, and gives the reply.
fn dhcp(
    net: &mut Net,
    source: [u8; 4],
    destination: [u8; 4],
    repr: &DhcpRepr<'_>,
) -> Option<Vec<u8>> {
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).unwrap();
    let from = SocketAddr::new(Ipv4Addr::from(source).into(), 68);
    let to = SocketAddr::new(Ipv4Addr::from(destination).into(), 67);
    let mut frame = ip(from.ip(), to.ip(), IpProtocol::Udp, 64, &datagram(from, to, &bytes));
    frame[..6].copy_from_slice(&[0xff; 6]);
    net.send(&frame);
    net.drain().iter().find_map(|frame| {
        let seen = Reader::default().read(frame)?;
        let (_, to, data) = seen.udp()?;
        (to.port() == 68).then(|| data.to_vec())
    })
}

fn request(kind: DhcpMessageType) -> DhcpRepr<'static> {
    DhcpRepr {
        message_type: kind,
        transaction_id: 77,
        secs: 0,
        client_hardware_address: EthernetAddress(MAC.0),
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: false,
        requested_ip: None,
        client_identifier: None,
        server_identifier: None,
        parameter_request_list: Some(&[1, 3, 6, 12, 15, 26, 119, 121]),
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    }
}

const NONE: [u8; 4] = [0; 4];
const ALL: [u8; 4] = [255; 4];

fn option(reply: &[u8], kind: u8) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(reply).unwrap();
    packet.options().find(|option| option.kind == kind).map(|option| option.data.to_vec())
}

#[test]
fn a_lease_says_all_there_is_to_know() {
    let config = UserNet::new().mtu(4000).domain("vm.example").hostname("box");
    let mut net = Net::new(config);
    let reply = dhcp(&mut net, NONE, ALL, &request(DhcpMessageType::Discover)).unwrap();
    let packet = DhcpPacket::new_checked(&reply[..]).unwrap();
    assert_eq!((packet.transaction_id(), packet.your_ip().octets()), (77, [192, 168, 65, 3]));
    let wanted: [(u8, &[u8]); 10] = [
        (53, &[2]),
        (1, &[255, 255, 255, 0]),
        (3, &[192, 168, 65, 1]),
        (6, &[192, 168, 65, 1]),
        (12, b"box"),
        (15, b"vm.example"),
        (26, &[0x0f, 0xa0]),
        (54, &[192, 168, 65, 1]),
        (119, b"\x02vm\x07example\x00"),
        (121, &[0, 192, 168, 65, 1]),
    ];
    for (kind, data) in wanted {
        assert_eq!(option(&reply, kind).as_deref(), Some(data), "option {kind}");
    }
    assert!(option(&reply, 51).is_some());
}

#[test]
fn requests_are_acknowledged_renewed_and_refused() {
    let mut net = Net::new(UserNet::new());
    let guest = [192, 168, 65, 3];
    let ours = DhcpRepr {
        requested_ip: Some(guest.into()),
        server_identifier: Some([192, 168, 65, 1].into()),
        ..request(DhcpMessageType::Request)
    };
    let reply = dhcp(&mut net, NONE, ALL, &ours).unwrap();
    assert_eq!(option(&reply, 53), Some(vec![5]));
    // Somebody else's offer was taken.
    let others = DhcpRepr { server_identifier: Some([192, 168, 65, 9].into()), ..ours.clone() };
    assert_eq!(dhcp(&mut net, NONE, ALL, &others), None);
    let elsewhere = DhcpRepr { requested_ip: Some([10, 0, 0, 7].into()), ..ours };
    let reply = dhcp(&mut net, NONE, ALL, &elsewhere).unwrap();
    assert_eq!(option(&reply, 53), Some(vec![6]));
    assert_eq!(option(&reply, 3), None);
    let renewal = DhcpRepr { client_ip: guest.into(), ..request(DhcpMessageType::Request) };
    let reply = dhcp(&mut net, guest, [192, 168, 65, 1], &renewal).unwrap();
    assert_eq!(option(&reply, 53), Some(vec![5]));
    let inform = DhcpRepr { client_ip: guest.into(), ..request(DhcpMessageType::Inform) };
    let reply = dhcp(&mut net, guest, [192, 168, 65, 1], &inform).unwrap();
    assert_eq!((option(&reply, 53), option(&reply, 51)), (Some(vec![5]), None));
    let release = DhcpRepr { client_ip: guest.into(), ..request(DhcpMessageType::Release) };
    assert_eq!(dhcp(&mut net, guest, [192, 168, 65, 1], &release), None);
}

#[test]
fn arp_is_answered_for_our_addresses_only() {
    let mut net = Net::new(UserNet::new());
    let mut ask = |source: [u8; 4], target: [u8; 4]| {
        let repr = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress(MAC.0),
            source_protocol_addr: source.into(),
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target.into(),
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
        let mut frame = ethernet(EthernetProtocol::Arp, &bytes);
        frame[..6].copy_from_slice(&[0xff; 6]);
        net.send(&frame);
        net.drain().iter().find_map(|frame| {
            let frame = EthernetFrame::new_checked(&frame[..]).unwrap();
            let packet = ArpPacket::new_checked(frame.payload()).ok()?;
            (frame.ethertype() == EthernetProtocol::Arp).then(|| ArpRepr::parse(&packet).unwrap())
        })
    };
    for target in [[192, 168, 65, 1], [192, 168, 65, 2]] {
        for source in [[192, 168, 65, 3], [0; 4]] {
            let wanted = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: EthernetAddress(GATEWAY_MAC.0),
                source_protocol_addr: target.into(),
                target_hardware_addr: EthernetAddress(MAC.0),
                target_protocol_addr: source.into(),
            };
            assert_eq!(ask(source, target), Some(wanted));
        }
    }
    assert_eq!(ask([192, 168, 65, 3], [192, 168, 65, 3]), None);
    assert_eq!(ask([192, 168, 65, 3], [192, 168, 65, 77]), None);
    assert_eq!(ask([10, 0, 0, 1], [192, 168, 65, 1]), None);
}

#[test]
fn the_router_advertises_itself_at_link_up_and_when_asked() {
    let config = UserNet::new().domain("vm.example");
    let mut net = Net::fresh(config, Offloads::empty());
    let advertisement = |frames: Vec<Vec<u8>>| {
        let mut seen = frames.iter().filter_map(|frame| Reader::default().read(frame));
        let seen = seen.find(|seen| seen.icmp() == Some((134, 0))).expect("an advertisement");
        assert_eq!(seen.hops, 255);
        assert_eq!(seen.source, IpAddr::V6("fe80::1".parse().unwrap()));
        assert_eq!(seen.destination, IpAddr::V6("ff02::1".parse().unwrap()));
        seen
    };
    let first = advertisement(net.drain());
    let source: Ipv6Addr = "fe80::3".parse().unwrap();
    let all: Ipv6Addr = "ff02::2".parse().unwrap();
    let mut message = vec![133, 0, 0, 0, 0, 0, 0, 0];
    seal(&mut message, source, all);
    net.send(&ip(source.into(), all.into(), IpProtocol::Icmpv6, 255, &message));
    assert_eq!(advertisement(net.drain()), first);
    // From beyond the link.
    net.send(&ip(source.into(), all.into(), IpProtocol::Icmpv6, 254, &message));
    assert_eq!(net.drain(), Vec::<Vec<u8>>::new());

    let packet = Icmpv6Packet::new_checked(&first.data[..]).unwrap();
    assert!(packet.verify_checksum(&"fe80::1".parse().unwrap(), &"ff02::1".parse().unwrap()));
    let NdiscRepr::RouterAdvert { lladdr, mtu, prefix_info, router_lifetime, .. } =
        NdiscRepr::parse(&packet).unwrap()
    else {
        panic!("no advertisement");
    };
    assert_eq!((lladdr.unwrap().as_bytes(), mtu), (&GATEWAY_MAC.0[..], Some(1500)));
    assert!(router_lifetime.total_millis() > 0);
    let prefix = prefix_info.unwrap();
    assert_eq!((prefix.prefix, prefix.prefix_len), ("fd68:6b6e:6574:41::".parse().unwrap(), 64));
    let mut servers = vec![25, 3, 0, 0, 255, 255, 255, 255];
    servers.extend("fd68:6b6e:6574:41::1".parse::<Ipv6Addr>().unwrap().octets());
    assert!(first.data.windows(24).any(|bytes| bytes == servers));
    assert!(first.data.windows(12).any(|bytes| bytes == b"\x02vm\x07example\x00"));
}

fn seal(message: &mut [u8], from: Ipv6Address, to: Ipv6Address) {
    Icmpv6Packet::new_unchecked(message).fill_checksum(&from, &to);
}

#[test]
fn dhcpv6_tells_the_name_server() {
    let mut net = Net::new(UserNet::new());
    let from: SocketAddr = "[fe80::3]:546".parse().unwrap();
    let to: SocketAddr = "[ff02::1:2]:547".parse().unwrap();
    let message = [11, 1, 2, 3, 0, 1, 0, 4, 9, 8, 7, 6];
    net.send(&udp(from, to, 0, &message)[0]);
    let reply = net.expect(|frame| {
        let seen = Reader::default().read(frame)?;
        let (from, to, data) = seen.udp()?;
        assert_eq!((from.port(), to.port()), (547, 546));
        Some(data.to_vec())
    });
    assert_eq!(reply[..12], [7, 1, 2, 3, 0, 1, 0, 4, 9, 8, 7, 6]);
    let mut server = vec![0, 23, 0, 16];
    server.extend("fd68:6b6e:6574:41::1".parse::<Ipv6Addr>().unwrap().octets());
    assert!(reply.windows(20).any(|bytes| bytes == server));
}

#[test]
fn a_stack_pings_the_gateway_and_the_host() {
    for target in [GATEWAY, HOST, HOST6] {
        let mut guest = Guest::new(UserNet::new());
        let buffer =
            || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(0x22b)).unwrap();
        let handle = guest.sockets.add(socket);
        let checksums = ChecksumCapabilities::default();
        let (ident, seq_no, data) = (0x22b, 5, &b"are you there?"[..]);
        let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
        if target.is_ipv4() {
            let repr = Icmpv4Repr::EchoRequest { ident, seq_no, data };
            let room = socket.send(repr.buffer_len(), target.into()).unwrap();
            repr.emit(&mut Icmpv4Packet::new_unchecked(room), &checksums);
        } else {
            let repr = Icmpv6Repr::EchoRequest { ident, seq_no, data };
            let room = socket.send(repr.buffer_len(), target.into()).unwrap();
            let IpAddr::V6(source) = GUEST6 else { unreachable!() };
            let IpAddr::V6(to) = target else { unreachable!() };
            repr.emit(&source, &to, &mut Icmpv6Packet::new_unchecked(room), &checksums);
        }
        let (reply, from) = guest.until(|guest| {
            let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
            let (reply, from) = socket.recv().ok()?;
            Some((reply.to_vec(), from))
        });
        assert_eq!(from, target.into());
        assert_eq!(reply[0], if target.is_ipv4() { 0 } else { 129 });
        assert_eq!(reply[8..], *data);
    }
}

#[test]
fn nobody_may_send_from_an_address_that_is_not_the_guests() {
    let mut net = Net::new(UserNet::new());
    let to = SocketAddr::new(HOST, 9);
    let sources = ["10.0.0.1", "192.168.65.1", "192.168.65.2", "192.168.65.0", "192.168.65.255"];
    for source in sources {
        let from = SocketAddr::new(source.parse().unwrap(), 4000);
        net.send(&udp(from, to, 0, b"spoofed")[0]);
    }
    let to = SocketAddr::new(HOST6, 9);
    for source in ["2001:db8::1", "fd68:6b6e:6574:41::1", "fd68:6b6e:6574:41::", "::1", "fe80::1"] {
        let from = SocketAddr::new(source.parse().unwrap(), 4000);
        net.send(&udp(from, to, 0, b"spoofed")[0]);
    }
    assert_eq!(net.drain(), Vec::<Vec<u8>>::new());
    assert_eq!(net.handle.counters().spoofed, 10);
    // From nobody, to everybody, one may ask for an address and no more.
    let from: SocketAddr = "0.0.0.0:4000".parse().unwrap();
    net.send(&udp(from, SocketAddr::new(HOST, 9), 0, b"spoofed")[0]);
    assert_eq!(net.handle.counters().spoofed, 11);
}

#[test]
fn without_ipv6_nothing_is_said_in_it() {
    let mut net = Net::fresh(UserNet::new().ipv6(None), Offloads::empty());
    assert_eq!(net.drain(), Vec::<Vec<u8>>::new());
    net.send(&udp(SocketAddr::new(GUEST6, 1), SocketAddr::new(HOST6, 2), 0, b"x")[0]);
    assert_eq!(net.drain(), Vec::<Vec<u8>>::new());
    assert_eq!(net.handle.counters().unroutable, 1);
    assert_eq!(net.user.deadline(), None);
}

#[test]
fn a_network_that_cannot_be_is_refused_before_there_is_one() {
    let wrong = |config: UserNet| config.open().err().expect("it should be refused");
    let address = Ipv4Addr::new;
    assert!(matches!(wrong(UserNet::new().subnet(address(10, 0, 0, 0), 30)), Error::Subnet(..)));
    assert!(matches!(wrong(UserNet::new().subnet(address(127, 0, 0, 0), 8)), Error::Subnet(..)));
    assert!(matches!(wrong(UserNet::new().subnet(address(224, 0, 0, 0), 8)), Error::Subnet(..)));
    for guest in [address(10, 0, 0, 3), address(192, 168, 65, 1), address(192, 168, 65, 255)] {
        assert!(matches!(wrong(UserNet::new().guest_address(guest)), Error::GuestAddress(_)));
    }
    let prefix = |text: &str| UserNet::new().ipv6(Some(text.parse().unwrap()));
    assert!(matches!(wrong(prefix("fe80::")), Error::Prefix(_)));
    assert!(matches!(wrong(prefix("ff02::")), Error::Prefix(_)));
    assert!(matches!(wrong(prefix("::")), Error::Prefix(_)));
    assert!(matches!(wrong(UserNet::new().mtu(1279)), Error::Mtu(1279)));
    assert!(matches!(wrong(UserNet::new().mtu(65521)), Error::Mtu(65521)));
    let group = hyperkit::net::MacAddr([1; 6]);
    assert!(matches!(wrong(UserNet::new().mac(group)), Error::Mac(_)));
    for name in ["", "a..b", "spa ce", &"x".repeat(64), "a.b\0"] {
        assert!(matches!(wrong(UserNet::new().domain(name)), Error::Name(_)), "{name:?}");
        assert!(matches!(wrong(UserNet::new().host_name(name, GUEST)), Error::Name(_)));
    }
}
