//! Credit: a side that does not read holds up its own connection, and no other.

use std::io::{ErrorKind, Read, Write};

use super::super::packet::{Op, Ports};
use super::support::*;
use crate::vsock::{Vsock, VsockStream};

const BUFFER: u32 = 16 << 10;

/// Sends until the guest has no credit left, and returns how much that was.
fn fill(machine: &mut Machine, conn: &mut Conn) -> usize {
    loop {
        let len = (conn.credit() as usize).min(4096);
        if len == 0 {
            // What the socket still takes is told in an update.
            machine.guest.settle();
            match machine.poll() {
                Some(packet) => conn.take(&packet.expect(conn.ports, Op::CreditUpdate)),
                None => return conn.sent as usize,
            }
            continue;
        }
        let data = pattern(conn.sent as usize, len);
        machine.data(conn, &data);
    }
}

fn read_all(stream: &mut VsockStream, from: usize, to: usize) {
    let mut bytes = vec![0; to - from];
    stream.read_exact(&mut bytes).unwrap();
    assert!(bytes == pattern(from, to - from));
}

/// What the socket itself takes.
fn socket_room() -> usize {
    let (ours, _theirs) = crate::sys::unix::pair(rustix::net::SocketType::STREAM).unwrap();
    rustix::io::ioctl_fionbio(&ours, true).unwrap();
    let mut room = 0;
    while let Ok(count) = crate::sys::socket::send_bytes(&ours, &[0; 4096]) {
        room += count;
    }
    room
}

#[test]
fn a_host_that_does_not_read_holds_its_connection_at_its_buffer() {
    let mut machine = Machine::new(Vsock::new().buffer(BUFFER));
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut conn, mut stream) = machine.open(&listener, CLIENT);
    let sent = fill(&mut machine, &mut conn);
    // What the host has not taken out of the device is what the guest was told there is room for.
    assert_eq!(conn.sent - conn.peer.1, BUFFER);
    assert_eq!(conn.peer.0, BUFFER);
    let room = socket_room();
    assert!(sent >= room / 2, "{sent} bytes where a socket takes {room}");
    // One byte more is against the rules.
    let mut other = conn.clone();
    machine.send(&other.packet(Op::CreditRequest));
    other.take(&machine.next().expect(PORTS, Op::CreditUpdate));
    assert_eq!(other.credit(), 0);
    // Others go on meanwhile.
    let (mut second, mut quick) = machine.open(&listener, CLIENT + 1);
    for n in 0..100 {
        let data = pattern(n * 4000, 4000);
        while second.credit() < 4000 {
            let update = machine.next();
            second.take(&update.expect(second.ports, Op::CreditUpdate));
        }
        machine.data(&mut second, &data);
        read_all(&mut quick, n * 4000, (n + 1) * 4000);
    }
    while let Some(update) = machine.poll() {
        update.expect(second.ports, Op::CreditUpdate);
    }
    // And the slow one where it was, once its host reads.
    read_all(&mut stream, 0, sent);
    machine.guest.settle();
    let update = machine.next().expect(PORTS, Op::CreditUpdate);
    conn.take(&update);
    while let Some(update) = machine.poll() {
        conn.take(&update.expect(PORTS, Op::CreditUpdate));
    }
    machine.data(&mut conn, &pattern(sent, 100));
    read_all(&mut stream, sent, sent + 100);
}

#[test]
fn a_byte_beyond_the_credit_ends_the_connection_and_no_other() {
    let mut machine = Machine::new(Vsock::new().buffer(BUFFER));
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut conn, mut stream) = machine.open(&listener, CLIENT);
    let (mut other, mut quick) = machine.open(&listener, CLIENT + 1);
    let sent = fill(&mut machine, &mut conn);
    machine.send(&conn.packet(Op::Data).with(b"x"));
    machine.next().expect(PORTS, Op::Reset);
    assert_eq!(machine.handle.counters().resets, 1);
    assert_eq!(machine.handle.counters().open, 1);
    // The host gets what its socket had, and the end.
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), sent - BUFFER as usize);
    assert!(bytes == pattern(0, bytes.len()));
    machine.data(&mut other, b"still here");
    quick.read_exact(&mut [0; 10]).unwrap();
}

#[test]
fn the_guest_is_told_once_half_is_used() {
    let mut machine = Machine::new(Vsock::new().buffer(BUFFER));
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut conn, mut stream) = machine.open(&listener, CLIENT);
    for round in 0..10 {
        let begin = conn.sent as usize;
        for _ in 0..8 {
            let data = pattern(conn.sent as usize, 1024);
            machine.data(&mut conn, &data);
        }
        read_all(&mut stream, begin, begin + (BUFFER / 2) as usize);
        machine.quiet();
        let data = pattern(conn.sent as usize, 1);
        machine.data(&mut conn, &data);
        conn.take(&machine.next().expect(PORTS, Op::CreditUpdate));
        assert_eq!(conn.peer, (BUFFER, conn.sent), "round {round}");
        read_all(&mut stream, conn.sent as usize - 1, conn.sent as usize);
    }
    // Whatever else is sent says so too.
    let data = pattern(conn.sent as usize, 5000);
    machine.data(&mut conn, &data);
    stream.write_all(b"x").unwrap();
    machine.receive(&mut conn);
    assert_eq!(conn.peer, (BUFFER, conn.sent));
}

#[test]
fn a_request_for_credit_is_answered() {
    let mut machine = Machine::new(Vsock::new().buffer(BUFFER));
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut conn, _stream) = machine.open(&listener, CLIENT);
    machine.data(&mut conn, &pattern(0, 100));
    for _ in 0..3 {
        machine.send(&conn.packet(Op::CreditRequest));
        conn.take(&machine.next().expect(PORTS, Op::CreditUpdate));
        assert_eq!(conn.peer, (BUFFER, 100));
    }
    machine.quiet();
}

