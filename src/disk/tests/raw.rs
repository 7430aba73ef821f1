//! Raw files: holes, zeros, odd sizes, names.

use super::*;

const BLOCK: u64 = 4096;

#[test]
fn discarding_gives_storage_back() {
    for folder in folders() {
        let bytes = Random(1).bytes(1 << 20);
        let file = file_of(&folder, &bytes);
        let disk = raw(file.path());
        if !disk.properties().discard {
            println!("skipped: the file system of {} has no holes", folder.display());
            continue;
        }
        let before = stored(file.as_file());
        assert!(before >= 1 << 20);
        disk.discard(256 << 10, 512 << 10).unwrap();
        let after = stored(file.as_file());
        assert!(after <= before - (512 << 10), "{before} bytes, then {after}");
        // What is less than a block is left alone, whatever is beside it.
        disk.discard(512, BLOCK).unwrap();
        disk.discard(BLOCK - 512, 1024).unwrap();
        disk.discard(0, 0).unwrap();
        assert_eq!(stored(file.as_file()), after);
        assert!(read(&disk, 0, 256 << 10) == bytes[..256 << 10]);
        assert!(read(&disk, 768 << 10, 256 << 10) == bytes[768 << 10..]);
        assert_eq!(file.as_file().metadata().unwrap().len(), 1 << 20);
    }
}

#[test]
fn zeroing_keeps_storage_or_gives_it_back() {
    for folder in folders() {
        let file = file_of(&folder, &Random(2).bytes(1 << 20));
        let disk = raw(file.path());
        let before = stored(file.as_file());
        disk.write_zeroes(0, 256 << 10, false).unwrap();
        assert!(read(&disk, 0, 256 << 10).iter().all(|&byte| byte == 0));
        assert!(stored(file.as_file()) >= before, "the storage is gone");
        disk.write_zeroes(256 << 10, 256 << 10, true).unwrap();
        assert!(read(&disk, 256 << 10, 256 << 10).iter().all(|&byte| byte == 0));
        let after = stored(file.as_file());
        assert!(!disk.properties().discard || after <= before - (256 << 10), "{before}, {after}");
    }
}

#[test]
fn zeroing_with_ends_within_blocks_touches_nothing_else() {
    for folder in folders() {
        let mut model = Random(3).bytes(64 << 10);
        let file = file_of(&folder, &model);
        let disk = raw(file.path());
        let mut random = Random(4);
        for _ in 0..300 {
            let start = random.below(127);
            let sectors = random.below(128 - start).min([3, 20, 128][random.below(3) as usize]);
            let (start, len) = (start * SECTOR, sectors * SECTOR);
            disk.write_zeroes(start, len, random.below(2) == 0).unwrap();
            model[start as usize..][..len as usize].fill(0);
            let (at, bytes) = (random.below(60) * 1024, random.bytes(1024));
            write(&disk, at, &bytes);
            model[at as usize..][..1024].copy_from_slice(&bytes);
            assert!(read(&disk, 0, model.len()) == model, "{len} bytes at {start}");
        }
        assert!(std::fs::read(file.path()).unwrap() == model);
    }
}

#[test]
fn a_sparse_file_stays_sparse() {
    for folder in folders() {
        let file = sparse(&folder, 1 << 40);
        let disk = raw(file.path());
        assert_eq!(disk.size(), 1 << 40);
        for at in [0, 1 << 30, (1 << 40) - 512] {
            assert_eq!(read(&disk, at, 512), [0; 512]);
            write(&disk, at, &[7; 512]);
            assert_eq!(read(&disk, at, 512), [7; 512]);
        }
        disk.write_zeroes(1 << 35, 1 << 30, true).unwrap();
        disk.flush().unwrap();
        assert!(stored(file.as_file()) < 1 << 20);
    }
}

/// What lies behind the last whole sector is not the guest's.
#[test]
fn the_end_of_an_odd_file_is_left_alone() {
    for folder in folders() {
        let bytes = Random(6).bytes(3 * 4096 + 700);
        let file = file_of(&folder, &bytes);
        let disk = raw(file.path());
        assert_eq!(disk.size(), bytes.len() as u64);
        let sectors = disk.size() / SECTOR;
        assert_eq!(sectors, 25);
        disk.discard(0, sectors * SECTOR).unwrap();
        disk.write_zeroes(0, sectors * SECTOR, true).unwrap();
        write(&disk, 24 * SECTOR, &[9; 512]);
        let after = std::fs::read(file.path()).unwrap();
        assert_eq!(after.len(), bytes.len());
        assert_eq!(after[25 * 512..], bytes[25 * 512..]);
        assert_eq!(after[24 * 512..25 * 512], [9; 512]);
        assert!(after[..24 * 512].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn block_sizes_are_those_of_the_file_system() {
    for folder in folders() {
        let file = sparse(&folder, 1 << 20);
        let Topology { logical, physical, minimum, .. } = raw(file.path()).properties().topology;
        assert_eq!(logical, 512);
        assert!(physical.is_power_of_two() && (512..=4096).contains(&physical));
        assert_eq!(u64::from(minimum), file.as_file().metadata().unwrap().blksize());
    }
}

#[test]
fn a_file_has_one_identity_whatever_it_is_called() {
    for folder in folders() {
        let folder = tempfile::tempdir_in(folder).unwrap();
        let path = |name: &str| folder.path().join(name);
        let identity = |name: &str, read_only| {
            let disk = RawFile::open(&path(name), read_only, Flush::None).unwrap();
            disk.properties().identity.unwrap()
        };
        std::fs::write(path("a"), [0; 4096]).unwrap();
        std::fs::write(path("b"), [0; 4096]).unwrap();
        let [a, b] = ["a", "b"].map(|name| identity(name, false));
        assert_ne!(a, b);
        assert!(a.len() <= 20 && a.bytes().all(|byte| byte.is_ascii_graphic()), "{a}");
        assert_eq!(identity("a", true), a);
        std::fs::write(path("a"), [1; 512]).unwrap();
        std::fs::rename(path("b"), path("c")).unwrap();
        std::fs::rename(path("a"), path("b")).unwrap();
        std::fs::hard_link(path("b"), path("d")).unwrap();
        std::os::unix::fs::symlink("d", path("e")).unwrap();
        for (name, expected) in [("b", &a), ("c", &b), ("d", &a), ("e", &a)] {
            assert_eq!(&identity(name, false), expected, "{name}");
        }
        // A copy is another disk.
        std::fs::copy(path("b"), path("f")).unwrap();
        assert_ne!(identity("f", false), a);
    }
}

#[test]
fn a_serial_number_that_is_set_takes_the_place_of_the_identity() {
    let file = sparse(&folders()[0], 4096);
    let identity = raw(file.path()).properties().identity.unwrap();
    let serial = |disk: Disk| disk.open().unwrap().serial;
    assert_eq!(serial(Disk::raw(file.path()).unwrap()), identity);
    assert_eq!(serial(Disk::raw(file.path()).unwrap().serial("mine")), "mine");
    assert_eq!(serial(Disk::raw(file.path()).unwrap().serial("")), "");
    assert_eq!(serial(Disk::backend(MemoryDisk::new(512))), "");
}

#[test]
fn every_flush_policy_flushes_or_does_not() {
    for folder in folders() {
        let file = sparse(&folder, 4096);
        for policy in [Flush::Fsync, Flush::Full, Flush::None] {
            let disk = RawFile::open(file.path(), false, policy).unwrap();
            write(&disk, 0, &[1; 512]);
            disk.flush().unwrap();
            assert_eq!(disk.policy(), policy);
        }
    }
}
