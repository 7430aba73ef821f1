//! The world beyond the host: echoes, traces, and places that cannot be reached.
//!
//! The world is two network namespaces, which the test makes: the host, and a router behind which is all the rest.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use hyperkit::net::user::{Flow, UserNet, Verdict};
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::{IpEndpoint, IpProtocol, checksum};

use crate::datagrams::GUEST;
use crate::frames::{Reader, Seen, datagram, ip};
use crate::guest::{Guest, Net};

const INSIDE: &str = "USER_NET_OUTSIDE";

/// Makes the world, and runs the rest of the arguments in it.
const WORLD: &str = r#"
ip link set lo up && ip link add v0 type veth peer name v1 || exit 77
unshare --net sleep 60 & router=$!
trap 'kill $router' EXIT
while [ "$(readlink /proc/$router/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
ip link set v1 netns $router || exit 77
at="nsenter -t $router -n"
ip addr add 10.9.0.1/24 dev v0; ip link set v0 up; ip route add default via 10.9.0.2
ip addr add fd09::1/64 nodad dev v0; ip route add default via fd09::2
$at ip addr add 10.9.0.2/24 dev v1; $at ip link set v1 up; $at ip link set lo up
$at ip addr add fd09::2/64 nodad dev v1
$at ip addr add 10.9.9.9/32 dev lo; $at ip addr add fd99::9/128 nodad dev lo
$at sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward' || exit 77
$at ip route add unreachable 10.7.0.0/16; $at ip route add 10.8.0.0/16 dev v1
$at ip route add 10.6.0.0/16 via 10.9.0.1 dev v1 mtu lock 1000
echo "0 0" > /proc/sys/net/ipv4/ping_group_range || exit 77
"$@"
"#;

/// Runs `test`, which is called `name`, in a world of its own.
fn in_a_world(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", WORLD, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("outside::{name}"), "--nocapture"])
        .env(INSIDE, "1")
        .output();
    match output {
        Ok(output) if output.status.code() != Some(77) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && text.contains("1 passed"), "{text}{error}");
        }
        _ => eprintln!("skipped: no network namespaces can be made (unshare, nsenter, ip)"),
    }
}

