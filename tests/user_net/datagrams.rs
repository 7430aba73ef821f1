//! UDP: of every size, to whom it is for, and what is heard of those that do not arrive.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hyperkit::net::user::{Forward, UserNet};
use hyperkit::net::{NetBackend, Offloads};
use smoltcp::wire::IpProtocol;

use crate::frames::{Reader, ip, udp};
use crate::guest::{Guest, Net, PATIENCE};

/// Sends back what it gets.
pub struct Echo {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn new(ip: impl Into<IpAddr>) -> Self {
        let socket = UdpSocket::bind((ip.into(), 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let address = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

pub const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 65, 3));
pub const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 65, 2));
pub const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 65, 1));
pub const GUEST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd68, 0x6b6e, 0x6574, 0x41, 0, 0, 0, 3));
pub const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd68, 0x6b6e, 0x6574, 0x41, 0, 0, 0, 2));

fn echo_of_every_size(net: &mut Net, source: IpAddr, host: IpAddr, echo: &Echo) {
    let source = SocketAddr::new(source, 4000);
    let host = SocketAddr::new(host, echo.address.port());
    let steps = [(0, 40, 1), (1430, 1490, 1), (2900, 3000, 7), (3000, 65507, 4099)];
    let sizes = steps.into_iter().flat_map(|(from, to, step)| (from..to).step_by(step));
    for (ident, size) in sizes.chain([65506, 65507]).enumerate() {
        let data: Vec<u8> = (0..size).map(|n| (n * 7 + size) as u8).collect();
        for frame in udp(source, host, ident as u16, &data) {
            net.send(&frame);
        }
        let mut reader = Reader::default();
        net.expect(|frame| {
            let seen = reader.read(frame)?;
            let (from, to, got) = seen.udp()?;
            assert_eq!((from, to), (host, source));
            assert_eq!(got.len(), size);
            assert!(got == data, "{size} bytes are not the same");
            Some(())
        });
    }
}

#[test]
fn datagrams_of_every_size_come_back() {
    let echo = Echo::new(Ipv4Addr::LOCALHOST);
    let mut net = Net::new(UserNet::new());
    echo_of_every_size(&mut net, GUEST, HOST, &echo);
    assert_eq!(net.handle.counters().udp_opened, 1);
}

#[test]
fn datagrams_of_every_size_come_back_over_ipv6() {
    let echo = Echo::new(Ipv6Addr::LOCALHOST);
    let mut net = Net::new(UserNet::new());
    echo_of_every_size(&mut net, GUEST6, HOST6, &echo);
}

