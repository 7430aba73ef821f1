//! TCP as this network routes it: to the host, through forwards, and as a policy says.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyperkit::net::user::{Flow, Forward, Protocol, Target, UserNet, Verdict};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::IpEndpoint;

use crate::datagrams::{GATEWAY, GUEST, GUEST6, HOST, HOST6};
use crate::guest::{Guest, Net, PATIENCE};

/// Takes one connection, and sends back what comes until the other side ends.
fn echo(mut stream: impl Read + Write) -> usize {
    let mut buffer = [0; 4096];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return total,
            count => {
                stream.write_all(&buffer[..count]).unwrap();
                total += count;
            }
        }
    }
}

fn server(ip: impl Into<IpAddr>) -> (SocketAddr, JoinHandle<usize>) {
    let listener = TcpListener::bind((ip.into(), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (address, std::thread::spawn(move || echo(listener.accept().unwrap().0)))
}

/// Connects from the guest.
pub fn connect(guest: &mut Guest, port: u16, to: SocketAddr) -> SocketHandle {
    let handle = guest.tcp();
    let source = if to.is_ipv4() { GUEST } else { GUEST6 };
    let socket = guest.sockets.get_mut::<Socket<'_>>(handle);
    let local = IpEndpoint::from(SocketAddr::new(source, port));
    socket.connect(guest.iface.context(), IpEndpoint::from(to), local).unwrap();
    handle
}

/// Sends `count` bytes, and gets them back; then both sides end.
fn exchange(guest: &mut Guest, handle: SocketHandle, count: usize) {
    let (mut sent, mut got) = (0, 0);
    let byte = |n: usize| (n * 31 + n / 256) as u8;
    guest.until(|guest| {
        let socket = guest.sockets.get_mut::<Socket<'_>>(handle);
        while sent < count && socket.can_send() {
            let data: Vec<u8> = (sent..count.min(sent + 4096)).map(byte).collect();
            sent += socket.send_slice(&data).unwrap();
        }
        while socket.can_recv() {
            socket
                .recv(|data| {
                    for value in &*data {
                        assert_eq!(*value, byte(got));
                        got += 1;
                    }
                    (data.len(), ())
                })
                .unwrap();
        }
        (got == count).then_some(())
    });
    guest.sockets.get_mut::<Socket<'_>>(handle).close();
    guest.until(|guest| {
        let socket = guest.sockets.get::<Socket<'_>>(handle);
        matches!(socket.state(), State::TimeWait | State::Closed).then_some(())
    });
}

fn refused(guest: &mut Guest, port: u16, to: SocketAddr) {
    let handle = connect(guest, port, to);
    guest.until(|guest| {
        let state = guest.sockets.get::<Socket<'_>>(handle).state();
        assert!(matches!(state, State::SynSent | State::Closed), "{state}");
        (state == State::Closed).then_some(())
    });
}

#[test]
fn a_stack_talks_to_the_hosts_loopback() {
    for (host, local) in
        [(HOST, IpAddr::from(Ipv4Addr::LOCALHOST)), (HOST6, Ipv6Addr::LOCALHOST.into())]
    {
        let (address, thread) = server(local);
        let mut guest = Guest::new(UserNet::new());
        let handle = connect(&mut guest, 40000, SocketAddr::new(host, address.port()));
        exchange(&mut guest, handle, 300_000);
        assert_eq!(thread.join().unwrap(), 300_000);
        assert_eq!(guest.net.handle.counters().tcp_opened, 1);
    }
}

#[test]
fn what_is_not_there_refuses() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut guest = Guest::new(UserNet::new().dns_servers([]));
    refused(&mut guest, 40000, SocketAddr::new(HOST, closed));
    refused(&mut guest, 40001, SocketAddr::new(GATEWAY, 80));
    let (address, _thread) = server(Ipv4Addr::LOCALHOST);
    let mut guest = Guest::new(UserNet::new().loopback(false));
    refused(&mut guest, 40000, SocketAddr::new(HOST, address.port()));
    TcpStream::connect(address).unwrap();
}

#[test]
fn forwards_lead_out_of_the_guest_to_addresses_and_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("service");
    let listener = UnixListener::bind(&path).unwrap();
    let unix = std::thread::spawn(move || echo(listener.accept().unwrap().0));
    let (address, tcp) = server(Ipv4Addr::LOCALHOST);
    let mut guest = Guest::new(UserNet::new().loopback(false));
    let net = guest.net.handle.clone();
    let bound = net.forward(Forward::tcp_to_unix(2375, &path)).unwrap();
    assert_eq!(bound.address, Some(SocketAddr::new(GATEWAY, 2375)));
    let far: SocketAddr = "203.0.113.7:80".parse().unwrap();
    net.forward(Forward::tcp_to_host(far, address)).unwrap();
    let handle = connect(&mut guest, 40000, SocketAddr::new(GATEWAY, 2375));
    exchange(&mut guest, handle, 5000);
    let handle = connect(&mut guest, 40001, far);
    exchange(&mut guest, handle, 5000);
    assert_eq!((unix.join().unwrap(), tcp.join().unwrap()), (5000, 5000));
    assert!(net.remove(bound.id));
    refused(&mut guest, 40002, SocketAddr::new(GATEWAY, 2375));
}

