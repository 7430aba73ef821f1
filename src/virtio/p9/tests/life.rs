//! Pause, reset and the end of a device that has requests under way; and its threads.

use super::*;
use crate::bus::BusDevice;
use std::sync::mpsc::{TryRecvError, channel};
use virtio_bindings::virtio_mmio::*;

/// Calls `wait` on a thread of its own while the server is at `tag`; it must not return before that is answered.
pub(super) fn held<T: Send + 'static>(
    script: &Script,
    tag: u16,
    wait: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (done, result) = channel();
    let thread = thread::spawn(move || done.send(wait()).unwrap());
    thread::sleep(Duration::from_millis(20));
    assert_eq!(result.try_recv().err(), Some(TryRecvError::Empty), "it did not wait");
    script.release(tag);
    thread.join().unwrap();
    result.recv().unwrap()
}

#[test]
fn there_are_no_threads_before_the_first_request_nor_after_the_driver() {
    let mut machine = Machine::new();
    machine.guest.settle();
    assert_eq!(Arc::strong_count(&machine.script), 3, "of the test, the device and its pool");
    machine.check();
    assert!(machine.script.threads() > 0);
    machine.restart();
    assert_eq!((machine.script.threads(), machine.script.resets()), (0, 1));
    machine.check();
    let script = machine.script.clone();
    drop(machine);
    assert_eq!(script.threads(), 0);
    assert_eq!(Arc::strong_count(&script), 1, "somebody still has the server");
}

#[test]
fn a_pause_waits_for_requests_and_gives_them_back() {
    let mut machine = Machine::new();
    machine.script.hold([1]);
    let slow = machine.send(ECHO, 1, b"slow");
    machine.script.wait_inside(1);
    let flush = machine.flush(2, 1);
    machine.guest.wait_doorbell();
    let transport = machine.guest.transport.clone();
    held(&machine.script, 1, move || transport.pause());
    assert_eq!(machine.ring.used(), Some((slow.head, 11)));
    assert_eq!(machine.ring.used(), Some((flush.head, 7)));

    // What comes now is seen to when the machine goes on.
    let late = machine.send(ECHO, 3, &[]);
    thread::sleep(Duration::from_millis(10));
    assert_eq!((machine.ring.used(), machine.script.served()), (None, 1));
    machine.guest.transport.resume();
    assert_eq!(machine.reply(late), message(ECHO + 1, 3, &[]));
}

#[test]
fn a_reset_waits_for_requests_and_gives_nothing_back() {
    let mut machine = Machine::new();
    for count in [1, 40] {
        let tags: Vec<u16> = (0..count).collect();
        machine.script.hold(tags.iter().copied());
        let sent: Vec<_> = tags.iter().map(|&tag| machine.send(LONG, tag, &[])).collect();
        machine.script.wait_inside(tags.len().min(THREADS));
        machine.flush(1000, 0);
        tags.iter().skip(1).for_each(|&tag| machine.script.release(tag));
        let transport = machine.guest.transport.clone();
        held(&machine.script, 0, move || {
            let _ = transport.write(VIRTIO_MMIO_STATUS.into(), &[0; 4]);
        });
        assert_eq!(machine.script.threads(), 0);
        let memory = &machine.guest.memory;
        for Sent { at, .. } in &sent {
            memory.write_slice(&[0x11; ROOM], GuestAddress(at + ROOM as u64)).unwrap();
        }
        thread::sleep(Duration::from_millis(5));
        for Sent { at, .. } in &sent {
            let mut bytes = [0; ROOM];
            memory.read_slice(&mut bytes, GuestAddress(at + ROOM as u64)).unwrap();
            assert_eq!(bytes, [0x11; ROOM], "written after the reset");
        }
        machine.restart();
        machine.check();
    }
}

#[test]
fn a_queue_is_given_up_during_a_request() {
    let mut machine = Machine::new();
    machine.script.hold([1]);
    let slow = machine.send(ECHO, 1, &[]);
    machine.script.wait_inside(1);
    let transport = machine.guest.transport.clone();
    held(&machine.script, 1, move || {
        for (register, value) in [(VIRTIO_MMIO_QUEUE_SEL, 0), (VIRTIO_MMIO_QUEUE_READY, 0_u32)] {
            let _ = transport.write(register.into(), &value.to_le_bytes());
        }
    });
    assert_eq!(machine.ring.used(), Some((slow.head, 7)));
    assert_eq!(machine.script.threads(), 0);
    machine.restart();
    machine.check();
}

#[test]
fn the_end_of_the_machine_waits_for_requests() {
    let mut machine = Machine::new();
    let script = machine.script.clone();
    script.hold([1]);
    machine.send(ECHO, 1, &[]);
    script.wait_inside(1);
    held(&script, 1, move || drop(machine));
    assert_eq!(script.threads(), 0);
    assert_eq!(Arc::strong_count(&script), 1, "somebody still has the server");
}
