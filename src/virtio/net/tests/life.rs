//! Queues that run empty and fill up, drivers that come and go, and a machine that stops for a while.

use std::time::Duration;

use super::super::*;
use super::support::*;
use crate::net::Offloads;

fn machine() -> Machine {
    Machine::new(Script::new(Offloads::empty(), 1), Features::empty())
}

const PLAIN: Header =
    Header { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

/// CVE-2020-16843: both the host side and the driver's queue were full, and reception stopped for good.
#[test]
fn reception_goes_on_when_there_is_room_again() {
    for without in [Features::empty(), Features::MRG_RXBUF] {
        let mut machine = Machine::new(Script::new(Offloads::empty(), 1), without);
        for n in 0..200 {
            machine.script.give(0, PLAIN, &frame(60 + n));
        }
        assert!(!machine.has_frame(0));
        for n in 0..200 {
            assert_eq!(machine.script.waiting(), 200 - n);
            machine.post(0, &[1600]);
            assert_eq!(machine.got(0).bytes, frame(60 + n));
        }
        machine.post(0, &[1600]);
        machine.script.give(0, PLAIN, &frame(1000));
        assert_eq!(machine.got(0).bytes, frame(1000));
        assert_eq!(machine.handle.counters().receive_drops, ReceiveDrops::default());
    }
}

#[test]
fn a_full_queue_of_frames_comes_in_order() {
    let mut machine = machine();
    for _ in 0..10 {
        for _ in 0..64 {
            machine.post_quietly(0, &[1600]);
        }
        machine.kick(0);
        for n in 0..64 {
            machine.script.give(0, PLAIN, &frame(60 + n));
        }
        for n in 0..64 {
            assert_eq!(machine.got(0).bytes, frame(60 + n));
        }
        machine.start(Features::empty());
    }
}

#[test]
fn without_room_nobody_is_asked_for_frames() {
    let mut machine = machine();
    machine.script.give(0, PLAIN, &frame(60));
    machine.guest.settle();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.script.state().asked, 0);
    machine.post(0, &[1600]);
    assert_eq!(machine.got(0).bytes, frame(60));
}

#[test]
fn sending_goes_on_when_the_host_side_can() {
    let mut machine = machine();
    machine.script.state().room = Some(3);
    for n in 0..10 {
        machine.send_quietly(PLAIN, &frame(60 + n));
    }
    machine.kick(1);
    for _ in 0..3 {
        machine.guest.wait(&mut machine.rings[1]);
    }
    machine.guest.settle();
    assert_eq!(machine.rings[1].used(), None);
    for _ in 3..10 {
        machine.script.allow(1);
        machine.guest.wait(&mut machine.rings[1]);
    }
    let lens: Vec<_> = machine.script.state().sent.iter().map(|(_, _, it)| it.len()).collect();
    assert_eq!(lens, Vec::from_iter(60..70));
    // A call when nothing waits is nothing special.
    machine.script.allow(100);
    machine.send(PLAIN, &frame(100));
    assert_eq!(machine.handle.counters().sent.frames, 11);
}

#[test]
fn a_full_host_side_is_not_asked_again_and_again() {
    let mut machine = machine();
    machine.script.state().room = Some(0);
    machine.send_quietly(PLAIN, &frame(60));
    machine.kick(1);
    machine.guest.settle();
    let edges = machine.guest.line.edges();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.guest.line.edges(), edges);
    assert_eq!(machine.rings[1].used(), None);
    machine.script.allow(1);
    machine.guest.wait(&mut machine.rings[1]);
}

/// What the host side answers at once, without being woken: as one that is a program of its own does.
#[test]
fn an_answer_comes_without_a_call() {
    let mut machine = machine();
    machine.script.state().echo = true;
    machine.post(0, &[1600]);
    machine.send(PLAIN, &frame(60));
    assert_eq!(machine.got(0).bytes, frame(60));
}

/// Where nothing can be sent until something has been received.
#[test]
fn reception_makes_room_for_sending() {
    let mut machine = machine();
    {
        let mut state = machine.script.state();
        (state.echo, state.room) = (true, Some(1));
    }
    for n in 0..2 {
        machine.send_quietly(PLAIN, &frame(60 + n));
    }
    machine.kick(1);
    machine.guest.wait(&mut machine.rings[1]);
    machine.guest.settle();
    machine.script.state().room = Some(1);
    machine.post_quietly(0, &[1600]);
    machine.post(0, &[1600]);
    for n in 0..2 {
        assert_eq!(machine.got(0).bytes, frame(60 + n));
    }
}

