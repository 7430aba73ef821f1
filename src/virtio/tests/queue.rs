//! [`Queue`]: what it takes from drivers, and what it refuses.

use super::*;
use crate::virtio::queue::Settled;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

const LAYOUT: Layout = Layout { size: 16, descriptors: 0x1000, driver: 0x2000, device: 0x3000 };
const TABLE: u64 = 0x10_0000;
const BUFFER: u64 = 0x20_0000;

fn make(layout: Layout, features: u64) -> Result<Queue, QueueError> {
    Queue::new(layout, 64, features, Arc::new(memory()))
}

/// Both ends of a queue of 16 whose device offered 64.
fn pair(features: u64) -> (Ring, Queue) {
    let memory = memory();
    let queue = Queue::new(LAYOUT, 64, features, Arc::new(memory.clone())).unwrap();
    let mut ring = Ring::new(memory, 0, LAYOUT);
    ring.event_idx = features & feature::EVENT_IDX != 0;
    (ring, queue)
}

fn pop(queue: &mut Queue) -> Chain {
    queue.pop().unwrap().expect("nothing to pop")
}

fn one(ring: &mut Ring) -> u16 {
    ring.request(&[Buffer::In(BUFFER, 8)])
}

#[test]
fn sizes_are_powers_of_two_up_to_the_largest() {
    for size in [1, 2, 16, 64] {
        assert_eq!(make(Layout { size, ..LAYOUT }, 0).unwrap().size(), size as u16);
    }
    for size in [0, 3, 15, 128, 32768, 65535, 65536, 0x1_0010, u32::MAX] {
        let error = make(Layout { size, ..LAYOUT }, 0).err().unwrap();
        assert!(matches!(error, QueueError::Size { max: 64, .. }), "{size}: {error}");
    }
}

#[test]
fn every_part_must_be_aligned_and_wholly_in_ram() {
    let end = RAM[0].1 as u64;
    let (hole, top) = (8 << 20, RAM[1].0 + RAM[1].1 as u64);
    for (align, len, set) in [
        (16, 256, (|l, a| l.descriptors = a) as fn(&mut Layout, u64)),
        (2, 6 + 32, |l, a| l.driver = a),
        (4, 6 + 128, |l, a| l.device = a),
    ] {
        let attempt = |at: u64| {
            let mut layout = LAYOUT;
            set(&mut layout, at);
            make(layout, 0).err()
        };
        assert!(matches!(attempt(0), Some(QueueError::NoAddress { .. })));
        for off in 1..align {
            let error = attempt(0x8000 + off);
            assert!(matches!(error, Some(QueueError::Misaligned { .. })), "{off}: {error:?}");
        }
        for end in [end, top] {
            let last = (end - len) & !(align - 1);
            assert!(attempt(last).is_none(), "{last:#x}");
            let error = attempt(last + align);
            assert!(matches!(error, Some(QueueError::RingOutsideRam { .. })), "{error:?}");
        }
        let wrap = u64::MAX - (align - 1);
        for at in [end, hole, RAM[1].0 - align, top, 1 << 40, 1 << 63, wrap, wrap - 0x10] {
            let error = attempt(at & !(align - 1));
            assert!(matches!(error, Some(QueueError::RingOutsideRam { .. })), "{at:#x}: {error:?}");
        }
    }
}

#[test]
fn chains_come_in_order_and_return_in_any() {
    for features in [0, feature::EVENT_IDX] {
        let (mut ring, mut queue) = pair(features);
        // Several times around the ring, and past the end of the 16-bit indices.
        for round in 0..5000_u32 {
            let heads: Vec<u16> = (0..16).map(|_| one(&mut ring)).collect();
            let mut chains: Vec<Chain> = heads.iter().map(|_| pop(&mut queue)).collect();
            assert!(chains.iter().map(Chain::head).eq(heads.iter().copied()));
            chains.rotate_left(round as usize % 16);
            let order: Vec<u16> = chains.iter().map(Chain::head).collect();
            for (n, chain) in chains.into_iter().enumerate() {
                queue.push(chain, n as u32).unwrap();
            }
            for (n, head) in order.into_iter().enumerate() {
                // Never more than there was room for.
                assert_eq!(ring.used(), Some((head, (n as u32).min(8))));
            }
            assert_eq!(ring.used(), None);
            queue.settle();
        }
    }
}

