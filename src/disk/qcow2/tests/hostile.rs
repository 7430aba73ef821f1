//! Files that lie. They are made by hand, so that nobody is needed for them.

use std::fs;
use std::io;

use super::*;

const CLUSTER: usize = 512;

/// A small image with a table of each sort and a cluster of data, as it should be.
fn image() -> Vec<u8> {
    let mut image = vec![0; 7 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..][..bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &9u32.to_be_bytes());
    put(24, &(64u64 << 10).to_be_bytes());
    put(36, &2u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    // Refcount table, block, L1 table, two L2 tables, and data.
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..7 {
        put(2 * CLUSTER + 2 * cluster, &1u16.to_be_bytes());
    }
    put(3 * CLUSTER, &((1 << 63) | (4 * CLUSTER as u64)).to_be_bytes());
    put(3 * CLUSTER + 8, &((1 << 63) | (5 * CLUSTER as u64)).to_be_bytes());
    put(4 * CLUSTER, &((1 << 63) | (6 * CLUSTER as u64)).to_be_bytes());
    put(6 * CLUSTER, &[0x5a; CLUSTER]);
    image
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open(&self, image: &[u8], backing: Option<&Image>, read_only: bool) -> Result<Qcow2, Error> {
        let path = self.0.path().join("image");
        fs::write(&path, image).unwrap();
        open_any(&path, backing, read_only, Flush::None)
    }

    /// The image is refused for a reason, whatever it is opened for.
    fn refused(&self, image: &[u8], why: &str) {
        for read_only in [true, false] {
            match self.open(image, None, read_only) {
                Err(Error::Image { why: said, .. }) if said.contains(why) => {}
                other => panic!("not refused because of {why:?}: {other:?}"),
            }
        }
    }
}

fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image();
    image[at..][..bytes.len()].copy_from_slice(bytes);
    image
}

/// Does a little of everything. Errors are fine, panics are not, not even those that are caught.
fn use_it(disk: &Qcow2) {
    let size = disk.size().min(1 << 20);
    let check = |result: io::Result<()>| {
        if let Err(error) = result {
            assert!(!error.to_string().contains("panicked"), "{error}");
        }
    };
    for at in [0, size / 512 / 2 * 512, size.saturating_sub(512)] {
        let len = 512.min(size - at) as usize;
        let mut bytes = vec![7; len];
        check(disk.read(at, BufferList::from(bytes.as_mut_slice()).all()));
        check(disk.write(at, BufferList::from(bytes.as_mut_slice()).all()));
        check(disk.discard(at, len as u64));
        check(disk.write(at, BufferList::from(bytes.as_mut_slice()).all()));
        check(disk.flush());
    }
    check(disk.write_zeroes(0, size, true));
    check(disk.flush());
}

#[test]
fn the_image_is_fine_otherwise() {
    let folder = Folder::new();
    let disk = folder.open(&image(), None, false).unwrap();
    assert!(read(&disk, 0, 512) == [0x5a; 512] && read(&disk, 512, 512) == [0; 512]);
    use_it(&disk);
    drop(disk);
    if let Some(bench) = Bench::new() {
        fs::copy(folder.0.path().join("image"), bench.path("image")).unwrap();
        bench.check("image");
    }
}

