//! What a Rust program has.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::*;
use crate::vsock::listener::BACKLOG;

const PORT: u32 = 22;
pub const HOST_PORT: u32 = 1 << 30;

#[track_caller]
pub fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// A connection of the host to the guest: the device's end, and the program's.
fn connect(rig: &mut Rig) -> (OwnedFd, VsockStream) {
    let handle = rig.open.handle();
    let program = thread::spawn(move || handle.connect(PORT));
    let call = rig.call();
    assert_eq!((call.kind, call.port), (Kind::Stream, PORT));
    call.answer.accept(&call.socket, HOST_PORT);
    (call.socket, program.join().unwrap().unwrap())
}

pub fn dial(rig: &Rig, port: u32, from: u32) -> OwnedFd {
    match rig.open.dial(Kind::Stream, port, from) {
        Dial::Connected(socket) => socket,
        dial => panic!("{dial:?}"),
    }
}

fn is_readable(fd: &impl AsFd) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
}

#[test]
fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let mut rig = Rig::new(Vsock::new());
    let (device, mut stream) = connect(&mut rig);
    assert_eq!((stream.local_port(), stream.peer_port()), (HOST_PORT, PORT));

    assert_eq!(rustix::io::read(&device, &mut [0; 1]), Err(Errno::AGAIN));
    stream.write_all(b"question").unwrap();
    stream.flush().unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_now(&device), b"question");
    assert_eq!(read_now(&device), b"");

    rustix::io::write(&device, b"answer").unwrap();
    drop(device);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(kind((&stream).write(b"more")), ErrorKind::BrokenPipe);
}

