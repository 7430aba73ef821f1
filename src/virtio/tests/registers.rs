//! The registers, used by a driver that follows the specification, and one that gets the order wrong.

use super::*;
use crate::bus::BusDevice;
use crate::virtio::setup::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET;
use virtio_bindings::virtio_mmio::*;

#[test]
fn a_device_tells_what_it_is() {
    let Machine { guest, .. } = Machine::new();
    assert_eq!(guest.read(VIRTIO_MMIO_MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
    assert_eq!(guest.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(guest.read(VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(guest.offered(), LOOPBACK_FEATURE | 1 << 28 | 1 << 29 | 1 << 32);
    for select in [2, 3, u32::MAX] {
        guest.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
        assert_eq!(guest.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    }
    for (select, size) in [(0, 256), (1, 16), (2, 0), (0xffff, 0), (0x1_0000, 0), (u32::MAX, 0)] {
        guest.write(VIRTIO_MMIO_QUEUE_SEL, select);
        assert_eq!(guest.read(VIRTIO_MMIO_QUEUE_NUM_MAX), size, "queue {select}");
        assert_eq!(guest.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
    assert_eq!(guest.transport.queue_count(), 2);
    assert!(guest.transport.doorbell(1).is_some() && guest.transport.doorbell(2).is_none());
    for register in (VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH).step_by(4) {
        assert_eq!(guest.read(register), u32::MAX, "{register:#x}");
    }
    // §4.2.2: registers that are only written, and gaps.
    for register in [0x14, 0x18, 0x20, 0x24, 0x30, 0x38, 0x50, 0x64, 0x80, 0x94, 0xac, 0xf8] {
        assert_eq!(guest.read(register), 0, "{register:#x}");
    }
}

#[test]
fn features_are_refused_if_they_were_not_offered_or_version_1_is_missing() {
    let mut machine = Machine::new();
    for features in [
        0,
        LOOPBACK_FEATURE,
        feature::EVENT_IDX,
        feature::VERSION_1 | 1,
        feature::VERSION_1 | 1 << 40,
        feature::VERSION_1 | 1 << 33,
        u64::MAX,
    ] {
        machine.guest.reset();
        assert!(!machine.guest.negotiate(features), "{features:#x}");
        machine.guest.driver_ok();
        assert_eq!(machine.guest.status(), ACKNOWLEDGE | DRIVER, "{features:#x}");
    }
    machine.check_after_reset();
    machine.guest.reset();
    // A driver may ask again with less.
    assert!(!machine.guest.negotiate(u64::MAX));
    assert!(machine.guest.negotiate(feature::VERSION_1 | LOOPBACK_FEATURE));
}

#[test]
fn status_bits_come_in_order_and_only_a_reset_takes_them() {
    let Machine { guest, .. } = Machine::new();
    let set = |bits| {
        guest.write(VIRTIO_MMIO_STATUS, bits);
        guest.status()
    };
    for early in [DRIVER, FEATURES_OK, DRIVER_OK, DRIVER | FEATURES_OK | DRIVER_OK] {
        assert_eq!(set(early), 0, "{early:#x}");
    }
    assert_eq!(set(0xffff_ff00), 0);
    assert_eq!(set(ACKNOWLEDGE), ACKNOWLEDGE);
    assert_eq!(set(ACKNOWLEDGE | FEATURES_OK), ACKNOWLEDGE);
    assert_eq!(set(ACKNOWLEDGE | DRIVER), ACKNOWLEDGE | DRIVER);
    assert_eq!(set(ACKNOWLEDGE), ACKNOWLEDGE | DRIVER, "a bit cannot be taken away");
    assert_eq!(set(NEEDS_RESET), ACKNOWLEDGE | DRIVER, "nor is this one the driver's");
    guest.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    guest.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
    let all = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    assert_eq!(set(all), all);
    assert_eq!(set(all | FAILED), all | FAILED);
    assert_eq!(set(all | FAILED | DRIVER_OK), all | FAILED, "a driver that gave up is gone");
    assert_eq!(set(0), 0);
}

#[test]
fn features_do_not_change_once_agreed() {
    let mut machine = Machine::new();
    let guest = &mut machine.guest;
    assert!(guest.negotiate(feature::VERSION_1));
    for select in [0, 1] {
        guest.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
        guest.write(VIRTIO_MMIO_DRIVER_FEATURES, u32::MAX);
    }
    machine.rings = vec![machine.guest.queue(0, 16), machine.guest.queue(1, 16)];
    machine.guest.driver_ok();
    machine.buffer = machine.guest.alloc(0x1000);
    // Were EVENT_IDX on now, the device would not look at this flag.
    machine.rings[0].set_no_interrupt(true);
    machine.check_without_interrupt();
}

impl Machine {
    fn check_without_interrupt(&mut self) {
        let edges = self.guest.line.edges();
        self.send(0, b"quiet");
        eventually("no answer", || self.rings_used(0));
        // The turn that it came from is over, interrupts included.
        self.guest.settle();
        assert_eq!(self.guest.line.edges(), edges);
    }

    fn rings_used(&self, index: usize) -> bool {
        let used = self.rings[index].layout().device + 2;
        let published: u16 = self.guest.memory.load(GuestAddress(used), Ordering::SeqCst).unwrap();
        published != self.rings[index].seen
    }
}

#[test]
fn queues_are_laid_out_between_features_ok_and_driver_ok() {
    let mut machine = Machine::new();
    let guest = &machine.guest;
    let layout = Layout { size: 16, descriptors: 0x1000, driver: 0x2000, device: 0x3000 };
    let ready = |guest: &Guest| {
        guest.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        guest.read(VIRTIO_MMIO_QUEUE_READY)
    };
    guest.lay_out(0, layout);
    assert_eq!(ready(guest), 0, "before ACKNOWLEDGE");
    assert!(guest.negotiate(feature::VERSION_1));
    assert_eq!(ready(guest), 0);
    guest.lay_out(0, layout);
    assert_eq!(ready(guest), 1);
    guest.lay_out(2, layout);
    // It can be taken back, and laid out anew.
    guest.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    guest.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(ready(guest), 0);
    machine.check_after_reset();
    assert_eq!(ready(&machine.guest), 1);
}

/// §4.2.2.2: a driver stops using a queue with a zero in QueueReady, and reads it back to be sure.
#[test]
fn a_live_queue_can_be_given_up() {
    for paused in [false, true] {
        let mut machine = Machine::started();
        machine.controls.hold(true);
        machine.send(0, b"in flight");
        eventually("not taken", || machine.controls.held.load(Ordering::SeqCst) == 1);
        machine.controls.hold(false);
        if paused {
            machine.guest.transport.pause();
        }
        machine.guest.write(VIRTIO_MMIO_QUEUE_SEL, 0);
        machine.guest.write(VIRTIO_MMIO_QUEUE_READY, 0);
        assert_eq!(machine.guest.read(VIRTIO_MMIO_QUEUE_READY), 0);
        assert!(machine.rings[0].used().is_some(), "what was in flight is finished");
        machine.guest.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(machine.guest.read(VIRTIO_MMIO_QUEUE_READY), 0, "it does not come back");
        machine.guest.transport.resume();
        machine.send(0, b"nobody there");
        machine.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        machine.check(1, b"but here");
        assert_eq!(machine.rings[0].used(), None);
        assert_eq!(machine.guest.status() & NEEDS_RESET, 0);
        machine.check_after_reset();
    }
}

#[test]
fn a_queue_can_be_given_up_before_the_device_has_it() {
    let mut machine = Machine::new();
    machine.guest.transport.pause();
    machine.start(0);
    machine.send(0, b"nobody there");
    machine.guest.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    machine.guest.write(VIRTIO_MMIO_QUEUE_READY, 0);
    machine.guest.transport.resume();
    machine.check(1, b"but here");
    assert_eq!(machine.rings[0].used(), None);
    machine.check_after_reset();
}

/// CVE-2026-5747's class: what is written after DRIVER_OK reaches nothing.
#[test]
fn a_live_queue_cannot_be_moved_or_resized() {
    let mut machine = Machine::started();
    for round in 0..20 {
        for size in [0, 1, 3, 64, 256, 32768, 65535, u32::MAX] {
            let elsewhere = 0x38_0000 + 0x1000 * round;
            let layout =
                Layout { size, descriptors: elsewhere, driver: elsewhere, device: elsewhere };
            for queue in 0..3 {
                machine.guest.lay_out(queue, layout);
            }
            machine.check(0, b"to the old place");
            machine.check(1, b"as before");
        }
        let mut bytes = [0; 0x1000];
        let at = GuestAddress(0x38_0000 + 0x1000 * round);
        machine.guest.memory.read_slice(&mut bytes, at).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0), "the device wrote to the new place");
    }
    assert_eq!(machine.guest.status() & NEEDS_RESET, 0);
}

#[test]
fn driver_ok_with_impossible_queues_needs_a_reset() {
    let end = RAM[0].1 as u64;
    let good = Layout { size: 16, descriptors: 0x1000, driver: 0x2000, device: 0x3000 };
    for (what, bad) in [
        ("size 0", Layout { size: 0, ..good }),
        ("size 3", Layout { size: 3, ..good }),
        ("size 32", Layout { size: 32, ..good }),
        ("size 65535", Layout { size: 65535, ..good }),
        ("size 2^16 + 16", Layout { size: 0x1_0010, ..good }),
        ("no address", Layout { size: 16, ..Layout::default() }),
        ("beyond RAM", Layout { descriptors: end, ..good }),
        ("across the end", Layout { device: end - 8, ..good }),
        ("in the hole", Layout { driver: 8 << 20, ..good }),
        ("wrapping", Layout { descriptors: u64::MAX - 15, ..good }),
        ("misaligned", Layout { descriptors: 0x1008, ..good }),
    ] {
        let mut machine = Machine::new();
        assert!(machine.guest.negotiate(feature::VERSION_1));
        machine.guest.queue(0, 16);
        machine.guest.lay_out(1, bad);
        let edges = machine.guest.line.edges();
        machine.guest.driver_ok();
        let guest = &machine.guest;
        assert_ne!(guest.status() & NEEDS_RESET, 0, "{what}");
        // §2.1.2: after DRIVER_OK the driver is told.
        assert_eq!(guest.line.edges(), edges + 1, "{what}");
        assert_eq!(guest.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG, "{what}");
        guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        guest.write(VIRTIO_MMIO_STATUS, guest.status());
        assert_ne!(guest.status() & NEEDS_RESET, 0, "{what}");
        machine.check_after_reset();
        assert_eq!(machine.controls.noted("activate"), 1, "{what}");
    }
}

#[test]
fn a_driver_may_leave_queues_out() {
    let mut machine = Machine::new();
    assert!(machine.guest.negotiate(feature::VERSION_1));
    machine.guest.queue(0, 4);
    machine.rings = vec![machine.guest.queue(0, 16)];
    machine.guest.queue(1, 16);
    machine.guest.write(VIRTIO_MMIO_QUEUE_READY, 0);
    machine.guest.driver_ok();
    machine.buffer = machine.guest.alloc(0x1000);
    machine.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    machine.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 2);
    machine.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
    // Queue 0 was ready already when it was laid out the second time: it is where it was first.
    machine.rings[0] = Ring::new(
        machine.guest.memory.clone(),
        0,
        Layout { size: 4, descriptors: 0x1_0000, driver: 0x1_1000, device: 0x1_2000 },
    );
    machine.check(0, b"only one");
}

#[test]
fn the_interrupt_status_holds_what_was_not_acknowledged() {
    let mut machine = Machine::started();
    machine.send(0, b"hello");
    let guest = &machine.guest;
    assert!(guest.line.wait(0, PATIENCE));
    let pending = || guest.read(VIRTIO_MMIO_INTERRUPT_STATUS);
    assert_eq!(pending(), VIRTIO_MMIO_INT_VRING);
    guest.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(pending(), VIRTIO_MMIO_INT_VRING);
    guest.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(pending(), 0);
    machine.send(0, b"again");
    assert!(machine.guest.line.wait(1, PATIENCE));
    machine.guest.reset();
    assert_eq!(machine.guest.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn the_configuration_space_is_read_in_every_width() {
    let mut machine = Machine::new();
    let read = |guest: &Guest, at: u64, len: usize| {
        let mut data = [0xff; 8];
        guest.transport.read(0x100 + at, &mut data[..len]);
        data[..len].to_vec()
    };
    let guest = &machine.guest;
    assert_eq!(read(guest, 0, 1), [1]);
    assert_eq!(read(guest, 1, 2), [2, 3]);
    assert_eq!(read(guest, 0, 4), [1, 2, 3, 4]);
    assert_eq!(read(guest, 0, 8), *b"\x01\x02\x03\x04....");
    assert_eq!(read(guest, 6, 4), *b"..\0\0");
    assert_eq!(read(guest, 0xfc, 4), [0; 4]);

    // Not writable, so the device does not hear of it.
    let _ = guest.transport.write(0x100, &[9; 4]);
    assert_eq!(read(guest, 0, 4), [1, 2, 3, 4]);
    machine.start(0);
    let (edges, generation) =
        (machine.guest.line.edges(), machine.guest.read(VIRTIO_MMIO_CONFIG_GENERATION));
    let _ = machine.guest.transport.write(0x100, &[7; 8]);
    assert!(machine.guest.line.wait(edges, PATIENCE), "no configuration change notification");
    assert_eq!(machine.guest.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(read(&machine.guest, 0, 8), *b"\x07\x02\x03\x04\x07\x07..");
    assert_ne!(machine.guest.read(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(machine.controls.noted("config"), 1);
}

/// §2.5.1: what a driver reads between two equal generations is of one piece.
#[test]
fn the_generation_tells_a_torn_read() {
    let config = Arc::new(ConfigSpace::new([0; 16]));
    let stop = Arc::new(AtomicU32::new(0));
    let device = std::thread::spawn({
        let (config, stop) = (config.clone(), stop.clone());
        move || {
            let mut value = 0_u8;
            while stop.load(Ordering::SeqCst) == 0 {
                value = value.wrapping_add(1);
                config.set(0, &[value; 16]);
            }
        }
    });
    let mut whole = 0;
    let end = Instant::now() + PATIENCE;
    while whole < 1000 && Instant::now() < end {
        let before = config.generation();
        let (mut low, mut high) = ([0; 8], [0; 8]);
        config.read(0, &mut low);
        config.read(8, &mut high);
        if config.generation() == before {
            assert_eq!(low, high);
            whole += 1;
        }
    }
    stop.store(1, Ordering::SeqCst);
    device.join().unwrap();
    assert_eq!(whole, 1000);
}
