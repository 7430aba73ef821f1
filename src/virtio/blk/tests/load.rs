//! How much is under way at a time, how much may be done in a second, and what becomes of errors.

use super::*;
use std::sync::Mutex;

/// Offers reads of `pieces` MiB each, into the same memory.
fn offer_large(bare: &mut Bare, count: u64, pieces: u64) {
    let header = bare.put(0x8000, &request(VIRTIO_BLK_T_IN, 0, &[]));
    let mut buffers = vec![Buffer::Out(header, 16)];
    buffers.extend((0..pieces).map(|_| Buffer::In(16 << 20, 1 << 20)));
    buffers.push(Buffer::In(0x9000, 1));
    for n in 0..count {
        bare.ring.request_indirect(0x10_0000 + n * 4096, &buffers);
    }
}

#[test]
fn bytes_under_way_are_bounded() {
    let probe = Probe::new((32 << 20) / 512);
    for pieces in [1, 3, 8, 17] {
        let mut bare = Bare::new(probe.disk(), feature::INDIRECT_DESC);
        probe.hold(true);
        let count = 200 / pieces;
        offer_large(&mut bare, count, pieces);
        bare.turns();
        let size = pieces << 20;
        let most = limits::IN_FLIGHT.next_multiple_of(size);
        assert_eq!(bare.block.bytes, most.min(count * size), "{pieces} MiB each");
        assert!(bare.block.bytes < limits::IN_FLIGHT + size);
        assert_eq!(bare.block.requests as u64 * size, bare.block.bytes);
        // Nothing more is taken, whoever asks.
        bare.call(|block, cx| block.work_stalled(cx)).unwrap();
        assert_eq!(bare.block.requests as u64 * size, most.min(count * size));
        probe.hold(false);
        bare.collect(count as usize);
        assert_eq!((bare.block.requests, bare.block.bytes), (0, 0));
    }
}

/// The bound is on bytes, not on requests, and a request that is larger than it is carried out.
#[test]
fn a_request_larger_than_the_bound_is_carried_out() {
    let probe = Probe::with((128 << 20) / 512, false, Default::default());
    let mut bare = Bare::new(probe.disk(), feature::INDIRECT_DESC);
    offer_large(&mut bare, 3, 100);
    bare.serve(3);
    let bytes: u64 = probe.calls().iter().map(Call::len).sum();
    assert_eq!(bytes, 300 << 20);
}

/// What an image has no data for is read without the kernel, so that nobody notifies of it: a queue that had to wait
/// for such reads goes on.
#[cfg(feature = "qcow2")]
#[test]
fn a_queue_goes_on_after_requests_that_nobody_notifies_of() {
    use crate::disk::Engine;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let mut qemu_img = std::process::Command::new("qemu-img");
    match qemu_img.args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("1G").output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => {
            println!("skipped: qemu-img (package qemu-utils): {error}");
            return;
        }
    }
    for engine in [Engine::Auto, Engine::Threads] {
        let disk = Disk::qcow2(&path).unwrap().engine(engine);
        let mut bare = Bare::new(disk, feature::INDIRECT_DESC);
        offer_large(&mut bare, 80, 1);
        bare.serve(80);
        assert_eq!((bare.block.requests, bare.block.bytes), (0, 0));
    }
}

/// Zeros that are written on the device's own thread take as long as data does: the driver hears of each such request,
/// and others have their turn, before the next.
#[test]
fn zeroing_at_once_ends_the_turn() {
    let probe = Probe::with((1 << 20) / 512, false, Properties::default());
    let features = bit(VIRTIO_BLK_F_WRITE_ZEROES) | bit(VIRTIO_BLK_F_FLUSH);
    let mut bare = Bare::new(probe.disk(), features);
    let list = extent(0, (1 << 20) / 512, 0);
    for _ in 0..4 {
        bare.offer(&request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &list), 1);
    }
    for _ in 0..4 {
        assert!(bare.call(|block, cx| block.queue_ready(0, cx)).unwrap(), "no turn any more");
        assert_eq!(probe.calls(), [Call::Zero(0, 1 << 20, false)]);
        assert!(bare.ring.used().is_some());
    }
}

#[test]
fn limits_hold_requests_back_and_let_them_go_on() {
    for (disk, writes) in [
        (Probe::new(SECTORS).disk().limit_operations(50), true),
        (Probe::new(SECTORS).disk().limit_bytes(50 * 512), true),
        (Probe::new(SECTORS).disk().limit_bytes(50 * 512), false),
    ] {
        let mut bare = Bare::new(disk, bit(VIRTIO_BLK_F_WRITE_ZEROES) | bit(VIRTIO_BLK_F_FLUSH));
        let out = match writes {
            true => request(VIRTIO_BLK_T_OUT, 0, &[1; 512]),
            false => request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &extent(0, 1, 0)),
        };
        let begun = Instant::now();
        for _ in 0..12 {
            bare.offer(&out, 1);
        }
        bare.turns();
        // A tenth of a second's worth is saved up, and one request may be on credit.
        let mut done = 0;
        while done < 12 {
            while bare.ring.used().is_some() {
                done += 1;
            }
            if let Some(deadline) = bare.block.deadline() {
                assert!(deadline <= Instant::now() + Duration::from_secs(1));
                std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
                bare.call(|block, cx| block.timer(cx)).unwrap();
            }
            bare.call(|block, cx| block.collect(cx)).unwrap();
        }
        // 12 requests at 50 a second, 6 of which need not wait.
        assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
        assert_eq!(bare.block.deadline(), None);
    }
}