#[test]
fn a_reset_forgets_what_was_under_way() {
    let mut machine = machine();
    for _ in 0..5 {
        machine.script.state().room = Some(0);
        for n in 0..20 {
            machine.send_quietly(PLAIN, &frame(60 + n));
            machine.post_quietly(0, &[100]);
        }
        machine.kick(1);
        machine.kick(0);
        machine.guest.settle();
        let resets = machine.script.state().resets;
        machine.start(Features::empty());
        assert_eq!(machine.script.state().resets, resets + 1);
        machine.script.allow(1000);
        assert!(!machine.has_frame(0));
        assert_eq!(machine.rings[1].used(), None);
        assert_eq!(machine.script.state().sent.len(), 0);
        machine.post(0, &[1600]);
        machine.send(PLAIN, &frame(60));
        machine.script.give(0, PLAIN, &frame(61));
        assert_eq!(machine.got(0).bytes, frame(61));
        machine.script.state().sent.clear();
    }
}

#[test]
fn a_paused_card_moves_nothing_and_goes_on() {
    let mut machine = machine();
    for _ in 0..8 {
        machine.post_quietly(0, &[300]);
    }
    machine.kick(0);
    machine.script.give(0, PLAIN, &frame(60));
    assert_eq!(machine.got(0).bytes, frame(60));
    machine.script.state().room = Some(0);
    machine.send_quietly(PLAIN, &frame(70));
    machine.kick(1);
    for _ in 0..3 {
        machine.guest.transport.pause();
        machine.script.allow(1);
        machine.script.give(0, PLAIN, &frame(61));
        machine.send_quietly(PLAIN, &frame(71));
        machine.kick(1);
        std::thread::sleep(Duration::from_millis(10));
        assert!(machine.script.state().sent.is_empty());
        assert_eq!(machine.script.waiting(), 1);
        assert_eq!(machine.rings[0].used(), None);
        machine.guest.transport.resume();
        assert_eq!(machine.got(0).bytes, frame(61));
        machine.guest.wait(&mut machine.rings[1]);
        machine.script.state().sent.clear();
        machine.post(0, &[300]);
    }
    assert_eq!(machine.handle.counters().receive_drops, ReceiveDrops::default());
}

#[test]
fn a_queue_that_is_given_up_is_left_alone() {
    let mut machine = machine();
    for _ in 0..8 {
        machine.post_quietly(0, &[300]);
    }
    machine.kick(0);
    machine.guest.settle();
    // QueueReady of queue 0.
    machine.guest.write(0x030, 0);
    machine.guest.write(0x044, 0);
    machine.script.give(0, PLAIN, &frame(60));
    assert!(!machine.has_frame(0));
    machine.send(PLAIN, &frame(61));
    assert_eq!(machine.script.waiting(), 1);
}

#[test]
fn frames_wait_for_a_driver() {
    let mut machine = Machine::off(Script::new(Offloads::all(), 1), Features::empty());
    machine.script.give(0, PLAIN, &frame(60));
    machine.guest.settle();
    assert_eq!(machine.script.waiting(), 1);
    machine.start(Features::HOST_USO | Features::GUEST_TSO4);
    machine.post(0, &[70_000]);
    assert_eq!(machine.got(0).bytes, frame(60));
    let expected = Offloads::all() - Offloads::USO - Offloads::GUEST_TSO4;
    assert_eq!(machine.script.state().activated, [expected]);
}

/// One direction does not wait for the end of the other.
#[test]
fn both_directions_at_once() {
    let mut machine = machine();
    machine.script.state().echo = true;
    for round in 0..20 {
        for n in 0..32 {
            machine.post_quietly(0, &[1600]);
            machine.send_quietly(PLAIN, &frame(60 + 10 * n + round));
        }
        machine.kick(0);
        machine.kick(1);
        for n in 0..32 {
            machine.guest.wait(&mut machine.rings[1]);
            assert_eq!(machine.got(0).bytes, frame(60 + 10 * n + round));
        }
        machine.start(Features::empty());
    }
    assert_eq!(machine.handle.counters().received.frames, 640);
}
