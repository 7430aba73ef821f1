//! Packets and buffers that no sane driver makes.

use std::io::{Read, Write};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

use super::super::packet::{HEADER, Op, Ports};
use super::super::{F_STREAM, FEATURES};
use super::support::*;
use crate::virtio::testing::Buffer;
use crate::vsock::Vsock;

#[test]
fn a_packet_of_another_guest_is_dropped() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut conn, mut stream) = machine.open(&listener, CLIENT);
    let wrong = [0, 1, HOST, CID + 1, CID | 1 << 32, u64::from(u32::MAX), u64::MAX];
    for (n, from) in (1..).zip(wrong) {
        for op in [Op::Request, Op::Reset, Op::Data] {
            machine.send(&Packet { from, ..conn.packet(op) });
        }
        machine.quiet();
        assert_eq!(machine.handle.counters().dropped, 3 * n);
    }
    machine.data(&mut conn, b"mine");
    stream.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn a_packet_to_anybody_but_the_host_is_answered_in_their_name() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (mut conn, mut stream) = machine.open(&listener, CLIENT);
    for to in [0, 1, CID, 4, HOST | 1 << 32, u64::MAX] {
        for op in [Op::Request, Op::Data, Op::Shutdown] {
            machine.send(&Packet { to, ..conn.packet(op) });
            let answer = machine.next().expect(PORTS, Op::Reset);
            assert_eq!((answer.from, answer.kind), (to, STREAM));
        }
        machine.send(&Packet { to, ..conn.packet(Op::Reset) });
        machine.quiet();
    }
    machine.data(&mut conn, b"still");
    stream.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn a_kind_that_there_is_not_is_reset_in_kind() {
    let mut machine = Machine::new(Vsock::new());
    let _listener = machine.handle.listen(SERVICE).unwrap();
    for kind in [0, 3, 255, u16::MAX] {
        machine.send(&Packet { kind, ..Packet::new(PORTS, Op::Request) });
        assert_eq!(machine.next().expect(PORTS, Op::Reset).kind, kind);
        machine.send(&Packet { kind, ..Packet::new(PORTS, Op::Reset) });
    }
    machine.quiet();
    assert_eq!(machine.handle.counters().open, 0);
}

#[test]
fn data_longer_than_its_buffer_ends_the_connection() {
    for (len, given) in [(1, 0), (101, 100), (1 << 16, 100), (u32::MAX, 100)] {
        let mut machine = Machine::new(Vsock::new());
        let listener = machine.handle.listen(SERVICE).unwrap();
        let (conn, mut stream) = machine.open(&listener, CLIENT);
        let packet = conn.packet(Op::Data).with(&pattern(0, given));
        machine.send(&Packet { len, ..packet });
        machine.next().expect(PORTS, Op::Reset);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        machine.works();
    }
}

/// The length counts for data alone.
#[test]
fn a_length_where_there_is_no_data_does_not_matter() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    machine.send(&Packet { len: u32::MAX, ..Packet::new(PORTS, Op::Request) });
    machine.next().expect(PORTS, Op::Response);
    let conn = Conn::new(PORTS, STREAM);
    let (mut stream, _) = listener.accept().unwrap();
    machine.send(&Packet { len: 1 << 31, ..conn.packet(Op::CreditRequest) });
    machine.next().expect(PORTS, Op::CreditUpdate);
    machine.send(&conn.packet(Op::CreditUpdate).with(&[1; 1000]));
    machine.send(&conn.packet(Op::Data));
    machine.send(&conn.packet(Op::Data).with(b"x"));
    let mut bytes = [0; 2];
    assert_eq!(stream.read(&mut bytes).unwrap(), 1);
}

/// Waits for DEVICE_NEEDS_RESET; then the host's programs are told, and a reset mends it.
fn breaks(machine: &mut Machine, stream: &mut impl Read) {
    machine.guest.wait_status(VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(machine.handle.counters().open, 0);
    machine.start(FEATURES);
    machine.works();
}

#[test]
fn a_packet_shorter_than_its_header_breaks_the_device() {
    for len in [1, 20, HEADER - 1] {
        let mut machine = Machine::new(Vsock::new());
        let listener = machine.handle.listen(SERVICE).unwrap();
        let (conn, mut stream) = machine.open(&listener, CLIENT);
        let at = machine.guest.alloc(HEADER);
        let bytes = conn.packet(Op::Data).bytes();
        vm_memory::Bytes::write_slice(&machine.guest.memory, &bytes, vm_memory::GuestAddress(at))
            .unwrap();
        machine.rings[1].request(&[Buffer::Out(at, len as u32)]);
        machine.guest.kick(&mut machine.rings[1]);
        breaks(&mut machine, &mut stream);
    }
}

#[test]
fn a_packet_that_is_not_to_be_read_breaks_the_device() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (_conn, mut stream) = machine.open(&listener, CLIENT);
    let at = machine.guest.alloc(4096);
    machine.rings[1].request(&[Buffer::In(at, 4096)]);
    machine.guest.kick(&mut machine.rings[1]);
    breaks(&mut machine, &mut stream);
}