#[test]
fn a_checksum_may_be_left_to_the_card() {
    let echo = Echo::new(Ipv4Addr::LOCALHOST);
    let mut net = Net::with(UserNet::new(), Offloads::GUEST_CSUM | Offloads::CSUM);
    let source = SocketAddr::new(GUEST, 4000);
    let host = SocketAddr::new(HOST, echo.address.port());
    let mut frame = udp(source, host, 0, b"partial").remove(0);
    frame[40] ^= 0xff;
    // Without the flag the checksum is wrong.
    net.send(&frame);
    assert_eq!(net.handle.counters().bad_checksums, 1);
    let header =
        hyperkit::net::Header { flags: 1, csum_start: 34, csum_offset: 6, ..Default::default() };
    net.send_with(&header, &frame);
    let (header, frame) = loop {
        if let Some(found) = net.receive_with() {
            break found;
        }
        net.turn(PATIENCE);
    };
    assert_eq!((header.flags, header.csum_start, header.csum_offset), (1, 34, 6));
    // As the card would finish it.
    let mut data = frame[34..].to_vec();
    let sum = !smoltcp::wire::checksum::data(&data);
    data[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut whole = frame[..34].to_vec();
    whole.extend(data);
    let seen = Reader::default().read(&whole).unwrap();
    assert_eq!(seen.udp(), Some((host, source, &b"partial"[..])));
}

#[test]
fn a_reply_may_come_from_another_port_and_not_from_a_stranger() {
    let first = UdpSocket::bind("127.0.0.1:0").unwrap();
    let second = UdpSocket::bind("127.0.0.1:0").unwrap();
    let stranger = UdpSocket::bind("127.0.0.2:0").unwrap();
    let mut net = Net::new(UserNet::new());
    let source = SocketAddr::new(GUEST, 69);
    let host = SocketAddr::new(HOST, first.local_addr().unwrap().port());
    net.send(&udp(source, host, 0, b"read")[0]);
    let (_, nat) = first.recv_from(&mut [0; 9]).unwrap();
    stranger.send_to(b"me", nat).unwrap();
    second.send_to(b"data", nat).unwrap();
    let port = second.local_addr().unwrap().port();
    net.expect(|frame| {
        let seen = Reader::default().read(frame)?;
        assert_eq!(seen.udp(), Some((SocketAddr::new(HOST, port), source, &b"data"[..])));
        Some(())
    });
}

#[test]
fn a_closed_port_of_the_host_is_told_to_the_guest() {
    for (guest, host, local) in [
        (GUEST, HOST, IpAddr::from(Ipv4Addr::LOCALHOST)),
        (GUEST6, HOST6, Ipv6Addr::LOCALHOST.into()),
    ] {
        let port = UdpSocket::bind((local, 0)).unwrap().local_addr().unwrap().port();
        let mut net = Net::new(UserNet::new());
        let (source, to) = (SocketAddr::new(guest, 4000), SocketAddr::new(host, port));
        net.send(&udp(source, to, 0, b"anybody?")[0]);
        let seen = net.expect(|frame| Reader::default().read(frame));
        let (wanted, header) = if guest.is_ipv4() { ((3, 3), 20) } else { ((1, 4), 40) };
        assert_eq!(seen.icmp(), Some(wanted));
        assert_eq!((seen.source, seen.destination), (host, guest));
        let quoted = &seen.data[8 + header..];
        assert_eq!(quoted[..2], 4000u16.to_be_bytes());
        assert_eq!(quoted[2..4], port.to_be_bytes());
    }
}

#[test]
fn the_gateway_has_no_other_ports() {
    let mut net = Net::new(UserNet::new());
    let source = SocketAddr::new(GUEST, 4000);
    net.send(&udp(source, SocketAddr::new(GATEWAY, 9), 0, b"discard")[0]);
    let seen = net.expect(|frame| Reader::default().read(frame));
    assert_eq!((seen.icmp(), seen.source), (Some((3, 3)), GATEWAY));
}

#[test]
fn the_loopback_can_be_kept_from_the_guest() {
    let echo = Echo::new(Ipv4Addr::LOCALHOST);
    let mut net = Net::new(UserNet::new().loopback(false));
    let source = SocketAddr::new(GUEST, 4000);
    net.send(&udp(source, SocketAddr::new(HOST, echo.address.port()), 0, b"hello")[0]);
    let seen = net.expect(|frame| Reader::default().read(frame));
    assert_eq!(seen.icmp(), Some((3, 3)));
    // Neither by any other name of it.
    for target in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "240.0.0.1"] {
        let to = SocketAddr::new(target.parse().unwrap(), echo.address.port());
        net.send(&udp(source, to, 0, b"hello")[0]);
    }
    let source = SocketAddr::new(GUEST6, 4000);
    for target in ["::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "ff02::1", "fe80::7"] {
        let to = SocketAddr::new(target.parse().unwrap(), echo.address.port());
        net.send(&udp(source, to, 0, b"hello")[0]);
    }
    assert_eq!(net.drain(), Vec::<Vec<u8>>::new());
    assert_eq!(net.handle.counters().unroutable, 11);
    assert_eq!(net.handle.counters().udp_opened, 0);
}

#[test]
fn a_stack_exchanges_datagrams_with_the_host() {
    let echo = Echo::new(Ipv4Addr::LOCALHOST);
    let mut guest = Guest::new(UserNet::new());
    let socket = guest.udp(5000);
    let host = SocketAddr::new(HOST, echo.address.port());
    for round in 0..20u8 {
        let socket_mut = guest.sockets.get_mut::<smoltcp::socket::udp::Socket<'_>>(socket);
        socket_mut.send_slice(&[round; 100], smoltcp::wire::IpEndpoint::from(host)).unwrap();
        let got = guest.until(|guest| {
            let socket = guest.sockets.get_mut::<smoltcp::socket::udp::Socket<'_>>(socket);
            let (data, meta) = socket.recv().ok()?;
            Some((data.to_vec(), meta.endpoint))
        });
        assert_eq!(got, (vec![round; 100], host.into()));
    }
}

#[test]
fn datagrams_are_forwarded_into_the_guest_and_back() {
    let mut guest = Guest::new(UserNet::new());
    let bound = guest.net.handle.forward(Forward::udp(0, 7000)).unwrap();
    let address = bound.address.unwrap();
    let socket = guest.udp(7000);
    let clients =
        [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
    let mut seen = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        client.send_to(&[n as u8; 3], address).unwrap();
        let (data, endpoint) = guest.until(|guest| {
            let socket = guest.sockets.get_mut::<smoltcp::socket::udp::Socket<'_>>(socket);
            let (data, meta) = socket.recv().ok()?;
            Some((data.to_vec(), meta.endpoint))
        });
        assert_eq!(data, [n as u8; 3]);
        assert_eq!(endpoint.addr, GATEWAY.into());
        seen.push(endpoint);
    }
    assert_ne!(seen[0], seen[1]);
    for (n, client) in clients.iter().enumerate() {
        let socket = guest.sockets.get_mut::<smoltcp::socket::udp::Socket<'_>>(socket);
        socket.send_slice(&[n as u8; 5], seen[n]).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut buffer = [0; 9];
        let got = guest.until(|_| client.recv_from(&mut buffer).ok());
        assert_eq!((got, &buffer[..5]), ((5, address), &[n as u8; 5][..]));
    }
    // Once it is removed, the port is free and the guest's replies go nowhere.
    assert!(guest.net.handle.remove(bound.id));
    assert!(!guest.net.handle.remove(bound.id));
    UdpSocket::bind(address).unwrap();
    let source = SocketAddr::new(GUEST, 7000);
    let to = SocketAddr::new(GATEWAY, seen[0].port);
    guest.net.send(&udp(source, to, 0, b"late")[0]);
    let seen = guest.net.expect(|frame| Reader::default().read(frame));
    assert_eq!(seen.icmp(), Some((3, 3)));
}