#[test]
fn headers_that_are_refused() {
    let folder = Folder::new();
    let u32 = |at, value: u32| changed(at, &value.to_be_bytes());
    let u64 = |at, value: u64| changed(at, &value.to_be_bytes());
    folder.refused(b"", "does not begin as one");
    folder.refused(&[0; 4096], "if it is a raw image, say so");
    folder.refused(&u32(4, 1), "version 1");
    folder.refused(&u32(4, 4), "version 4");
    for bits in [0, 8, 22, 63, 64, u32::MAX] {
        folder.refused(&u32(20, bits), "clusters of 2^");
    }
    folder.refused(&u32(32, 1), "encrypted");
    folder.refused(&u32(32, 3), "encryption method 3");
    for length in [0, 96, 105, 520, u32::MAX] {
        folder.refused(&u32(100, length), "claims a length");
    }
    folder.refused(&u32(96, 7), "more than 64");
    folder.refused(&u64(24, (64 << 10) + 1), "needs 3");
    folder.refused(&u64(24, u64::MAX), "needs 562949953421312");
    folder.refused(&u32(36, (4 << 20) + 1), "larger than 32 MiB");
    folder.refused(&u32(36, 4 << 20), "the file ends at 0xe00");
    folder.refused(&u32(36, 1), "needs 2");
    for what in [40, 48] {
        folder.refused(&u64(what, 0), "lies over");
        folder.refused(&u64(what, 4097), "within a cluster");
        folder.refused(&u64(what, 1 << 40), "the file ends at");
        folder.refused(&u64(what, u64::MAX - 4095), "the file ends at");
        folder.refused(&u64(what, u64::MAX - 4), "where no file ends");
    }
    folder.refused(&u64(40, 512), "lies over the L1 table");
    folder.refused(&u32(56, 0), "has 0 bytes");
    folder.refused(&u32(56, u32::MAX), "refcount table has");
    folder.refused(&u32(56, 3), "lies over the L1 table");
    folder.refused(&u32(60, 65537), "65537 snapshots");
    folder.refused(&u32(60, 1), "snapshot table at 0x0 lies over the header");
    for (bit, why) in [
        (0, "check -r all"),
        (1, "marked as corrupt"),
        (2, "external data file"),
        (3, "compressed in another way"),
        (4, "subclusters"),
        (5, "bit 5"),
        (63, "bit 63"),
    ] {
        folder.refused(&u64(72, 1 << bit), why);
    }
}

#[test]
fn extensions_and_names() {
    let folder = Folder::new();
    let extension = |kind: u32, len: u32| [kind.to_be_bytes(), len.to_be_bytes()].concat();
    folder.refused(&changed(104, &extension(0x1234, 409)), "does not fit");
    folder.refused(&changed(104, &extension(0x1234, u32::MAX)), "does not fit");
    folder.refused(&changed(104, &extension(0x6803_f857, 49)), "within a name");
    folder.refused(&changed(104, &extension(0x1234, 400)), "have no end");
    folder.refused(&changed(104, &extension(0x1234, 0).repeat(51)), "have no end");
    let long = |cluster_bits: u32| {
        let mut image = image();
        image[20..24].copy_from_slice(&cluster_bits.to_be_bytes());
        image[104..][..65 * 8].copy_from_slice(&extension(1, 0).repeat(65));
        image
    };
    // Only the header is looked at before.
    assert!(folder.open(&long(12), None, true).is_err());

    let name = |offset: u64, len: u32| {
        let mut image = changed(8, &offset.to_be_bytes());
        image[16..20].copy_from_slice(&len.to_be_bytes());
        image[112..121].copy_from_slice(b"/etc/pass");
        image
    };
    folder.refused(&name(112, 9), "\"/etc/pass\" (of a format that it does not tell)");
    folder.refused(&name(112, 9), "`.backing(…)`");
    folder.refused(&name(112, 0), "0 bytes");
    folder.refused(&name(112, 1024), "1024 bytes");
    folder.refused(&name(508, 4), "outside its first cluster");
    folder.refused(&name(u64::MAX, 9), "outside its first cluster");
    let mut garbled = name(112, 9);
    garbled[115] = 0xff;
    folder.refused(&garbled, "no text");
}

