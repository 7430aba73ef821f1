//! Chains that are no requests, and a server that fails.

use super::*;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

#[test]
fn chains_that_cannot_be_answered_break_the_device_until_it_is_reset() {
    let whole = message(ECHO, 1, &[]);
    for (bytes, room) in
        [(&whole[..], 0), (&whole[..], 6), (&whole[..6], ROOM), (&whole[..1], ROOM), (&[], ROOM)]
    {
        let mut machine = Machine::new();
        machine.script.hold([2]);
        machine.send(ECHO, 2, &[]);
        machine.script.wait_inside(1);
        let script = machine.script.clone();
        // The device waits for what is under way before it says so.
        let release = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            script.release(2);
        });
        machine.send_bytes(bytes, room);
        machine.guest.wait_status(VIRTIO_CONFIG_S_NEEDS_RESET);
        release.join().unwrap();
        assert_eq!(machine.ring.used(), None);
        assert_eq!(machine.script.threads(), 0);
        machine.restart();
        machine.check();
    }
}

#[test]
fn a_reply_that_finds_no_room_is_no_reply() {
    let mut machine = Machine::new();
    let sent = machine.send_bytes(&message(ECHO, 1, &[1; 20]), 26);
    assert_eq!(machine.reply(sent), b"");
    let sent = machine.send_bytes(&message(ECHO, 1, &[1; 20]), 27);
    assert_eq!(machine.reply(sent).len(), 27);
    // The same for the device's own: a Tflush without its tag.
    let sent = machine.send_bytes(&message(TFLUSH, 1, &[]), 10);
    assert_eq!(machine.reply(sent), b"");
    let sent = machine.send_bytes(&message(TFLUSH, 1, &[]), 11);
    assert_eq!(machine.reply(sent), rlerror(1, 22));
}

#[test]
fn a_server_that_panics_fails_one_request() {
    let mut machine = Machine::new();
    for _ in 0..3 {
        let sent = machine.send(FAULT, 1, &[]);
        assert_eq!(machine.reply(sent), rlerror(1, 5));
        let sent = machine.send_bytes(&message(FAULT, 1, &[]), 10);
        assert_eq!(machine.reply(sent), b"");
        machine.check();
        let sent = machine.send(SURE_FAULT, 1, &[]);
        assert_eq!(machine.reply(sent), rlerror(1, 5));
        machine.check();
    }
    assert_eq!(machine.script.at_once(), 3);
}

#[test]
fn a_message_in_pieces_is_one_message() {
    let mut machine = Machine::new();
    let bytes = message(ECHO, 0x1234, b"in pieces");
    let at = machine.pages;
    machine.guest.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    let mut buffers: Vec<_> = (0..bytes.len() as u64).map(|n| Buffer::Out(at + n, 1)).collect();
    buffers.insert(3, Buffer::Out(at, 0));
    buffers.extend((0..bytes.len() as u64).map(|n| Buffer::In(at + ROOM as u64 + n, 1)));
    let head = machine.ring.request(&buffers);
    machine.kick();
    let reply = machine.reply(Sent { head, at });
    assert_eq!(reply, message(ECHO + 1, 0x1234, b"in pieces"));
}
