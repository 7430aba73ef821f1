//! Frames that no stack sends: nothing may come of them but a number in a counter.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use hyperkit::net::user::{Flow, Forward, UserNet, Verdict};
use hyperkit::net::{Header, Offloads};
use smoltcp::wire::*;

use crate::datagrams::{Echo, GATEWAY, GUEST, GUEST6, HOST, HOST6};
use crate::frames::{Reader, ethernet, ip, parts, udp};
use crate::guest::{Net, PATIENCE};

const GATEWAY6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd68, 0x6b6e, 0x6574, 0x41, 0, 0, 0, 1));

/// One good frame of every sort.
fn good(port: u16) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let (source, source6) = (SocketAddr::new(GUEST, 4000), SocketAddr::new(GUEST6, 4000));
    frames.extend(udp(source, SocketAddr::new(HOST, port), 1, b"data"));
    frames.extend(udp(source6, SocketAddr::new(HOST6, port), 1, b"data"));
    frames.extend(udp(source, SocketAddr::new(HOST, port), 1, &[7; 3000]));
    frames.extend(udp(source6, SocketAddr::new(HOST6, port), 1, &[7; 3000]));
    let query = b"\0\x09\x01\0\0\x01\0\0\0\0\0\0\x04host\x08internal\0\0\x01\0\x01";
    frames.extend(udp(source, SocketAddr::new(GATEWAY, 53), 1, query));
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 192, 168, 65, 3];
    arp.extend([0, 0, 0, 0, 0, 0, 192, 168, 65, 1]);
    frames.push(ethernet(EthernetProtocol::Arp, &arp));
    let mut echo = vec![8, 0, 0, 0, 1, 2, 3, 4, 5, 6];
    let sum = !checksum::data(&echo);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    frames.push(ip(GUEST, HOST, IpProtocol::Icmp, 64, &echo));
    let far = [198, 51, 100, 1].into();
    frames.push(ip(GUEST, far, IpProtocol::Icmp, 1, &echo));
    let link: Ipv6Address = "fe80::3".parse().unwrap();
    let gateway: Ipv6Address = "fd68:6b6e:6574:41::1".parse().unwrap();
    let mut solicit = vec![135, 0, 0, 0, 0, 0, 0, 0];
    solicit.extend(gateway.octets());
    solicit.extend([1, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    Icmpv6Packet::new_unchecked(&mut solicit[..]).fill_checksum(&link, &gateway);
    frames.push(ip(link.into(), gateway.into(), IpProtocol::Icmpv6, 255, &solicit));
    let mut syn = vec![0x0f, 0xa0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0];
    syn.extend([2, 4, 5, 0xb4]);
    let mut tcp = TcpPacket::new_unchecked(&mut syn[..]);
    tcp.fill_checksum(&GUEST.into(), &HOST.into());
    frames.push(ip(GUEST, HOST, IpProtocol::Tcp, 64, &syn));
    // With options before it.
    let mut options = ip(GUEST6, HOST6, IpProtocol::HopByHop, 64, &[17, 0, 1, 4, 0, 0, 0, 0]);
    let datagram = udp(source6, SocketAddr::new(HOST6, port), 1, b"data").remove(0);
    options.extend_from_slice(&datagram[54..]);
    options[19] = 20;
    frames.push(options);
    frames
}

/// A network that nothing leaves, whatever address a frame may have.
fn confined(port: u16) -> UserNet {
    let policy = move |flow: &Flow<'_>| match flow.destination {
        to if to.ip() == GATEWAY => Verdict::Allow,
        to if [HOST, HOST6].contains(&to.ip()) && to.port() == port => Verdict::Allow,
        _ => Verdict::Drop,
    };
    UserNet::new().dns_servers([]).policy(policy)
}

/// The network still works.
fn works(net: &mut Net, echo: &Echo) {
    let source = SocketAddr::new(GUEST, 4999);
    let host = SocketAddr::new(HOST, echo.address.port());
    net.send(&udp(source, host, 0, b"still there?")[0]);
    net.expect(|frame| {
        let seen = Reader::default().read(frame)?;
        (seen.udp() == Some((host, source, &b"still there?"[..]))).then_some(())
    });
}

#[test]
fn frames_may_end_anywhere() {
    let echo = Echo::new(Ipv4Addr::LOCALHOST);
    let mut net = Net::new(confined(echo.address.port()));
    for frame in good(echo.address.port()) {
        for length in 0..frame.len().min(200) {
            net.send(&frame[..length]);
            // The rest of it is there, and does not belong to it.
            let mut padded = frame[..length].to_vec();
            padded.resize(frame.len() + 40, 0xaa);
            net.send(&padded);
        }
        net.send(&frame);
    }
    // Parts of a packet would not be read in order here.
    net.drain();
    assert!(net.handle.counters().malformed > 100);
    works(&mut Net::new(UserNet::new()), &echo);
}

