//! Ends of connections: of one direction or both, orderly or not, by either side.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use super::super::CLOSING_PATIENCE;
use super::super::packet::{NO_RECEIVE, NO_SEND, Op, Ports};
use super::support::*;
use crate::vsock::{Vsock, VsockStream};

fn connected() -> (Machine, Conn, VsockStream) {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (conn, stream) = machine.open(&listener, CLIENT);
    (machine, conn, stream)
}

/// What the host has left to read.
fn rest(stream: &mut VsockStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn gone(machine: &Machine) {
    machine.until("a connection stays", |machine| machine.handle.counters().open == 0);
}

#[test]
fn the_guest_ends_its_direction_and_the_host_goes_on() {
    let (mut machine, mut conn, mut stream) = connected();
    machine.data(&mut conn, b"question");
    machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND));
    assert_eq!(rest(&mut stream), b"question");
    machine.quiet();
    stream.write_all(b"answer").unwrap();
    assert_eq!(machine.receive(&mut conn), b"answer");
    drop(stream);
    assert_eq!(machine.next().expect(PORTS, Op::Shutdown).flags, NO_SEND | NO_RECEIVE);
    machine.send(&conn.packet(Op::Reset));
    gone(&machine);
    machine.quiet();
    assert_eq!(machine.handle.counters().resets, 0);
}

#[test]
fn the_host_ends_its_direction_and_the_guest_goes_on() {
    let (mut machine, mut conn, mut stream) = connected();
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(machine.receive(&mut conn), b"question");
    assert_eq!(machine.next().expect(PORTS, Op::Shutdown).flags, NO_SEND);
    machine.quiet();
    for n in 0..100 {
        machine.data(&mut conn, &pattern(n * 1000, 1000));
    }
    machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND));
    assert_eq!(rest(&mut stream), pattern(0, 100_000));
    // Both directions are over.
    assert_eq!(machine.next().expect(PORTS, Op::Shutdown).flags, NO_SEND | NO_RECEIVE);
    machine.send(&conn.packet(Op::Reset));
    gone(&machine);
    assert_eq!(machine.handle.counters().resets, 0);
}

#[test]
fn the_host_ends_after_the_guest_has() {
    let (mut machine, conn, mut stream) = connected();
    machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND));
    assert_eq!(rest(&mut stream), b"");
    stream.write_all(b"last").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut conn = conn;
    assert_eq!(machine.receive(&mut conn), b"last");
    assert_eq!(machine.next().expect(PORTS, Op::Shutdown).flags, NO_SEND | NO_RECEIVE);
    // An end in two steps is an end.
    machine.send(&conn.packet(Op::Shutdown).flags(NO_RECEIVE));
    machine.next().expect(PORTS, Op::Reset);
    gone(&machine);
}

#[test]
fn the_guest_closes() {
    let (mut machine, mut conn, mut stream) = connected();
    machine.data(&mut conn, b"bye");
    machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND | NO_RECEIVE));
    machine.next().expect(PORTS, Op::Reset);
    assert_eq!(rest(&mut stream), b"bye");
    assert_eq!(stream.write(b"too late").unwrap_err().kind(), ErrorKind::BrokenPipe);
    gone(&machine);
    machine.quiet();
    assert_eq!(machine.handle.counters().resets, 0);
}

/// Flags that are none do not count.
#[test]
fn only_the_two_flags_of_an_end_count() {
    let (mut machine, mut conn, mut stream) = connected();
    machine.send(&conn.packet(Op::Shutdown).flags(0));
    machine.send(&conn.packet(Op::Shutdown).flags(!3));
    machine.data(&mut conn, b"on");
    stream.read_exact(&mut [0; 2]).unwrap();
    stream.write_all(b"and on").unwrap();
    assert_eq!(machine.receive(&mut conn), b"and on");
    machine.send(&conn.packet(Op::Shutdown).flags(!NO_SEND));
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    machine.data(&mut conn, b"still");
    stream.read_exact(&mut [0; 5]).unwrap();
    machine.send(&conn.packet(Op::Shutdown).flags(!NO_RECEIVE));
    machine.next().expect(PORTS, Op::Reset);
    gone(&machine);
}

#[test]
fn a_guest_that_stops_receiving_gets_nothing_and_hears_of_the_end() {
    let (mut machine, mut conn, mut stream) = connected();
    machine.send(&conn.packet(Op::Shutdown).flags(NO_RECEIVE));
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    machine.data(&mut conn, b"more");
    stream.read_exact(&mut [0; 4]).unwrap();
    machine.quiet();
    drop(stream);
    let flags = machine.next().expect(PORTS, Op::Shutdown).flags;
    assert_eq!(flags & NO_RECEIVE, NO_RECEIVE);
    machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND));
    machine.next().expect(PORTS, Op::Reset);
    gone(&machine);
}

#[test]
fn what_the_host_wrote_before_the_guest_stopped_receiving_is_dropped() {
    let (mut machine, mut conn, mut stream) = connected();
    conn.buf_alloc = 0;
    machine.send(&conn.packet(Op::CreditUpdate));
    stream.write_all(&pattern(0, 10_000)).unwrap();
    machine.next().expect(PORTS, Op::CreditRequest);
    machine.send(&conn.packet(Op::Shutdown).flags(NO_RECEIVE));
    conn.buf_alloc = ROOM;
    machine.send(&conn.packet(Op::CreditUpdate));
    machine.quiet();
    machine.data(&mut conn, b"on");
    stream.read_exact(&mut [0; 2]).unwrap();
}

