//! Reset, pause and the end of a disk that has requests under way.

use super::*;
use std::sync::mpsc::{TryRecvError, channel};
use virtio_bindings::virtio_mmio::*;

/// Calls `wait` on a thread of its own while the storage is held; it must not return before the storage lets go.
fn held<T: Send + 'static>(probe: &Probe, wait: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = channel();
    let thread = std::thread::spawn(move || done.send(wait()).unwrap());
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(result.try_recv().err(), Some(TryRecvError::Empty), "it did not wait");
    probe.hold(false);
    thread.join().unwrap();
    result.recv().unwrap()
}

/// The reset returns when nothing on the host has the guest's memory any more, and nothing is given back after it.
#[test]
fn a_reset_waits_for_the_storage() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    for count in [1, 5, 40] {
        machine.start(0);
        probe.hold(true);
        for n in 0..count {
            machine.send(0, USUAL, &request(VIRTIO_BLK_T_IN, n as u64, &[]), 513);
            // More than there are threads wait in the engine.
            probe.wait_inside((n + 1).min(16));
        }
        let transport = machine.guest.transport.clone();
        held(&probe, move || {
            use crate::bus::BusDevice;
            let _ = transport.write(VIRTIO_MMIO_STATUS.into(), &[0; 4]);
        });
        probe.calls();
        machine.clear();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(probe.calls(), []);
        assert_eq!(machine.rings[0].used(), None, "given back after the reset");
        let mut bytes = vec![0; (count + 1) * 600];
        machine.guest.memory.read_slice(&mut bytes, GuestAddress(machine.space)).unwrap();
        assert!(bytes.iter().all(|&byte| byte == GUARD), "written after the reset");
        machine.check_after_reset();
    }
}

#[test]
fn a_pause_waits_for_requests_and_gives_them_back() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    probe.hold(true);
    let sent = [1, 2, 3].map(|n| {
        let sent = machine.send(0, USUAL, &request(VIRTIO_BLK_T_IN, n, &[]), 513);
        probe.wait_inside(n as usize);
        sent
    });
    let transport = machine.guest.transport.clone();
    held(&probe, move || transport.pause());
    let mut used: Vec<_> = std::iter::from_fn(|| machine.rings[0].used()).collect();
    used.sort();
    assert_eq!(used, sent.each_ref().map(|sent| (sent.head, 513)));

    // A kick that comes now is seen to when the machine goes on.
    probe.calls();
    let late = machine.send(0, USUAL, &request(VIRTIO_BLK_T_IN, 9, &[]), 513);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!((machine.rings[0].used(), probe.calls()), (None, vec![]));
    machine.guest.transport.resume();
    assert_eq!(machine.answer(0, &late).status, OK);
    machine.check();
}

/// Write-through: what a pause waits for includes the flush that comes after the write.
#[test]
fn a_pause_waits_for_the_flush_of_a_write() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    machine.start_with(0);
    probe.hold(true);
    machine.send(0, USUAL, &request(VIRTIO_BLK_T_OUT, 0, &[1; 512]), 1);
    probe.wait_inside(1);
    let transport = machine.guest.transport.clone();
    held(&probe, move || transport.pause());
    assert_eq!(probe.calls(), [Call::Write(0, 512), Call::Flush]);
    assert!(machine.rings[0].used().is_some());
    machine.guest.transport.resume();
    machine.check();
}

#[test]
fn a_reset_while_paused() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    machine.guest.transport.pause();
    machine.send(0, USUAL, &request(VIRTIO_BLK_T_OUT, 0, &[1; 512]), 1);
    machine.guest.reset();
    machine.guest.transport.resume();
    machine.check_after_reset();
    assert_eq!(probe.contents()[..512], [0; 512]);
}

/// A queue that the driver takes away gets its answers first; the others go on.
#[test]
fn a_queue_is_given_up_during_io() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(Disk::backend(probe.clone()).queues(2));
    probe.hold(true);
    let sent = [0, 1].map(|queue| {
        let sent = machine.send(queue, USUAL, &request(VIRTIO_BLK_T_IN, 0, &[]), 513);
        probe.wait_inside(queue + 1);
        sent
    });
    let transport = machine.guest.transport.clone();
    held(&probe, move || {
        use crate::bus::BusDevice;
        for (register, value) in [(VIRTIO_MMIO_QUEUE_SEL, 1), (VIRTIO_MMIO_QUEUE_READY, 0_u32)] {
            let _ = transport.write(register.into(), &value.to_le_bytes());
        }
    });
    for (queue, sent) in sent.iter().enumerate() {
        assert_eq!(machine.rings[queue].used(), Some((sent.head, 513)));
    }
    // Nobody looks at the queue that is gone.
    machine.send(1, USUAL, &request(VIRTIO_BLK_T_OUT, 0, &[1; 512]), 1);
    machine.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    machine.check();
    assert_eq!(machine.rings[1].used(), None);
    assert_eq!(probe.contents()[..512], [0; 512]);
    machine.check_after_reset();
}

/// The end of the machine, with requests under way: the storage is let go of, and closed.
#[test]
fn the_end_of_the_machine_waits_for_the_storage() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    let handle = machine.handle.clone();
    probe.hold(true);
    machine.send(0, USUAL, &request(VIRTIO_BLK_T_IN, 0, &[]), 513);
    probe.wait_inside(1);
    held(&probe, move || drop(machine));
    assert_eq!(probe.owners(), 1, "somebody still has the storage");
    assert!(handle.resize(1024).is_err());
    assert_eq!(handle.size(), SECTORS * 512);
}

/// Requests on a file, large and small, through either engine, and a reset in the middle of them, again and again.
#[test]
fn resets_in_the_middle_of_requests_for_a_file() {
    use crate::disk::Engine;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 << 20).unwrap();
    for engine in [Engine::Auto, Engine::Threads] {
        let mut machine = Machine::new(Disk::raw(file.path()).unwrap().engine(engine).queues(1));
        let mut random = Random(3);
        for _ in 0..60 {
            machine.start(feature::INDIRECT_DESC);
            let at = machine.space;
            for n in 0..8 {
                let kind = [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT][random.below(2) as usize];
                let header = request(kind, random.below(1000) * 8, &[]);
                let header_at = at + 0x100 * n;
                machine.guest.memory.write_slice(&header, GuestAddress(header_at)).unwrap();
                // The same memory many times over: up to 8 MiB, in the second region of RAM.
                let pieces = random.below(8) + 1;
                let piece = |_| match kind {
                    VIRTIO_BLK_T_IN => Buffer::In(16 << 20, 1 << 20),
                    _ => Buffer::Out(16 << 20, 1 << 20),
                };
                let mut buffers = vec![Buffer::Out(header_at, 16)];
                buffers.extend((0..pieces).map(piece));
                buffers.push(Buffer::In(header_at + 0x80, 1));
                let ring = &mut machine.rings[0];
                ring.request_indirect(machine.table + 4096 * n, &buffers);
                machine.guest.kick(ring);
            }
            for _ in 0..random.below(5) {
                machine.guest.wait(&mut machine.rings[0]);
            }
            machine.guest.reset();
            // Nobody writes here any more.
            let memory = &machine.guest.memory;
            memory.write_slice(&[0x5a; 0x1000], GuestAddress(16 << 20)).unwrap();
            std::thread::yield_now();
            let mut bytes = [0; 0x1000];
            memory.read_slice(&mut bytes, GuestAddress(16 << 20)).unwrap();
            assert_eq!(bytes, [0x5a; 0x1000]);
        }
        machine.check_after_reset();
    }
}
