//! Drivers that come and go, machines that stop for a while, and what is left of it all.

use std::io::{ErrorKind, Read, Write};

use vm_memory::{Bytes, GuestAddress};

use super::super::packet::{NO_RECEIVE, NO_SEND, Op, Ports};
use super::super::{F_STREAM, FEATURES};
use super::support::*;
use crate::virtio::testing::Buffer;
use crate::vsock::Vsock;

#[test]
fn a_reset_of_the_device_ends_all_connections() {
    let mut machine = Machine::new(Vsock::new());
    for round in 0..5 {
        let listener = machine.handle.listen(SERVICE).unwrap();
        let mut streams = Vec::new();
        for n in 0..10 {
            let (mut conn, stream) = machine.open(&listener, CLIENT + n);
            machine.data(&mut conn, b"last words");
            streams.push(stream);
            streams.push(machine.call(80 + n).1);
        }
        let handle = machine.handle.clone();
        let caller = std::thread::spawn(move || handle.connect(1));
        assert!(machine.next().is(Op::Request));
        machine.start(F_STREAM);
        for stream in &mut streams {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            assert!(bytes.is_empty() || bytes == b"last words");
        }
        assert_eq!(caller.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(machine.handle.counters().open, 0, "round {round}");
        // Nothing of the old ones comes to the new driver.
        machine.quiet();
        drop(listener);
        machine.works();
    }
}

#[test]
fn listeners_live_through_a_reset() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    machine.open(&listener, CLIENT);
    machine.start(F_STREAM);
    machine.open(&listener, CLIENT);
}

#[test]
fn a_transfer_goes_on_after_a_pause() {
    let mut machine = Machine::new(Vsock::new());
    let (mut conn, mut stream) = machine.call(80);
    let writer = {
        let mut stream = stream.try_clone().unwrap();
        std::thread::spawn(move || stream.write_all(&pattern(0, 1 << 20)).unwrap())
    };
    let mut got = 0;
    let mut next_pause = 0;
    while got < 1 << 20 {
        if got >= next_pause {
            next_pause = got + (100 << 10);
            machine.guest.transport.pause();
            std::thread::sleep(std::time::Duration::from_millis(5));
            // What was sent is there, and no more comes.
            while let Some(packet) = machine.poll() {
                conn.take(&packet);
                assert!(packet.data == pattern(got, packet.data.len()));
                got += packet.data.len();
            }
            machine.guest.transport.resume();
        }
        machine.send(&conn.packet(Op::CreditUpdate));
        let data = machine.next();
        conn.take(&data);
        assert!(data.data == pattern(got, data.data.len()));
        got += data.data.len();
    }
    writer.join().unwrap();
    machine.guest.transport.pause();
    let packet = conn.packet(Op::Data).with(b"sent while nobody looked").bytes();
    let at = machine.guest.alloc(packet.len());
    machine.guest.memory.write_slice(&packet, GuestAddress(at)).unwrap();
    machine.rings[1].request(&[Buffer::Out(at, packet.len() as u32)]);
    machine.guest.kick(&mut machine.rings[1]);
    machine.guest.transport.resume();
    stream.read_exact(&mut [0; 24]).unwrap();
}

#[test]
fn a_reset_transport_is_an_event_and_the_end_of_all_connections() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    for _ in 0..3 {
        let (_conn, mut stream) = machine.open(&listener, CLIENT);
        let (_other, mut called) = machine.call(80);
        let inbox = machine.inbox();
        machine.guest.memory.write_slice(&[0xff; 8], GuestAddress(inbox)).unwrap();
        machine.rings[2].request(&[Buffer::In(inbox, 8)]);
        machine.guest.kick(&mut machine.rings[2]);
        machine.handle.reset_transport();
        assert_eq!(machine.guest.wait(&mut machine.rings[2]).1, 4);
        let event: u64 = machine.guest.memory.read_obj(GuestAddress(inbox)).unwrap();
        assert_eq!(event, 0xffff_ffff_0000_0000);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        assert_eq!(called.read(&mut [0]).unwrap(), 0);
        // The guest is told once, and of no connection by itself.
        machine.quiet();
        assert_eq!(machine.handle.counters().open, 0);
    }
    machine.works();
}

#[test]
fn a_reset_transport_is_told_when_there_is_a_buffer_for_it() {
    let mut machine = Machine::new(Vsock::new());
    machine.handle.reset_transport();
    machine.handle.reset_transport();
    machine.guest.settle();
    let inbox = machine.inbox();
    for _ in 0..2 {
        machine.rings[2].request(&[Buffer::In(inbox, 8)]);
    }
    machine.guest.kick(&mut machine.rings[2]);
    machine.guest.wait(&mut machine.rings[2]);
    machine.guest.settle();
    assert_eq!(machine.rings[2].used(), None, "twice");
    // A driver that comes later has nothing to hear.
    machine.guest.reset();
    machine.handle.reset_transport();
    machine.start(F_STREAM);
    let inbox = machine.inbox();
    machine.rings[2].request(&[Buffer::In(inbox, 8)]);
    machine.guest.kick(&mut machine.rings[2]);
    machine.guest.settle();
    assert_eq!(machine.rings[2].used(), None, "to a driver that it does not concern");
}

#[test]
fn a_machine_that_ends_ends_its_connections() {
    let mut machine = Machine::new(Vsock::new());
    let listener = machine.handle.listen(SERVICE).unwrap();
    let (_conn, mut stream) = machine.open(&listener, CLIENT);
    let handle = machine.handle.clone();
    let caller = std::thread::spawn(move || handle.connect(80));
    assert!(machine.next().is(Op::Request));
    drop(machine);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert!(caller.join().unwrap().is_err());
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::NotConnected);
}

/// Runs `test`, whose full name is `name`, in a process of its own, where nobody else has descriptors.
pub fn alone(name: &str, test: impl FnOnce()) {
    const CHILD: &str = "HYPERKIT_TEST_VSOCK_ALONE";
    if std::env::var_os(CHILD).is_some() {
        return test();
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1", "--nocapture"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

/// Descriptors of this process.
pub fn descriptors() -> usize {
    std::fs::read_dir("/dev/fd").unwrap().count()
}

#[test]
fn a_reset_leaves_no_descriptors() {
    alone("virtio::vsock::tests::life::a_reset_leaves_no_descriptors", || {
        let mut machine = Machine::new(Vsock::new());
        let listener = machine.handle.listen(SERVICE).unwrap();
        let before = descriptors();
        for _ in 0..3 {
            let mut streams = Vec::new();
            for n in 0..100 {
                streams.push(machine.open(&listener, n).1);
            }
            assert_eq!(descriptors(), before + 200);
            machine.start(FEATURES);
            assert_eq!(descriptors(), before + 100);
            drop(streams);
            // One that the guest has left, with bytes that nobody has read.
            let ports = Ports { guest: 1, ..PORTS };
            let mut conn = machine.request(ports, STREAM);
            while conn.credit() >= 4096 {
                machine.data(&mut conn, &[0; 4096]);
                machine.guest.settle();
                while let Some(update) = machine.poll() {
                    conn.take(&update);
                }
            }
            machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND | NO_RECEIVE));
            machine.next().expect(ports, Op::Reset);
            assert_eq!(descriptors(), before + 2);
            machine.start(F_STREAM);
            drop(listener.accept().unwrap());
            assert_eq!(descriptors(), before);
        }
        drop((machine, listener));
        assert!(descriptors() < before);
    });
}
