//! Bounds on connections, memory and time.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::segment::{ACK, RST, SYN};
use super::super::{Config, HostStream, MAX_REPLIES, Route};
use super::peer::Peer;
use super::{ALL, FIRST_TOKEN, Lab, PATIENCE, listener, noise};
use crate::virtio::{HostEvent, Sources};

fn lab(config: Config, listener: &TcpListener) -> Lab {
    Lab::new(config, ALL, Route::Host(listener.local_addr().unwrap()))
}

fn connect(peer: &mut Peer, listener: &TcpListener, port: u16) -> TcpStream {
    peer.key.guest.set_port(port);
    peer.sequence = 1000;
    peer.connect_with(&[]);
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn was_reset(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn a_flood_of_syns_stays_within_its_bounds() {
    let listener = listener();
    let config = Config { max_half_open: 8, ..Config::default() };
    let mut peer = Peer::new(lab(config, &listener));
    listener.set_nonblocking(true).unwrap();
    for port in 1..2000 {
        peer.key.guest.set_port(port);
        peer.send(SYN, b"");
        assert!(peer.lab.flows() <= 8);
        while listener.accept().is_ok() {}
    }
    assert_eq!(peer.lab.tcp.counters().evicted, 1991);
    let mut replies = 0;
    while peer.lab.output().is_some() {
        replies += 1;
    }
    assert!(replies <= MAX_REPLIES, "{replies}");
    // The last ones get through.
    for port in 1992..2000 {
        peer.key.guest.set_port(port);
        assert_eq!(peer.next().segment.flags, SYN | ACK);
    }
}

#[test]
fn the_connection_that_was_idle_longest_makes_room_for_another() {
    let listener = listener();
    let config = Config { max_flows: 3, ..Config::default() };
    let mut peer = Peer::new(lab(config, &listener));
    let first = connect(&mut peer, &listener, 1);
    let at_first = (peer.sequence, peer.acknowledged);
    let second = connect(&mut peer, &listener, 2);
    let _third = connect(&mut peer, &listener, 3);
    // The first one is used once more, so it is the second one's turn.
    peer.key.guest.set_port(1);
    (peer.sequence, peer.acknowledged) = at_first;
    peer.push(b"x");
    peer.next();
    let used = (peer.sequence, peer.acknowledged);
    peer.key.guest.set_port(4);
    peer.sequence = 5;
    peer.send(SYN, b"");
    peer.key.guest.set_port(2);
    let got = peer.next().segment;
    assert_eq!((got.flags, got.acknowledged), (RST | ACK, 1001));
    assert!(was_reset(&second));
    assert_eq!(peer.lab.flows(), 3);
    assert_eq!(peer.lab.tcp.counters().evicted, 1);
    peer.key.guest.set_port(4);
    assert_eq!(peer.next().segment.flags, SYN | ACK);
    peer.key.guest.set_port(1);
    (peer.sequence, peer.acknowledged) = used;
    peer.push(b"y");
    let mut got = [0; 2];
    { &first }.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"xy");
}

#[test]
fn connections_that_are_busy_make_no_room() {
    let listener = listener();
    let config = Config { max_flows: 1, ..Config::default() };
    let mut peer = Peer::new(lab(config, &listener));
    let mut stream = connect(&mut peer, &listener, 1);
    stream.write_all(b"not acknowledged").unwrap();
    peer.next();
    peer.key.guest.set_port(2);
    peer.send(SYN, b"");
    peer.nothing();
    assert_eq!(peer.lab.flows(), 1);
    assert_eq!(peer.lab.tcp.counters().refused, 1);
}

#[test]
fn a_silent_connection_ends_after_its_time() {
    let listener = listener();
    let mut peer = Peer::new(lab(Config::default(), &listener));
    let stream = connect(&mut peer, &listener, 1);
    let mut passes = 0;
    while peer.lab.flows() > 0 {
        peer.lab.pass();
        passes += 1;
    }
    // One for the handshake's timer, one for the hours that follow, and no regular ones.
    assert!(passes <= 3, "{passes}");
    assert_eq!(peer.next().segment.flags, RST | ACK);
    assert!(was_reset(&stream));
    assert_eq!(peer.lab.tcp.counters().timed_out, 1);
}

#[test]
fn a_connection_may_be_silent_for_ever() {
    let listener = listener();
    let forever = Duration::MAX;
    let config =
        Config { idle: forever, half_open: forever, half_closed: forever, ..Config::default() };
    let mut peer = Peer::new(lab(config, &listener));
    let mut stream = connect(&mut peer, &listener, 1);
    peer.push(b"hello");
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    peer.end();
    assert!(peer.lab.tcp.deadline().is_some());
    assert_eq!((&got, peer.lab.flows()), (b"hello", 1));
}

#[test]
fn half_open_connections_end_after_their_time() {
    let listener = listener();
    let mut peer = Peer::new(lab(Config::default(), &listener));
    peer.send(SYN, b"");
    let (stream, _) = listener.accept().unwrap();
    assert_eq!(peer.next().segment.flags, SYN | ACK);
    while peer.lab.flows() > 0 {
        peer.lab.pass();
        peer.poll();
    }
    assert!(was_reset(&stream));
    let (mut peer, stream) = Peer::accepted(lab(Config::default(), &listener), &listener);
    while peer.lab.flows() > 0 {
        peer.lab.pass();
        peer.poll();
    }
    assert!(was_reset(&stream));
    // The host's answer is waited for no longer, either.
    let mut peer = Peer::new(lab(Config::default(), &listener));
    peer.send(SYN, b"");
    peer.lab.pass();
    assert_eq!(peer.lab.flows(), 0);
    assert_eq!(peer.next().segment.flags, RST | ACK);
}

#[test]
fn half_closed_connections_end_after_their_time() {
    let listener = listener();
    let config = Config { half_closed: Duration::from_secs(5), ..Config::default() };
    let idle = config.idle;
    let mut peer = Peer::new(lab(config, &listener));
    let stream = connect(&mut peer, &listener, 1);
    let begun = std::time::Instant::now();
    peer.end();
    peer.next();
    while peer.lab.flows() > 0 {
        let deadline = peer.lab.tcp.deadline().unwrap();
        assert!(deadline < begun + idle);
        peer.lab.pass();
    }
    { &stream }.read_exact(&mut []).unwrap();
    assert_eq!(peer.next().segment.flags, RST | ACK);
}

#[test]
fn the_guests_data_waits_when_there_is_no_memory_for_it() {
    let listener = listener();
    // Two rings in all.
    let mut peer = Peer::new(lab(Config { memory: 0, ..Config::default() }, &listener));
    let mut streams = Vec::new();
    let mut ends = Vec::new();
    for port in 1..=3 {
        streams.push(connect(&mut peer, &listener, port));
        let chunk = noise(60_000, 16);
        let mut sent = 0;
        // Until nothing is taken any more.
        loop {
            peer.send(ACK, &chunk);
            let got = peer.next().segment;
            let taken = got.acknowledged.wrapping_sub(peer.sequence);
            sent += taken as usize;
            peer.sequence = got.acknowledged;
            if got.window == 0 || (taken as usize) < chunk.len() {
                break;
            }
        }
        ends.push((peer.sequence, peer.acknowledged, sent));
    }
    // All that was acknowledged arrives, and then there is room again for the one that got none.
    for (port, stream) in (1..).zip(&mut streams) {
        let (sequence, acknowledged, sent) = ends[port as usize - 1];
        peer.drain(stream, sent);
        while peer.lab.output().is_some() {}
        peer.key.guest.set_port(port);
        (peer.sequence, peer.acknowledged) = (sequence, acknowledged);
        peer.push(b"more");
        peer.until(|_| stream.peek(&mut [0; 4]).unwrap() == 4);
        let mut got = [0; 4];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"more");
    }
}

