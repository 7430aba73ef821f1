//! As many connections as there may be, and guests that ask for more, or for many and never listen to the answer.

use std::io::{ErrorKind, Read, Write};

use super::super::packet::{NO_RECEIVE, NO_SEND, Op, Ports};
use super::super::{F_STREAM, MOST_RESETS};
use super::life::{alone, descriptors};
use super::support::*;
use crate::vsock::Vsock;

fn from(guest: u32) -> Ports {
    Ports { guest, ..PORTS }
}

#[test]
fn one_more_than_the_limit_is_refused_both_ways() {
    let mut machine = Machine::new(Vsock::new().connections(3));
    let listener = machine.handle.listen(SERVICE).unwrap();
    let mut open: Vec<_> = (0..3).map(|n| machine.open(&listener, n)).collect();
    for n in 10..20 {
        machine.send(&Packet::new(from(n), Op::Request));
        machine.next().expect(from(n), Op::Reset);
        let error = machine.handle.connect(80).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    }
    assert_eq!(machine.handle.counters().open, 3);
    assert_eq!(machine.handle.counters().refused, 10);
    // One that has gone makes room for one.
    let (conn, _stream) = open.remove(1);
    machine.send(&conn.packet(Op::Reset));
    open.push(machine.open(&listener, 10));
    machine.send(&Packet::new(from(11), Op::Request));
    machine.next().expect(from(11), Op::Reset);
    for (mut conn, mut stream) in open {
        machine.data(&mut conn, b"x");
        stream.read_exact(&mut [0]).unwrap();
    }
}

/// A connection that the guest has left, and whose host does not read, does not keep new ones out.
#[test]
fn what_the_guest_has_left_makes_room() {
    let mut machine = Machine::new(Vsock::new().connections(2));
    let listener = machine.handle.listen(SERVICE).unwrap();
    let mut left = Vec::new();
    for n in 0..10 {
        let (mut conn, stream) = machine.open(&listener, n);
        while conn.credit() >= 4096 {
            machine.data(&mut conn, &[0; 4096]);
            machine.guest.settle();
            while let Some(update) = machine.poll() {
                conn.take(&update);
            }
        }
        machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND | NO_RECEIVE));
        machine.next().expect(conn.ports, Op::Reset);
        left.push(stream);
        assert!(machine.handle.counters().open <= 2);
    }
    machine.call(80);
}

#[test]
fn a_guest_that_takes_no_answers_is_asked_for_nothing_more() {
    const ALL: u32 = 20_000;
    let mut machine = Machine::off(Vsock::new());
    machine.start_without_buffers(F_STREAM);
    let mut taken = 0;
    let mut offered = 0;
    // As many as the device takes: refused, and refusals that nobody has heard.
    loop {
        while offered < ALL && offered - taken < 200 {
            machine.offer(&Packet::new(from(offered), Op::Request));
            offered += 1;
        }
        machine.guest.kick(&mut machine.rings[1]);
        machine.guest.settle();
        machine.guest.settle();
        let before = taken;
        while machine.rings[1].used().is_some() {
            taken += 1;
        }
        if taken == before {
            break;
        }
    }
    assert_eq!(taken as usize, MOST_RESETS);
    // Now all of them are heard.
    for _ in 0..64 {
        machine.post(&[4096]);
    }
    machine.guest.kick(&mut machine.rings[0]);
    for n in 0..ALL {
        machine.next().expect(from(n), Op::Reset);
        while machine.rings[1].used().is_some() {
            taken += 1;
        }
        if offered < ALL && offered - taken < 100 {
            while offered < ALL && offered - taken < 200 {
                machine.offer(&Packet::new(from(offered), Op::Request));
                offered += 1;
            }
            machine.guest.kick(&mut machine.rings[1]);
        }
    }
    machine.guest.settle();
    while machine.rings[1].used().is_some() {
        taken += 1;
    }
    assert_eq!((offered, taken), (ALL, ALL));
    machine.quiet();
    machine.works();
}

