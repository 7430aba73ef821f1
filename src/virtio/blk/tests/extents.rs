//! Requests to discard and to zero: lists of extents (struct virtio_blk_discard_write_zeroes).

use super::*;

const BOTH: [u32; 2] = [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES];
const UNMAP: u32 = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
/// A disk that is larger than any limit.
const LARGE: u64 = 1 << 30;

/// Storage without bytes.
fn endless() -> (Probe, Disk) {
    let probe = Probe::with(0, true, Properties { discard: true, ..Properties::default() });
    (probe.clone(), Disk::backend(Endless(probe)).queues(1))
}

struct Endless(Probe);

impl crate::disk::BlockBackend for Endless {
    fn size(&self) -> u64 {
        LARGE * 512
    }
    fn read(&self, _: u64, _: crate::disk::Buffers<'_>) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, offset: u64, from: crate::disk::Buffers<'_>) -> io::Result<()> {
        self.0.note(Call::Write(offset, from.total()));
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.note(Call::Discard(offset, len));
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.0.note(Call::Zero(offset, len, unmap));
        Ok(())
    }
    fn properties(&self) -> Properties {
        self.0.properties()
    }
}

#[test]
fn lists_are_carried_out_from_first_to_last() {
    let (probe, disk) = endless();
    let mut machine = Machine::new(disk);
    let list = [extent(8, 8, 0), extent(0, 1, 0), extent(LARGE - 1, 1, 0)].concat();
    assert_eq!(machine.status(VIRTIO_BLK_T_DISCARD, 0, &list), OK);
    let end = LARGE * 512;
    let expected =
        [Call::Discard(4096, 4096), Call::Discard(0, 512), Call::Discard(end - 512, 512)];
    assert_eq!(probe.calls(), expected);
    let list = [extent(8, 8, UNMAP), extent(0, 1, 0)].concat();
    assert_eq!(machine.status(VIRTIO_BLK_T_WRITE_ZEROES, 0, &list), OK);
    assert_eq!(probe.calls(), [Call::Zero(4096, 4096, true), Call::Zero(0, 512, false)]);
}

#[test]
fn limits_are_those_that_the_driver_was_told() {
    let (probe, disk) = endless();
    let mut machine = Machine::new(disk);
    // max_…_sectors and max_…_seg of both kinds, where the specification has them.
    for (kind, sectors, count) in [(BOTH[0], 36, 40), (BOTH[1], 48, 52)] {
        let [sectors, count] = [sectors, count].map(|at| machine.guest.read(0x100 + at));
        assert!(sectors > 0 && count > 0);
        let list = extent(LARGE - u64::from(sectors), sectors, 0);
        assert_eq!(machine.status(kind, 0, &list), OK);
        let list: Vec<_> = (0..count).flat_map(|n| extent(n.into(), 1, 0)).collect();
        assert_eq!(machine.status(kind, 0, &list), OK);
        let bytes: u64 = probe.calls().iter().map(Call::len).sum();
        assert_eq!(bytes, u64::from(sectors + count) * 512);

        for sectors in [sectors + 1, u32::MAX] {
            assert_eq!(machine.status(kind, 0, &extent(0, sectors, 0)), IOERR, "{sectors} sectors");
        }
        let list = [&list[..], &extent(0, 1, 0)].concat();
        assert_eq!(machine.status(kind, 0, &list), IOERR, "too many");
        assert_eq!(probe.calls(), []);
    }
}

#[test]
fn flags_that_mean_nothing_are_unsupported() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    for shift in 0..32 {
        // Wherever in the list it is; nothing before it is done then.
        let list = [extent(0, 1, 0), extent(1, 1, 1 << shift)].concat();
        assert_eq!(machine.status(VIRTIO_BLK_T_DISCARD, 0, &list), UNSUPP, "discard, flag {shift}");
        if 1 << shift != UNMAP {
            let status = machine.status(VIRTIO_BLK_T_WRITE_ZEROES, 0, &list);
            assert_eq!(status, UNSUPP, "zeroes, flag {shift}");
        }
    }
    assert_eq!(probe.calls(), []);
}

