//! Options of a disk that cannot be, and what is said of them.

use super::*;

fn memory() -> Disk {
    Disk::backend(MemoryDisk::new(4096))
}

#[test]
fn options_that_cannot_be_are_refused_with_a_word() {
    for (disk, word) in [
        (memory().serial("twenty-one characters"), "20 bytes, \"twenty-one characters\" has 21"),
        (memory().serial("ä".repeat(11)), "at most 20 bytes"),
        (memory().queues(0), "1 to 16 queues, not 0"),
        (memory().queues(17), "1 to 16 queues, not 17"),
        (memory().limit_bytes(0), "0 bytes a second would hang"),
        (memory().limit_operations(0), "0 requests a second would hang"),
    ] {
        let error = disk.open().unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    let file = sparse(&folders()[0], 4096);
    let error = Disk::raw(file.path()).unwrap().queues(0).open().unwrap_err().to_string();
    assert!(error.starts_with(file.path().to_str().unwrap()), "{error}");
}

#[test]
fn options_at_their_limits_are_taken() {
    for disk in [
        memory().serial("twenty characters !!"),
        memory().queues(1),
        memory().queues(16),
        memory().limit_bytes(1),
        memory().limit_operations(u64::MAX).limit_bytes(u64::MAX),
    ] {
        let open = disk.open().unwrap();
        assert!(!open.read_only);
        crate::virtio::blk::Block::new(open, 4).unwrap();
    }
}

#[test]
fn queues_follow_from_the_vcpus_unless_they_are_set() {
    use crate::virtio::VirtioDevice;
    use crate::virtio::blk::Block;
    let queues =
        |disk: Disk, cpus| Block::new(disk.open().unwrap(), cpus).unwrap().queue_sizes().len();
    for (cpus, expected) in [(0, 1), (1, 1), (3, 3), (8, 8), (9, 8), (u32::MAX, 8)] {
        assert_eq!(queues(memory(), cpus), expected, "{cpus} vCPUs");
        assert_eq!(queues(memory().queues(16), cpus), 16);
    }
}

#[test]
fn read_only_is_what_either_side_wants() {
    struct Media(MemoryDisk);
    impl BlockBackend for Media {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read(&self, offset: u64, into: Buffers<'_>) -> std::io::Result<()> {
            self.0.read(offset, into)
        }
        fn write(&self, _: u64, _: Buffers<'_>) -> std::io::Result<()> {
            panic!("written to")
        }
        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
        fn properties(&self) -> Properties {
            Properties { read_only: true, ..Properties::default() }
        }
    }
    assert!(!memory().open().unwrap().read_only);
    assert!(memory().read_only().open().unwrap().read_only);
    assert!(Disk::backend(Media(MemoryDisk::new(512))).open().unwrap().read_only);
}

#[test]
#[cfg(feature = "qcow2")]
fn only_qcow2_images_have_backing_files() {
    let file = sparse(&folders()[0], 4096);
    let raw = || Disk::raw(file.path()).unwrap();
    for disk in [raw().backing(raw()), memory().backing(raw()), raw().backing(memory())] {
        let error = disk.open().unwrap_err();
        assert!(error.to_string().contains("only a qcow2 image"), "{error}");
    }
    let error = Disk::qcow2(file.path()).unwrap().backing(memory()).open().unwrap_err();
    assert!(error.to_string().contains("only an image file"), "{error}");
}

#[test]
fn disks_say_what_they_are_in_debug_output() {
    let file = sparse(&folders()[0], 4096);
    let disk = Disk::raw(file.path()).unwrap().read_only();
    let text = format!("{disk:?}");
    assert!(text.contains(file.path().to_str().unwrap()) && text.contains("read_only: true"));
    assert!(format!("{:?}", disk.open().unwrap()).contains("read_only: true"));
    assert!(format!("{:?}", memory()).contains("backend"));
}