#[test]
fn a_chain_that_is_put_back_comes_again() {
    let (mut ring, mut queue) = pair(0);
    let heads = [one(&mut ring), one(&mut ring), one(&mut ring)];
    let [first, second] = [pop(&mut queue), pop(&mut queue)];
    queue.put_back(second).unwrap();
    queue.put_back(first).unwrap();
    for head in heads {
        let chain = pop(&mut queue);
        assert_eq!(chain.head(), head);
        queue.push(chain, 0).unwrap();
    }
    assert!(queue.pop().unwrap().is_none());
}

#[test]
fn a_turn_is_as_long_as_the_queue_and_says_when_it_was_cut() {
    let (mut ring, mut queue) = pair(0);
    for _ in 0..16 {
        one(&mut ring);
    }
    for _ in 0..16 {
        let chain = pop(&mut queue);
        queue.push(chain, 0).unwrap();
        // A driver that is as quick as the device.
        one(&mut ring);
    }
    assert!(queue.pop().unwrap().is_none());
    assert_eq!(queue.settle(), Settled { interrupt: true, again: true });
    let _kept = pop(&mut queue);
    assert_eq!(queue.settle(), Settled::default());
}

#[test]
fn an_empty_queue_wants_a_kick_and_one_that_is_worked_does_not() {
    for features in [0, feature::EVENT_IDX] {
        let (mut ring, mut queue) = pair(features);
        for _ in 0..100 {
            assert!(queue.pop().unwrap().is_none());
            one(&mut ring);
            assert!(ring.wants_kick());
            let chain = pop(&mut queue);
            one(&mut ring);
            assert!(!ring.wants_kick());
            queue.push(chain, 0).unwrap();
            let chain = pop(&mut queue);
            queue.push(chain, 0).unwrap();
            queue.settle();
        }
    }
}

#[test]
fn a_turn_sends_one_interrupt_if_the_driver_wants_it() {
    let (mut ring, mut queue) = pair(0);
    let mut turn = |ring: &mut Ring, count| {
        for _ in 0..count {
            one(ring);
            let chain = pop(&mut queue);
            queue.push(chain, 0).unwrap();
        }
        queue.settle().interrupt
    };
    assert!(!turn(&mut ring, 0));
    assert!(turn(&mut ring, 10));
    assert!(!turn(&mut ring, 0));
    ring.set_no_interrupt(true);
    assert!(!turn(&mut ring, 3));
    ring.set_no_interrupt(false);
    assert!(turn(&mut ring, 3));
}

#[test]
fn with_event_idx_the_driver_names_the_chain_that_interrupts() {
    let (mut ring, mut queue) = pair(feature::EVENT_IDX);
    let mut turn = |ring: &mut Ring, count: u32| {
        for _ in 0..count {
            one(ring);
            let chain = pop(&mut queue);
            queue.push(chain, 0).unwrap();
            ring.used().unwrap();
        }
        queue.settle().interrupt
    };
    for _ in 0..20_000 {
        ring.want_interrupt();
        assert!(turn(&mut ring, 3), "the one it waits for was among them");
        assert!(!turn(&mut ring, 5), "it has not asked again");
    }
}

#[test]
fn what_is_in_flight_cannot_be_made_available_again() {
    let (mut ring, mut queue) = pair(0);
    let head = one(&mut ring);
    let chain = pop(&mut queue);
    ring.offer(head);
    assert!(matches!(queue.pop(), Err(QueueError::InFlight { head: 0 })));

    let (_, mut other) = pair(0);
    assert!(matches!(other.push(chain, 0), Err(QueueError::NotInFlight { head: 0 })));
}

