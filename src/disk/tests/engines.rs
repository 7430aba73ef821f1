//! Both engines, with requests side by side, compared with a model in memory.

use std::collections::HashMap;
use std::ops::Range;

use super::super::engine::{Done, Extent, Op};
use super::super::spec::Target;
use super::*;

const SIZE: u64 = 24 << 20;

/// A request that has not ended.
struct Pending {
    range: Range<u64>,
    /// What a read must find.
    expected: Option<Vec<u8>>,
}

/// A disk, and what must be on it.
struct Model {
    rig: Rig,
    bytes: Vec<u8>,
    pending: HashMap<usize, Pending>,
    random: Random,
    /// What is punched out reads as zeros in units of this, if at all.
    block: Option<u64>,
}

impl Model {
    /// A part of the disk that no request is at; mostly small, sometimes larger than the steps of an engine.
    fn range(&mut self) -> Range<u64> {
        loop {
            let most = [12_000, 12_000, 1024, 128, 8][(self.random.below(60) as usize / 3).min(4)];
            let len = (self.random.below(most) + 1) * SECTOR;
            let start = self.random.below((SIZE - len) / SECTOR + 1) * SECTOR;
            let range = start..start + len;
            let free = |other: &Pending| other.range.end <= start || range.end <= other.range.start;
            if self.pending.values().all(free) {
                return range;
            }
        }
    }

    fn step(&mut self) {
        let Range { start, end } = self.range();
        let len = (end - start) as usize;
        let at = start as usize..end as usize;
        let unmap = self.random.below(2) == 0;
        let extent = |bytes: &mut [u8]| {
            bytes.fill(0);
            vec![Extent { offset: start, len: end - start, unmap }]
        };
        let mut expected = None;
        let (op, memory) = match self.random.below(20) {
            0 if self.random.below(4) == 0 => (Op::Flush, vec![]),
            0..2 => (Op::WriteZeroes(extent(&mut self.bytes[at])), vec![]),
            2..4 => {
                let block = self.block.unwrap_or(u64::MAX / 2);
                let (first, last) = (start.next_multiple_of(block), end / block * block);
                let whole = first as usize..last.max(first) as usize;
                let whole = if first < last { &mut self.bytes[whole] } else { &mut [] };
                (Op::Discard(extent(whole)), vec![])
            }
            4..12 => {
                let bytes = self.random.bytes(len);
                self.bytes[at].copy_from_slice(&bytes);
                (Op::Write { offset: start }, bytes)
            }
            _ => {
                expected = Some(self.bytes[at].to_vec());
                (Op::Read { offset: start }, vec![0xaa; len])
            }
        };
        let cut: Vec<_> =
            (0..self.random.below(12)).map(|_| self.random.below(9000) as usize).collect();
        let request = self.rig.request(op, memory, &cut);
        self.pending.insert(request.token.number, Pending { range: start..end, expected });
        if let Some(done) = self.rig.submit(request) {
            self.done(done);
        }
    }

    fn done(&mut self, done: Done<Token>) {
        done.result.unwrap();
        let token = done.request.token;
        let pending = self.pending.remove(&token.number).expect("ended twice");
        if let Some(expected) = pending.expected {
            assert!(token.bytes() == expected, "read at {:?}", pending.range);
        }
    }

    fn run(mut self, steps: usize) {
        for step in 0..steps {
            let most = [1, 4, 40, 200][step * 4 / steps];
            self.step();
            while self.pending.len() >= most {
                let by_notifier = self.random.below(2) == 0;
                for done in self.rig.wait(by_notifier) {
                    self.done(done);
                }
            }
        }
        while !self.pending.is_empty() {
            for done in self.rig.wait(true) {
                self.done(done);
            }
        }
        let (result, found) = self.rig.run(Op::Read { offset: 0 }, vec![0xaa; SIZE as usize]);
        result.unwrap();
        assert!(found == self.bytes);
    }
}

#[test]
fn a_file_is_what_was_written_to_it() {
    for folder in folders() {
        let file = sparse(&folder, SIZE);
        let properties = raw(file.path()).properties();
        let mut bytes = vec![0; SIZE as usize];
        for (seed, rig) in rigs(file.path()).into_iter().enumerate() {
            let block = properties.discard.then_some(properties.topology.physical.into());
            let model =
                Model { rig, bytes, pending: HashMap::new(), random: Random(seed as u64), block };
            model.run(500);
            // Through the file itself, by nobody's engine; the next one goes on from there.
            bytes = std::fs::read(file.path()).unwrap();
            assert_eq!(bytes.len() as u64, SIZE, "the file has grown");
        }
    }
}

