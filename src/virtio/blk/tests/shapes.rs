//! Requests of every kind, cut in every way that the specification allows.

use super::*;

/// Cuts of header and data.
const OUT: [Cut<'_>; 8] = [
    &[16],
    &[],
    &[1, 7, 8],
    &[4, 0, 11, 0, 1, 0],
    &[15, 2],
    &[17],
    &[16, 100, 412, 1, 1023],
    &[0, 0, 16, 0, 511, 513],
];

/// Cuts of data and status. The status is alone where the cut before it ends; `STATUS` stands for the place before it.
const STATUS: usize = usize::MAX - 1;
const BACK: [Cut<'_>; 8] = [
    &[],
    &[STATUS],
    &[1, 511, 512, STATUS],
    &[0, 3, 0, 1000, 0],
    &[STATUS, 0, 1],
    &[STATUS, 1, 0],
    &[513, STATUS, 0, 0],
    &[7, 7, 7, 7, 7, 7, 7],
];

/// `cut` for `room` bytes.
fn cut(cut: Cut<'_>, room: usize) -> Vec<usize> {
    let mut done = 0;
    let place = |done: &mut usize, len: usize| {
        let len = if len == STATUS { (room - 1).saturating_sub(*done) } else { len };
        *done += len;
        len
    };
    cut.iter().map(|&len| place(&mut done, len)).collect()
}