#[test]
fn the_available_index_cannot_jump() {
    for features in [0, feature::EVENT_IDX] {
        for ahead in [17, 1000, 0x8000, u16::MAX] {
            let (mut ring, mut queue) = pair(features);
            ring.available = ahead;
            ring.publish();
            assert!(matches!(queue.pop(), Err(QueueError::AvailableIndex { size: 16 })));
        }
    }
}

/// What the queue says of a chain with these descriptors (address, length, flags, next) in its table, and those in
/// an indirect table at [`TABLE`].
fn verdict(
    features: u64,
    descriptors: &[(u64, u32, u16, u16)],
    indirect: &[(u64, u32, u16, u16)],
) -> Result<(u32, u32), QueueError> {
    let (mut ring, mut queue) = pair(features);
    for (n, &(address, len, flags, next)) in descriptors.iter().enumerate() {
        ring.descriptor(n as u16, address, len, flags, next);
    }
    for (n, &(address, len, flags, next)) in indirect.iter().enumerate() {
        ring.write_descriptor(TABLE, n as u16, address, len, flags, next);
    }
    ring.offer(0);
    queue.pop().map(|chain| {
        let chain = chain.expect("nothing to pop");
        (chain.readable_len(), chain.writable_len())
    })
}

#[test]
fn a_head_or_next_must_be_in_its_table() {
    for head in [16, 17, 64, u16::MAX] {
        let (mut ring, mut queue) = pair(0);
        ring.offer(head);
        assert!(matches!(queue.pop(), Err(QueueError::Index { size: 16, .. })), "{head}");
    }
    for next in [16, 17, u16::MAX] {
        let error = verdict(0, &[(BUFFER, 4, NEXT, next)], &[]);
        assert!(matches!(error, Err(QueueError::Index { size: 16, .. })), "{next}");
    }
    let table = (TABLE, 32, INDIRECT, 0);
    let error = verdict(feature::INDIRECT_DESC, &[table], &[(BUFFER, 4, NEXT, 2); 2]);
    assert!(matches!(error, Err(QueueError::Index { index: 2, size: 2 })));
}

#[test]
fn a_loop_ends() {
    let all = feature::INDIRECT_DESC;
    let itself = [(BUFFER, 4, NEXT, 0)];
    let each_other = [(BUFFER, 4, NEXT | WRITE, 1), (BUFFER, 4, NEXT | WRITE, 0)];
    let empty = [(BUFFER, 0, NEXT, 1), (0, 0, NEXT | WRITE, 0)];
    for chain in [&itself[..], &each_other, &empty] {
        let direct = verdict(0, chain, &[]);
        assert!(matches!(direct, Err(QueueError::TooManyDescriptors { max: 64, .. })));
        let indirect = verdict(all, &[(TABLE, 32, INDIRECT, 0)], chain);
        assert!(matches!(indirect, Err(QueueError::TooManyDescriptors { max: 64, .. })));
    }
}