#[test]
fn without_credit_the_guest_is_asked_once() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut conn, mut stream) = machine.open(&listener, CLIENT);
    conn.buf_alloc = 1000;
    machine.send(&conn.packet(Op::CreditUpdate));
    stream.write_all(&pattern(0, 2500)).unwrap();
    let mut got = 0;
    while got < 1000 {
        let data = machine.receive(&mut conn);
        assert!(data == pattern(got, data.len()));
        got += data.len();
    }
    assert_eq!(got, 1000);
    machine.next().expect(PORTS, Op::CreditRequest);
    machine.quiet();
    // An answer that gives no room changes nothing, and is not asked about again.
    machine.send(&Packet { fwd_cnt: 0, ..conn.packet(Op::CreditUpdate) });
    stream.write_all(&pattern(2500, 10)).unwrap();
    machine.quiet();
    // With each byte of room comes a byte, and the question.
    for _ in 0..10 {
        conn.fwd_cnt = got as u32 - 999;
        machine.send(&conn.packet(Op::CreditUpdate));
        assert!(machine.receive(&mut conn) == pattern(got, 1));
        got += 1;
        machine.next().expect(PORTS, Op::CreditRequest);
    }
    conn.fwd_cnt = got as u32;
    machine.send(&conn.packet(Op::CreditUpdate));
    let mut last = Vec::new();
    while last.len() < 1000 {
        last.extend(machine.receive(&mut conn));
    }
    assert!(last == pattern(got, 1000));
}

#[test]
fn a_guest_that_does_not_read_holds_up_its_connection_alone() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut slow, mut stuck) = machine.open(&listener, CLIENT);
    let (mut conn, mut stream) = machine.open(&listener, CLIENT + 1);
    stuck.set_nonblocking(true).unwrap();
    let mut written = 0;
    let mut got = 0;
    loop {
        match stuck.write(&pattern(written, 5000)) {
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                machine.guest.settle();
                let before = got;
                while let Some(packet) = machine.poll() {
                    got += packet.data.len();
                }
                if got == before {
                    break;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(got, ROOM as usize);
    for n in 0..50 {
        stream.write_all(&pattern(n * 1000, 1000)).unwrap();
        let mut bytes = Vec::new();
        while bytes.len() < 1000 {
            bytes.extend(machine.receive(&mut conn));
        }
        assert_eq!(bytes, pattern(n * 1000, 1000));
        machine.send(&conn.packet(Op::CreditUpdate));
    }
    // It is its own fault, and goes on when it likes.
    slow.fwd_cnt = got as u32;
    machine.send(&slow.packet(Op::CreditUpdate));
    assert_eq!(machine.receive(&mut slow), pattern(got, slow.fwd_cnt as usize - got));
}

#[test]
fn a_buffer_that_shrinks_stops_the_host_and_no_more() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut conn, mut stream) = machine.open(&listener, CLIENT);
    stream.write_all(&pattern(0, 2000)).unwrap();
    let mut got = 0;
    while got < 2000 {
        got += machine.receive(&mut conn).len();
    }
    // Smaller than what is under way.
    machine.send(&conn.packet(Op::CreditUpdate).credit(10, 0));
    stream.write_all(&pattern(2000, 100)).unwrap();
    machine.next().expect(PORTS, Op::CreditRequest);
    machine.quiet();
    machine.send(&conn.packet(Op::CreditUpdate).credit(10, 1995));
    let mut got = Vec::new();
    while got.len() < 5 {
        got.extend(machine.receive(&mut conn));
    }
    assert_eq!(got, pattern(2000, 5));
    machine.send(&conn.packet(Op::CreditUpdate).credit(u32::MAX, 2005));
    while got.len() < 100 {
        let packet = machine.next();
        got.extend(packet.data);
    }
    assert_eq!(got, pattern(2000, 100));
}

#[test]
fn a_count_that_runs_ahead_ends_the_connection() {
    for (fwd_cnt, len) in [(1, 0), (u32::MAX, 0), (101, 100), (1 << 31, 100)] {
        let mut machine = Machine::new(Vsock::new());
        let listener = machine.handle.listen(SERVICE).unwrap();
        let (mut conn, mut stream) = machine.open(&listener, CLIENT);
        stream.write_all(&pattern(0, len)).unwrap();
        let mut got = 0;
        while got < len {
            got += machine.receive(&mut conn).len();
        }
        machine.send(&conn.packet(Op::CreditUpdate).credit(ROOM, fwd_cnt));
        machine.next().expect(PORTS, Op::Reset);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        assert_eq!(machine.handle.counters().resets, 1);
    }
}

#[test]
fn a_request_whose_count_runs_ahead_is_refused() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    machine.send(&Packet::new(PORTS, Op::Request).credit(ROOM, 1));
    machine.next().expect(PORTS, Op::Reset);
    machine.quiet();
    listener.set_nonblocking(true);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn windows_are_parts_of_what_there_is() {
    const MEMORY: usize = 1 << 20;
    let mut machine = Machine::new(Vsock::new().memory(MEMORY).connections(200));
    let listener = machine.handle.listen(SERVICE).unwrap();
    let mut open = Vec::new();
    let mut sum = 0;
    for n in 0..200 {
        let ports = Ports { guest: CLIENT + n, ..PORTS };
        let conn = machine.request(ports, STREAM);
        open.push(listener.accept().unwrap());
        assert!(conn.credit() >= 4096);
        sum += conn.credit() as usize;
    }
    assert!(sum <= MEMORY, "{sum} bytes for {MEMORY}");
}
