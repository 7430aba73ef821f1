//! Requests that ask for more than there is, for what was not agreed on, or for nothing that exists.

use super::*;

#[test]
fn nothing_behind_the_end_is_read_or_written() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    let data = pattern(1, 2048);
    for (sector, len, status) in [
        (SECTORS - 4, 2048, OK),
        (SECTORS - 1, 512, OK),
        (SECTORS, 0, OK),
        (SECTORS - 3, 2048, IOERR),
        (SECTORS - 1, 1024, IOERR),
        (SECTORS, 512, IOERR),
        (SECTORS + 1, 0, IOERR),
        (1 << 55, 512, IOERR),
        ((1 << 55) + 1, 512, IOERR),
        (u64::MAX / 512, 512, IOERR),
        (u64::MAX - 1, 1024, IOERR),
        (u64::MAX, 512, IOERR),
        (u64::MAX, 0, IOERR),
    ] {
        assert_eq!(machine.write(sector, &data[..len]), status, "write {len} at {sector}");
        assert_eq!(machine.read(sector, len).status, status, "read {len} at {sector}");
    }
    // Nothing but the two that are good has got to the storage.
    let end = SECTORS * 512;
    let expected = [(end - 2048, 2048), (end - 512, 512)]
        .map(|(at, n)| [Call::Write(at, n), Call::Read(at, n)]);
    assert_eq!(probe.calls(), expected.concat());
}

#[test]
fn lengths_that_are_no_whole_sectors_are_refused() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    for len in [1, 511, 513, 1023, 4095] {
        assert_eq!(machine.write(0, &vec![1; len]), IOERR, "write of {len}");
        let answer = machine.read(0, len);
        let expected = Answer { status: IOERR, data: vec![UNTOUCHED; len], used: 0 };
        assert_eq!(answer, expected, "read of {len}");
    }
    assert_eq!(probe.calls(), []);
    machine.check();
}

#[test]
fn requests_for_nothing_are_answered() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    assert_eq!(machine.write(7, &[]), OK);
    assert_eq!(machine.read(7, 0), Answer { status: OK, data: vec![], used: 1 });
    assert_eq!(probe.calls(), []);
}

