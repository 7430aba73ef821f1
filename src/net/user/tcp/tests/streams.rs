//! Streams between a guest that does as it should and the host's sockets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

use super::super::{Config, HostStream, Route};
use super::stack::Guest;
use super::{ALL, GUEST4, Lab, PATIENCE, REMOTE4, REMOTE6, listener, noise};
use crate::net::Offloads;
use crate::virtio::Sources;

/// Sends `out` and ends, while it receives until the end; tells what it received.
fn exchange(guest: &mut Guest, handle: SocketHandle, out: &[u8]) -> Vec<u8> {
    let (mut sent, mut got) = (0, Vec::new());
    let mut closed = false;
    guest.until(|guest| {
        let socket = guest.get(handle);
        if socket.can_send() && sent < out.len() {
            sent += socket.send_slice(&out[sent..]).unwrap();
        }
        if sent == out.len() && !closed && socket.may_send() {
            socket.close();
            closed = true;
        }
        while socket.can_recv() {
            got.extend(socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap());
        }
        closed && matches!(socket.state(), State::TimeWait | State::Closed)
    });
    got
}

/// Sends `out` and ends, while it receives until the end, on a thread of its own.
fn far_side<S: Read + Write + Send + 'static>(
    stream: S,
    clone: impl Fn(&S) -> S,
    end: impl Fn(&S) + Send + 'static,
    out: Vec<u8>,
) -> thread::JoinHandle<Vec<u8>> {
    let mut writer = clone(&stream);
    let mut reader = stream;
    let writing = thread::spawn(move || {
        writer.write_all(&out).unwrap();
        end(&writer);
    });
    thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        writing.join().unwrap();
        got
    })
}

fn far_tcp(stream: TcpStream, out: Vec<u8>) -> thread::JoinHandle<Vec<u8>> {
    far_side(
        stream,
        |stream| stream.try_clone().unwrap(),
        |stream| stream.shutdown(Shutdown::Write).unwrap(),
        out,
    )
}

/// Both ways at once, and compares.
fn both_ways(guest: &mut Guest, listener: &TcpListener, handle: SocketHandle, len: usize) {
    let (out, back) = (noise(len, 1), noise(len, 2));
    let listener = listener.try_clone().unwrap();
    let expected = back.clone();
    let far = thread::spawn(move || far_tcp(listener.accept().unwrap().0, back).join().unwrap());
    let got = exchange(guest, handle, &out);
    assert!(got == expected, "{} of {} bytes came", got.len(), expected.len());
    assert!(far.join().unwrap() == out);
}

#[test]
fn ten_megabytes_go_both_ways_at_once() {
    let listener = listener();
    let mut guest = Guest::new(Lab::to(&listener), 1500);
    let handle = guest.connect4();
    both_ways(&mut guest, &listener, handle, 10 << 20);
    assert_eq!(guest.lab.tcp.counters().bytes_in, 10 << 20);
    assert_eq!(guest.lab.tcp.counters().bytes_out, 10 << 20);
}

#[test]
fn the_same_with_large_segments_both_ways() {
    let listener = listener();
    let config = Config { mtu: 65_520, ..Config::default() };
    let lab = Lab::new(config, ALL, Route::Host(listener.local_addr().unwrap()));
    let mut guest = Guest::new(lab, 65_520);
    let handle = guest.connect(1 << 20, REMOTE4);
    both_ways(&mut guest, &listener, handle, 10 << 20);
}

#[test]
fn the_same_without_any_offload() {
    let listener = listener();
    let to = Route::Host(listener.local_addr().unwrap());
    let mut guest = Guest::new(Lab::new(Config::default(), Offloads::empty(), to), 1500);
    let handle = guest.connect4();
    both_ways(&mut guest, &listener, handle, 3 << 20);
}

#[test]
fn the_same_over_ipv6() {
    for offloads in [ALL, Offloads::empty()] {
        let listener = TcpListener::bind("[::1]:0").unwrap_or_else(|_| listener());
        let to = Route::Host(listener.local_addr().unwrap());
        let mut guest = Guest::new(Lab::new(Config::default(), offloads, to), 1500);
        let handle = guest.connect6();
        both_ways(&mut guest, &listener, handle, 3 << 20);
        assert_eq!(guest.lab.routed[0].1, (REMOTE6, 80).into());
    }
}

