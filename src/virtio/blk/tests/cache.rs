//! When what was written is safe: flushes, and the cache that the driver may turn off.

use super::*;
use crate::bus::BusDevice;

const WRITEBACK: u64 = 0x100 + config::WRITEBACK as u64;

impl Machine {
    fn set_writeback(&self, byte: u8) {
        assert!(self.guest.transport.write(WRITEBACK, &[byte]).is_continue());
    }

    fn writeback(&self) -> u8 {
        let mut byte = [0xff];
        self.guest.transport.read(WRITEBACK, &mut byte);
        byte[0]
    }
}

/// Does each kind of request that changes the disk, and one that does not; after each of the former, the storage is
/// flushed if `flushed`.
fn check(machine: &mut Machine, probe: &Probe, flushed: bool) {
    let list = extent(0, 8, 0);
    let flush: &[Call] = if flushed { &[Call::Flush] } else { &[] };
    for (kind, data, call) in [
        (VIRTIO_BLK_T_OUT, &[1; 512][..], Call::Write(0, 512)),
        (VIRTIO_BLK_T_DISCARD, &list, Call::Discard(0, 4096)),
        (VIRTIO_BLK_T_WRITE_ZEROES, &list, Call::Zero(0, 4096, false)),
    ] {
        assert_eq!(machine.status(kind, 0, data), OK);
        assert_eq!(probe.calls(), [&[call], flush].concat());
    }
    assert_eq!(machine.read(0, 512).status, OK);
    assert_eq!(probe.calls(), [Call::Read(0, 512)]);
}

fn probes() -> [Probe; 2] {
    [false, true].map(|blocks| {
        let properties = Properties { discard: true, ..Default::default() };
        Probe::with(SECTORS, blocks, properties)
    })
}

#[test]
fn without_a_cache_every_write_is_flushed_before_it_is_done() {
    for probe in probes() {
        let mut machine = Machine::new(probe.disk());
        assert_eq!(machine.writeback(), 1);
        check(&mut machine, &probe, false);
        machine.set_writeback(0);
        assert_eq!(machine.writeback(), 0);
        check(&mut machine, &probe, true);
        machine.set_writeback(1);
        check(&mut machine, &probe, false);
        // A value that only begins like a 1 is none: bits that do not exist cannot be written.
        machine.set_writeback(0xfe);
        assert_eq!(machine.writeback(), 0);
        check(&mut machine, &probe, true);
        // After a reset the cache is on again.
        machine.start(0);
        assert_eq!(machine.writeback(), 1);
        check(&mut machine, &probe, false);
    }
}

/// A driver that knows nothing of flushes cannot be left with writes that wait for one (§5.2.6.2).
#[test]
fn a_driver_that_cannot_flush_has_no_cache() {
    for probe in probes() {
        let mut machine = Machine::new(probe.disk());
        let offered = machine.offered();
        let [wce, flush] = [VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH].map(bit);
        machine.start_with(offered & !wce & !flush);
        check(&mut machine, &probe, true);
        machine.start_with(offered & !wce);
        check(&mut machine, &probe, false);
        // The field is not this driver's to write, so it does not count.
        machine.set_writeback(0);
        check(&mut machine, &probe, false);
        // §5.2.5.2: without FLUSH the field is 0 to begin with.
        machine.start_with(offered & !flush);
        check(&mut machine, &probe, true);
        assert_eq!(machine.writeback(), 0);
        machine.set_writeback(1);
        check(&mut machine, &probe, false);
        machine.start_with(offered);
        assert_eq!(machine.writeback(), 1);
    }
}

/// What counts is the field while the request is under way, not when the device was told of the last change: a write
/// that the driver sends after the cache is off is flushed.
#[test]
fn a_cache_that_is_turned_off_during_writes_is_off_for_those_that_follow() {
    let probe = Probe::new(SECTORS);
    let mut bare = Bare::new(probe.disk(), bit(VIRTIO_BLK_F_FLUSH) | bit(VIRTIO_BLK_F_CONFIG_WCE));
    assert!(bare.block.config().write(config::WRITEBACK, &[0]));
    // The device's thread is busy with its queue, and comes to `config_written` later.
    bare.offer(&request(VIRTIO_BLK_T_OUT, 0, &[1; 512]), 1);
    bare.turns();
    bare.collect(1);
    assert_eq!(probe.calls(), [Call::Write(0, 512), Call::Flush]);
}

#[test]
fn a_write_that_cannot_be_flushed_has_failed() {
    for probe in probes() {
        let mut machine = Machine::new(probe.disk());
        machine.set_writeback(0);
        machine.check();
        probe.fail(Some(Fault::Errno(libc::EIO)));
        assert_eq!(machine.write(0, &[1; 512]), IOERR);
        assert_eq!(machine.status(VIRTIO_BLK_T_FLUSH, 0, &[]), IOERR);
        probe.fail(None);
        machine.check();
    }
    // The write goes through, the flush does not.
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    machine.set_writeback(0);
    probe.hold(true);
    let sent = machine.send(0, USUAL, &request(VIRTIO_BLK_T_OUT, 0, &[1; 512]), 1);
    probe.wait_calls(1);
    probe.let_pass(1);
    probe.wait_calls(2);
    assert_eq!(machine.rings[0].used(), None, "done before it is flushed");
    probe.fail(Some(Fault::Errno(libc::EIO)));
    probe.hold(false);
    assert_eq!(machine.answer(0, &sent).status, IOERR);
}

#[test]
fn a_flush_comes_back_when_the_storage_has_flushed() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    machine.check();
    probe.calls();
    probe.hold(true);
    let sent = machine.send(0, USUAL, &request(VIRTIO_BLK_T_FLUSH, 0, &[]), 1);
    probe.wait_inside(1);
    assert_eq!(machine.rings[0].used(), None);
    probe.hold(false);
    assert_eq!(machine.answer(0, &sent).status, OK);
    assert_eq!(probe.calls(), [Call::Flush]);
}