/// Whatever a guest sends, to a disk that is read-only nothing is written: not by the device, however little the
/// storage itself minds.
#[test]
fn a_read_only_disk_is_not_written_to() {
    let storage = Properties { read_only: true, discard: true, ..Properties::default() };
    let probe =
        || Probe::with(SECTORS, true, Properties { discard: true, ..Properties::default() });
    let (wanted, itself) = (probe(), Probe::with(SECTORS, true, storage));
    for (probe, disk) in [(&wanted, wanted.disk().read_only()), (&itself, itself.disk())] {
        let mut machine = Machine::new(disk);
        let offered = machine.offered();
        assert_ne!(offered & bit(VIRTIO_BLK_F_RO), 0);
        for feature in [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_F_CONFIG_WCE] {
            assert_eq!(offered & bit(feature), 0);
        }
        // A driver that has not accepted RO is no better off.
        for features in [offered, offered & !bit(VIRTIO_BLK_F_RO), 0] {
            machine.start_with(features);
            assert_eq!(machine.write(0, &[1; 512]), IOERR);
            assert_eq!(machine.write(0, &[]), IOERR);
            let list = extent(0, 1, 0);
            assert_eq!(machine.status(VIRTIO_BLK_T_DISCARD, 0, &list), UNSUPP);
            assert_eq!(machine.status(VIRTIO_BLK_T_WRITE_ZEROES, 0, &list), UNSUPP);
            assert_eq!(machine.status(VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
            for kind in 0..64 {
                machine.status(kind, 0, &[1; 512]);
                machine.status(kind | 1 << 31, 0, &list);
            }
            assert_eq!(machine.read(0, 512), Answer { status: OK, data: vec![0; 512], used: 513 });
            let calls = probe.calls();
            assert!(calls.iter().all(|call| matches!(call, Call::Read(..))), "{calls:?}");
        }
    }
}

/// The feature bits of a disk that is read-only are not the driver's to accept: it is refused.
#[test]
fn features_that_are_not_offered_are_refused() {
    let probe = Probe::with(SECTORS, true, Properties::default());
    let machine = Machine::off(probe.disk().read_only());
    for feature in [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_F_MQ] {
        machine.guest.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
        assert!(!machine.guest.negotiate(feature::VERSION_1 | bit(feature)));
    }
}

#[test]
fn requests_that_were_not_negotiated_are_unsupported() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    let offered = machine.offered();
    let list = extent(0, 8, 0);
    for (kind, feature) in [
        (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_F_DISCARD),
        (VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_F_WRITE_ZEROES),
    ] {
        machine.start_with(offered & !bit(feature));
        assert_eq!(machine.status(kind, 0, &list), UNSUPP);
        assert_eq!(probe.calls(), []);
        machine.start_with(offered);
        assert_eq!(machine.status(kind, 0, &list), OK);
        assert_eq!(probe.calls().len(), 1);
    }
    // Storage that has nothing to give back does not offer to.
    let machine = Machine::new(Probe::with(SECTORS, true, Properties::default()).disk());
    assert_eq!(machine.offered() & bit(VIRTIO_BLK_F_DISCARD), 0);
}

#[test]
fn unknown_requests_are_unsupported() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    let known = [
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_FLUSH,
        VIRTIO_BLK_T_GET_ID,
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_WRITE_ZEROES,
    ];
    let mut random = Random(8);
    let kinds = (0..64).chain([u32::MAX, 1 << 31, 0x100, 0x1_0000]);
    let kinds = kinds.chain((0..64).map(|_| random.next() as u32 | 0x80));
    for kind in kinds.filter(|kind| !known.contains(kind)) {
        for data in [&[][..], &[0; 512], &extent(0, 1, 0)] {
            assert_eq!(machine.status(kind, 0, data), UNSUPP, "{kind:#x}");
        }
    }
    assert_eq!(probe.calls(), []);
    machine.check();
}

#[test]
fn the_serial_number_is_cut_or_filled_up() {
    for serial in ["", "x", "a name of some bytes", "nineteen bytes long"] {
        let mut machine = Machine::new(Probe::new(SECTORS).disk().serial(serial));
        let mut id = serial.as_bytes().to_vec();
        id.resize(20, 0);
        for room in [0, 1, 19, 20, 21, 40, 512] {
            let answer = machine.ask(USUAL, &request(VIRTIO_BLK_T_GET_ID, 3, &[]), room + 1);
            let (known, rest) = answer.data.split_at(room.min(20));
            assert_eq!((answer.status, known), (OK, &id[..room.min(20)]));
            assert!(rest.iter().all(|&byte| byte == UNTOUCHED));
            // The status counts where nothing was left out before it.
            let used = if room <= 20 { room + 1 } else { 20 };
            assert_eq!(answer.used as usize, used, "room for {room}");
        }
    }
}

/// A disk of the smallest size, one whose last sector is not whole, and one of nothing.
#[test]
fn small_and_odd_disks() {
    for (bytes, sectors) in [(512, 1), (1023, 1), (1024, 2), (511, 0), (0, 0)] {
        let mut machine = Machine::new(Disk::backend(MemoryDisk::from(vec![7; bytes])));
        assert_eq!(machine.handle.size(), sectors * 512);
        assert_eq!(machine.guest.read(0x100), sectors as u32);
        if sectors > 0 {
            let data = vec![7; 512];
            assert_eq!(machine.read(sectors - 1, 512), Answer { status: OK, data, used: 513 });
        }
        assert_eq!(machine.read(sectors, 512).status, IOERR);
        assert_eq!(machine.write(sectors, &[1; 512]), IOERR);
    }
}