#[test]
fn lost_frames_to_the_guest_are_sent_again() {
    let listener = listener();
    let mut guest = Guest::new(Lab::to(&listener), 1500);
    guest.trouble.lose_in = 7;
    let handle = guest.connect4();
    both_ways(&mut guest, &listener, handle, 2 << 20);
    assert!(guest.lab.tcp.counters().retransmitted > 0);
}

#[test]
fn segments_of_the_guest_may_be_lost_repeated_and_out_of_order() {
    let listener = listener();
    let mut guest = Guest::new(Lab::to(&listener), 1500);
    // Few: each one takes this guest a second.
    guest.trouble.lose_out = 31;
    guest.trouble.repeat_out = 5;
    guest.trouble.delay_out = 37;
    let handle = guest.connect4();
    both_ways(&mut guest, &listener, handle, 48 << 10);
}

#[test]
fn five_hundred_connections_at_once() {
    let listener = listener();
    let mut guest = Guest::new(Lab::to(&listener), 1500);
    let echo = thread::spawn(move || {
        let streams: Vec<_> = (0..500).map(|_| listener.accept().unwrap().0).collect();
        for mut stream in streams {
            let mut byte = [0; 4];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
    });
    let handles: Vec<_> = (0..500).map(|_| guest.connect(2048, REMOTE4)).collect();
    guest.until(|guest| {
        // The listener's queue is short.
        handles.iter().all(|handle| guest.get(*handle).may_send())
    });
    assert_eq!(guest.lab.flows(), 500);
    for (number, handle) in handles.iter().enumerate() {
        guest.get(*handle).send_slice(&(number as u32).to_be_bytes()).unwrap();
    }
    for (number, handle) in handles.iter().enumerate() {
        guest.until(|guest| guest.get(*handle).recv_queue() >= 4);
        let mut got = [0; 4];
        guest.get(*handle).recv_slice(&mut got).unwrap();
        assert_eq!(u32::from_be_bytes(got), number as u32);
        guest.get(*handle).close();
    }
    guest.until(|guest| guest.lab.flows() == 0);
    echo.join().unwrap();
}

#[test]
fn two_thousand_connections_in_a_row_leave_nothing_behind() {
    let listener = listener();
    let mut guest = Guest::new(Lab::to(&listener), 1500);
    let far = thread::spawn(move || {
        for _ in 0..2000 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            stream.write_all(&got).unwrap();
        }
    });
    for _ in 0..2000 {
        let handle = guest.connect(2048, REMOTE4);
        let got = exchange(&mut guest, handle, b"hello");
        assert_eq!(got, b"hello");
        guest.sockets.remove(handle);
    }
    far.join().unwrap();
    guest.until(|guest| guest.lab.flows() == 0);
    assert_eq!(guest.lab.tcp.deadline(), None);
    let counters = guest.lab.tcp.counters();
    assert_eq!((counters.opened, counters.evicted, counters.reset), (2000, 0, 0));
}

#[test]
fn a_slow_reader_in_the_guest_loses_nothing() {
    let listener = listener();
    let mut guest = Guest::new(Lab::to(&listener), 1500);
    let handle = guest.connect(5000, REMOTE4);
    let out = noise(300_000, 3);
    let expected = out.clone();
    let far = thread::spawn(move || far_tcp(listener.accept().unwrap().0, out).join().unwrap());
    let mut got = Vec::new();
    let mut turns = 0;
    guest.until(|guest| {
        turns += 1;
        let socket = guest.get(handle);
        // A look now and then, and only a little each time.
        if turns % 3 == 0 && socket.can_recv() {
            got.extend(
                socket.recv(|b| (b.len().min(3000), b[..b.len().min(3000)].to_vec())).unwrap(),
            );
        }
        !socket.may_recv() && !socket.can_recv() && socket.state() == State::CloseWait
    });
    assert!(got == expected);
    guest.get(handle).close();
    guest.until(|guest| guest.lab.flows() == 0);
    assert!(far.join().unwrap().is_empty());
}

