//! Drivers that want to break the device: whatever they do, it answers, and works again after a reset.

use super::*;
use crate::bus::BusDevice;
use crate::random::Random;
use crate::virtio::setup::DRIVER_OK;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET;
use virtio_bindings::virtio_mmio::*;

/// A state of the device, reached from reset.
fn reach(machine: &mut Machine, state: u32) {
    match state {
        0 => machine.guest.reset(),
        1 => {
            machine.guest.reset();
            machine.guest.write(VIRTIO_MMIO_STATUS, 3);
        }
        2 => {
            machine.guest.reset();
            assert!(machine.guest.negotiate(feature::VERSION_1));
        }
        3 => {
            machine.guest.reset();
            assert!(machine.guest.negotiate(feature::VERSION_1));
            machine.guest.queue(0, 16);
        }
        4 => machine.start(feature::EVENT_IDX),
        5 => {
            machine.start(0);
            machine.controls.hold(true);
            machine.send(0, b"in flight");
            machine.controls.hold(false);
        }
        _ => {
            machine.start(0);
            machine.rings[0].offer(0xffff);
            machine.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            machine.guest.wait_status(NEEDS_RESET);
        }
    }
}

const STATES: std::ops::Range<u32> = 0..7;

#[test]
fn every_register_takes_every_value_in_every_state() {
    let mut machine = Machine::new();
    let mut random = Random(1);
    for state in STATES {
        for width in [1, 2, 4, 8_usize] {
            for offset in 0..MmioTransport::SIZE {
                // Misaligned offsets are all the same, so not all of them are tried.
                if !offset.is_multiple_of(4) && offset % 41 != 0 || offset + width as u64 > 0x200 {
                    continue;
                }
                // What is reached by the access before is a state as well: most accesses start from there.
                if offset % 64 == 0 {
                    reach(&mut machine, state);
                }
                for value in [0, 1, 16, 0x80, u64::MAX, random.next(), 1 << random.below(64)] {
                    let _ = machine.guest.transport.write(offset, &value.to_le_bytes()[..width]);
                    let mut data = [0xff; 8];
                    machine.guest.transport.read(offset, &mut data[..width]);
                }
                assert_eq!(machine.guest.read(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
            }
            machine.check_after_reset();
        }
    }
}

#[test]
fn random_registers_in_random_order() {
    let mut machine = Machine::new();
    let mut random = Random(2);
    for round in 0..300 {
        for _ in 0..200 {
            let offset = match random.below(8) {
                0 => 0x100 + random.below(0x100 - 8),
                1 => VIRTIO_MMIO_STATUS.into(),
                2 => VIRTIO_MMIO_QUEUE_READY.into(),
                _ => 4 * random.below(0x40),
            };
            let value = match random.below(4) {
                0 => random.next(),
                1 => random.below(16),
                // Addresses that are in RAM, so that some queues come to life.
                2 => 0x1000 * random.below(0x400),
                _ => [3, 0xb, 0xf, 1, 0x100, 0x1000][random.below(6) as usize],
            };
            let width = [4, 4, 4, 4, 1, 2, 8][random.below(7) as usize];
            let _ = machine.guest.transport.write(offset, &value.to_le_bytes()[..width]);
        }
        if round % 10 == 0 {
            machine.check_after_reset();
        }
    }
}

#[test]
fn rings_of_noise() {
    let mut machine = Machine::new();
    let mut random = Random(3);
    let mut broken = 0;
    for round in 0..400 {
        machine.start([0, feature::EVENT_IDX, feature::INDIRECT_DESC][round % 3]);
        let guest = &machine.guest;
        for ring in &mut machine.rings {
            for index in 0..16 {
                let near = 0x1000 * random.below(0x402);
                let address = [near, random.next(), 0x3f_fff0][random.below(8).min(2) as usize];
                let len = [64, random.next() as u32, 16][random.below(3) as usize];
                // Mostly flags that exist, mostly links within the table.
                let flags = random.next() as u16 & [7, 3, 0xffff][random.below(3) as usize];
                let next = random.next() as u16 & [15, 15, 31][random.below(3) as usize];
                ring.descriptor(index, address & !15, len, flags, next);
            }
            for _ in 0..=random.below(16) {
                ring.offer(random.below(17) as u16);
            }
            if random.below(8) == 0 {
                ring.available = random.next() as u16;
                ring.publish();
            }
            guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
        }
        // The device answers whatever it made of that.
        guest.settle();
        broken += u32::from(guest.status() & NEEDS_RESET != 0);
        if round % 10 == 0 {
            machine.check_after_reset();
        }
    }
    assert!(broken > 100, "only {broken} of the drivers were found out");
    machine.check_after_reset();
}

/// What each kind of broken ring does to a live device: it needs a reset, says so, and works again after it.
#[test]
fn a_broken_ring_needs_a_reset() {
    type Break = fn(&mut Ring);
    let cases: [(&str, Break); 6] = [
        ("head", |ring| ring.offer(16)),
        ("loop", |ring| {
            ring.descriptor(0, 0x1000, 1, 1, 0);
            ring.offer(0);
        }),
        ("outside", |ring| {
            ring.descriptor(0, 1 << 60, 1, 0, 0);
            ring.offer(0);
        }),
        ("indirect", |ring| {
            ring.descriptor(0, 0x1000, 16, 4, 0);
            ring.offer(0);
        }),
        ("duplicate", |ring| {
            ring.descriptor(0, 0x1000, 16, 2, 0);
            ring.offer(0);
            ring.offer(0);
        }),
        ("jump", |ring| {
            ring.available = ring.available.wrapping_add(17);
            ring.publish();
        }),
    ];
    let mut machine = Machine::new();
    for (what, break_it) in cases {
        for features in [0, feature::EVENT_IDX] {
            machine.start(features);
            machine.check(0, b"good so far");
            machine.controls.hold(true);
            break_it(&mut machine.rings[0]);
            machine.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            machine.guest.wait_status(NEEDS_RESET | DRIVER_OK);
            eventually(what, || {
                machine.guest.read(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG != 0
            });
            machine.controls.hold(false);
            // No more of this guest's memory is touched, on any queue.
            machine.rings[0].used();
            machine.send(1, b"anybody?");
            machine.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
            machine.guest.settle();
            assert_eq!(machine.rings[1].used(), None, "{what}");
            machine.check_after_reset();
        }
    }
}

/// Rings that lie over each other, or over the buffers: only the guest's own memory suffers.
#[test]
fn rings_over_each_other() {
    let mut machine = Machine::new();
    for (descriptors, driver, device) in [
        (0x1000, 0x1000, 0x1000),
        (0x1000, 0x1010, 0x1020),
        (0x1000, 0x2000, 0x1000),
        (0x1000, 0x2000, 0x2000),
    ] {
        machine.guest.reset();
        assert!(machine.guest.negotiate(feature::VERSION_1));
        let layout = Layout { size: 16, descriptors, driver, device };
        for queue in [0, 1] {
            machine.guest.lay_out(queue, layout);
        }
        machine.guest.driver_ok();
        let mut ring = Ring::new(machine.guest.memory.clone(), 0, layout);
        for n in 0..16 {
            ring.request(&[Buffer::Out(0x1000, 64), Buffer::In(0x1000 + 16 * n, 64)]);
            machine.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            machine.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
        }
        machine.guest.settle();
    }
    machine.check_after_reset();
}

#[test]
fn registers_are_hammered_while_the_device_works() {
    let mut machine = Machine::new();
    let stop = Arc::new(AtomicU32::new(0));
    let transport = machine.guest.transport.clone();
    let hammer = |seed: u64, resets: bool| {
        let (transport, stop) = (transport.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut random = Random(seed);
            let mut count = 0_u64;
            while stop.load(Ordering::Relaxed) == 0 {
                let offset = random.below(0x1f8);
                let value = random.next().to_le_bytes();
                let width = 1 << random.below(4);
                // QueueReady, the device status, the interrupt status, and the word to which the device answers with
                // an error: beside anything else a driver can get its work done.
                let disturbs = matches!(offset, 0x44 | 0x5d..=0x73 | 0xfd..=0x107);
                if resets || !disturbs {
                    let _ = transport.write(offset, &value[..width]);
                }
                let mut data = [0xff; 8];
                transport.read(offset, &mut data[..width]);
                count += 1;
            }
            count
        })
    };
    machine.start(0);
    let threads = [hammer(1, false), hammer(2, false)];
    for n in 0..2000_u32 {
        machine.check(0, &n.to_le_bytes());
    }
    stop.store(1, Ordering::Relaxed);
    assert!(threads.into_iter().all(|thread| thread.join().unwrap() > 0));

    stop.store(0, Ordering::Relaxed);
    let threads = [hammer(3, true), hammer(4, true)];
    let end = Instant::now() + Duration::from_millis(500);
    while Instant::now() < end {
        for ring in &mut machine.rings {
            ring.request(&[Buffer::Out(0x10_0000, 64), Buffer::In(0x10_1000, 64)]);
        }
        machine.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }
    stop.store(1, Ordering::Relaxed);
    assert!(threads.into_iter().all(|thread| thread.join().unwrap() > 0));
    machine.check_after_reset();
}