/// A guest that listens at port 80, and echoes on one connection.
fn serve(guest: &mut Guest, count: usize) {
    let handle = guest.tcp();
    guest.sockets.get_mut::<Socket<'_>>(handle).listen(80).unwrap();
    let mut done = 0;
    guest.until(|guest| {
        let socket = guest.sockets.get_mut::<Socket<'_>>(handle);
        if socket.can_recv() && socket.can_send() {
            let data = socket
                .recv(|data| (data.len().min(4096), data[..data.len().min(4096)].to_vec()))
                .unwrap();
            assert_eq!(socket.send_slice(&data).unwrap(), data.len());
            done += data.len();
        }
        (done == count).then_some(())
    });
    guest.sockets.get_mut::<Socket<'_>>(handle).close();
    guest.until(|guest| {
        let state = guest.sockets.get::<Socket<'_>>(handle).state();
        matches!(state, State::TimeWait | State::Closed).then_some(())
    });
}

fn client(mut stream: impl Read + Write, count: usize, shutdown: impl FnOnce()) {
    let data: Vec<u8> = (0..count).map(|n| n as u8).collect();
    stream.write_all(&data).unwrap();
    let mut back = vec![0; count];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(data, back);
    shutdown();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn forwards_lead_into_the_guest_from_ports_and_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guest");
    let mut guest = Guest::new(UserNet::new().forward(Forward::unix(&path, 80)));
    let bound = guest.net.handle.forward(Forward::tcp(0, (GUEST, 80))).unwrap();
    let address = bound.address.unwrap();
    assert_eq!(address.ip(), IpAddr::from(Ipv4Addr::LOCALHOST));
    let thread = std::thread::spawn(move || {
        let stream = TcpStream::connect(address).unwrap();
        let other = stream.try_clone().unwrap();
        client(stream, 20_000, || other.shutdown(std::net::Shutdown::Write).unwrap());
    });
    serve(&mut guest, 20_000);
    thread.join().unwrap();
    let socket = path.clone();
    let thread = std::thread::spawn(move || {
        let stream = UnixStream::connect(socket).unwrap();
        let other = stream.try_clone().unwrap();
        client(stream, 20_000, || other.shutdown(std::net::Shutdown::Write).unwrap());
    });
    serve(&mut guest, 20_000);
    thread.join().unwrap();
    assert_eq!(guest.net.handle.counters().tcp_accepted, 2);
    // A port that is removed is free at once, and a socket's file is gone.
    for bound in guest.net.handle.forwards() {
        assert!(guest.net.handle.remove(bound.id));
    }
    TcpListener::bind(address).unwrap();
    assert!(!path.exists());
}

#[test]
fn forwards_that_cannot_be_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let net = Net::new(UserNet::new());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _taken = TcpListener::bind(taken).unwrap();
    let fails = |forward: Forward| net.handle.forward(forward).unwrap_err().to_string();
    assert!(fails(Forward::tcp(taken, 80)).contains(&taken.to_string()));
    assert!(fails(Forward::tcp(0, 0)).contains("port 0"));
    assert!(fails(Forward::unix(dir.path().join("no/dir"), 80)).contains("no/dir"));
    // A socket that somebody listens at stays; one that was left behind makes way.
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(fails(Forward::unix(&path, 80)).contains("socket"));
    drop(listener);
    net.handle.forward(Forward::unix(&path, 80)).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(fails(Forward::unix(&file, 80)).contains("file"));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let handle = net.handle.clone();
    drop(net);
    assert!(!path.exists());
    assert!(handle.forward(Forward::tcp(0, 80)).unwrap_err().to_string().contains("gone"));
    assert_eq!(handle.forwards(), []);
}

