//! Connections are made, and carry bytes.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixListener;

use super::super::packet::{HEADER, Op, Ports};
use super::super::{F_STREAM, FIRST_PORT};
use super::support::*;
use crate::virtio::feature;
use crate::vsock::Vsock;

#[test]
fn a_driver_sees_a_socket_device_and_its_cid() {
    let machine = Machine::off(Vsock::new().cid(0x1234_5678));
    assert_eq!(machine.guest.read(0x008), 19);
    assert_eq!(machine.guest.offered() & feature::DEVICE, if HAS { 3 } else { 1 });
    assert_eq!(machine.guest.read(0x100), 0x1234_5678);
    assert_eq!(machine.guest.read(0x104), 0);
}

const HAS: bool = crate::sys::socket::HAS_SEQPACKET;

#[test]
fn the_guest_connects_to_a_listener() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut conn, mut stream) = machine.open(&listener, CLIENT);
    assert_eq!(conn.peer, (256 << 10, 0));
    machine.data(&mut conn, b"hello");
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    stream.write_all(b"hello to you").unwrap();
    assert_eq!(machine.receive(&mut conn), b"hello to you");
    let counters = machine.handle.counters();
    assert_eq!((counters.open, counters.from_guest, counters.to_guest), (1, 1, 0));
    assert_eq!((counters.sent, counters.received), (5, 12));
}

#[test]
fn the_host_connects_to_the_guest() {
    let mut machine = Machine::new(Vsock::new());
    let (mut conn, mut stream) = machine.call(80);
    assert!(conn.ports.host >= FIRST_PORT);
    stream.write_all(b"GET /").unwrap();
    assert_eq!(machine.receive(&mut conn), b"GET /");
    machine.data(&mut conn, b"200");
    let mut bytes = [0; 3];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"200");
    let counters = machine.handle.counters();
    assert_eq!((counters.open, counters.from_guest, counters.to_guest), (1, 0, 1));
    // Two connections to the same port come from different ones.
    let (other, _stream) = machine.call(80);
    assert_ne!(other.ports, conn.ports);
}

#[test]
fn what_a_host_wrote_before_the_guest_accepted_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("port");
    let mut machine = Machine::new(Vsock::new().guest_port(80, &path));
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.write_all(b"early").unwrap();
    let request = machine.next();
    assert!(request.is(Op::Request));
    machine.quiet();
    let mut conn = Conn::new(request.ports, STREAM);
    machine.send(&conn.packet(Op::Response));
    assert_eq!(machine.receive(&mut conn), b"early");
}

#[test]
fn a_port_that_nobody_listens_on_is_refused_at_once() {
    let mut machine = Machine::new(Vsock::new());
    machine.send(&Packet::new(PORTS, Op::Request));
    machine.next().expect(PORTS, Op::Reset);
    let counters = machine.handle.counters();
    assert_eq!((counters.refused, counters.open, counters.resets), (1, 0, 0));
}

#[test]
fn a_guest_that_refuses_is_an_error_for_the_host() {
    let mut machine = Machine::new(Vsock::new());
    let handle = machine.handle.clone();
    let caller = std::thread::spawn(move || handle.connect(80));
    let request = machine.next();
    machine.send(&Packet::new(request.ports, Op::Reset).credit(0, 0));
    let error = caller.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    machine.quiet();
    assert_eq!(machine.handle.counters().open, 0);
}

