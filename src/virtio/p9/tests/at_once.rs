//! What the device answers on its own thread, and what it does not.

use super::*;
use crate::bus::BusDevice;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

impl Machine {
    /// Sends a message and takes its reply; tells whether a thread of the device's had to do with it.
    fn ask(&mut self, kind: u8, tag: u16) -> bool {
        let before = self.script.at_once();
        let sent = self.send(kind, tag, b"hello");
        assert_eq!(self.reply(sent), message(kind + 1, tag, b"hello"));
        self.script.at_once() == before
    }
}

#[test]
fn what_takes_no_time_needs_no_thread() {
    let mut machine = Machine::new();
    for tag in 0..200 {
        assert!(!machine.ask(if tag % 2 == 0 { SURE } else { LIKELY }, tag));
    }
    assert_eq!(machine.script.threads(), 0);
    // A Tflush finds nothing of it.
    let flush = machine.flush(300, 199);
    assert_eq!(machine.reply(flush), flushed(300));
}

#[test]
fn what_takes_no_time_is_answered_while_every_thread_waits() {
    let mut machine = Machine::new();
    let tags: Vec<u16> = (0..30).collect();
    machine.script.hold(tags.iter().copied());
    let slow: Vec<_> = tags.iter().map(|&tag| machine.send(ECHO, tag, &[])).collect();
    machine.script.wait_inside(THREADS);
    for tag in 1000..1080 {
        assert!(!machine.ask(SURE, tag));
    }
    machine.quiet();
    tags.iter().for_each(|&tag| machine.script.release(tag));
    let mut used: Vec<_> = slow.iter().map(|_| machine.wait().0).collect();
    used.sort_unstable();
    assert_eq!(used, slow.iter().map(|sent| sent.head).collect::<Vec<_>>());
}

#[test]
fn what_only_most_likely_takes_no_time_is_a_threads_while_anything_is_under_way() {
    let mut machine = Machine::new();
    machine.script.hold([1, 2]);
    let slow = machine.send(ECHO, 1, b"slow");
    machine.script.wait_inside(1);
    // Whoever waits for the same disk holds up nobody else.
    let likely = machine.send(LIKELY, 2, b"likely");
    machine.script.wait_inside(2);
    for tag in 3..20 {
        assert!(machine.ask(LIKELY, tag));
        assert!(!machine.ask(SURE, tag));
    }
    for (tag, sent, kind, body) in [(2, likely, LIKELY, &b"likely"[..]), (1, slow, ECHO, b"slow")] {
        machine.script.release(tag);
        assert_eq!(machine.reply(sent), message(kind + 1, tag, body));
    }
    assert!(!machine.ask(LIKELY, 20));
}

#[test]
fn after_an_answer_that_took_long_the_next_ones_are_the_threads() {
    let mut machine = Machine::new();
    let slow = |machine: &mut Machine| {
        machine.script.hold([1]);
        let sent = machine.send(LIKELY, 1, &[]);
        machine.script.wait_inside(1);
        thread::sleep(Duration::from_millis(2));
        machine.script.release(1);
        machine.reply(sent);
    };
    // For a few milliseconds only, which this test may not get to see at the first attempt.
    let seen = (0..100).any(|_| {
        slow(&mut machine);
        machine.ask(LIKELY, 2)
    });
    assert!(seen);
    assert!(!machine.ask(SURE, 3), "it is no worse for what is certain");
    thread::sleep(Duration::from_secs(1));
    assert!(!machine.ask(LIKELY, 4), "that was for good");
}

#[test]
fn much_that_comes_at_once_is_shared_with_the_threads() {
    let mut machine = Machine::new();
    // The device sees them together.
    machine.script.hold([1]);
    let first = machine.send(SURE, 1, &[]);
    machine.script.wait_inside(1);
    let large = 0x800 * 40;
    let memory = machine.guest.alloc(large);
    let mut sent = Vec::new();
    for tag in 2..12 {
        let at = machine.pages + 0x2000 * u64::from(tag);
        machine.guest.memory.write_slice(&message(SURE, tag, &[]), GuestAddress(at)).unwrap();
        let room = Buffer::In(memory, large as u32);
        sent.push(machine.ring.request_indirect(at + 0x1000, &[Buffer::Out(at, 7), room]));
    }
    machine.kick();
    machine.script.release(1);
    machine.reply(first);
    let mut used: Vec<_> = sent.iter().map(|_| machine.wait().0).collect();
    used.sort_unstable();
    assert_eq!(used, sent);
    let at_once = machine.script.at_once();
    assert!((2..=9).contains(&at_once), "{at_once} of 11 were answered at once");
}

#[test]
fn replies_are_told_of_though_requests_keep_coming() {
    let mut machine = Machine::new();
    // More than one turn has room for.
    for round in 0..20 {
        let sent: Vec<_> =
            (0..100).map(|tag| (machine.send(SURE, tag, &[round; 1000]), tag)).collect();
        for (sent, tag) in sent {
            assert_eq!(machine.reply(sent), message(SURE + 1, tag, &[round; 1000]));
        }
    }
    assert_eq!(machine.script.at_once(), 2000);
}

#[test]
fn a_pause_and_a_reset_wait_for_what_is_being_answered() {
    let mut machine = Machine::new();
    machine.script.hold([1]);
    let sent = machine.send(SURE, 1, b"now");
    machine.script.wait_inside(1);
    let transport = machine.guest.transport.clone();
    life::held(&machine.script, 1, move || transport.pause());
    assert_eq!(machine.ring.used(), Some((sent.head, 10)));
    machine.guest.transport.resume();

    machine.script.hold([2]);
    machine.send(SURE, 2, b"now");
    machine.script.wait_inside(1);
    let transport = machine.guest.transport.clone();
    life::held(&machine.script, 2, move || {
        let _ = transport.write(VIRTIO_MMIO_STATUS.into(), &[0; 4]);
    });
    machine.restart();
    machine.check();
}