#[test]
fn frames_may_say_anything() {
    let echo = Echo::new(Ipv4Addr::LOCALHOST);
    for offloads in [Offloads::empty(), Offloads::CSUM | Offloads::GUEST_CSUM] {
        let mut net = Net::with(confined(echo.address.port()), offloads);
        // With the flag, no checksum protects what is behind the IP header.
        let header = Header { flags: u8::from(!offloads.is_empty()), ..Header::default() };
        let mut state = 0x1234_5678_9abc_def1u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for frame in good(echo.address.port()) {
            for _ in 0..300 {
                let mut frame = frame.clone();
                for _ in 0..1 + random() % 4 {
                    let at = 12 + random() % (frame.len() - 12).min(80);
                    frame[at] =
                        [random() as u8, 0, 0xff, frame[at] ^ 1 << (random() % 8)][random() % 4];
                }
                // So that more than the checksum of the header is looked at.
                if frame[12..14] == [8, 0] && random() % 4 > 0 && (5..8).contains(&(frame[14] & 15))
                {
                    let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
                    packet.fill_checksum();
                }
                net.send_with(&header, &frame);
            }
            net.drain();
        }
    }
    works(&mut Net::new(UserNet::new()), &echo);
}

#[test]
fn parts_that_overlap_or_never_end_are_bounded() {
    let echo = Echo::new(Ipv4Addr::LOCALHOST);
    let mut net = Net::new(UserNet::new());
    let part = |ident: u16, offset: u16, more: bool, length: usize| {
        let mut frame = ip(GUEST, HOST, IpProtocol::Udp, 64, &vec![1; length]);
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
        packet.set_dont_frag(false);
        packet.set_ident(ident);
        packet.set_more_frags(more);
        packet.set_frag_offset(offset);
        packet.fill_checksum();
        frame
    };
    for ident in 0..1000 {
        net.send(&part(ident, 8, true, 64));
        net.send(&part(ident, 65528, false, 64));
    }
    for ident in 2000..2100 {
        net.send(&part(ident, 0, true, 64));
        net.send(&part(ident, 32, true, 64));
    }
    let counters = net.handle.counters();
    assert_eq!(counters.reassembled, 0);
    assert!(counters.reassembly_failed > 2000);
    works(&mut net, &echo);
    // A whole packet is still put together.
    let datagram = crate::frames::datagram(
        SocketAddr::new(GUEST, 4000),
        SocketAddr::new(HOST, echo.address.port()),
        &[3; 4000],
    );
    for frame in parts(GUEST, HOST, IpProtocol::Udp, 5000, 600, &datagram) {
        net.send(&frame);
    }
    let mut reader = Reader::default();
    let data = net.expect(|frame| Some(reader.read(frame)?.udp()?.2.to_vec()));
    assert_eq!(data, [3; 4000]);
}

#[test]
fn a_guest_that_takes_nothing_loses_it() {
    let mut net = Net::new(UserNet::new());
    let mut echo = vec![8, 0, 0, 0, 1, 2, 3, 4];
    echo.resize(1400, 9);
    let sum = !checksum::data(&echo);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    let frame = ip(GUEST, HOST, IpProtocol::Icmp, 64, &echo);
    for _ in 0..10_000 {
        net.send(&frame);
    }
    let kept = net.drain().len();
    assert!((100..=1000).contains(&kept), "{kept}");
    assert_eq!(net.handle.counters().lost_in, 10_000 - kept as u64);
}

#[test]
fn segments_with_a_wrong_checksum_change_nothing() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    for (guest, host) in [(GUEST, HOST), (GUEST6, HOST)] {
        let mut net = Net::new(
            UserNet::new()
                .forward(Forward::tcp_to_host((GATEWAY6, 80), listener.local_addr().unwrap())),
        );
        let (host, port) = if guest.is_ipv4() { (host, port) } else { (GATEWAY6, 80) };
        let mut send = |sequence: u32, acknowledged: u32, flags: u8, data: &[u8], wrong: u8| {
            let mut bytes = [&[0x0f, 0xa0][..], &port.to_be_bytes()].concat();
            bytes.extend(sequence.to_be_bytes());
            bytes.extend(acknowledged.to_be_bytes());
            bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            bytes.extend(data);
            let mut segment = TcpPacket::new_unchecked(&mut bytes[..]);
            segment.fill_checksum(&guest.into(), &host.into());
            bytes[17] ^= wrong;
            net.send(&ip(guest, host, IpProtocol::Tcp, 64, &bytes));
            let is_good_syn = (flags, wrong) == (2, 0);
            net.turn(if is_good_syn { PATIENCE } else { Duration::from_millis(5) });
            let frames = net.drain();
            let seen = frames.iter().filter_map(|frame| Reader::default().read(frame));
            let answers: Vec<_> = seen.filter(|seen| seen.kind == IpProtocol::Tcp).collect();
            (answers, net.handle.counters())
        };
        let (syn, ack, fin, rst) = (2, 16, 1, 4);
        let (answers, counters) = send(1, 0, syn, b"", 1);
        assert_eq!((answers.len(), counters.tcp_opened, counters.bad_checksums), (0, 0, 1));
        let (answers, counters) = send(1, 0, syn, b"", 0);
        assert_eq!((answers.len(), counters.tcp_opened), (1, 1));
        let theirs = u32::from_be_bytes(answers[0].data[4..8].try_into().unwrap()) + 1;
        send(2, theirs, ack, b"", 0);
        let (mut stream, _) = listener.accept().unwrap();
        for (flags, data) in [(ack, &b"bad"[..]), (ack | fin, b""), (rst, b""), (syn, b"")] {
            let (answers, counters) = send(2, theirs, flags, data, 0x80);
            assert_eq!((answers.len(), counters.tcp_flows), (0, 1));
        }
        let (_, counters) = send(2, theirs, ack | fin, b"good", 0);
        assert_eq!(counters.bad_checksums, 5);
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"good");
    }
}