#[test]
fn a_host_that_stops_reading_is_found_out_when_the_guest_sends() {
    let (mut machine, mut conn, mut stream) = connected();
    stream.shutdown(Shutdown::Read).unwrap();
    machine.data(&mut conn, &pattern(0, 1000));
    assert_eq!(machine.next().expect(PORTS, Op::Shutdown).flags, NO_RECEIVE);
    // The guest has not heard of it yet, and loses no credit by it.
    for _ in 0..300 {
        machine.data(&mut conn, &pattern(0, 1000));
        while let Some(update) = machine.poll() {
            conn.take(&update.expect(PORTS, Op::CreditUpdate));
        }
    }
    stream.write_all(b"the other way").unwrap();
    assert_eq!(machine.receive(&mut conn), b"the other way");
    drop(stream);
    assert_eq!(machine.next().expect(PORTS, Op::Shutdown).flags, NO_SEND | NO_RECEIVE);
}

#[test]
fn what_the_host_has_not_read_stays_for_it_when_the_guest_has_left() {
    let (mut machine, mut conn, mut stream) = connected();
    let mut sent = 0;
    while conn.credit() >= 4096 {
        machine.data(&mut conn, &pattern(sent, 4096));
        sent += 4096;
        machine.guest.settle();
        while let Some(update) = machine.poll() {
            conn.take(&update);
        }
    }
    machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND | NO_RECEIVE));
    machine.next().expect(PORTS, Op::Reset);
    // The ports are free, and nothing of the old connection comes to the new one.
    assert_eq!(machine.handle.counters().open, 1);
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut again, mut new) = machine.open(&listener, CLIENT);
    machine.data(&mut again, b"new");
    new.read_exact(&mut [0; 3]).unwrap();
    assert!(rest(&mut stream) == pattern(0, sent));
    machine.until("it stays", |machine| machine.handle.counters().open == 1);
    new.write_all(b"goes on").unwrap();
    assert_eq!(machine.receive(&mut again), b"goes on");
}

#[test]
fn what_nobody_will_read_goes_when_the_host_leaves() {
    let (mut machine, mut conn, stream) = connected();
    while conn.credit() >= 4096 {
        machine.data(&mut conn, &[0; 4096]);
        machine.guest.settle();
        while let Some(update) = machine.poll() {
            conn.take(&update);
        }
    }
    machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND | NO_RECEIVE));
    machine.next().expect(PORTS, Op::Reset);
    assert_eq!(machine.handle.counters().open, 1);
    drop(stream);
    gone(&machine);
    machine.quiet();
}

#[test]
fn a_reset_of_the_guest_is_the_end_for_the_host() {
    let (mut machine, mut conn, mut stream) = connected();
    machine.data(&mut conn, b"all of it");
    machine.send(&conn.packet(Op::Reset));
    assert_eq!(rest(&mut stream), b"all of it");
    gone(&machine);
    // It is forgotten at once, and can be had again.
    let listener = machine.handle.listen(SERVICE).unwrap();
    machine.open(&listener, CLIENT);
}

#[test]
fn a_host_that_closes_with_bytes_unread_is_a_reset() {
    let (mut machine, mut conn, stream) = connected();
    machine.data(&mut conn, b"never read");
    drop(stream);
    machine.next().expect(PORTS, Op::Reset);
    gone(&machine);
    assert_eq!(machine.handle.counters().resets, 1);
    machine.quiet();
}

#[test]
fn a_guest_that_never_confirms_an_end_is_reset_in_time() {
    let (mut machine, mut conn, stream) = connected();
    let begun = Instant::now();
    drop(stream);
    assert_eq!(machine.next().expect(PORTS, Op::Shutdown).flags, NO_SEND | NO_RECEIVE);
    // What is under way is taken and dropped.
    machine.data(&mut conn, b"not heard yet");
    machine.send(&conn.packet(Op::CreditRequest));
    machine.next().expect(PORTS, Op::CreditUpdate);
    machine.next().expect(PORTS, Op::Reset);
    assert!(begun.elapsed() >= CLOSING_PATIENCE);
    gone(&machine);
}

#[test]
fn a_listener_that_goes_ends_what_waits() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    let conn = machine.request(PORTS, STREAM);
    drop(listener);
    assert_eq!(machine.next().expect(PORTS, Op::Shutdown).flags, NO_SEND | NO_RECEIVE);
    machine.send(&conn.packet(Op::Reset));
    gone(&machine);
    machine.send(&Packet::new(Ports { guest: 1, ..PORTS }, Op::Request));
    machine.next().expect(Ports { guest: 1, ..PORTS }, Op::Reset);
}

#[test]
fn a_host_that_hangs_up_while_the_guest_thinks_about_it_is_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    let mut machine = Machine::new(Vsock::new().guest_port(80, &path));
    let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let request = machine.next();
    drop(stream);
    machine.guest.settle();
    let conn = Conn::new(request.ports, STREAM);
    machine.send(&conn.packet(Op::Response));
    let end = machine.next().expect(request.ports, Op::Shutdown);
    assert_eq!(end.flags, NO_SEND | NO_RECEIVE);
    machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND | NO_RECEIVE));
    machine.next().expect(request.ports, Op::Reset);
    gone(&machine);
}
