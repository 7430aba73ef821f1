//! The name server: what it knows, whom it asks, and whom it believes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use hyperkit::net::user::{Flow, Protocol, Target, UserNet, Verdict};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE};

use crate::datagrams::{GATEWAY, GUEST};
use crate::frames::{Reader, udp};
use crate::guest::{Net, PATIENCE};

/// A question.
pub fn question(id: u16, name: &str, kind: TYPE) -> Vec<u8> {
    let mut packet = Packet::new_query(id);
    let name = Name::new_unchecked(name);
    packet.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec().unwrap()
}

fn send(net: &mut Net, message: &[u8]) {
    let (source, server) = (SocketAddr::new(GUEST, 5353), SocketAddr::new(GATEWAY, 53));
    net.send(&udp(source, server, 0, message)[0]);
}

fn reply(net: &mut Net) -> Vec<u8> {
    net.expect(|frame| {
        let seen = Reader::default().read(frame)?;
        let (from, to, data) = seen.udp()?;
        assert_eq!((from.port(), to.port()), (53, 5353));
        Some(data.to_vec())
    })
}

fn ask(net: &mut Net, name: &str, kind: TYPE) -> (RCODE, Vec<String>) {
    send(net, &question(9, name, kind));
    let reply = reply(net);
    let packet = Packet::parse(&reply).unwrap();
    assert_eq!(packet.id(), 9);
    let answers = packet.answers.iter().map(|record| match &record.rdata {
        RData::A(a) => Ipv4Addr::from(a.address).to_string(),
        RData::AAAA(a) => std::net::Ipv6Addr::from(a.address).to_string(),
        RData::PTR(name) => name.0.to_string(),
        other => format!("{other:?}"),
    });
    (packet.rcode(), answers.collect())
}

/// A server of the host's.
struct Server(UdpSocket);

impl Server {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// The next question, and who asks.
    fn asked(&self, net: &mut Net) -> (Vec<u8>, SocketAddr) {
        let end = std::time::Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        loop {
            if let Ok((length, from)) = self.0.recv_from(&mut buffer) {
                return (buffer[..length].to_vec(), from);
            }
            assert!(std::time::Instant::now() < end, "nobody asks");
            net.turn(Duration::from_millis(10));
        }
    }

    fn answer(&self, question: &[u8], to: SocketAddr, address: Ipv4Addr) {
        let packet = Packet::parse(question).unwrap();
        let mut reply = Packet::new_reply(packet.id());
        let name = packet.questions[0].qname.clone();
        reply.questions = packet.questions.clone();
        reply.answers.push(ResourceRecord::new(name, CLASS::IN, 5, RData::A(address.into())));
        self.0.send_to(&reply.build_bytes_vec().unwrap(), to).unwrap();
    }
}

fn nobody() -> UserNet {
    UserNet::new().dns_servers([])
}

#[test]
fn some_names_are_known_here() {
    let config = nobody()
        .host_name("db.internal", "10.0.0.1".parse().unwrap())
        .host_name("db.internal", "2001:db8::1".parse().unwrap());
    let mut net = Net::new(config);
    let none: [&str; 0] = [];
    for (name, kind, wanted) in [
        ("host.internal", TYPE::A, &["192.168.65.2"][..]),
        ("HOST.Internal", TYPE::AAAA, &["fd68:6b6e:6574:41::2"]),
        ("gateway.internal", TYPE::A, &["192.168.65.1"]),
        ("gateway.internal", TYPE::MX, &none),
        ("db.internal", TYPE::A, &["10.0.0.1"]),
        ("db.internal", TYPE::AAAA, &["2001:db8::1"]),
        ("2.65.168.192.in-addr.arpa", TYPE::PTR, &["host.internal"]),
    ] {
        let (code, answers) = ask(&mut net, name, kind);
        assert_eq!(
            (code, &answers[..]),
            (RCODE::NoError, &wanted.iter().map(|s| s.to_string()).collect::<Vec<_>>()[..]),
            "{name}"
        );
    }
    let (code, _) = ask(&mut net, "9.65.168.192.in-addr.arpa", TYPE::PTR);
    assert_eq!(code, RCODE::NameError);
    let (code, _) = ask(&mut net, "example.org", TYPE::A);
    assert_eq!(code, RCODE::ServerFailure);
    assert_eq!(net.handle.counters().dns_local, 9);
}

#[test]
fn other_names_are_asked_of_the_hosts_servers_with_a_number_of_our_own() {
    let server = Server::new();
    let mut net = Net::new(UserNet::new().dns_servers([server.address()]));
    let mut numbers = Vec::new();
    for _ in 0..4 {
        let message = question(9, "example.org", TYPE::A);
        send(&mut net, &message);
        // It asks again, impatiently, and is heard once.
        send(&mut net, &message);
        let (asked, from) = server.asked(&mut net);
        assert_eq!(asked[2..], message[2..]);
        numbers.push(((asked[0], asked[1]), from));
        // What is no reply to this question is not believed.
        let mut wrong = asked.clone();
        wrong[0] ^= 1;
        server.answer(&wrong, from, [6, 6, 6, 6].into());
        server.answer(
            &question(u16::from_be_bytes([asked[0], asked[1]]), "example.com", TYPE::A),
            from,
            [6, 6, 6, 6].into(),
        );
        server.0.send_to(&asked, from).unwrap();
        server.answer(&asked, from, [192, 0, 2, 7].into());
        let reply = reply(&mut net);
        let packet = Packet::parse(&reply).unwrap();
        assert_eq!(packet.id(), 9);
        assert!(matches!(&packet.answers[0].rdata, RData::A(a) if a.address == 0xc000_0207));
        assert_eq!(net.drain(), Vec::<Vec<u8>>::new());
    }
    numbers.dedup();
    assert!(numbers.len() > 1, "numbers and ports do not change");
    assert_eq!(net.handle.counters().dns_false_replies, 12);
    assert_eq!(net.handle.counters().dns_queries, 8);
}