#[test]
fn a_guest_that_does_not_answer_is_given_up_and_told_so() {
    let mut machine = Machine::new(Vsock::new());
    let handle = machine.handle.clone();
    let wait = std::time::Duration::from_millis(50);
    let caller = std::thread::spawn(move || handle.connect_timeout(80, wait));
    let request = machine.next();
    assert_eq!(caller.join().unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
    machine.next().expect(request.ports, Op::Reset);
    assert_eq!(machine.handle.counters().open, 0);
    // Too late.
    machine.send(&Packet::new(request.ports, Op::Response));
    machine.next().expect(request.ports, Op::Reset);
}

#[test]
fn a_call_that_the_guest_never_saw_ends_without_a_word() {
    let mut machine = Machine::off(Vsock::new());
    machine.start_without_buffers(F_STREAM);
    for _ in 0..20 {
        let wait = std::time::Duration::from_millis(2);
        let error = machine.handle.connect_timeout(80, wait).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
    machine.until("calls are kept", |machine| machine.handle.counters().open == 0);
    for _ in 0..8 {
        machine.post(&[4096]);
    }
    machine.guest.kick(&mut machine.rings[0]);
    machine.quiet();
}

#[test]
fn without_a_driver_a_call_is_an_error_at_once() {
    let mut machine = Machine::off(Vsock::new());
    let error = machine.handle.connect(80).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    machine.start(F_STREAM);
    machine.works();
}

/// A program that is too busy to accept is asked again, and may have time later.
#[test]
fn a_busy_program_gets_the_connection_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("busy");
    let mut machine = Machine::new(Vsock::new().host_port(SERVICE, &path));
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let first = machine.request(PORTS, STREAM);
    let other = Ports { guest: CLIENT + 1, ..PORTS };
    machine.send(&Packet::new(other, Op::Request));
    machine.quiet();
    assert_eq!(machine.handle.counters().open, 2);
    let (mut one, _) = listener.accept().unwrap();
    let mut second = Conn::new(other, STREAM);
    second.take(&machine.next().expect(other, Op::Response));
    let (mut two, _) = listener.accept().unwrap();
    for (mut conn, stream) in [(first, &mut one), (second, &mut two)] {
        machine.data(&mut conn, b"x");
        stream.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn a_program_that_stays_busy_refuses_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("busy");
    let mut machine = Machine::new(Vsock::new().host_port(SERVICE, &path));
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    machine.request(PORTS, STREAM);
    let other = Ports { guest: CLIENT + 1, ..PORTS };
    machine.send(&Packet::new(other, Op::Request));
    machine.next().expect(other, Op::Reset);
    assert_eq!(machine.handle.counters().refused, 1);
    assert_eq!(machine.handle.counters().open, 1);
}

#[test]
fn data_arrives_however_the_guest_cuts_it() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut conn, mut stream) = machine.open(&listener, CLIENT);
    let mut at = 0;
    let len = 300;
    let cuts = (0..HEADER + len).map(|cut| vec![cut]);
    let fine = [vec![1; HEADER + len - 1], vec![HEADER - 1, 2, 100], vec![20, 20, 3, 2, 1]];
    for cut in cuts.chain(fine) {
        let data = pattern(at, len);
        let packet = conn.packet(Op::Data).with(&data);
        machine.send_cut(&packet.bytes(), &cut[..cut.len().min(200)]);
        let mut got = vec![0; len];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, data, "cut {cut:?}");
        at += len;
        // Nothing is kept: the window is told now and then.
        while let Some(update) = machine.poll() {
            conn.take(&update.expect(PORTS, Op::CreditUpdate));
        }
    }
    // What is behind the data is none.
    let mut packet = conn.packet(Op::Data).with(b"abcdef");
    packet.len = 3;
    machine.send(&packet);
    machine.send(&conn.packet(Op::Data).with(b"def"));
    let mut got = [0; 6];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"abcdef");
    assert_eq!(machine.handle.counters().sent, (at + 6) as u64);
}

#[test]
fn data_fills_receive_buffers_however_they_are_cut() {
    let mut machine = Machine::off(Vsock::new());
    machine.start_without_buffers(F_STREAM);
    machine.gives = false;
    let listener = machine.handle.listen(SERVICE).unwrap();
    machine.post(&[44]);
    let head = 44;
    // With a header alone there is room for anything but data.
    machine.guest.kick(&mut machine.rings[0]);
    let (mut conn, mut stream) = machine.open(&listener, CLIENT);
    let mut at = 0;
    let cuts = (1..head + 20).map(|cut| vec![cut, 200 - cut]);
    for cut in cuts.chain([vec![1; 80], vec![43, 2, 3], vec![4096; 3], vec![head, 1, 1, 5000]]) {
        machine.post(&cut);
        machine.guest.kick(&mut machine.rings[0]);
        let room = cut.iter().sum::<u32>() - head;
        let data = pattern(at, room as usize);
        stream.write_all(&data).unwrap();
        let mut got = Vec::new();
        // A read takes what is there, which may be less than was written.
        while got.len() < data.len() {
            got.extend(machine.receive(&mut conn));
            if got.len() < data.len() {
                machine.post(&[4096, 4096, 4096]);
                machine.guest.kick(&mut machine.rings[0]);
            }
        }
        assert_eq!(got, data, "cut {cut:?}");
        at += data.len();
        if conn.fwd_cnt > 8000 {
            machine.send(&conn.packet(Op::CreditUpdate));
        }
    }
}

