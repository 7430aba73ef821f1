//! Drivers that want to break the disk: whatever they do, it answers, and works again after a reset.

use super::*;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;

#[test]
fn a_request_without_a_whole_header_needs_a_reset() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    for len in [0, 1, 4, 15] {
        for out in [&[][..], &[1], &[0, 3, 0, 4]] {
            for indirect in [false, true] {
                machine.start(feature::INDIRECT_DESC);
                let shape = Shape { out, back: &[], indirect };
                let header = request(VIRTIO_BLK_T_IN, 0, &[]);
                machine.send(0, shape, &header[..len], 513);
                machine.guest.wait_status(NEEDS_RESET);
                assert_eq!(machine.rings[0].used(), None);
            }
        }
    }
    assert_eq!(probe.calls(), []);
    machine.check_after_reset();
}

#[test]
fn a_request_without_room_for_a_status_needs_a_reset() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, 77] {
        machine.start(0);
        machine.send(0, USUAL, &request(kind, 0, &[3; 512]), 0);
        machine.guest.wait_status(NEEDS_RESET);
        assert_eq!(machine.rings[0].used(), None);
        // An empty buffer is no room either.
        machine.start(0);
        let (at, ring) = (machine.space, &mut machine.rings[0]);
        ring.request(&[Buffer::Out(at, 16), Buffer::In(at + 0x1000, 0)]);
        machine.guest.kick(ring);
        machine.guest.wait_status(NEEDS_RESET);
    }
    assert_eq!(probe.calls(), []);
    machine.check_after_reset();
}

/// CVE-2026-45782: the head of a request that is under way, made available again. The storage has the buffers until
/// it lets go of them; only then is the guest told that they are its own, and nothing is completed twice.
#[test]
fn a_head_that_is_in_flight_already_needs_a_reset() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    let data = pattern(1, 512);
    assert_eq!(machine.write(0, &data), OK);
    for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH] {
        for others in [0, 3] {
            machine.start(0);
            probe.hold(true);
            let write = kind == VIRTIO_BLK_T_OUT;
            let out = request(kind, 0, if write { &data } else { &[] });
            let first = machine.send(0, USUAL, &out, 513);
            probe.wait_inside(1);
            for n in 0..others {
                machine.send(0, USUAL, &request(VIRTIO_BLK_T_IN, n + 1, &[]), 513);
            }
            machine.rings[0].offer(first.head);
            machine.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            // The device is not done with the guest's memory before the storage is.
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(machine.guest.status() & NEEDS_RESET, 0);
            probe.hold(false);
            machine.guest.wait_status(NEEDS_RESET);
            assert_eq!(machine.rings[0].used(), None, "nothing is given back");
            machine.clear();
            machine.check_after_reset();
            assert_eq!(machine.write(0, &data), OK);
        }
    }
}

/// Chains of noise: types, sectors, lengths and cuts without sense, some of them right by chance.
#[test]
fn requests_of_noise() {
    for blocks in [false, true] {
        let properties = Properties { discard: true, ..Default::default() };
        let probe = Probe::with(SECTORS, blocks, properties);
        let mut machine = Machine::new(probe.disk());
        let mut random = Random(21);
        let (mut answered, mut broken) = (0, 0);
        for _ in 0..1500 {
            let kind = [0, 1, 4, 8, 11, 13, random.next() as u32][random.below(7) as usize];
            let near = random.below(SECTORS + 8);
            let sector = [near, near, random.next(), u64::MAX - near][random.below(4) as usize];
            let list = extent(sector, random.below(64) as u32, random.below(3) as u32 / 2);
            let len = [512, 1024, 0, random.below(3000) as usize][random.below(4) as usize];
            let data = [list, pattern(1, len)][random.below(2) as usize].clone();
            let mut out = request(kind, sector, &data);
            if random.below(30) == 0 {
                out.truncate(random.below(16) as usize);
            }
            let room = [1, 513, 1025, random.below(3000) as usize][random.below(4) as usize];
            let cuts: Vec<_> = (0..6).map(|_| random.below(700) as usize).collect();
            let shape =
                Shape { out: &cuts[..3], back: &cuts[3..], indirect: near.is_multiple_of(2) };
            machine.clear();
            let sent = machine.send(0, shape, &out, room);
            let end = Instant::now() + PATIENCE;
            let used = loop {
                if let Some(used) = machine.rings[0].used() {
                    break Some(used);
                }
                if machine.guest.status() & NEEDS_RESET != 0 {
                    break None;
                }
                assert!(Instant::now() < end);
                std::thread::yield_now();
            };
            match used {
                Some((_, used)) => {
                    let answer = machine.look(&sent, used);
                    assert!(answer.status <= UNSUPP, "{}", answer.status);
                    assert!(answer.used as usize <= room);
                    answered += 1;
                }
                None => {
                    machine.start(feature::INDIRECT_DESC);
                    broken += 1;
                }
            }
        }
        assert!(answered > 1000 && broken > 20, "{answered} answered, {broken} broken");
        assert_eq!(probe.contents().len(), SECTORS as usize * 512);
        machine.check_after_reset();
    }
}

/// The guest writes where the device reads, and the other way round: only its own bytes suffer.
#[test]
fn buffers_over_each_other() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    let header = request(VIRTIO_BLK_T_IN, 1, &[]);
    let at = machine.space;
    for (data, status) in [(at, at), (at, at + 4), (at + 8, at + 100), (at - 100, at + 3)] {
        machine.guest.memory.write_slice(&header, GuestAddress(at)).unwrap();
        let ring = &mut machine.rings[0];
        let buffers = [Buffer::Out(at, 16), Buffer::In(data, 1024), Buffer::In(status, 1)];
        let head = ring.request(&buffers);
        machine.guest.kick(ring);
        assert_eq!(machine.guest.wait(ring), (head, 1025));
        assert_eq!(machine.guest.memory.read_obj::<u8>(GuestAddress(status)).unwrap(), OK);
    }
    assert_eq!(machine.guest.status() & NEEDS_RESET, 0);
    machine.check();
}