/// Every shape there is.
fn shapes(room: usize, mut with: impl FnMut(Shape<'_>)) {
    for out in OUT {
        for back in BACK {
            let back = cut(back, room);
            for indirect in [false, true] {
                with(Shape { out, back: &back, indirect });
            }
        }
    }
}

/// Does every kind of request in every shape, and compares the disk with a model after each.
fn every_kind(blocks: bool, extra: u64) {
    let properties = Properties { discard: true, ..Properties::default() };
    let probe = Probe::with(SECTORS, blocks, properties);
    let mut machine = Machine::new(probe.disk().serial("twenty-bytes-of-name"));
    machine.start(feature::INDIRECT_DESC | extra);
    let mut model = vec![0; SECTORS as usize * 512];
    let mut random = Random(4);
    for len in [512, 2048] {
        shapes(1, |shape| {
            let sector = random.below(SECTORS - 4);
            let data = pattern(random.next() as u32, len);
            model[sector as usize * 512..][..len].copy_from_slice(&data);
            let answer = machine.ask(shape, &request(VIRTIO_BLK_T_OUT, sector, &data), 1);
            assert_eq!(answer, Answer { status: OK, data: vec![], used: 1 }, "{shape:?}");
            assert!(probe.contents() == model, "{shape:?}");
        });
        shapes(len + 1, |shape| {
            let sector = random.below(SECTORS - 4);
            let data = model[sector as usize * 512..][..len].to_vec();
            let answer = machine.ask(shape, &request(VIRTIO_BLK_T_IN, sector, &[]), len + 1);
            assert!(answer == Answer { status: OK, data, used: len as u32 + 1 }, "{shape:?}");
        });
    }
    probe.calls();
    shapes(1, |shape| {
        let answer = machine.ask(shape, &request(VIRTIO_BLK_T_FLUSH, 0, &[]), 1);
        assert_eq!(answer, Answer { status: OK, data: vec![], used: 1 }, "{shape:?}");
        assert_eq!(probe.calls(), [Call::Flush]);
    });
    shapes(21, |shape| {
        let answer = machine.ask(shape, &request(VIRTIO_BLK_T_GET_ID, 0, &[]), 21);
        let data = b"twenty-bytes-of-name".to_vec();
        assert_eq!(answer, Answer { status: OK, data, used: 21 }, "{shape:?}");
    });
    for (kind, byte) in [(VIRTIO_BLK_T_DISCARD, DISCARDED), (VIRTIO_BLK_T_WRITE_ZEROES, 0)] {
        shapes(1, |shape| {
            let (one, other) = (random.below(SECTORS - 2), random.below(SECTORS - 5));
            let list = [extent(one, 2, 0), extent(other, 5, 0)].concat();
            model[one as usize * 512..][..1024].fill(byte);
            model[other as usize * 512..][..2560].fill(byte);
            let answer = machine.ask(shape, &request(kind, u64::MAX, &list), 1);
            assert_eq!(answer, Answer { status: OK, data: vec![], used: 1 }, "{shape:?}");
            assert!(probe.contents() == model, "{shape:?}");
            // Something else to overwrite the next time.
            assert_eq!(machine.write(one, &[0x33; 512]), OK);
            model[one as usize * 512..][..512].fill(0x33);
        });
    }
}

#[test]
fn every_request_in_every_shape_at_once() {
    for extra in [0, feature::EVENT_IDX] {
        every_kind(false, extra);
    }
}

#[test]
fn every_request_in_every_shape_through_threads() {
    for extra in [0, feature::EVENT_IDX] {
        every_kind(true, extra);
    }
}

/// Room that a request has no use for stays as it was, and does not count as written (§2.7.8.2).
#[test]
fn what_was_not_written_is_not_told_as_written() {
    let mut machine = Machine::new(Probe::new(SECTORS).disk().serial("name"));
    let data = pattern(1, 512);
    for (kind, sector, out, status) in [
        (VIRTIO_BLK_T_OUT, 0, &data[..], OK),
        (VIRTIO_BLK_T_FLUSH, 0, &[], OK),
        (VIRTIO_BLK_T_IN, SECTORS, &[], IOERR),
        (VIRTIO_BLK_T_IN, u64::MAX, &[], IOERR),
        (99, 0, &[], UNSUPP),
    ] {
        let answer = machine.ask(USUAL, &request(kind, sector, out), 513);
        let expected = Answer { status, data: vec![UNTOUCHED; 512], used: 0 };
        assert!(answer == expected, "{kind}: {} {}", answer.status, answer.used);
    }
    assert_eq!(machine.read(0, 512), Answer { status: OK, data, used: 513 });
}

/// What a read is given to read beside its header is ignored.
#[test]
fn a_read_with_data_is_a_read() {
    let mut machine = Machine::new(Disk::backend(MemoryDisk::from(pattern(5, 4096))));
    let answer = machine.ask(USUAL, &request(VIRTIO_BLK_T_IN, 2, &[1; 700]), 513);
    let data = pattern(5, 4096)[1024..1536].to_vec();
    assert_eq!(answer, Answer { status: OK, data, used: 513 });
}

/// As many pieces as a chain may have, on a file as well, where they become one call.
#[test]
fn the_longest_chains_are_carried_out() {
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(SECTORS * 512).unwrap();
    for disk in [Disk::raw(path.path()).unwrap(), Probe::new(SECTORS).disk()] {
        let mut machine = Machine::new(disk);
        let data = pattern(9, 512 * 127);
        // 16 bytes of header, then 254 pieces.
        let mut out = vec![16];
        out.extend([256; 253]);
        let shape = Shape { out: &out, back: &[], indirect: true };
        let answer = machine.ask(shape, &request(VIRTIO_BLK_T_OUT, 1, &data), 1);
        assert_eq!((answer.status, answer.used), (OK, 1));
        let back = [vec![255, 257], vec![256; 252]].concat();
        let shape = Shape { out: &[], back: &back, indirect: true };
        let answer = machine.ask(shape, &request(VIRTIO_BLK_T_IN, 1, &[]), data.len() + 1);
        assert!(answer == Answer { status: OK, used: data.len() as u32 + 1, data });
    }
}

/// Several queues, each with its own requests, all on one disk.
#[test]
fn queues_share_the_disk() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(Disk::backend(probe.clone()).queues(4));
    assert_eq!(machine.rings.len(), 4);
    assert_ne!(machine.offered() & bit(VIRTIO_BLK_F_MQ), 0);
    let sent: Vec<_> = (0..4)
        .map(|queue| {
            let data = pattern(queue as u32, 512);
            machine.send(queue, USUAL, &request(VIRTIO_BLK_T_OUT, queue as u64, &data), 1)
        })
        .collect();
    for (queue, sent) in sent.iter().enumerate() {
        assert_eq!(machine.answer(queue, sent).status, OK);
        assert_eq!(probe.contents()[queue * 512..][..512], pattern(queue as u32, 512));
    }
}