/// The same with the device on its thread, whose timer goes on with what had to wait; a reset while it waits.
#[test]
fn a_limited_disk_answers_everything() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk().limit_operations(200));
    let sent: Vec<_> = (0..40)
        .map(|n| machine.send(0, USUAL, &request(VIRTIO_BLK_T_IN, n % 9, &[]), 513))
        .collect();
    for _ in &sent {
        machine.guest.wait(&mut machine.rings[0]);
    }
    assert_eq!(probe.calls().len(), 40);
    for n in 0..20 {
        machine.send(0, USUAL, &request(VIRTIO_BLK_T_IN, n, &[]), 513);
    }
    machine.check_after_reset();
    // Paused while it waits: it goes on afterwards.
    for n in 0..20 {
        machine.send(0, USUAL, &request(VIRTIO_BLK_T_IN, n, &[]), 513);
    }
    machine.guest.transport.pause();
    machine.guest.transport.resume();
    for _ in 0..20 {
        machine.guest.wait(&mut machine.rings[0]);
    }
}

/// A queue that always has more to do leaves something of what is allowed to the others.
#[test]
fn queues_take_turns_when_there_is_a_limit() {
    let disk = Disk::backend(MemoryDisk::new(1 << 20)).limit_operations(100);
    let mut machine = Machine::new(disk.queues(4));
    for busy in [0, 3] {
        machine.start(feature::INDIRECT_DESC);
        let read = request(VIRTIO_BLK_T_IN, 0, &[]);
        for _ in 0..50 {
            machine.send(busy, Shape { indirect: true, ..USUAL }, &read, 513);
        }
        for other in [1, 2] {
            let sent = machine.send(other, USUAL, &read, 513);
            assert_eq!(machine.answer(other, &sent).status, OK);
        }
        let done = std::iter::from_fn(|| machine.rings[busy].used()).count();
        assert!(done < 50, "the others had to wait for all of them");
    }
}

#[test]
fn errors_of_the_host_are_the_requests_and_the_machine_goes_on() {
    for blocks in [false, true] {
        let properties = Properties { discard: true, ..Default::default() };
        let probe = Probe::with(SECTORS, blocks, properties);
        let mut machine = Machine::new(probe.disk());
        for fault in [Fault::Errno(libc::EIO), Fault::Errno(libc::ENOSPC), Fault::Panic] {
            probe.fail(Some(fault));
            let list = extent(0, 1, 0);
            assert_eq!(machine.write(0, &[1; 512]), IOERR);
            let expected = Answer { status: IOERR, data: vec![UNTOUCHED; 512], used: 0 };
            assert_eq!(machine.read(0, 512), expected);
            assert_eq!(machine.status(VIRTIO_BLK_T_FLUSH, 0, &[]), IOERR);
            assert_eq!(machine.status(VIRTIO_BLK_T_DISCARD, 0, &list), IOERR);
            assert_eq!(machine.status(VIRTIO_BLK_T_WRITE_ZEROES, 0, &list), IOERR);
            assert_eq!(machine.ask(USUAL, &request(VIRTIO_BLK_T_GET_ID, 0, &[]), 21).status, OK);
            probe.fail(None);
            machine.check();
        }
    }
}

/// A file that has become shorter than its disk: reads behind its end are errors, and the rest of it is there.
#[test]
fn a_file_that_is_cut_from_outside_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    for engine in [crate::disk::Engine::Auto, crate::disk::Engine::Threads] {
        file.as_file().set_len(1 << 20).unwrap();
        let mut machine = Machine::new(Disk::raw(file.path()).unwrap().engine(engine));
        file.as_file().set_len(4096 + 100).unwrap();
        assert_eq!(machine.read(8, 512).status, IOERR);
        assert_eq!(machine.read(7, 1024).status, IOERR);
        assert_eq!(machine.read(0, 300 << 10).status, IOERR, "by the engine");
        machine.check();
    }
}

/// Messages that the library has logged, of all tests of this program.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if record.level() == log::Level::Warn {
            LOGGED.lock().unwrap().push(record.args().to_string());
        }
    }
    fn flush(&self) {}
}

#[test]
fn a_guest_cannot_fill_the_log() {
    log::set_logger(&Log).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk().serial("log-test"));
    probe.fail(Some(Fault::Errno(libc::EIO)));
    for sector in 0..200 {
        assert_eq!(machine.read(sector, 512).status, IOERR);
        assert_eq!(machine.read(sector + SECTORS, 512).status, IOERR);
        assert_eq!(machine.status(12345, 0, &[]), UNSUPP);
    }
    let logged = LOGGED.lock().unwrap().clone();
    let ours: Vec<_> = logged.iter().filter(|line| line.contains("log-test")).collect();
    assert!(!ours.is_empty() && ours.len() < 10, "{} messages", ours.len());
    assert!(ours[0].contains("cannot read") && ours[0].contains("Input/output"), "{}", ours[0]);
}