#[test]
fn a_receive_buffer_without_room_for_a_header_breaks_the_device() {
    for len in [1, HEADER as u32 - 1] {
        let mut machine = Machine::new(Vsock::new());
        machine.start_without_buffers(F_STREAM);
        machine.post(&[100]);
        machine.post(&[len]);
        machine.gives = false;
        machine.guest.kick(&mut machine.rings[0]);
        let listener = machine.handle.listen(SERVICE).unwrap();
        let (_conn, mut stream) = machine.open(&listener, CLIENT);
        machine.gives = true;
        breaks(&mut machine, &mut stream);
    }
}

#[test]
fn a_receive_buffer_without_room_for_data_breaks_the_device() {
    let mut machine = Machine::new(Vsock::new());
    machine.start_without_buffers(F_STREAM);
    for len in [44, 44] {
        machine.post(&[len]);
    }
    machine.gives = false;
    machine.guest.kick(&mut machine.rings[0]);
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (_conn, mut stream) = machine.open(&listener, CLIENT);
    machine.gives = true;
    breaks(&mut machine, &mut stream);
}

#[test]
fn a_receive_buffer_that_is_not_to_be_written_breaks_the_device() {
    let mut machine = Machine::new(Vsock::new());
    machine.start_without_buffers(F_STREAM);
    machine.post(&[4096]);
    machine.gives = false;
    let at = machine.guest.alloc(4096);
    machine.rings[0].request(&[Buffer::Out(at, 4096)]);
    machine.guest.kick(&mut machine.rings[0]);
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (_conn, mut stream) = machine.open(&listener, CLIENT);
    machine.gives = true;
    breaks(&mut machine, &mut stream);
}

/// Packets made of numbers that are nearly right: the device answers or not, and goes on.
#[test]
fn any_packets_leave_a_device_that_works() {
    let mut machine = Machine::new(Vsock::new().buffer(8192));
    let listener = machine.handle.listen(SERVICE).unwrap();
    listener.set_nonblocking(true);
    let mut random = Random(11);
    let mut streams = Vec::new();
    for _ in 0..5000 {
        let pick = |random: &mut Random, values: &[u32]| values[below(random, values.len())];
        let ports = Ports {
            host: pick(&mut random, &[SERVICE, SERVICE, SERVICE, 0, u32::MAX]),
            guest: pick(&mut random, &[CLIENT, CLIENT + 1, CLIENT + 2, 0, u32::MAX]),
        };
        let len = below(&mut random, 5000);
        let mut packet = Packet::new(ports, Op::Data).with(&pattern(0, len));
        packet.op = [1, 1, 1, 5, 5, 5, 5, 4, 6, 7, 2, 3, 0, 9][below(&mut random, 14)];
        packet.kind = [1, 1, 1, 1, 1, 1, 2, 3][below(&mut random, 8)];
        packet.flags = below(&mut random, 4) as u32;
        packet.buf_alloc = pick(&mut random, &[ROOM, ROOM, 0, 1, u32::MAX]);
        packet.fwd_cnt = pick(&mut random, &[0, 0, 0, 0, 0, 0, 1, u32::MAX]);
        if below(&mut random, 30) == 0 {
            packet.len = random.next() as u32;
        }
        machine.send(&packet);
        while machine.poll().is_some() {}
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            streams.push(stream);
        }
        let last = streams.len();
        match below(&mut random, 20) {
            0 if last > 0 => drop(streams.swap_remove(below(&mut random, last))),
            1 | 2 if last > 0 => {
                // It may be full, or have ended.
                let at = below(&mut random, last);
                let _ = streams[at].write(&[7; 3000]);
                let _ = streams[at].read(&mut [0; 3000]);
            }
            _ => {}
        }
        if streams.len() > 50 {
            streams.clear();
        }
    }
    assert_eq!(machine.guest.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    drop(streams);
    machine.start(F_STREAM);
    machine.works();
}