#[test]
fn a_policy_decides_about_connections() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("service");
    let listener = UnixListener::bind(&path).unwrap();
    let unix = std::thread::spawn(move || echo(listener.accept().unwrap().0));
    let (address, tcp) = server(Ipv4Addr::LOCALHOST);
    let policy = move |flow: &Flow<'_>| match (flow.protocol, flow.destination.port()) {
        (Protocol::Tcp, 1) => Verdict::Redirect(Target::Address(address)),
        (Protocol::Tcp, 2) => Verdict::Redirect(Target::Unix(path.clone())),
        (Protocol::Tcp, 3) => Verdict::Refuse,
        _ => Verdict::Drop,
    };
    let mut guest = Guest::new(UserNet::new().policy(policy));
    let far: IpAddr = "203.0.113.7".parse().unwrap();
    for port in [1, 2] {
        let handle = connect(&mut guest, 40000 + port, SocketAddr::new(far, port));
        exchange(&mut guest, handle, 1000);
    }
    assert_eq!((unix.join().unwrap(), tcp.join().unwrap()), (1000, 1000));
    refused(&mut guest, 40003, SocketAddr::new(far, 3));
    let handle = connect(&mut guest, 40004, SocketAddr::new(far, 4));
    guest.until(|guest| (guest.net.handle.counters().denied == 2).then_some(()));
    assert_eq!(guest.sockets.get::<Socket<'_>>(handle).state(), State::SynSent);
    let counters = guest.net.handle.counters();
    assert_eq!((counters.denied, counters.redirected), (2, 2));
}

#[test]
fn a_capture_has_what_passed_and_its_end_is_not_the_networks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture");
    let (address, thread) = server(Ipv4Addr::LOCALHOST);
    let mut guest = Guest::new(UserNet::new().capture(&path, 64));
    let handle = connect(&mut guest, 40000, SocketAddr::new(HOST, address.port()));
    exchange(&mut guest, handle, 10_000);
    thread.join().unwrap();
    let counters = guest.net.handle.counters();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes[..4], 0xa1b2_3c4du32.to_ne_bytes());
    let (mut rest, mut frames, mut total) = (&bytes[24..], 0, 0);
    while let Some((head, tail)) = rest.split_first_chunk::<16>() {
        let word = |n: usize| u32::from_ne_bytes(head[n..n + 4].try_into().unwrap()) as usize;
        assert!(word(8) == word(12).min(64));
        total += word(12) as u64;
        frames += 1;
        rest = &tail[word(8)..];
    }
    assert_eq!(rest.len(), 0);
    assert_eq!(frames, counters.frames_in + counters.frames_out);
    assert_eq!(total, counters.bytes_in + counters.bytes_out);
    if std::path::Path::new("/dev/full").exists() {
        let error = UserNet::new().capture("/dev/full", 64).open().err().unwrap();
        assert!(error.to_string().contains("/dev/full"));
    }
}

#[test]
fn a_connection_that_one_side_has_ended_is_given_up_after_the_time_that_was_set() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::new(UserNet::new().tcp_half_closed(Duration::from_millis(50)));
    let [ended, open] = [40000, 40001].map(|number| {
        let handle = connect(&mut guest, number, SocketAddr::new(HOST, port));
        guest.until(|guest| guest.sockets.get::<Socket<'_>>(handle).may_send().then_some(()));
        (handle, listener.accept().unwrap().0)
    });
    let ((ended, mut stream), (open, _stream)) = (ended, open);
    guest.sockets.get_mut::<Socket<'_>>(ended).close();
    // The other one is not in a hurry, and neither is this one before its end.
    guest.until(|guest| (guest.net.handle.counters().tcp_timed_out == 1).then_some(()));
    assert_eq!(guest.net.handle.counters().tcp_flows, 1);
    assert_eq!(guest.sockets.get::<Socket<'_>>(open).state(), State::Established);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    guest.until(|_| stream.write(b"is anybody there?").err());
}

#[test]
fn a_guest_that_does_not_answer_is_given_up_after_the_time_that_was_set() {
    let mut net = Net::new(UserNet::new().tcp_half_open(Duration::from_millis(50)));
    let bound = net.handle.forward(Forward::tcp(0, 80)).unwrap();
    let mut stream = TcpStream::connect(bound.address.unwrap()).unwrap();
    let end = Instant::now() + PATIENCE;
    while net.handle.counters().tcp_timed_out == 0 {
        assert!(Instant::now() < end, "the connection stays");
        net.turn(Duration::from_millis(10));
        net.drain();
    }
    assert_eq!(net.handle.counters().tcp_flows, 0);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