#[test]
fn extents_beyond_the_end_are_refused() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    for kind in BOTH {
        for (sector, sectors) in [
            (SECTORS, 1),
            (SECTORS - 1, 2),
            (SECTORS + 1, 0),
            (0, SECTORS as u32 + 1),
            (u64::MAX, 1),
            (u64::MAX, 0),
            (u64::MAX - 7, 8),
            // Sums and products that would be small if they were cut to 64 bits.
            (1 << 55, 1),
            ((1 << 55) - 1, 2),
            (u64::MAX / 512 + 1, 1),
        ] {
            let list = [extent(0, 1, 0), extent(sector, sectors, 0)].concat();
            assert_eq!(machine.status(kind, 0, &list), IOERR, "{sectors} at {sector}");
        }
    }
    assert_eq!(probe.calls(), []);
    machine.check();
}

#[test]
fn lists_of_odd_lengths_are_refused() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    for kind in BOTH {
        for len in [0, 1, 8, 15, 17, 24, 31, 33] {
            assert_eq!(machine.status(kind, 0, &[0; 48][..len]), IOERR, "{len} bytes");
        }
    }
    assert_eq!(probe.calls(), []);
}

#[test]
fn extents_of_nothing_do_nothing() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    assert_eq!(machine.write(0, &pattern(1, 1024)), OK);
    for kind in BOTH {
        assert_eq!(machine.status(kind, 0, &[0; 16]), OK);
        assert_eq!(machine.status(kind, 0, &extent(SECTORS, 0, 0)), OK);
    }
    assert_eq!(probe.contents()[..1024], pattern(1, 1024));
    assert_eq!(probe.calls().iter().map(Call::len).sum::<u64>(), 1024, "the write");
}

/// Large extents are zeroed in steps, which together are the whole and no more.
#[test]
fn large_extents_are_zeroed_in_steps() {
    let (probe, disk) = endless();
    let mut machine = Machine::new(disk);
    let (start, sectors) = (12345, (200 << 20) / 512 + 3);
    let list = extent(start, sectors, UNMAP);
    assert_eq!(machine.status(VIRTIO_BLK_T_WRITE_ZEROES, 0, &list), OK);
    let mut at = start * 512;
    let calls = probe.calls();
    for call in &calls {
        let &Call::Zero(offset, len, true) = call else { panic!("{call:?}") };
        assert_eq!(offset, at);
        at += len;
    }
    assert!(calls.len() > 1);
    assert_eq!(at, (start + u64::from(sectors)) * 512);
}

/// A list that is changed while it is read is read once: what was checked is what is done.
#[test]
fn a_list_that_changes_is_checked_as_it_is_carried_out() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let probe = Probe::with(SECTORS, false, Properties { discard: true, ..Properties::default() });
    let mut machine = Machine::new(probe.disk());
    let good = extent(0, 1, 0);
    let out = request(VIRTIO_BLK_T_DISCARD, 0, &good);
    // The first buffer is the header, and the list comes after it.
    let list = GuestAddress(machine.space + GAP + 16 + GAP + 8);
    let stop = Arc::new(AtomicBool::new(false));
    let flips = {
        let (memory, stop) = (machine.guest.memory.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for sectors in [SECTORS as u32 * 2, 1, u32::MAX, 1] {
                    memory.write_slice(&sectors.to_le_bytes(), list).unwrap();
                }
            }
        })
    };
    for _ in 0..500 {
        machine.next = machine.space + GAP;
        let sent = machine.send(0, USUAL, &out, 1);
        let status = machine.answer(0, &sent).status;
        assert!(matches!(status, OK | IOERR), "{status}");
    }
    stop.store(true, Ordering::Relaxed);
    flips.join().unwrap();
    let calls = probe.calls();
    assert!(calls.iter().all(|call| *call == Call::Discard(0, 512)), "{calls:?}");
    machine.start(0);
    machine.check();
}