#[test]
fn a_server_that_is_not_there_or_says_nothing_is_followed_by_the_next() {
    let gone = Server::new().address();
    let (mute, good) = (Server::new(), Server::new());
    let config = UserNet::new().dns_servers([gone, mute.address(), good.address()]);
    let mut net = Net::new(config);
    send(&mut net, &question(9, "example.org", TYPE::A));
    mute.asked(&mut net);
    let (asked, from) = good.asked(&mut net);
    good.answer(&asked, from, [192, 0, 2, 7].into());
    reply(&mut net);
    assert_eq!(net.handle.counters().dns_failed, 0);
}

#[test]
fn with_all_servers_gone_the_guest_hears_so() {
    let gone = Server::new().address();
    let mut net = Net::new(UserNet::new().dns_servers([gone]));
    let (code, answers) = ask(&mut net, "example.org", TYPE::A);
    assert_eq!((code, answers.len()), (RCODE::ServerFailure, 0));
    assert_eq!(net.handle.counters().dns_failed, 1);
}

#[test]
fn questions_under_way_are_bounded() {
    let mute = Server::new();
    let mut net = Net::new(UserNet::new().dns_servers([mute.address()]));
    for n in 0..1000 {
        send(&mut net, &question(n, "example.org", TYPE::A));
    }
    let mut failed = 0;
    for frame in net.drain() {
        let seen = Reader::default().read(&frame).unwrap();
        failed += usize::from(seen.udp().is_some_and(|(_, _, data)| data[3] & 15 == 2));
    }
    assert!(failed > 400, "{failed}");
    assert_eq!(net.handle.counters().dns_failed, 1000 - 256);
}

#[test]
fn a_policy_sees_names_and_answers_for_them() {
    let server = Server::new();
    let target = server.address();
    let policy = move |flow: &Flow<'_>| match (flow.protocol, flow.name) {
        (Protocol::Dns, Some("refused.test")) => Verdict::Refuse,
        (Protocol::Dns, Some("dropped.test")) => Verdict::Drop,
        (Protocol::Dns, Some("elsewhere.test")) => Verdict::Redirect(Target::Address(target)),
        (Protocol::Udp, Some("elsewhere.test")) => Verdict::Redirect(Target::Address(target)),
        (Protocol::Dns, _) => Verdict::Allow,
        _ => Verdict::Refuse,
    };
    let mut net = Net::new(nobody().policy(policy));
    assert_eq!(ask(&mut net, "Refused.TEST", TYPE::A).0, RCODE::Refused);
    send(&mut net, &question(3, "dropped.test", TYPE::A));
    net.drain();
    assert_eq!(ask(&mut net, "host.internal", TYPE::A).0, RCODE::NoError);
    send(&mut net, &question(9, "elsewhere.test", TYPE::A));
    let (asked, from) = server.asked(&mut net);
    server.answer(&asked, from, [192, 0, 2, 7].into());
    reply(&mut net);
    // The name that the guest was told the address for is known when it uses it.
    let (source, to) = (SocketAddr::new(GUEST, 4000), "192.0.2.7:99".parse().unwrap());
    net.send(&udp(source, to, 0, b"hello")[0]);
    let (data, from) = server.asked(&mut net);
    assert_eq!(data, b"hello");
    server.0.send_to(b"yes", from).unwrap();
    net.expect(|frame| {
        let seen = Reader::default().read(frame)?;
        assert_eq!(seen.udp(), Some((to, source, &b"yes"[..])));
        Some(())
    });
    let other = SocketAddr::new("192.0.2.8".parse::<IpAddr>().unwrap(), 99);
    net.send(&udp(source, other, 0, b"hello")[0]);
    let seen = net.expect(|frame| Reader::default().read(frame));
    assert_eq!(seen.icmp(), Some((3, 3)));
    let counters = net.handle.counters();
    assert_eq!((counters.denied, counters.redirected), (3, 2));
}

#[test]
fn nonsense_is_answered_as_such_or_not_at_all() {
    let mut net = Net::new(nobody());
    let good = question(9, "example.org", TYPE::A);
    let mut many = good.clone();
    many[6..12].fill(0xff);
    let mut two = good.clone();
    two[5] = 2;
    let mut pointer = good.clone();
    pointer.splice(12..25, [0xc0, 12]);
    let mut dotted = good.clone();
    dotted[14] = b'.';
    for message in [many, two, pointer, dotted, good[..20].to_vec()] {
        send(&mut net, &message);
        let reply = reply(&mut net);
        assert_eq!((reply.len(), reply[3] & 15, &reply[..2]), (12, 1, &[0, 9][..]), "{message:x?}");
    }
    let mut status = good.clone();
    status[2] = 2 << 3;
    send(&mut net, &status);
    assert_eq!(reply(&mut net)[3] & 15, 4);
    let mut a_reply = good.clone();
    a_reply[2] |= 0x80;
    send(&mut net, &a_reply);
    for length in 0..12 {
        send(&mut net, &good[..length]);
    }
    assert_eq!(net.drain().iter().filter(|frame| frame[12..14] == [8, 0]).count(), 0);
}