#[test]
fn what_is_under_an_image_is_what_the_caller_says() {
    let folder = Folder::new();
    let base = folder.0.path().join("base");
    fs::write(&base, [0x33; 4096]).unwrap();
    let named = |format: &[u8]| {
        let mut image = image();
        image[8..16].copy_from_slice(&400u64.to_be_bytes());
        image[16..20].copy_from_slice(&4u32.to_be_bytes());
        image[104..108].copy_from_slice(&0xe279_2acau32.to_be_bytes());
        image[108..112].copy_from_slice(&(format.len() as u32).to_be_bytes());
        image[112..][..format.len()].copy_from_slice(format);
        image[400..404].copy_from_slice(b"base");
        image
    };
    folder.refused(&named(b"raw"), "it is a difference to \"base\" (raw)");
    let given = raw(base.clone());
    let disk = folder.open(&named(b"raw"), Some(&given), false).unwrap();
    assert!(read(&disk, 0, 512) == [0x5a; 512] && read(&disk, 512, 512) == [0x33; 512]);
    let locked = Qcow2::open(&base, None, false, Flush::None);
    assert!(matches!(locked, Err(Error::Locked { .. })), "{locked:?}");
    drop(disk);
    for (image, given, why) in [
        (image(), raw(base.clone()), "but it has none"),
        (named(b"qcow2"), raw(base.clone()), "is qcow2 by its word, not raw"),
        (named(b"vmdk"), raw(base.clone()), "is vmdk by its word"),
        (named(b"raw"), Image::Qcow2 { path: base.clone(), backing: None }, "not qcow2"),
        (named(b"qcow2"), Image::Qcow2 { path: base, backing: None }, "does not begin as one"),
    ] {
        let error = folder.open(&image, Some(&given), false).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn tables_in_impossible_places() {
    let folder = Folder::new();
    let l1 = |entry: u64| changed(3 * CLUSTER, &entry.to_be_bytes());
    let counts = |entry: u64| changed(CLUSTER + 8, &entry.to_be_bytes());
    let copied = |place: u64| (1 << 63) | place;
    folder.refused(&l1(copied(5 * 512)), "two tables at 0xa00");
    folder.refused(&l1(copied(2 * 512)), "two tables at 0x400");
    folder.refused(&l1(copied(3 * 512)), "over its L1 table");
    folder.refused(&l1(copied(512)), "over its refcount table");
    folder.refused(&l1(copied(7 * 512)), "the file ends at");
    folder.refused(&l1(0x00ff_ffff_ffff_fe00), "the file ends at");
    folder.refused(&l1(copied(512) | 1), "entry 0 of its L1 table");
    folder.refused(&l1(1 << 62), "entry 0 of its L1 table");
    folder.refused(&counts(2 * 512), "two tables at 0x400");
    folder.refused(&counts(512), "a refcount block at 0x200, over its refcount table");
    folder.refused(&counts(u64::MAX << 9), "the file ends at");
    folder.refused(&counts(1), "entry 1 of its refcount table");
    let mut unaligned = image();
    unaligned[20..24].copy_from_slice(&10u32.to_be_bytes());
    unaligned[40..48].copy_from_slice(&2048u64.to_be_bytes());
    unaligned[48..56].copy_from_slice(&1024u64.to_be_bytes());
    unaligned[1024..2048].fill(0);
    unaligned[1024..1032].copy_from_slice(&512u64.to_be_bytes());
    folder.refused(&unaligned, "within a cluster");
    // To be read, an image needs no refcounts.
    for cluster in 0..6 {
        let image = changed(2 * CLUSTER + 2 * cluster, &[0, 0]);
        assert!(folder.open(&image, None, true).is_ok());
        let error = folder.open(&image, None, false).unwrap_err().to_string();
        assert!(error.contains("is in free space") && error.contains("check -r all"), "{error}");
    }
}

#[test]
fn data_that_lies_over_tables_is_not_written() {
    let folder = Folder::new();
    for place in [512, 3 * 512] {
        let image = changed(4 * CLUSTER, &((1u64 << 63) | place).to_be_bytes());
        let disk = folder.open(&image, None, false).unwrap();
        let error = disk.write(0, BufferList::from(&mut [1; 512][..]).all()).unwrap_err();
        assert!(error.to_string().contains("damaged"), "{error}");
        // The rest of the disk can be used.
        write(&disk, 1024, &[2; 512]);
        disk.flush().unwrap();
    }
}

#[test]
fn cut_off_anywhere() {
    let (folder, image) = (Folder::new(), image());
    for len in (0..120).chain((120..image.len()).step_by(61)) {
        for read_only in [true, false] {
            if let Ok(disk) = folder.open(&image[..len], None, read_only) {
                use_it(&disk);
            }
        }
    }
}

#[test]
fn absurd_numbers_everywhere() {
    let folder = Folder::new();
    let values =
        [0, 1, 9, 512, 513, 1 << 20, 1 << 31, 1 << 32, 1 << 56, 1 << 63, u64::MAX, u64::MAX << 9];
    let fields = (4..112).step_by(4).chain((512..768).step_by(64)).chain(1024..1042);
    for at in fields.chain((1536..1568).step_by(8)).chain((2048..2080).step_by(8)) {
        for value in values {
            let bytes = value.to_be_bytes();
            for bytes in [&bytes[..], &bytes[4..]] {
                if let Ok(disk) = folder.open(&changed(at, bytes), None, value % 3 == 1) {
                    use_it(&disk);
                }
            }
        }
    }
}
