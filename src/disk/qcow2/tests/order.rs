//! The order in which an image's file is written: it can end anywhere, and things that the host had not stored yet
//! may be missing.

use std::io;
use std::sync::{Arc, Mutex};

use super::probe::Event;
use super::*;

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let bytes = bytes.get(at..).unwrap_or_default();
    (0..len)
        .fold(0, |number, index| (number << 8) | u64::from(bytes.get(index).copied().unwrap_or(0)))
}

/// References to each cluster of an image, as `qemu-img check` counts them.
struct References<'a> {
    file: &'a [u8],
    bits: u32,
    counts: Vec<u64>,
}

impl References<'_> {
    fn add(&mut self, offset: u64, len: u64) {
        for cluster in offset >> self.bits..(offset + len).div_ceil(1 << self.bits) {
            let cluster = cluster as usize;
            self.counts.resize(self.counts.len().max(cluster + 1), 0);
            self.counts[cluster] += 1;
        }
    }

    fn l1(&mut self, offset: u64, entries: u64) {
        const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
        let cluster = 1 << self.bits;
        self.add(offset, entries * 8);
        for index in 0..entries {
            let table = number(self.file, (offset + index * 8) as usize, 8) & PLACE;
            if table == 0 {
                continue;
            }
            self.add(table, cluster);
            for index in 0..cluster / 8 {
                let entry = number(self.file, (table + index * 8) as usize, 8);
                if entry & (1 << 62) != 0 {
                    let bits = 62 - (self.bits - 8);
                    let (place, sectors) =
                        (entry & ((1 << bits) - 1), (entry & !(3 << 62)) >> bits);
                    let start = place & !511;
                    self.add(start, (sectors + 1) * 512);
                } else if entry & PLACE != 0 {
                    self.add(entry & PLACE, cluster);
                }
            }
        }
    }
}

/// No cluster is referred to more often than its refcount says.
fn check(file: &[u8]) -> Result<(), String> {
    let bits = number(file, 20, 4) as u32;
    let order = if number(file, 4, 4) == 2 { 4 } else { number(file, 96, 4) as u32 };
    let mut references = References { file, bits, counts: Vec::new() };
    references.add(0, 1);
    references.l1(number(file, 40, 8), number(file, 36, 4));
    let (table, clusters) = (number(file, 48, 8), number(file, 56, 4));
    references.add(table, clusters << bits);
    let blocks: Vec<_> = (0..(clusters << bits) / 8)
        .map(|index| number(file, (table + index * 8) as usize, 8))
        .collect();
    blocks.iter().filter(|block| **block != 0).for_each(|block| references.add(*block, 1));
    let mut at = number(file, 64, 8);
    for _ in 0..number(file, 60, 4) {
        let begin = at as usize;
        references.l1(number(file, begin, 8), number(file, begin + 8, 4));
        let strings = number(file, begin + 12, 2) + number(file, begin + 14, 2);
        at += (40 + strings + number(file, begin + 36, 4)).next_multiple_of(8);
    }
    if number(file, 60, 4) > 0 {
        let start = number(file, 64, 8);
        references.add(start, at - start);
    }
    let per_block = 1 << (bits + 3 - order);
    for (cluster, &count) in references.counts.iter().enumerate() {
        let block = blocks.get(cluster / per_block).copied().unwrap_or(0);
        let bit = (cluster % per_block) << order;
        let refcount = match (block, order) {
            (0, _) => 0,
            (_, 0..3) => {
                let byte = number(file, block as usize + bit / 8, 1);
                (byte >> (bit % 8)) & ((1 << (1 << order)) - 1)
            }
            _ => number(file, block as usize + bit / 8, (1 << order) / 8),
        };
        if refcount < count {
            return Err(format!("cluster {cluster:#x}: refcount {refcount}, {count} references"));
        }
    }
    Ok(())
}

/// An image of some kind. Returns what is on it: some parts have no tables yet.
fn image(bench: &Bench, kind: &str, size: u64) -> Vec<u8> {
    const PART: usize = 32 << 10;
    let mut full = Random(43).bytes(size as usize / 64);
    full = full.iter().flat_map(|&byte| [byte; 64]).collect();
    full.chunks_mut(PART).skip(1).step_by(2).for_each(|part| part.fill(0));
    match kind.split_once(' ') {
        Some(("compressed", options)) => bench.convert("disk", &["-c", "-o", options], &full),
        Some(("snapshot", options)) => {
            bench.convert("disk", &["-o", options], &full);
            bench.must(&["snapshot", "-c", "then", "disk"]);
            bench.path("disk")
        }
        _ => {
            bench.create("disk", kind, size);
            return vec![0; size as usize];
        }
    };
    full
}