#[test]
fn a_slow_reader_on_the_host_loses_nothing() {
    let listener = listener();
    let mut guest = Guest::new(Lab::to(&listener), 1500);
    let handle = guest.connect4();
    let out = noise(12 << 20, 4);
    let expected = out.clone();
    let mut sent = 0;
    guest.until(|guest| guest.get(handle).may_send());
    let (mut stream, _) = listener.accept().unwrap();
    // Nobody reads: at some point nothing goes any more.
    let (mut before, mut stalled) = (0, 0);
    guest.until(|guest| {
        let socket = guest.get(handle);
        if socket.can_send() && sent < out.len() {
            sent += socket.send_slice(&out[sent..]).unwrap();
        }
        stalled = if sent == before { stalled + 1 } else { 0 };
        before = sent;
        stalled > 100
    });
    assert!(sent < out.len());
    let far = thread::spawn(move || {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    let got = exchange(&mut guest, handle, &out[sent..]);
    assert!(got.is_empty());
    assert!(far.join().unwrap() == expected);
}

#[test]
fn unix_sockets_carry_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let lab = Lab::new(Config::default(), ALL, Route::Unix(path));
    let mut guest = Guest::new(lab, 1500);
    let handle = guest.connect4();
    let (out, back) = (noise(5 << 20, 5), noise(5 << 20, 6));
    let expected = back.clone();
    let far = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let clone = |stream: &UnixStream| stream.try_clone().unwrap();
        far_side(stream, clone, |stream| stream.shutdown(Shutdown::Write).unwrap(), back)
            .join()
            .unwrap()
    });
    let got = exchange(&mut guest, handle, &out);
    assert!(got == expected);
    assert!(far.join().unwrap() == out);
}

#[test]
fn connections_of_the_host_reach_the_guest() {
    for unix in [false, true] {
        let listener = listener();
        let mut guest = Guest::new(Lab::to(&listener), 1500);
        let handle = guest.socket(200_000);
        guest.get(handle).listen(22).unwrap();
        let (out, back) = (noise(3 << 20, 7), noise(3 << 20, 8));
        let expected = back.clone();
        let (stream, far) = if unix {
            let (near, far) = UnixStream::pair().unwrap();
            let clone = |stream: &UnixStream| stream.try_clone().unwrap();
            let end = |stream: &UnixStream| stream.shutdown(Shutdown::Write).unwrap();
            (HostStream::Unix(near), far_side(far, clone, end, back))
        } else {
            let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (HostStream::Tcp(listener.accept().unwrap().0), far_tcp(far, back))
        };
        let sources = Sources::new(guest.lab.poll.registry());
        let (from, to) = ((REMOTE4, 5555).into(), (GUEST4, 22).into());
        assert!(guest.lab.tcp.accept(stream, from, to, sources));
        let got = exchange(&mut guest, handle, &out);
        assert!(got == expected);
        assert!(far.join().unwrap() == out);
        assert_eq!(guest.lab.tcp.counters().accepted, 1);
        guest.until(|guest| guest.lab.flows() == 0);
    }
}

#[test]
fn a_guest_that_does_not_listen_resets_the_connection_of_the_host() {
    let listener = listener();
    let mut guest = Guest::new(Lab::to(&listener), 1500);
    let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let stream = HostStream::Tcp(listener.accept().unwrap().0);
    let sources = Sources::new(guest.lab.poll.registry());
    let (from, to) = ((REMOTE4, 5555).into(), (GUEST4, 22).into());
    assert!(guest.lab.tcp.accept(stream, from, to, sources));
    guest.until(|guest| guest.lab.flows() == 0);
    let error = far.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_connection_that_is_refused_is_refused_in_the_guest() {
    let port = listener().local_addr().unwrap().port();
    let route = Route::Host((Ipv4Addr::LOCALHOST, port).into());
    for route in [route, Route::Refuse, Route::Unix("/nonexistent/socket".into())] {
        let mut guest = Guest::new(Lab::new(Config::default(), ALL, route), 1500);
        let handle = guest.connect4();
        guest.until(|guest| guest.get(handle).state() == State::Closed);
        assert_eq!(guest.lab.flows(), 0);
        assert_eq!(guest.lab.tcp.counters().refused, 1);
        assert!(guest.lab.tcp.unreachable().is_none());
    }
}
