//! Disks that become larger or smaller while they are in use.

use super::*;
use virtio_bindings::virtio_mmio::*;

impl Machine {
    fn capacity(&self) -> u64 {
        u64::from(self.guest.read(0x104)) << 32 | u64::from(self.guest.read(0x100))
    }

    fn generation(&self) -> u32 {
        self.guest.read(VIRTIO_MMIO_CONFIG_GENERATION)
    }

    /// Waits until the driver is told that the configuration has changed.
    fn wait_for_change(&self) {
        crate::virtio::tests::eventually("the driver is not told", || {
            self.guest.read(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG != 0
        });
        self.guest.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
    }
}

#[test]
fn the_guest_is_told_of_a_new_size() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    let mut generation = machine.generation();
    let mut before = SECTORS;
    for sectors in [SECTORS + 8, 2 * SECTORS, SECTORS / 2, 1, SECTORS] {
        machine.handle.resize(sectors * 512).unwrap();
        machine.wait_for_change();
        assert_ne!(machine.generation(), generation);
        generation = machine.generation();
        assert_eq!((machine.capacity(), machine.handle.size()), (sectors, sectors * 512));
        // Where it was cut, once more when nothing from before is under way.
        let cuts = if sectors < before { 2 } else { 1 };
        probe.wait_calls(cuts);
        assert_eq!(probe.calls(), vec![Call::Resize(sectors * 512); cuts]);
        before = sectors;
        assert_eq!(machine.write(sectors - 1, &[1; 512]), OK);
        assert_eq!(machine.write(sectors, &[1; 512]), IOERR);
        assert_eq!(machine.read(sectors, 512).status, IOERR);
        assert_eq!(probe.calls(), [Call::Write((sectors - 1) * 512, 512)]);
    }
    // Interrupts for a new size come without a driver to nobody, and the next driver reads it.
    machine.guest.reset();
    machine.handle.resize(4096).unwrap();
    machine.start(0);
    assert_eq!(machine.capacity(), 8);
    machine.check();
}

#[test]
fn the_size_changes_while_the_machine_is_paused() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    machine.guest.transport.pause();
    machine.handle.resize(512 * 512).unwrap();
    assert_eq!(machine.handle.size(), 512 * 512);
    machine.guest.transport.resume();
    machine.wait_for_change();
    assert_eq!(machine.capacity(), 512);
    assert_eq!(machine.write(511, &[1; 512]), OK);
    machine.check();
}

#[test]
fn a_size_that_cannot_be_is_refused_and_nothing_changes() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    let generation = machine.generation();
    for size in [0, 1, 511, 513, u64::MAX] {
        let error = machine.handle.resize(size).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let what = format!("cannot resize to {size} bytes: give a multiple of 512 above 0");
        assert_eq!(error.to_string(), what);
    }
    probe.fail(Some(Fault::Errno(libc::ENOSPC)));
    for size in [512, 1 << 20] {
        let error = machine.handle.resize(size).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
    probe.fail(None);
    assert_eq!((machine.capacity(), machine.handle.size()), (SECTORS, SECTORS * 512));
    assert_eq!(machine.generation(), generation);
    machine.check();
    assert_eq!(machine.write(SECTORS - 1, &[1; 512]), OK);
}

#[test]
fn handles_share_the_disk_and_do_not_keep_it() {
    let machine = Machine::new(Probe::new(SECTORS).disk());
    let [one, other] = [machine.handle.clone(), machine.handle.clone()];
    one.resize(4096).unwrap();
    assert_eq!(other.size(), 4096);
    assert!(format!("{other:?}").contains("4096"));
    drop(machine);
    let error = other.resize(8192).unwrap_err();
    assert!(error.to_string().contains("ended"), "{error}");
}

#[test]
fn a_write_from_before_the_disk_was_cut_does_not_make_it_longer() {
    let probe = Probe::new(SECTORS);
    let mut machine = Machine::new(probe.disk());
    probe.hold(true);
    let out = request(VIRTIO_BLK_T_OUT, SECTORS - 1, &[1; 512]);
    let sent = machine.send(0, USUAL, &out, 1);
    probe.wait_inside(1);
    let handle = machine.handle.clone();
    let cut = std::thread::spawn(move || handle.resize(4096).unwrap());
    probe.wait_inside(2);
    // The cut comes first, then the write.
    assert_eq!(probe.calls(), [Call::Write((SECTORS - 1) * 512, 512), Call::Resize(4096)]);
    probe.hold(false);
    cut.join().unwrap();
    machine.answer(0, &sent);
    probe.wait_calls(1);
    assert_eq!(probe.calls(), [Call::Resize(4096)]);
    assert_eq!(probe.contents().len(), 4096);
    machine.check();
}

/// A file grows and shrinks with its disk; what comes in reads as zeros.
#[test]
fn a_file_is_resized() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let mut machine = Machine::new(Disk::raw(file.path()).unwrap());
    assert_eq!(machine.write(0, &[1; 4096]), OK);
    for (size, ones) in [(1 << 20, 4096), (1024, 1024), (8192, 1024)] {
        machine.handle.resize(size).unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), size);
        let len = size.min(8192) as usize;
        let data = [vec![1; ones], vec![0; len - ones]].concat();
        assert!(machine.read(0, len) == Answer { status: OK, data, used: len as u32 + 1 });
    }
    assert_eq!(machine.write(16, &[1; 512]), IOERR);
    assert_eq!(file.as_file().metadata().unwrap().len(), 8192);
}

/// A disk that is only read has the size that it has.
#[test]
fn a_read_only_file_is_not_resized() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let mut machine = Machine::new(Disk::raw(file.path()).unwrap().read_only());
    for size in [512, 8192] {
        let error = machine.handle.resize(size).unwrap_err();
        assert!(error.to_string().contains("only read"), "{error}");
        assert_eq!(file.as_file().metadata().unwrap().len(), 4096);
        assert_eq!((machine.capacity(), machine.handle.size()), (8, 4096));
    }
    assert_eq!(machine.read(7, 512).status, OK);
}

/// Storage that could be written to is not cut off where its owner wants it to be only read.
#[test]
fn read_only_storage_is_not_resized() {
    let probe = Probe::new(SECTORS);
    let machine = Machine::new(probe.disk().read_only());
    for size in [512, 1 << 20] {
        let error = machine.handle.resize(size).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("only read"), "{error}");
        assert_eq!((machine.capacity(), machine.handle.size()), (SECTORS, SECTORS * 512));
    }
    assert_eq!(probe.calls(), []);
    // Storage that says itself that it is only read knows what to do.
    let probe = Probe::with(SECTORS, true, Properties { read_only: true, ..Properties::default() });
    let machine = Machine::new(probe.disk());
    machine.handle.resize(1 << 20).unwrap();
    assert_eq!(probe.calls(), [Call::Resize(1 << 20)]);
    assert_eq!(machine.handle.size(), 1 << 20);
}

/// Memory that the host does not have is an error of the call, and of nothing else.
#[test]
fn a_size_that_there_is_no_memory_for_is_refused() {
    let mut machine = Machine::new(Disk::backend(MemoryDisk::new(4096)));
    for size in [1 << 62, u64::MAX / 512 * 512] {
        let error = machine.handle.resize(size).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert_eq!((machine.capacity(), machine.handle.size()), (8, 4096));
    }
    machine.check();
}
