//! Tflush, in all its forms.

use super::*;

/// A server that is at a message with tag 1.
fn busy() -> (Machine, Sent) {
    let mut machine = Machine::new();
    machine.script.hold([1]);
    let sent = machine.send(ECHO, 1, b"slow");
    machine.script.wait_inside(1);
    (machine, sent)
}

#[test]
fn a_flush_is_answered_after_what_it_names() {
    let (mut machine, slow) = busy();
    let flush = machine.flush(2, 1);
    machine.quiet();
    machine.check();
    machine.script.release(1);
    assert_eq!(machine.reply(slow), message(ECHO + 1, 1, b"slow"));
    assert_eq!(machine.reply(flush), flushed(2));
    assert_eq!(machine.script.served(), 2, "a Tflush has come to the server");
}

#[test]
fn a_flush_of_a_tag_that_nothing_has_is_answered_at_once() {
    let (mut machine, slow) = busy();
    for names in [0, 3, 99, 0xffff] {
        let flush = machine.flush(3, names);
        assert_eq!(machine.reply(flush), flushed(3));
    }
    machine.script.release(1);
    machine.reply(slow);
    let flush = machine.flush(3, 1);
    assert_eq!(machine.reply(flush), flushed(3), "it has been answered already");
}

#[test]
fn several_flushes_of_one_tag_are_answered_in_their_order() {
    let (mut machine, slow) = busy();
    let flushes = [5, 4, 3].map(|tag| (machine.flush(tag, 1), tag));
    machine.quiet();
    machine.script.release(1);
    machine.reply(slow);
    for (flush, tag) in flushes {
        assert_eq!(machine.reply(flush), flushed(tag));
    }
}

#[test]
fn a_flush_of_a_flush_is_answered_after_it() {
    let (mut machine, slow) = busy();
    let chain: Vec<_> = (2..100).map(|tag| (machine.flush(tag, tag - 1), tag)).collect();
    machine.quiet();
    machine.script.release(1);
    machine.reply(slow);
    for (flush, tag) in chain {
        assert_eq!(machine.reply(flush), flushed(tag));
    }
}

#[test]
fn a_request_that_nobody_has_begun_with_is_given_back_without_a_reply() {
    let mut machine = Machine::new();
    let tags: Vec<u16> = (0..THREADS as u16).collect();
    machine.script.hold(tags.iter().copied());
    let busy: Vec<_> = tags.iter().map(|&tag| machine.send(ECHO, tag, &[])).collect();
    machine.script.wait_inside(THREADS);
    let waiting = machine.send(ECHO, 100, &[]);
    let other = machine.send(ECHO, 101, &[]);
    machine.quiet();
    let flush = machine.flush(102, 100);
    assert_eq!(machine.reply(waiting), b"");
    assert_eq!(machine.reply(flush), flushed(102));
    // One after the other.
    for (tag, sent) in tags.iter().zip(busy) {
        machine.script.release(*tag);
        let mut both = [machine.wait().0, other.head];
        if *tag == 0 {
            both[1] = machine.wait().0;
            both.sort_unstable();
            assert_eq!(both, [sent.head, other.head]);
        } else {
            assert_eq!(both[0], sent.head);
        }
    }
    assert_eq!(machine.script.served(), THREADS + 1);
}

#[test]
fn a_flush_that_names_several_waits_for_all_and_not_for_later_ones() {
    let (mut machine, slow) = busy();
    let twin = machine.send(ECHO, 1, b"twin");
    machine.script.wait_inside(2);
    let flush = machine.flush(2, 1);
    machine.quiet();
    // One that has the same tag, but was sent after the flush; and a flush that names itself.
    machine.script.hold([2]);
    let itself = machine.flush(9, 9);
    assert_eq!(machine.reply(itself), flushed(9));
    machine.script.release(1);
    let mut heads = [(); 2].map(|()| machine.wait().0);
    heads.sort_unstable();
    assert_eq!(heads, [slow.head, twin.head]);
    assert_eq!(machine.reply(flush), flushed(2));
}

#[test]
fn a_flush_without_a_tag_is_refused() {
    let (mut machine, slow) = busy();
    let short = machine.send(TFLUSH, 2, &[1]);
    assert_eq!(machine.reply(short), rlerror(2, 22));
    // Its size does not cover the tag that is there.
    let mut lie = message(TFLUSH, 3, &1_u16.to_le_bytes());
    lie[0] = 8;
    let lie = machine.send_bytes(&lie, ROOM);
    assert_eq!(machine.reply(lie), rlerror(3, 22));
    machine.script.release(1);
    machine.reply(slow);
}