const KINDS: [&str; 8] = [
    "cluster_size=512",
    "cluster_size=512,refcount_bits=1",
    "cluster_size=1k,refcount_bits=64",
    "cluster_size=512,compat=0.10",
    "compressed cluster_size=512",
    "compressed cluster_size=2k",
    "snapshot cluster_size=512,refcount_bits=8",
    "snapshot cluster_size=4k",
];

/// Everything that is done to an image's file, from `start` on.
fn record(path: &Path, model: &mut [u8], policy: Flush, steps: u32, seed: u64) -> Vec<Event> {
    let disk = open_any(path, None, false, policy).unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = events.clone();
    disk.store.probe().set(move |event| {
        log.lock().unwrap().push(event);
        Ok(())
    });
    let mut random = Random(seed);
    exercise(&disk, model, &mut random, steps);
    if disk.facts.version > 2 {
        disk.resize(disk.size() + (1 << 20)).unwrap();
    }
    drop(disk);
    std::mem::take(&mut *events.lock().unwrap())
}

#[test]
fn the_process_may_end_anywhere() {
    let Some(bench) = Bench::new() else { return };
    for (seed, kind) in (47..).zip(KINDS) {
        let mut model = image(&bench, kind, 300 << 10);
        let mut file = std::fs::read(bench.path("disk")).unwrap();
        let events = record(&bench.path("disk"), &mut model, Flush::None, 250, seed);
        for (number, event) in events.iter().enumerate() {
            event.apply(&mut file);
            if let Err(why) = check(&file) {
                panic!("{kind}, after {number}: {why}");
            }
        }
        // The events are all there is.
        assert!(file == std::fs::read(bench.path("disk")).unwrap(), "{kind}");
        bench.check("disk");
    }
}

#[test]
fn the_host_may_end_anywhere() {
    let Some(bench) = Bench::new() else { return };
    let mut random = Random(53);
    for (seed, kind) in (59..).zip(KINDS) {
        let mut model = image(&bench, kind, 200 << 10);
        let mut stored = std::fs::read(bench.path("disk")).unwrap();
        let events = record(&bench.path("disk"), &mut model, Flush::Fsync, 120, seed);
        let syncs = events.iter().filter(|event| matches!(event, Event::Sync)).count();
        eprintln!("{kind}: {} events, {syncs} syncs", events.len());
        let mut waiting = Vec::new();
        for (number, event) in events.iter().enumerate() {
            if matches!(event, Event::Sync) {
                waiting.drain(..).for_each(|event: &Event| event.apply(&mut stored));
                continue;
            }
            waiting.push(event);
            let mut file = stored.clone();
            for event in &waiting {
                if random.below(2) == 0 {
                    event.apply(&mut file);
                }
            }
            if let Err(why) = check(&file) {
                panic!("{kind}, after {number}: {why}");
            }
        }
    }
}

#[test]
fn a_host_that_has_no_room_for_a_while() {
    let Some(bench) = Bench::new() else { return };
    for (seed, kind) in (61..).zip(KINDS) {
        let mut model = image(&bench, kind, 200 << 10);
        let disk = open(&bench.path("disk"));
        let mut random = Random(seed);
        for _ in 0..5 {
            let mut fate = Random(random.below(1 << 20) + 1);
            disk.store.probe().set(move |event| match event {
                Event::Sync => Ok(()),
                // Entries that lead to tables are rare.
                Event::Write(_, bytes) if bytes.len() == 8 && fate.below(2) == 0 => {
                    Err(io::Error::from_raw_os_error(libc::ENOSPC))
                }
                _ if fate.below(25) > 0 => Ok(()),
                _ => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            });
            for _ in 0..60 {
                let (offset, len) = random.extent(200 << 10, 64 << 10);
                let mut bytes = random.bytes(len as usize);
                let done = match random.below(8) {
                    0 => disk.write_zeroes(offset, len, true),
                    1 => disk.discard(offset, len),
                    2 => disk.flush(),
                    _ => disk.write(offset, pieces(&mut bytes).all()),
                };
                if let Err(error) = done {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                }
            }
            disk.store.probe().clear();
            disk.flush().unwrap();
            model.copy_from_slice(&read(&disk, 0, 200 << 10));
            exercise(&disk, &mut model, &mut random, 40);
        }
        drop(disk);
        let check = bench.run(&["check", "-f", "qcow2", "disk"]);
        assert!(matches!(check.status.code(), Some(0 | 3)), "{kind}: {check:?}");
        bench.compare("disk", &model);
    }
}
