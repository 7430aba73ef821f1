//! Nothing is left behind: neither by flows that end, nor by a driver that goes.
//!
//! Descriptors and memory belong to the process, so that each test is one in a process of its own.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use hyperkit::net::NetBackend;
use hyperkit::net::user::{Forward, UserNet};
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::IpEndpoint;

use crate::datagrams::{Echo, GUEST, HOST};
use crate::frames::udp;
use crate::guest::{Guest, Net, descriptors};

const ALONE: &str = "USER_NET_ALONE";

#[test]
fn flows_and_drivers_leave_no_descriptors_behind() {
    if std::env::var_os(ALONE).is_some() {
        many_datagrams();
        many_connections(2000);
        resets();
        return;
    }
    alone("flows_and_drivers_leave_no_descriptors_behind");
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "takes a minute or more"]
fn a_hundred_thousand_connections_end_where_they_began() {
    if std::env::var_os(ALONE).is_some() {
        // What is kept for the next ones is there after the first.
        many_connections(10_000);
        let before = resident();
        many_connections(100_000);
        let (after, some) = (resident(), 2 << 20);
        assert!(after < before + some, "from {before} to {after} bytes");
        return;
    }
    alone("a_hundred_thousand_connections_end_where_they_began");
}

/// Memory that this process has, in bytes.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Runs a test in a process of its own.
fn alone(name: &str) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("leaks::{name}"), "--nocapture", "--include-ignored"])
        .env(ALONE, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

fn many_datagrams() {
    let echo = Echo::new(Ipv4Addr::LOCALHOST);
    let mut net = Net::new(UserNet::new().udp_limits(64, Duration::from_millis(200)));
    let before = descriptors();
    let host = SocketAddr::new(HOST, echo.address.port());
    for port in 1..=10_000 {
        net.send(&udp(SocketAddr::new(GUEST, port), host, 0, b"x")[0]);
        if port % 16 == 0 {
            net.turn(Duration::ZERO);
            while net.receive().is_some() {}
        }
    }
    assert!(descriptors() <= before + 64);
    while net.handle.counters().udp_flows > 0 {
        net.turn(Duration::from_millis(50));
        while net.receive().is_some() {}
    }
    assert_eq!(net.handle.counters().udp_opened, 10_000);
    assert_eq!(descriptors(), before);
}

fn many_connections(count: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        for _ in 0..count {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 16];
            while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
        }
    });
    let mut guest = Guest::new(UserNet::new());
    let before = descriptors();
    let handles: Vec<_> = (0..20).map(|_| guest.tcp()).collect();
    for round in 0..count / 20 {
        for (n, handle) in handles.iter().enumerate() {
            let port = 10_000 + ((round * 20 + n) % 50_000) as u16;
            let socket = guest.sockets.get_mut::<Socket<'_>>(*handle);
            socket.abort();
            let local = IpEndpoint::from(SocketAddr::new(GUEST, port));
            let host = IpEndpoint::from(SocketAddr::new(HOST, address.port()));
            socket.connect(guest.iface.context(), host, local).unwrap();
        }
        let mut sent = vec![false; handles.len()];
        guest.until(|guest| {
            let mut done = true;
            for (handle, sent) in handles.iter().zip(&mut sent) {
                let socket = guest.sockets.get_mut::<Socket<'_>>(*handle);
                if socket.can_send() && !*sent {
                    socket.send_slice(b"hello").unwrap();
                    socket.close();
                    *sent = true;
                }
                done &= matches!(socket.state(), State::TimeWait | State::Closed);
            }
            done.then_some(())
        });
    }
    thread.join().unwrap();
    // The other side's end of the last ones may still be on its way.
    guest.until(|_| (descriptors() < before).then_some(()));
    let counters = guest.net.handle.counters();
    assert_eq!((counters.tcp_opened, counters.tcp_refused), (count as u64, 0));
}

fn resets() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let echo = Echo::new(Ipv4Addr::LOCALHOST);
    let mute = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let config = UserNet::new().dns_servers([mute.local_addr().unwrap()]);
    let mut guest = Guest::new(config);
    guest.net.handle.forward(Forward::tcp(0, 80)).unwrap();
    guest.net.turn(Duration::ZERO);
    let before = descriptors();
    let handle = guest.tcp();
    let socket = guest.sockets.get_mut::<Socket<'_>>(handle);
    let host = IpEndpoint::from(SocketAddr::new(HOST, address.port()));
    socket.connect(guest.iface.context(), host, 40_000).unwrap();
    guest.until(|guest| {
        (guest.sockets.get::<Socket<'_>>(handle).state() == State::Established).then_some(())
    });
    let source = SocketAddr::new(GUEST, 4000);
    guest.net.send(&udp(source, SocketAddr::new(HOST, echo.address.port()), 0, b"x")[0]);
    let query = b"\0\x09\x01\0\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";
    let gateway = SocketAddr::new(crate::datagrams::GATEWAY, 53);
    guest.net.send(&udp(source, gateway, 0, query)[0]);
    assert_eq!(descriptors(), before + 3);
    guest.net.user.reset();
    guest.net.turn(Duration::ZERO);
    assert_eq!(descriptors(), before);
    assert!(guest.net.receive().is_none());
    let counters = guest.net.handle.counters();
    assert_eq!((counters.tcp_flows, counters.udp_flows), (0, 0));
    assert_eq!(guest.net.user.deadline(), None);
    // The forward is still there for the next driver.
    assert_eq!(guest.net.handle.forwards().len(), 1);
    drop(guest);
    assert!(descriptors() < before);
}
