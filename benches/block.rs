//! Requests a second through a disk, with a driver in this process.
//!
//! A burst of requests is made available and kicked once, and the next burst comes when all are used. What the host has
//! in its memory is carried out on the device's own thread, whatever the engine; so the engines are compared where they
//! have something to do: reads that the host has to fetch, flushes, and large requests.

#[cfg_attr(target_os = "linux", path = "support/cache_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "support/cache_macos.rs")]
mod cache;

use std::cell::Cell;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use hyperkit::disk::{Disk, Engine, MemoryDisk};
use hyperkit::virtio::blk::Block;
use hyperkit::virtio::feature;
use hyperkit::virtio::testing::{Buffer, Guest, RAM, Ring};
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of a disk.
const SIZE: usize = 64 << 20;
/// The size of the queue.
const QUEUE: u16 = 64;
const BURSTS: [u16; 2] = [1, 32];

/// A kind of request: name, type, bytes.
type Kind = (&'static str, u32, u32);

const KINDS: [Kind; 4] = [
    ("4 KiB read", VIRTIO_BLK_T_IN, 4 << 10),
    ("4 KiB write", VIRTIO_BLK_T_OUT, 4 << 10),
    ("128 KiB read", VIRTIO_BLK_T_IN, 128 << 10),
    ("flush", VIRTIO_BLK_T_FLUSH, 0),
];
const LARGE: Kind = ("512 KiB read", VIRTIO_BLK_T_IN, 512 << 10);

/// A machine with nothing but a disk.
struct Machine {
    guest: Guest,
    ring: Ring,
    /// A page for each request: header, status, indirect table.
    pages: u64,
    /// Counts requests, so that each is for another part of the disk.
    count: u64,
}

impl Machine {
    fn new(disk: Disk) -> Self {
        let disk = disk.queues(1).open().expect("the disk opens");
        let mut guest = Guest::new(Block::new(disk, 1).expect("there is an engine"));
        let features = feature::INDIRECT_DESC | feature::EVENT_IDX | 1 << VIRTIO_BLK_F_FLUSH;
        let mut ring = guest.start(features, QUEUE).remove(0);
        ring.event_idx = true;
        let pages = guest.alloc(4096 * usize::from(QUEUE));
        Self { guest, ring, pages, count: 0 }
    }

    fn offer(&mut self, n: u16, (_, kind, len): Kind) {
        let page = self.pages + 4096 * u64::from(n);
        // An odd number of blocks, so that every block has its turn, and none follows the one before.
        let blocks = SIZE as u64 / u64::from(len.max(4096));
        let sector = self.count * 1237 % blocks * u64::from(len.max(4096)) / 512;
        self.count += 1;
        let header = [u64::from(kind), sector].map(u64::to_le_bytes).concat();
        self.guest.memory.write_slice(&header, GuestAddress(page)).expect("it is in RAM");
        let data = RAM[1].0 + u64::from(n) % 8 * u64::from(len);
        let (header, status) = (Buffer::Out(page, 16), Buffer::In(page + 16, 1));
        let table = page + 0x800;
        match kind {
            VIRTIO_BLK_T_IN => {
                self.ring.request_indirect(table, &[header, Buffer::In(data, len), status])
            }
            VIRTIO_BLK_T_OUT => {
                self.ring.request_indirect(table, &[header, Buffer::Out(data, len), status])
            }
            _ => self.ring.request_indirect(table, &[header, status]),
        };
    }

    fn burst(&mut self, burst: u16, kind: Kind) -> Duration {
        let begun = Instant::now();
        for n in 0..burst {
            self.offer(n, kind);
        }
        self.guest.kick(&mut self.ring);
        for _ in 0..burst {
            self.guest.wait(&mut self.ring);
        }
        let time = begun.elapsed();
        for n in 0..u64::from(burst) {
            let at = GuestAddress(self.pages + 4096 * n + 16);
            let status: u8 = self.guest.memory.read_obj(at).expect("it is in RAM");
            assert_eq!(status, 0, "a request has failed");
        }
        time
    }
}

/// Something to do before a burst that does not count.
type Before<'a> = &'a dyn Fn(&mut Machine);

fn run(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    kind: Kind,
    machine: &mut Machine,
    before: Before<'_>,
) {
    for burst in BURSTS {
        group.throughput(Throughput::Elements(burst.into()));
        group.bench_function(format!("{}, {name}burst of {burst}", kind.0), |b| {
            b.iter_custom(|bursts| {
                (0..bursts)
                    .map(|_| {
                        before(machine);
                        machine.burst(burst, kind)
                    })
                    .sum()
            });
        });
    }
}

/// A file of [`SIZE`] bytes in `folder`, all of them stored.
fn file(folder: &Path) -> NamedTempFile {
    let mut file = NamedTempFile::new_in(folder).expect("a file can be made");
    file.write_all(&vec![0x5a; SIZE]).expect("there is room");
    file.as_file().sync_all().expect("it can be stored");
    file
}

fn engines() -> impl Iterator<Item = (Engine, &'static str)> {
    let engines = [(Engine::IoUring, "io_uring, "), (Engine::Threads, "threads, ")];
    engines.into_iter().filter(|(engine, name)| {
        let disk = NamedTempFile::new().expect("a file can be made");
        let disk = Disk::raw(disk.path()).expect("a file is a disk").engine(*engine);
        let device = Block::new(disk.open().expect("the disk opens"), 1);
        if let Err(error) = &device {
            println!("skipped: {name}{error}");
        }
        device.is_ok()
    })
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();

    let mut group = criterion.benchmark_group("memory");
    let mut machine = Machine::new(Disk::backend(MemoryDisk::new(SIZE)));
    for kind in KINDS {
        run(&mut group, "", kind, &mut machine, &|_| {});
    }
    group.finish();

    let folders =
        [("tmpfs", Path::new("/dev/shm")), ("file", Path::new(env!("CARGO_TARGET_TMPDIR")))];
    for (name, folder) in folders.into_iter().filter(|(_, folder)| folder.is_dir()) {
        let file = file(folder);
        let mut group = criterion.benchmark_group(name);
        for kind in &KINDS[..3] {
            let mut machine = Machine::new(Disk::raw(file.path()).expect("a file is a disk"));
            run(&mut group, "", *kind, &mut machine, &|_| {});
        }
        for (engine, how) in engines() {
            let disk = Disk::raw(file.path()).expect("a file is a disk").engine(engine);
            let mut machine = Machine::new(disk);
            run(&mut group, how, LARGE, &mut machine, &|_| {});
            // After a write, so that there is something to flush.
            let before = |machine: &mut Machine| {
                machine.burst(1, KINDS[1]);
            };
            run(&mut group, how, KINDS[3], &mut machine, &before);
            if name == "file" && cache::forget(file.as_file()) {
                let forgotten = Cell::new(None);
                let before = |machine: &mut Machine| {
                    // Before a block comes again.
                    let round = SIZE as u64 / 4096 - 32;
                    if forgotten.get().is_none_or(|last| machine.count - last >= round) {
                        cache::forget(file.as_file());
                        forgotten.set(Some(machine.count));
                    }
                };
                let kind = ("4 KiB read that waits", VIRTIO_BLK_T_IN, 4 << 10);
                run(&mut group, how, kind, &mut machine, &before);
            }
        }
        group.finish();
    }
    criterion.final_summary();
}