#[test]
fn what_the_guest_sends_to_an_address_goes_where_a_forward_says() {
    let echo = Echo::new(Ipv4Addr::LOCALHOST);
    let to: SocketAddr = "10.1.2.3:99".parse().unwrap();
    let config = UserNet::new().loopback(false).forward(Forward::udp_to_host(to, echo.address));
    let mut net = Net::new(config);
    let source = SocketAddr::new(GUEST, 4000);
    net.send(&udp(source, to, 0, b"through")[0]);
    let seen = net.expect(|frame| Reader::default().read(frame));
    assert_eq!(seen.udp(), Some((to, source, &b"through"[..])));
    let again = net.handle.forward(Forward::udp_to_host(to, echo.address));
    assert!(again.unwrap_err().to_string().contains("10.1.2.3:99"));
}

#[test]
fn packets_that_may_go_no_further_are_told_of() {
    let mut net = Net::new(UserNet::new());
    let far: IpAddr = "198.51.100.1".parse().unwrap();
    net.send(&ip(GUEST, far, IpProtocol::Udp, 1, &[0; 8]));
    let seen = net.expect(|frame| Reader::default().read(frame));
    assert_eq!((seen.icmp(), seen.source), (Some((11, 0)), GATEWAY));
    // Too large, and not to be sent in parts.
    net.send(&ip(GUEST, far, IpProtocol::Udp, 64, &[0; 1481]));
    let seen = net.expect(|frame| Reader::default().read(frame));
    assert_eq!(seen.icmp(), Some((3, 4)));
    assert_eq!(seen.data[6..8], 1500u16.to_be_bytes());
    let far: IpAddr = "2001:db8::1".parse().unwrap();
    net.send(&ip(GUEST6, far, IpProtocol::Udp, 1, &[0; 8]));
    let seen = net.expect(|frame| Reader::default().read(frame));
    assert_eq!(seen.icmp(), Some((3, 0)));
    net.send(&ip(GUEST6, far, IpProtocol::Udp, 64, &[0; 1461]));
    let seen = net.expect(|frame| Reader::default().read(frame));
    assert_eq!(seen.icmp(), Some((2, 0)));
    // Nobody is told about messages that tell of errors.
    net.send(&ip(GUEST, "198.51.100.1".parse().unwrap(), IpProtocol::Icmp, 1, &[3; 16]));
    assert_eq!(net.drain(), Vec::<Vec<u8>>::new());
    assert_eq!(net.handle.counters().undeliverable, 5);
}

#[test]
fn flows_may_be_silent_for_as_long_as_there_is() {
    let echo = Echo::new(Ipv4Addr::LOCALHOST);
    let mut net = Net::new(UserNet::new().udp_limits(usize::MAX, Duration::MAX));
    let payload = |frame: &[u8]| Some(Reader::default().read(frame)?.udp()?.2.to_vec());
    let host = SocketAddr::new(HOST, echo.address.port());
    net.send(&udp(SocketAddr::new(GUEST, 7000), host, 0, b"out")[0]);
    assert_eq!(net.expect(payload), b"out");
    let forward = net.handle.forward(Forward::udp(0, 7000)).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"in", forward.address.unwrap()).unwrap();
    assert_eq!(net.expect(payload), b"in");
    net.drain();
    assert_eq!(net.handle.counters().udp_flows, 2);
}

#[test]
fn flows_end_when_they_are_silent_and_make_room_for_others() {
    let echo = Echo::new(Ipv4Addr::LOCALHOST);
    let config = UserNet::new().udp_limits(4, Duration::from_secs(2));
    let mut net = Net::new(config);
    let host = SocketAddr::new(HOST, echo.address.port());
    for port in 1..=10 {
        net.send(&udp(SocketAddr::new(GUEST, port), host, 0, b"x")[0]);
    }
    net.drain();
    let counters = net.handle.counters();
    assert_eq!((counters.udp_flows, counters.udp_evicted, counters.udp_opened), (4, 6, 10));
    let end = std::time::Instant::now() + PATIENCE;
    while net.handle.counters().udp_flows > 0 {
        assert!(std::time::Instant::now() < end);
        net.turn(PATIENCE);
        while net.receive().is_some() {}
    }
    // Nothing is left to wait for but the router's next advertisement.
    let deadline = net.user.deadline().unwrap();
    assert!(deadline > std::time::Instant::now() + Duration::from_secs(3600));
}