#[test]
fn connections_that_are_reset_before_they_are_answered_leave_nothing_to_say() {
    let mut machine = Machine::off(Vsock::new().connections(64));
    machine.start_without_buffers(F_STREAM);
    let listener = machine.handle.listen(SERVICE).unwrap();
    for n in 0..20_000 {
        machine.offer(&Packet::new(from(n), Op::Request));
        machine.offer(&Packet::new(from(n), Op::Reset));
        machine.guest.kick(&mut machine.rings[1]);
        for _ in 0..2 {
            machine.guest.wait(&mut machine.rings[1]);
        }
        let (mut stream, guest) = listener.accept().unwrap();
        assert_eq!((stream.read(&mut [0]).unwrap(), guest), (0, n));
    }
    assert_eq!(machine.handle.counters().open, 0);
    for _ in 0..64 {
        machine.post(&[4096]);
    }
    machine.guest.kick(&mut machine.rings[0]);
    machine.quiet();
    machine.works();
}

#[test]
fn answers_wait_for_buffers_and_come_in_turn() {
    let mut machine = Machine::off(Vsock::new());
    machine.start_without_buffers(F_STREAM);
    let listener = machine.handle.listen(SERVICE).unwrap();
    let mut streams = Vec::new();
    for n in 0..100 {
        machine.send(&Packet::new(from(n), Op::Request));
        // One answer is as good as five.
        for _ in 0..5 {
            machine.send(&Packet::new(from(n), Op::CreditRequest));
        }
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"first").unwrap();
        streams.push(stream);
    }
    machine.guest.settle();
    machine.gives = false;
    for n in 0..100 {
        machine.post(&[4096]);
        machine.guest.kick(&mut machine.rings[0]);
        // The one that is under way is not overtaken.
        machine.next().expect(from(n), Op::Response);
        machine.post(&[4096]);
        machine.guest.kick(&mut machine.rings[0]);
        assert_eq!(machine.next().expect(from(n), Op::Data).data, b"first");
    }
    machine.post(&[4096]);
    machine.guest.kick(&mut machine.rings[0]);
    machine.quiet();
}

#[test]
fn sixty_five_thousand_connections_are_open_at_once() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    const ALL: u32 = 65_536;
    // Two for each, and some for the rest; and an eighth that the guest does not get.
    const DESCRIPTORS: u64 = (2 * ALL as u64 + 1000) * 8 / 7 + 8;
    alone("virtio::vsock::tests::limits::sixty_five_thousand_connections_are_open_at_once", || {
        let most = getrlimit(Resource::Nofile).maximum.map(|most| most.max(DESCRIPTORS));
        let limit = Rlimit { current: Some(DESCRIPTORS), maximum: most };
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            return eprintln!(
                "skipped: this process may not have {DESCRIPTORS} descriptors: {error}"
            );
        }
        let mut machine = Machine::new(Vsock::new().connections(ALL as usize));
        let listener = machine.handle.listen(SERVICE).unwrap();
        let before = descriptors();
        let mut open: Vec<_> = (0..ALL).map(|n| machine.open(&listener, n)).collect();
        assert_eq!(machine.handle.counters().open, u64::from(ALL));
        machine.send(&Packet::new(from(ALL), Op::Request));
        machine.next().expect(from(ALL), Op::Reset);
        let windows: u64 = open.iter().map(|(conn, _)| u64::from(conn.credit())).sum();
        assert!(windows <= 64 << 20, "{windows} bytes may be kept");
        for (n, (conn, stream)) in open.iter_mut().enumerate().step_by(97) {
            machine.data(conn, &pattern(n, 100));
            let mut bytes = [0; 100];
            stream.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, pattern(n, 100)[..]);
            stream.write_all(b"x").unwrap();
            loop {
                let packet = machine.next();
                conn.take(&packet);
                if packet.is(Op::Data) {
                    break assert_eq!(packet.data, b"x");
                }
            }
        }
        machine.start(F_STREAM);
        assert_eq!(machine.handle.counters().open, 0);
        assert_eq!(descriptors(), before + ALL as usize);
        assert_eq!(open[0].1.read(&mut [0]).unwrap(), 0);
        drop(open);
        assert_eq!(descriptors(), before);
        machine.works();
    });
}