/// Bytes go both ways at once, in sizes and at moments that nobody has chosen.
fn transfer(machine: &mut Machine, mut conn: Conn, stream: crate::vsock::VsockStream, seed: u64) {
    const TOTAL: usize = 10 << 20;
    let mut random = Random(seed);
    let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
    let from_guest = std::thread::spawn(move || {
        let mut random = Random(seed + 1);
        let mut at = 0;
        while at < TOTAL {
            let mut bytes = vec![0; 1 + below(&mut random, 100_000)];
            let len = reader.read(&mut bytes).unwrap();
            assert!(len > 0, "an end after {at} bytes");
            assert!(bytes[..len] == pattern(at, len), "after {at} bytes");
            at += len;
        }
    });
    let to_guest = std::thread::spawn(move || {
        let mut random = Random(seed + 2);
        let mut at = 0;
        while at < TOTAL {
            let len = (1 + below(&mut random, 100_000)).min(TOTAL - at);
            writer.write_all(&pattern(at, len)).unwrap();
            at += len;
        }
        writer
    });
    let (mut sent, mut got, mut told) = (0, 0, 0);
    while sent < TOTAL || got < TOTAL {
        let want = (1 + below(&mut random, 70_000)).min(TOTAL - sent).min(conn.credit() as usize);
        if want > 0 {
            let data = pattern(sent, want);
            machine.data(&mut conn, &data);
            (sent, told) = (sent + want, conn.fwd_cnt);
        }
        let packet = if want > 0 { machine.poll() } else { Some(machine.next()) };
        if let Some(packet) = packet {
            conn.take(&packet);
            if packet.is(Op::Data) {
                assert!(packet.data == pattern(got, packet.data.len()), "after {got} bytes");
                got += packet.data.len();
            } else if packet.is(Op::CreditRequest) {
                machine.send(&conn.packet(Op::CreditUpdate));
                told = conn.fwd_cnt;
            }
        }
        if conn.fwd_cnt.wrapping_sub(told) > conn.buf_alloc / 2 {
            machine.send(&conn.packet(Op::CreditUpdate));
            told = conn.fwd_cnt;
        }
    }
    from_guest.join().unwrap();
    drop(to_guest.join().unwrap());
    let counters = machine.handle.counters();
    assert_eq!((counters.sent, counters.received), (TOTAL as u64, TOTAL as u64));
}

#[test]
fn ten_mebibytes_pass_each_way_at_once() {
    let mut machine = Machine::new(Vsock::new());
    let (conn, stream) = machine.call(80);
    transfer(&mut machine, conn, stream, 1);
}

#[test]
fn ten_mebibytes_pass_through_the_smallest_window() {
    let mut machine = Machine::new(Vsock::new().buffer(4096).memory(4096).connections(1));
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (conn, stream) = machine.open(&listener, CLIENT);
    assert_eq!(conn.credit(), 4096);
    transfer(&mut machine, conn, stream, 77);
}

/// A host that sends one byte at a time, to a guest with buffers for one byte.
#[test]
fn bytes_come_one_by_one() {
    let mut machine = Machine::off(Vsock::new());
    machine.start_without_buffers(F_STREAM);
    for _ in 0..64 {
        machine.post(&[45]);
    }
    machine.guest.kick(&mut machine.rings[0]);
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut conn, mut stream) = machine.open(&listener, CLIENT);
    stream.write_all(&pattern(0, 1000)).unwrap();
    for at in 0..1000 {
        assert_eq!(machine.receive(&mut conn), pattern(at, 1));
    }
    machine.quiet();
}

#[test]
fn a_stream_that_is_closed_by_the_host_gives_all_of_it_first() -> io::Result<()> {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE)?;
    let (mut conn, mut stream) = machine.open(&listener, CLIENT);
    stream.write_all(&pattern(0, 50_000))?;
    drop(stream);
    let mut got = Vec::new();
    while got.len() < 50_000 {
        got.extend(machine.receive(&mut conn));
    }
    assert_eq!(got, pattern(0, 50_000));
    assert_eq!(machine.next().expect(PORTS, Op::Shutdown).flags, 3);
    Ok(())
}
