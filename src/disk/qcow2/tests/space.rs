//! Storage that is given back, and several threads at a time.

use std::io;
use std::os::unix::fs::MetadataExt;

use super::*;

fn blocks(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn a_discard_shrinks_the_file() {
    let Some(bench) = Bench::new() else { return };
    for options in ["cluster_size=64k", "cluster_size=64k,compat=0.10", "cluster_size=4k"] {
        let path = bench.create("disk", options, 64 << 20);
        let disk = open(&path);
        if !disk.store.file().properties().discard {
            eprintln!("skipped: no holes can be punched here");
            return;
        }
        assert!(disk.properties().discard);
        write(&disk, 0, &vec![0x5a; 32 << 20]);
        disk.flush().unwrap();
        let full = blocks(&path);
        assert!(full >= 32 << 20);
        disk.discard(0, 16 << 20).unwrap();
        let less = blocks(&path);
        assert!(less <= full - (15 << 20), "{full} {less}");
        disk.write_zeroes(16 << 20, 12 << 20, true).unwrap();
        let least = blocks(&path);
        assert!(least <= less - (11 << 20), "{less} {least}");
        assert!(read(&disk, 16 << 20, 12 << 20).iter().all(|&byte| byte == 0));
        assert!(read(&disk, 28 << 20, 4 << 20).iter().all(|&byte| byte == 0x5a));
        // Clusters are used again.
        let length = std::fs::metadata(&path).unwrap().len();
        write(&disk, 0, &vec![0xa5; 24 << 20]);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
        drop(disk);
        bench.check("disk");
    }
}

/// A file system that discards the whole of a new disk must not have tables made for all of it.
#[test]
fn discarding_nothing_costs_nothing() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.create("disk", "", 4 << 40);
    let length = std::fs::metadata(&path).unwrap().len();
    let disk = open(&path);
    disk.discard(0, 4 << 40).unwrap();
    disk.write_zeroes(0, 4 << 40, true).unwrap();
    disk.write_zeroes(0, 4 << 40, false).unwrap();
    drop(disk);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
    bench.check("disk");
}

#[test]
fn zeroes_that_keep_their_storage() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.create("disk", "", 8 << 20);
    let disk = open(&path);
    write(&disk, 0, &vec![1; 4 << 20]);
    let full = blocks(&path);
    disk.write_zeroes(0, 4 << 20, false).unwrap();
    assert!(read(&disk, 0, 8 << 20).iter().all(|&byte| byte == 0));
    assert!(blocks(&path) >= full);
}

#[test]
fn eight_threads_at_once() {
    const PART: usize = 384 << 10;
    let Some(bench) = Bench::new() else { return };
    let mut random = Random(29);
    let base = random.bytes(PART * 8);
    for options in ["cluster_size=4k", "cluster_size=64k", "compressed"] {
        match options {
            "compressed" => bench.convert("disk", &["-c"], &base),
            _ => bench.create("disk", options, PART as u64 * 8),
        };
        let disk = open(&bench.path("disk"));
        let mut model = read(&disk, 0, PART as u64 * 8);
        std::thread::scope(|scope| {
            for (number, part) in model.chunks_mut(PART).enumerate() {
                let disk = Part { disk: &disk, start: (number * PART) as u64, len: PART as u64 };
                scope.spawn(move || exercise(&disk, part, &mut Random(31 + number as u64), 120));
            }
        });
        assert!(read(&disk, 0, PART as u64 * 8) == model);
        drop(disk);
        bench.check("disk");
        bench.compare("disk", &model);
    }
}

/// A part of a disk.
struct Part<'a> {
    disk: &'a Qcow2,
    start: u64,
    len: u64,
}

impl BlockBackend for Part<'_> {
    fn size(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, into: Buffers<'_>) -> io::Result<()> {
        self.disk.read(self.start + offset, into)
    }

    fn write(&self, offset: u64, from: Buffers<'_>) -> io::Result<()> {
        self.disk.write(self.start + offset, from)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.discard(self.start + offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.disk.write_zeroes(self.start + offset, len, unmap)
    }
}
