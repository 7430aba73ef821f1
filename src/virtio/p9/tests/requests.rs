//! Requests in any number, and what becomes of them.

use super::*;

#[test]
fn the_tag_is_in_the_configuration_space() {
    let machine = Machine::new();
    assert_eq!(machine.guest.read(8), 9, "the device ID");
    assert_eq!(machine.guest.offered() & 1, 1, "VIRTIO_9P_MOUNT_TAG");
    assert_eq!(machine.guest.read(0x100).to_le_bytes(), [5, 0, b's', b'h']);
    assert_eq!(machine.guest.read(0x104).to_le_bytes(), *b"are\0");
}

#[test]
fn requests_and_replies_have_any_length() {
    let mut machine = Machine::new();
    for len in [0, 1, 2, 3, 100, ROOM - 7] {
        let body = vec![len as u8; len];
        let sent = machine.send(ECHO, len as u16, &body);
        assert_eq!(machine.reply(sent), message(ECHO + 1, len as u16, &body));
    }
    for room in [7, 8, 9, 10, 1000] {
        let sent = machine.send_bytes(&message(LONG, 1, &[]), room);
        assert_eq!(machine.reply(sent), vec![0x5a; room]);
        let mut next = [0];
        let behind = GuestAddress(sent.at + (ROOM + room) as u64);
        machine.guest.memory.read_slice(&mut next, behind).unwrap();
        assert_eq!(next, [0xee], "written beyond the room");
    }
}

#[test]
fn a_request_that_waits_does_not_hold_up_others() {
    let mut machine = Machine::new();
    machine.script.hold([1]);
    let slow = machine.send(ECHO, 1, b"slow");
    machine.script.wait_inside(1);
    for tag in 2..110 {
        let sent = machine.send(ECHO, tag, b"quick");
        assert_eq!(machine.reply(sent), message(ECHO + 1, tag, b"quick"));
    }
    machine.quiet();
    machine.script.release(1);
    assert_eq!(machine.reply(slow), message(ECHO + 1, 1, b"slow"));
}

#[test]
fn requests_end_in_the_order_in_which_the_server_is_done() {
    let mut machine = Machine::new();
    let tags = [1, 2, 3, 4, 5];
    machine.script.hold(tags);
    let sent = tags.map(|tag| machine.send(ECHO, tag, &[]));
    machine.script.wait_inside(5);
    for index in [3, 0, 4, 1, 2] {
        machine.script.release(tags[index]);
        assert_eq!(machine.reply(sent[index]), message(ECHO + 1, tags[index], &[]));
    }
}

#[test]
fn threads_are_bounded_and_more_requests_wait_for_them() {
    let mut machine = Machine::new();
    let tags: Vec<u16> = (0..60).collect();
    machine.script.hold(tags.iter().copied());
    let sent: Vec<_> = tags.iter().map(|&tag| machine.send(ECHO, tag, &[])).collect();
    // Those that came first.
    let inside = machine.script.wait_inside(THREADS);
    assert_eq!(inside, tags[..THREADS]);
    machine.quiet();
    assert_eq!(machine.script.threads(), THREADS);
    tags.iter().for_each(|&tag| machine.script.release(tag));
    let mut used: Vec<_> = sent.iter().map(|_| machine.wait().0).collect();
    used.sort_unstable();
    assert_eq!(used, sent.iter().map(|sent| sent.head).collect::<Vec<_>>());
    assert_eq!(machine.script.threads(), THREADS);
}

#[test]
fn one_request_at_a_time_needs_one_thread() {
    let mut machine = Machine::new();
    for _ in 0..100 {
        machine.check();
    }
    assert_eq!(machine.script.threads(), 1);
}

#[test]
fn requests_with_one_tag_each_have_their_own_reply() {
    let mut machine = Machine::new();
    machine.script.hold([7]);
    let sent = [b"one", b"two"].map(|body| (machine.send(ECHO, 7, body), body));
    machine.script.wait_inside(2);
    machine.script.release(7);
    for _ in sent {
        let (head, written) = machine.wait();
        let (sent, body) = sent.iter().find(|(sent, _)| sent.head == head).unwrap();
        assert_eq!(machine.written(*sent, written), message(ECHO + 1, 7, *body));
    }
}
