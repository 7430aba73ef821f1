//! SEQPACKET: messages, whole and in order.

use std::io::ErrorKind;

use super::super::F_STREAM;
use super::super::packet::{END_OF_MESSAGE, NO_RECEIVE, NO_SEND, Op};
use super::support::*;
use crate::vsock::{Vsock, VsockListener, VsockSeqPacket};

fn connected() -> (Machine, Conn, VsockSeqPacket) {
    connected_to(Machine::new(Vsock::new()))
}

fn connected_to(mut machine: Machine) -> (Machine, Conn, VsockSeqPacket) {
    let listener: VsockListener<_> = machine.handle.listen_seqpacket(SERVICE).unwrap();
    let conn = machine.request(PORTS, SEQPACKET);
    let (socket, from) = listener.accept().unwrap();
    assert_eq!(from, CLIENT);
    socket.set_read_timeout(Some(crate::virtio::testing::PATIENCE)).unwrap();
    (machine, conn, socket)
}

fn message(machine: &mut Machine, conn: &mut Conn, bytes: &[u8], cut: usize) {
    let count = bytes.len().div_ceil(cut);
    for (n, part) in bytes.chunks(cut).enumerate() {
        let flags = if n + 1 == count { END_OF_MESSAGE } else { 0 };
        machine.send(&conn.packet(Op::Data).with(part).flags(flags));
        conn.sent += part.len() as u32;
        while let Some(packet) = machine.poll() {
            conn.take(&packet.expect(conn.ports, Op::CreditUpdate));
        }
    }
}

/// The next whole message for the guest.
fn receive(machine: &mut Machine, conn: &mut Conn) -> Vec<u8> {
    let mut message = Vec::new();
    loop {
        let packet = machine.next();
        conn.take(&packet);
        if packet.is(Op::CreditRequest) {
            machine.send(&conn.packet(Op::CreditUpdate));
            continue;
        }
        let packet = packet.expect(conn.ports, Op::Data);
        message.extend(packet.data);
        if packet.flags & END_OF_MESSAGE != 0 {
            return message;
        }
    }
}

#[test]
fn messages_of_the_guest_keep_their_bounds() {
    let (mut machine, mut conn, socket) = connected();
    let mut space = vec![0; 64 << 10];
    let mut random = Random(5);
    for n in 0..300 {
        let len = 1 + below(&mut random, if n % 10 == 0 { 60_000 } else { 3000 });
        let bytes = pattern(n, len);
        message(&mut machine, &mut conn, &bytes, 1 + below(&mut random, len));
        assert_eq!(socket.recv(&mut space).unwrap(), len);
        assert!(space[..len] == bytes);
    }
}

#[test]
fn messages_that_wait_for_the_host_keep_their_bounds() {
    let (mut machine, mut conn, socket) = connected();
    let mut lens = Vec::new();
    let mut random = Random(9);
    while conn.credit() > 8000 && lens.len() < 2000 {
        let len = 1 + below(&mut random, 8000);
        message(&mut machine, &mut conn, &pattern(lens.len(), len), 4000);
        machine.guest.settle();
        while let Some(packet) = machine.poll() {
            conn.take(&packet.expect(conn.ports, Op::CreditUpdate));
        }
        lens.push(len);
    }
    assert!(lens.len() < 2000, "the host takes everything");
    machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND));
    let mut space = vec![0; 64 << 10];
    for (n, &len) in lens.iter().enumerate() {
        assert_eq!(socket.recv(&mut space).unwrap(), len, "message {n} of {}", lens.len());
        assert!(space[..len] == pattern(n, len));
    }
    assert_eq!(socket.recv(&mut space).unwrap(), 0);
}

#[test]
fn messages_of_the_host_keep_their_bounds() {
    let (mut machine, mut conn, socket) = connected();
    let mut random = Random(7);
    for n in 0..300 {
        let len = 1 + below(&mut random, if n % 10 == 0 { ROOM as usize } else { 9000 });
        let bytes = pattern(n, len);
        socket.send(&bytes).unwrap();
        assert!(receive(&mut machine, &mut conn) == bytes, "message {n} of {len} bytes");
    }
    for n in 0..20 {
        socket.send(&pattern(n, 100 + n)).unwrap();
    }
    for n in 0..20 {
        assert_eq!(receive(&mut machine, &mut conn), pattern(n, 100 + n));
    }
    drop(socket);
    assert_eq!(machine.next().expect(PORTS, Op::Shutdown).flags, NO_SEND | NO_RECEIVE);
}