/// The same for an image: some of its data is in place, some has no place yet.
#[cfg(feature = "qcow2")]
#[test]
fn an_image_is_what_was_written_to_it() {
    let qemu_img = |arguments: &[&str], path: &Path| {
        std::process::Command::new("qemu-img").args(arguments).arg(path).output()
    };
    for cluster in [4096, 65536] {
        let file = file_in(&folders()[0]);
        let size = format!("size={SIZE},cluster_size={cluster}");
        match qemu_img(&["create", "-q", "-f", "qcow2", "-o", &size], file.path()) {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(error) => {
                println!("skipped: qemu-img (package qemu-utils): {error}");
                return;
            }
        }
        let mut bytes = vec![0; SIZE as usize];
        for (seed, engine) in [Engine::IoUring, Engine::Threads].into_iter().enumerate() {
            for alone in [true, false] {
                let open = || Qcow2::open_alone(file.path(), false, Flush::Fsync).unwrap();
                let target = Target::Qcow2(std::sync::Arc::new(open()));
                let Some(rig) = Rig::new(&target, engine, alone) else { continue };
                let random = Random(seed as u64 * 2 + u64::from(alone));
                let block = Some(cluster);
                Model { rig, bytes, pending: HashMap::new(), random, block }.run(400);
                drop(target);
                let check = qemu_img(&["check", "-f", "qcow2"], file.path()).unwrap();
                assert!(check.status.success(), "{check:?}");
                bytes = vec![0; SIZE as usize];
                let list = &mut BufferList::from(&mut bytes[..]);
                open().read(0, list.all()).unwrap();
            }
        }
    }
}

#[test]
fn memory_is_what_was_written_to_it() {
    let target = Target::Backend(std::sync::Arc::new(MemoryDisk::new(SIZE as usize)));
    let bytes = vec![0; SIZE as usize];
    let rig = Rig::new(&target, Engine::Auto, false).unwrap();
    let model = Model { rig, bytes, pending: HashMap::new(), random: Random(77), block: None };
    model.run(500);
}

/// Sectors that the host has not in memory are read nonetheless, by whoever waits for the drive.
#[test]
fn what_is_not_in_the_hosts_memory_is_read() {
    for folder in folders() {
        let bytes = Random(5).bytes(1 << 20);
        let file = file_of(&folder, &bytes);
        file.as_file().sync_all().unwrap();
        for mut rig in rigs(file.path()) {
            #[cfg(target_os = "linux")]
            rustix::fs::fadvise(file.as_file(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
            for offset in [0, 4096, 12_288 + 512, 1 << 19] {
                let (result, found) = rig.run(Op::Read { offset }, vec![0; 6000 / 512 * 512]);
                result.unwrap();
                assert!(found == bytes[offset as usize..][..found.len()]);
            }
        }
    }
}

/// Behind the end of a file that was cut nothing is made up, and the error is the request's alone.
#[test]
fn reads_behind_the_end_are_errors() {
    for folder in folders() {
        let file = sparse(&folder, 1 << 20);
        for mut rig in rigs(file.path()) {
            for (offset, len) in [(1 << 20, 512), ((1 << 20) - 512, 1024), (0, (1 << 20) + 512)] {
                let (result, _) = rig.run(Op::Read { offset }, vec![0; len]);
                assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
            }
            let (result, found) = rig.run(Op::Read { offset: 0 }, vec![1; 1 << 20]);
            result.unwrap();
            assert!(found.iter().all(|&byte| byte == 0));
        }
    }
}

#[test]
fn errors_of_the_host_come_back() {
    let file = sparse(&folders()[0], 1 << 20);
    let read_only = RawFile::open(file.path(), true, Flush::Fsync).unwrap();
    let target = Target::Raw(std::sync::Arc::new(read_only));
    for engine in [Engine::IoUring, Engine::Threads] {
        for alone in [false, true] {
            let Some(mut rig) = Rig::new(&target, engine, alone) else { continue };
            for len in [512, 1 << 19] {
                let (result, _) = rig.run(Op::Write { offset: 0 }, vec![1; len]);
                assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF));
                rig.run(Op::Read { offset: 0 }, vec![1; len]).0.unwrap();
            }
            let extent = Extent { offset: 0, len: 4096, unmap: true };
            rig.run(Op::WriteZeroes(vec![extent]), vec![]).0.unwrap_err();
        }
    }
}

/// A host forgets a flush that has failed; a disk does not.
#[test]
fn a_flush_that_failed_makes_all_later_ones_fail() {
    let file = sparse(&folders()[0], 4096);
    let disk = std::sync::Arc::new(raw(file.path()));
    let target = Target::Raw(disk.clone());
    let mut rigs: Vec<_> = [Engine::IoUring, Engine::Threads]
        .into_iter()
        .flat_map(|engine| [Rig::new(&target, engine, false), Rig::new(&target, engine, true)])
        .flatten()
        .collect();
    for rig in &mut rigs {
        rig.run(Op::Flush, vec![]).0.unwrap();
    }
    disk.flush().unwrap();
    let eio = || std::io::Error::from_raw_os_error(libc::EIO);
    assert_eq!(disk.flushed(Err(eio())).unwrap_err().raw_os_error(), Some(libc::EIO));
    for rig in &mut rigs {
        let error = rig.run(Op::Flush, vec![]).0.unwrap_err();
        assert!(error.to_string().contains("earlier flush"), "{error}");
        // All else goes on: the guest may want to save what it can.
        rig.run(Op::Write { offset: 0 }, vec![1; 512]).0.unwrap();
    }
    assert!(disk.flush().is_err());
}