#[test]
fn a_stream_waits_no_longer_than_it_is_told() {
    let mut rig = Rig::new(Vsock::new());
    let (_device, stream) = connect(&mut rig);
    stream.set_nonblocking(true).unwrap();
    assert_eq!(kind((&stream).read(&mut [0; 1])), ErrorKind::WouldBlock);
    while (&stream).write(&[0; 4096]).is_ok() {}
    assert_eq!(kind((&stream).write(&[0; 4096])), ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
    assert_eq!(kind((&stream).read(&mut [0; 1])), ErrorKind::WouldBlock);
    assert_eq!(kind((&stream).write(&[0; 4096])), ErrorKind::WouldBlock);
}

#[test]
fn a_connection_ends_with_its_last_handle() {
    let mut rig = Rig::new(Vsock::new());
    let (device, stream) = connect(&mut rig);
    let copy = stream.try_clone().unwrap();
    assert_eq!((copy.local_port(), copy.peer_port()), (HOST_PORT, PORT));
    drop(stream);
    assert_eq!(rustix::io::read(&device, &mut [0; 1]), Err(Errno::AGAIN));
    let last = OwnedFd::from(copy);
    rustix::io::write(&last, b"last").unwrap();
    drop(last);
    assert_eq!(read_now(&device), b"last");
    assert_eq!(read_now(&device), b"");
}

#[test]
fn why_the_guest_refuses_is_what_the_program_is_told() {
    let mut rig = Rig::new(Vsock::new());
    let handle = rig.open.handle();
    let program = thread::spawn(move || kind(handle.connect(PORT)));
    rig.call().answer.refuse(ErrorKind::ConnectionRefused.into());
    assert_eq!(program.join().unwrap(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_connection_that_nobody_answers_is_given_up() {
    let mut rig = Rig::new(Vsock::new());
    let handle = rig.open.handle();
    let timeout = Duration::from_millis(20);
    assert_eq!(kind(handle.connect_timeout(PORT, timeout)), ErrorKind::TimedOut);
    let call = rig.call();
    assert!(call.until <= Instant::now());
    // Too late, and to nobody.
    call.answer.accept(&call.socket, HOST_PORT);
    assert_eq!(read_now(&call.socket), b"");
}

#[test]
fn a_device_that_is_reset_resets_connections_that_were_asked_for() {
    let mut rig = Rig::new(Vsock::new());
    let handle = rig.open.handle();
    let program = thread::spawn(move || kind(handle.connect_timeout(PORT, Duration::MAX)));
    drop(rig.call());
    assert_eq!(program.join().unwrap(), ErrorKind::ConnectionReset);
}

#[test]
fn when_the_machine_ends_nobody_waits_for_it() {
    let mut rig = Rig::new(Vsock::new());
    let handle = rig.open.handle();
    let listener = handle.listen(1).unwrap();
    let incoming = handle.listen(2).unwrap();
    let _waiting = dial(&rig, 2, 5);
    let connecting = |port| {
        let handle = handle.clone();
        thread::spawn(move || handle.connect_timeout(port, LONG).unwrap_err())
    };
    let taken = connecting(PORT);
    let call = rig.call();
    let asked = connecting(PORT);
    while !is_readable(&handle.0.wake) {
        thread::yield_now();
    }
    let accepting = thread::spawn(move || listener.accept().unwrap_err());
    drop(rig);
    drop(call);
    for thread in [taken, asked, accepting] {
        let error = thread.join().unwrap();
        assert_eq!(error.kind(), ErrorKind::NotConnected);
        assert_eq!(error.to_string(), "the machine has ended");
    }
    assert!(incoming.incoming().next().is_none());
    assert!(is_readable(&incoming));
    assert_eq!(kind(handle.connect(PORT)), ErrorKind::NotConnected);
    assert_eq!(kind(handle.listen(PORT)), ErrorKind::NotConnected);
}

#[test]
fn programs_that_have_given_up_are_not_in_the_way_of_others() {
    let rig = Rig::new(Vsock::new());
    let handle = rig.open.handle();
    for _ in 0..3000 {
        assert_eq!(kind(handle.connect_timeout(PORT, Duration::ZERO)), ErrorKind::TimedOut);
    }
}

#[test]
fn a_listener_accepts_in_order_and_knows_where_each_connection_is_from() {
    let rig = Rig::new(Vsock::new());
    let listener = rig.open.handle().listen(514).unwrap();
    assert_eq!(listener.local_port(), 514);
    let accepting = thread::scope(|scope| {
        let accepting = scope.spawn(|| listener.accept().unwrap());
        let device = dial(&rig, 514, 7);
        rustix::io::write(&device, b"log").unwrap();
        accepting.join().unwrap()
    });
    let (mut stream, from) = accepting;
    assert_eq!((from, stream.peer_port(), stream.local_port()), (7, 7, 514));
    let mut heard = String::new();
    stream.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "log");

    let _devices = [dial(&rig, 514, 8), dial(&rig, 514, 9)];
    let ports = listener.incoming().take(2).map(|stream| stream.unwrap().peer_port());
    assert_eq!(ports.collect::<Vec<_>>(), [8, 9]);
}

#[test]
fn a_listener_is_readable_while_connections_wait() {
    let rig = Rig::new(Vsock::new());
    let listener = rig.open.handle().listen(1).unwrap();
    listener.set_nonblocking(true);
    assert!(!is_readable(&listener));
    assert_eq!(kind(listener.accept()), ErrorKind::WouldBlock);
    let _devices = [dial(&rig, 1, 1), dial(&rig, 1, 2)];
    for _ in 0..2 {
        assert!(is_readable(&listener));
        listener.accept().unwrap();
    }
    assert!(!is_readable(&listener));
    assert_eq!(kind(listener.accept()), ErrorKind::WouldBlock);
}

#[test]
fn a_port_has_one_listener_and_is_free_when_that_is_dropped() {
    let rig = Rig::new(Vsock::new());
    let handle = rig.open.handle();
    let listener = handle.listen(1).unwrap();
    assert_eq!(kind(handle.clone().listen(1)), ErrorKind::AddrInUse);
    let waiting = dial(&rig, 1, 1);
    drop(listener);
    assert_eq!(read_now(&waiting), b"");
    assert!(matches!(rig.open.dial(Kind::Stream, 1, 1), Dial::Refused));
    handle.listen(1).unwrap();
}

#[test]
fn more_connections_than_may_wait_are_refused() {
    let rig = Rig::new(Vsock::new());
    let listener = rig.open.handle().listen(1).unwrap();
    let _devices: Vec<_> = (0..BACKLOG as u32).map(|from| dial(&rig, 1, from)).collect();
    assert!(matches!(rig.open.dial(Kind::Stream, 1, 1), Dial::Refused));
    listener.accept().unwrap();
    dial(&rig, 1, 1);
}

#[test]
fn a_reset_of_the_transport_is_wanted_once_and_before_anything_else() {
    let mut rig = Rig::new(Vsock::new());
    let handle = rig.open.handle();
    handle.connect_timeout(PORT, Duration::ZERO).unwrap_err();
    handle.reset_transport();
    handle.reset_transport();
    assert!(matches!(rig.want(), Want::TransportReset));
    assert_eq!(rig.call().port, PORT);
    rig.nothing();
}

#[test]
fn what_the_device_counts_every_handle_sees() {
    let rig = Rig::new(Vsock::new());
    let handle = rig.open.handle();
    assert_eq!(handle.counters(), Counters::default());
    let tally = rig.open.tally();
    tally.open.set(3);
    tally.sent.add(5);
    tally.sent.add(6);
    let counters = handle.clone().counters();
    assert_eq!(counters, Counters { open: 3, sent: 11, ..Counters::default() });
}