#[test]
fn the_host_connects_for_messages() {
    let mut machine = Machine::new(Vsock::new());
    let handle = machine.handle.clone();
    let caller = std::thread::spawn(move || handle.connect_seqpacket(80));
    let request = machine.next();
    assert!(request.is(Op::Request));
    assert_eq!(request.kind, SEQPACKET);
    let mut conn = Conn::new(request.ports, SEQPACKET);
    conn.take(&request);
    machine.send(&conn.packet(Op::Response));
    let socket = caller.join().unwrap().unwrap();
    message(&mut machine, &mut conn, &pattern(0, 9999), 4000);
    let mut space = [0; 10_000];
    assert_eq!(socket.recv(&mut space).unwrap(), 9999);
    socket.send(b"pong").unwrap();
    assert_eq!(receive(&mut machine, &mut conn), b"pong");
}

#[test]
fn an_empty_message_is_no_end() {
    let (mut machine, mut conn, socket) = connected();
    machine.send(&conn.packet(Op::Data).flags(END_OF_MESSAGE));
    message(&mut machine, &mut conn, b"one", 2);
    let mut space = [0; 100];
    assert_eq!(socket.recv(&mut space).unwrap(), 3);
}

/// A message that is larger than all of the guest's buffer can never be told to it.
#[test]
fn a_message_larger_than_the_guests_buffer_ends_the_connection() {
    let (mut machine, mut conn, socket) = connected();
    conn.buf_alloc = 1000;
    machine.send(&conn.packet(Op::CreditUpdate));
    socket.send(&pattern(0, 1000)).unwrap();
    assert_eq!(receive(&mut machine, &mut conn), pattern(0, 1000));
    machine.send(&conn.packet(Op::CreditUpdate));
    socket.send(&pattern(0, 1001)).unwrap();
    machine.next().expect(PORTS, Op::CreditRequest);
    machine.next().expect(PORTS, Op::Reset);
    assert_eq!(machine.handle.counters().resets, 1);
    // The host hears that it was lost.
    let error = socket.recv(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// It stays in the socket meanwhile: nothing of it is kept by the device.
#[test]
fn a_message_waits_until_there_is_credit_for_all_of_it() {
    let (mut machine, mut conn, socket) = connected();
    conn.buf_alloc = 10_000;
    machine.send(&conn.packet(Op::CreditUpdate));
    socket.send(&pattern(0, 6000)).unwrap();
    socket.send(&pattern(1, 8000)).unwrap();
    let mut got = Vec::new();
    while got.len() < 6000 {
        let packet = machine.next().expect(PORTS, Op::Data);
        assert_eq!(packet.flags & END_OF_MESSAGE != 0, got.len() + packet.data.len() == 6000);
        got.extend(packet.data);
    }
    assert!(got == pattern(0, 6000));
    machine.next().expect(PORTS, Op::CreditRequest);
    machine.quiet();
    // A guest that has nothing new to say is not asked again.
    machine.send(&conn.packet(Op::CreditUpdate));
    machine.quiet();
    conn.fwd_cnt = 6000;
    machine.send(&conn.packet(Op::CreditUpdate));
    assert_eq!(receive(&mut machine, &mut conn), pattern(1, 8000));
}

/// A part of a message counts against the guest's credit, and goes with the connection.
#[test]
fn a_message_without_an_end_is_bounded_and_never_seen() {
    let (mut machine, mut conn, socket) = connected();
    while conn.credit() > 0 {
        let len = conn.credit().min(4096) as usize;
        machine.send(&conn.packet(Op::Data).with(&vec![1; len]));
        conn.sent += len as u32;
        machine.guest.settle();
        while let Some(packet) = machine.poll() {
            conn.take(&packet);
        }
    }
    assert_eq!(conn.peer.1, 0);
    machine.send(&conn.packet(Op::Data).with(b"x"));
    machine.next().expect(PORTS, Op::Reset);
    assert_eq!(socket.recv(&mut [0; 10]).unwrap(), 0);
}

#[test]
fn a_driver_that_knows_no_messages_has_none() {
    let mut machine = Machine::off(Vsock::new());
    machine.start(F_STREAM);
    let error = machine.handle.connect_seqpacket(80).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let _listener = machine.handle.listen_seqpacket(SERVICE).unwrap();
    let request = Packet::new(PORTS, Op::Request);
    machine.send(&Packet { kind: SEQPACKET, ..request });
    let answer = machine.next().expect(PORTS, Op::Reset);
    assert_eq!(answer.kind, SEQPACKET);
}

#[test]
fn streams_and_messages_have_listeners_of_their_own() {
    let mut machine = Machine::new(Vsock::new());
    let _listener = machine.handle.listen(SERVICE).unwrap();
    let request = Packet::new(PORTS, Op::Request);
    machine.send(&Packet { kind: SEQPACKET, ..request });
    machine.next().expect(PORTS, Op::Reset);
    let _also = machine.handle.listen_seqpacket(SERVICE).unwrap();
    machine.request(PORTS, SEQPACKET);
}