#[test]
fn the_hosts_data_waits_when_there_is_no_memory_for_it() {
    let mut peer = Peer::new(Lab::new(Config { memory: 0, ..Config::default() }, ALL, Route::Drop));
    let mut far = Vec::new();
    let mut state = Vec::new();
    for port in 1..=3 {
        let (near, stream) = UnixStream::pair().unwrap();
        peer.key.guest.set_port(port);
        assert!(peer.accept(HostStream::Unix(near)));
        peer.acknowledged = peer.next().segment.sequence.wrapping_add(1);
        peer.sequence = 7;
        peer.send(SYN | ACK, b"");
        peer.sequence = 8;
        { &stream }.write_all(b"hello").unwrap();
        let got = peer.next();
        if port < 3 {
            let data = if got.data.is_empty() { peer.next().data } else { got.data };
            assert_eq!(data, b"hello");
        }
        far.push(stream);
        state.push(peer.acknowledged);
    }
    peer.nothing();
    peer.key.guest.set_port(1);
    peer.acknowledged = state[0].wrapping_add(5);
    peer.send(ACK, b"");
    peer.key.guest.set_port(3);
    peer.acknowledged = state[2];
    assert_eq!(peer.take(5, false), b"hello");
}

#[test]
fn reset_ends_all_and_what_comes_late_is_ignored() {
    let listener = listener();
    let mut peer = Peer::new(lab(Config::default(), &listener));
    let streams: Vec<_> = (1..20).map(|port| connect(&mut peer, &listener, port)).collect();
    assert_eq!(peer.lab.flows(), 19);
    let sources = Sources::new(peer.lab.poll.registry());
    peer.lab.tcp.reset(sources);
    assert_eq!(peer.lab.flows(), 0);
    assert!(streams.iter().all(was_reset));
    for source in (0..FIRST_TOKEN + 100).chain([u32::MAX, FIRST_TOKEN + 0x3fff_ffff]) {
        let event = HostEvent { source, readable: true, writable: true };
        assert!(!peer.lab.tcp.host_ready(event, sources));
    }
    let mut stream = connect(&mut peer, &listener, 1);
    peer.push(b"again");
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"again");
}

#[test]
fn a_second_connection_between_the_same_two_is_not_accepted() {
    let listener = listener();
    let (mut peer, _stream) = Peer::accepted(lab(Config::default(), &listener), &listener);
    let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (host, _) = listener.accept().unwrap();
    assert!(!peer.accept(HostStream::Tcp(host)));
    assert!(was_reset(&other));
    assert_eq!(peer.lab.flows(), 1);
}