#[test]
fn indirect_tables_are_as_the_specification_wants_them() {
    let all = feature::INDIRECT_DESC;
    let leaf = [(BUFFER, 4, NEXT, 1), (BUFFER, 8, WRITE, 0)];
    let table = |len| (TABLE, len, INDIRECT, 0);
    assert_eq!(verdict(all, &[table(32)], &leaf).unwrap(), (4, 8));
    // §2.7.5.3.2: the device ignores the write flag of the descriptor that refers to the table.
    assert_eq!(verdict(all, &[(TABLE, 32, INDIRECT | WRITE, 0)], &leaf).unwrap(), (4, 8));
    // The same: ordinary descriptors may come first.
    assert_eq!(verdict(all, &[(BUFFER, 2, NEXT, 1), table(32)], &leaf).unwrap(), (6, 8));
    // The table need not be aligned.
    let odd = (TABLE - 16 + 1, 32, INDIRECT, 0);
    assert!(verdict(all, &[odd], &[]).is_ok());

    let refused = |result| matches!(result, Err(QueueError::Indirect { .. }));
    assert!(refused(verdict(0, &[table(32)], &leaf)), "not negotiated");
    assert!(refused(verdict(all, &[(TABLE, 32, INDIRECT | NEXT, 1)], &leaf)), "with next");
    assert!(refused(verdict(all, &[table(32)], &[table(32)])), "in itself");
    for len in [0, 1, 15, 17, u32::MAX, u32::MAX - 15] {
        assert!(refused(verdict(all, &[table(len)], &leaf)), "length {len}");
    }
    for at in [RAM[0].1 as u64 - 16, 8 << 20, u64::MAX, u64::MAX - 15, 1 << 63] {
        assert!(refused(verdict(all, &[(at, 32, INDIRECT, 0)], &leaf)), "at {at:#x}");
    }
}

#[test]
fn a_chain_is_at_most_as_long_as_the_queue_may_be() {
    let chain = |len: u16| -> Vec<_> {
        (1..=len).map(|n| (BUFFER, 1, if n < len { NEXT } else { 0 }, n)).collect()
    };
    let table = |len: u32| (TABLE, 16 * len, INDIRECT, 0);
    let all = feature::INDIRECT_DESC;
    assert_eq!(verdict(0, &chain(16), &[]).unwrap(), (16, 0));
    assert_eq!(verdict(all, &[table(64)], &chain(64)).unwrap(), (64, 0));
    let error = verdict(all, &[table(65)], &chain(65));
    assert!(matches!(error, Err(QueueError::TooManyDescriptors { max: 64, .. })));
    // The table may be longer than the chain in it.
    assert_eq!(verdict(all, &[table(65535)], &chain(3)).unwrap(), (3, 0));
}

#[test]
fn buffers_lie_in_ram_and_are_in_order() {
    let end = RAM[0].1 as u64;
    for (at, len) in [
        (end - 3, 4),
        (end, 1),
        (8 << 20, 1),
        (RAM[1].0 - 1, 2),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 3, 8),
        (1 << 63, 16),
        (0, u32::MAX),
    ] {
        for flags in [0, WRITE] {
            let error = verdict(0, &[(at, len, flags, 0)], &[]);
            assert!(
                matches!(error, Err(QueueError::BufferOutsideRam { .. })),
                "{at:#x} {len}: {error:?}"
            );
        }
    }
    assert_eq!(verdict(0, &[(end - 4, 4, 0, 0)], &[]).unwrap(), (4, 0));
    // No byte of an empty buffer is outside.
    assert_eq!(verdict(0, &[(u64::MAX, 0, 0, 0)], &[]).unwrap(), (0, 0));

    let wrong = [(BUFFER, 1, NEXT | WRITE, 1), (BUFFER, 1, 0, 0)];
    assert!(matches!(verdict(0, &wrong, &[]), Err(QueueError::Order { head: 0 })));
}

#[test]
fn a_chain_is_at_most_four_gigabytes() {
    // More than there is RAM for, so most of it is the same memory again and again.
    let len = 4 << 20;
    let chain: Vec<_> = (1..=1025_u16).map(|n| (0, len, NEXT, n)).collect();
    let memory = memory();
    let layout = Layout { size: 2048, descriptors: TABLE, driver: 0x2000, device: 0x8000 };
    let mut queue = Queue::new(layout, 2048, 0, Arc::new(memory.clone())).unwrap();
    let mut ring = Ring::new(memory, 0, layout);
    for (n, &(address, len, flags, next)) in chain.iter().enumerate() {
        // Its own table is where the buffers are, which is fine as nothing is written.
        ring.descriptor(n as u16, address, len, flags, next);
    }
    ring.offer(0);
    assert!(matches!(queue.pop(), Err(QueueError::TooManyBytes { head: 0 })));
}