fn far(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn echo_request(net: &mut Net, to: IpAddr, hops: u8) {
    let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 7];
    message.extend(b"are you there?");
    let sum = !checksum::data(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    net.send(&ip(GUEST, to, IpProtocol::Icmp, hops, &message));
}

fn next(net: &mut Net) -> Seen {
    net.expect(|frame| Reader::default().read(frame))
}

#[test]
fn echoes_come_from_far_away() {
    in_a_world("echoes_come_from_far_away", || {
        let mut net = Net::new(UserNet::new());
        echo_request(&mut net, far("10.9.9.9"), 64);
        let seen = next(&mut net);
        assert_eq!((seen.icmp(), seen.source), (Some((0, 0)), far("10.9.9.9")));
        assert_eq!(seen.data[4..8], [0x12, 0x34, 0, 7]);
        assert_eq!(seen.data[8..], *b"are you there?");
        assert_eq!(checksum::data(&seen.data), !0);

        let (source, to) = (crate::datagrams::GUEST6, far("fd99::9"));
        let mut message = vec![128, 0, 0, 0, 0x12, 0x34, 0, 7, 1, 2, 3];
        let (IpAddr::V6(from), IpAddr::V6(there)) = (source, to) else { unreachable!() };
        smoltcp::wire::Icmpv6Packet::new_unchecked(&mut message[..]).fill_checksum(&from, &there);
        net.send(&ip(source, to, IpProtocol::Icmpv6, 64, &message));
        let seen = next(&mut net);
        assert_eq!((seen.icmp(), seen.source), (Some((129, 0)), to));
        assert_eq!(seen.data[4..], [0x12, 0x34, 0, 7, 1, 2, 3]);
    });
}

#[test]
fn a_trace_shows_the_gateway_and_then_the_hosts_routers() {
    in_a_world("a_trace_shows_the_gateway_and_then_the_hosts_routers", || {
        let mut net = Net::new(UserNet::new());
        let to = far("10.8.0.7");
        for (hops, router) in [(1, "192.168.65.1"), (2, "10.9.0.2"), (1, "192.168.65.1")] {
            echo_request(&mut net, to, hops);
            let seen = next(&mut net);
            assert_eq!((seen.icmp(), seen.source), (Some((11, 0)), far(router)));
            // It is about the guest's own packet.
            assert_eq!(seen.data[8 + 12..8 + 20], [192, 168, 65, 3, 10, 8, 0, 7]);
            assert_eq!(seen.data[28..30], [8, 0]);
            assert_eq!(seen.data[32..36], [0x12, 0x34, 0, 7]);
            let (from, there) = (SocketAddr::new(GUEST, 40000), SocketAddr::new(to, 33434));
            let bytes = datagram(from, there, b"trace");
            net.send(&ip(GUEST, to, IpProtocol::Udp, hops, &bytes));
            let seen = next(&mut net);
            assert_eq!((seen.icmp(), seen.source), (Some((11, 0)), far(router)));
            assert_eq!(seen.data[28..32], bytes[..4]);
        }
    });
}

#[test]
fn a_way_that_is_too_narrow_is_told_to_the_guest() {
    in_a_world("a_way_that_is_too_narrow_is_told_to_the_guest", || {
        let mut net = Net::new(UserNet::new());
        let to = SocketAddr::new(far("10.6.0.7"), 80);
        let bytes = datagram(SocketAddr::new(GUEST, 40000), to, &[5; 1200]);
        net.send(&ip(GUEST, to.ip(), IpProtocol::Udp, 64, &bytes));
        let seen = next(&mut net);
        assert_eq!((seen.icmp(), seen.source), (Some((3, 4)), far("10.9.0.2")));
        assert_eq!(seen.data[6..8], 1000u16.to_be_bytes());
        // It is about the guest's own packet.
        assert_eq!(seen.data[8 + 12..8 + 20], [192, 168, 65, 3, 10, 6, 0, 7]);
        assert_eq!(seen.data[28..32], bytes[..4]);
    });
}

#[test]
fn places_that_cannot_be_reached_are_told_to_the_guest() {
    in_a_world("places_that_cannot_be_reached_are_told_to_the_guest", || {
        let mut guest = Guest::new(UserNet::new());
        let to = SocketAddr::new(far("10.7.0.7"), 80);
        let bytes = datagram(SocketAddr::new(GUEST, 40000), to, b"hello");
        guest.net.send(&ip(GUEST, to.ip(), IpProtocol::Udp, 64, &bytes));
        let seen = next(&mut guest.net);
        assert_eq!((seen.icmp(), seen.source), (Some((3, 1)), far("10.9.0.2")));
        // A closed port far away.
        let closed = SocketAddr::new(far("10.9.9.9"), 80);
        let bytes = datagram(SocketAddr::new(GUEST, 40000), closed, b"hello");
        guest.net.send(&ip(GUEST, closed.ip(), IpProtocol::Udp, 64, &bytes));
        let seen = next(&mut guest.net);
        assert_eq!((seen.icmp(), seen.source), (Some((3, 3)), far("10.9.9.9")));
        // A connection hears the same.
        let handle = guest.tcp();
        let socket = guest.sockets.get_mut::<Socket<'_>>(handle);
        let local = IpEndpoint::from(SocketAddr::new(GUEST, 40001));
        socket.connect(guest.iface.context(), IpEndpoint::from(to), local).unwrap();
        let mut told = false;
        guest.until(|guest| {
            let mut frames = std::iter::from_fn(|| guest.net.receive());
            told |= frames.any(|frame| {
                let seen = Reader::default().read(&frame);
                seen.is_some_and(|seen| seen.icmp() == Some((3, 1)) && seen.data[17] == 6)
            });
            told.then_some(())
        });
        let state = guest.sockets.get::<Socket<'_>>(handle).state();
        assert_eq!(state, State::SynSent);
    });
}

#[test]
fn a_policy_may_deny_echoes() {
    let mut net = Net::new(UserNet::new().policy(|_: &Flow<'_>| Verdict::Refuse));
    echo_request(&mut net, far("198.51.100.1"), 64);
    assert_eq!(next(&mut net).icmp(), Some((3, 13)));
    let mut net = Net::new(UserNet::new().policy(|_: &Flow<'_>| Verdict::Drop));
    echo_request(&mut net, far("198.51.100.1"), 64);
    assert_eq!(net.drain(), Vec::<Vec<u8>>::new());
}
