//! A process that writes to an image is killed: what it had flushed is there, and the image is sound.
//!
//! The process is this test again. Several of its threads do random things, which whoever watches can do as well, and
//! tell after each flush how far they are.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::sync::mpsc::channel;

use super::*;

const THREADS: u64 = 3;
/// Sectors of a thread: not a multiple of any cluster.
const SECTORS: u64 = 4321;
const SIZE: u64 = THREADS * SECTORS * 512;
/// Operations from one flush to the next.
const EPOCH: u64 = 12;
const VARIABLE: &str = "HYPERKIT_TEST_QCOW2_CRASH";

/// Something that is done to sectors.
enum Step {
    Write { value: u64 },
    Zero { unmap: bool },
    Discard,
}

/// What a thread does.
struct Script {
    random: Random,
    thread: u64,
    number: u64,
}

impl Script {
    fn new(seed: u64, thread: u64) -> Self {
        Self { random: Random(seed * 1000 + thread + 1), thread, number: 0 }
    }

    /// The next step, and the first and last of its sectors.
    fn next(&mut self) -> (Step, u64, u64) {
        self.number += 1;
        let most = 1 << self.random.below(10);
        let start = self.random.below(SECTORS);
        let count = 1 + self.random.below(most).min(SECTORS - start - 1);
        let step = match self.random.below(12) {
            0 => Step::Discard,
            1 => Step::Zero { unmap: self.random.below(2) == 0 },
            _ => Step::Write { value: (self.number << 8) | (self.thread + 1) },
        };
        let first = self.thread * SECTORS + start;
        (step, first, first + count)
    }
}

fn sector(value: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&value.to_le_bytes()));
    bytes
}

/// Not a test: what is killed.
#[test]
fn process() {
    let Ok(what) = std::env::var(VARIABLE) else { return };
    let (seed, path) = what.split_once(' ').unwrap();
    let (policy, seed) = match seed.strip_prefix("sync") {
        Some(seed) => (Flush::Fsync, seed),
        None => (Flush::None, seed),
    };
    let seed = seed.parse().unwrap();
    let disk = open_any(Path::new(path), None, false, policy).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let disk = &disk;
            scope.spawn(move || {
                let mut script = Script::new(seed, thread);
                for epoch in 1.. {
                    for _ in 0..EPOCH {
                        let (step, first, last) = script.next();
                        let (offset, len) = (first * 512, (last - first) * 512);
                        match step {
                            Step::Write { value } => {
                                write(disk, offset, &sector(value).repeat((last - first) as usize));
                            }
                            Step::Zero { unmap } => disk.write_zeroes(offset, len, unmap).unwrap(),
                            Step::Discard => disk.discard(offset, len).unwrap(),
                        }
                    }
                    disk.flush().unwrap();
                    let told = format!("told {thread} {epoch}\n");
                    std::io::stdout().write_all(told.as_bytes()).unwrap();
                }
            });
        }
    });
}

/// Has the process run for a while, which begins with its first flush if `flushed` says so, and tells how often each
/// thread has flushed.
fn run_and_kill(path: &Path, seed: &str, flushed: bool, time: Duration) -> HashMap<u64, u64> {
    let name = "disk::qcow2::tests::crash::process";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(VARIABLE, format!("{seed} {}", path.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (heard, hears) = channel();
    let reader = std::thread::spawn(move || {
        let mut told = HashMap::new();
        for line in output.lines().map_while(Result::ok) {
            let mut words = line.split(' ').skip_while(|word| !word.ends_with("told")).skip(1);
            let number = |word: Option<&str>| word.and_then(|word| word.parse().ok());
            if let (Some(thread), Some(epoch)) = (number(words.next()), number(words.next())) {
                told.insert(thread, epoch);
                // Nobody listens for more than the first.
                let _ = heard.send(());
            }
        }
        told
    });
    if flushed {
        // A process that has ended says nothing, as is found out below.
        let _ = hears.recv_timeout(Duration::from_secs(60));
    }
    std::thread::sleep(time);
    assert!(child.try_wait().unwrap().is_none(), "it has ended: {}", {
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    });
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

/// What each sector may be: what was flushed, or what was done since. Nothing is known of what was discarded.
fn possible(seed: u64, told: &HashMap<u64, u64>, first: u64) -> Vec<Option<Vec<u64>>> {
    let mut sectors = vec![Some(vec![first]); (THREADS * SECTORS) as usize];
    for thread in 0..THREADS {
        let mut script = Script::new(seed, thread);
        let flushed = told.get(&thread).copied().unwrap_or(0) * EPOCH;
        for number in 0..flushed + EPOCH {
            let (step, start, end) = script.next();
            for sector in &mut sectors[start as usize..end as usize] {
                let value = match step {
                    Step::Write { value } => value,
                    Step::Zero { .. } => 0,
                    Step::Discard => {
                        *sector = None;
                        continue;
                    }
                };
                match sector {
                    _ if number < flushed => *sector = Some(vec![value]),
                    Some(values) => values.push(value),
                    None => {}
                }
            }
        }
    }
    sectors
}

#[test]
fn killed_at_any_time() {
    let Some(bench) = Bench::new() else { return };
    let full = sector(99).repeat((THREADS * SECTORS) as usize);
    let mut random = Random(41);
    let mut flushes = 0;
    for round in 0..14u64 {
        let mut first = 99;
        let kind = match round % 7 {
            0 | 1 => {
                first = 0;
                let options = ["cluster_size=512", "cluster_size=64k"][round as usize % 2];
                bench.create("disk", options, SIZE);
                options
            }
            2 => {
                first = 0;
                bench.create("disk", "cluster_size=1k,refcount_bits=1", SIZE);
                "small refcounts"
            }
            3 => {
                bench.convert("disk", &["-c", "-o", "cluster_size=4k"], &full);
                "compressed"
            }
            4 => {
                bench.convert("disk", &["-o", "cluster_size=512"], &full);
                bench.must(&["snapshot", "-c", "then", "disk"]);
                "snapshot"
            }
            5 => {
                bench.convert("disk", &["-o", "cluster_size=16k"], &full);
                bench.must(&["snapshot", "-c", "then", "disk"]);
                "snapshot with larger clusters"
            }
            _ => {
                first = 0;
                bench.create("disk", "compat=0.10,cluster_size=512", SIZE);
                "version 2"
            }
        };
        let policy = if round == 1 { "sync" } else { "" };
        let time = Duration::from_millis(40 + random.below(160));
        let seed = format!("{policy}{round}");
        // Half of them have something to lose on the slowest machine; the others may be killed before that.
        let told = run_and_kill(&bench.path("disk"), &seed, round % 2 == 1, time);
        eprintln!("{kind}: {told:?}");
        flushes += told.values().sum::<u64>();

        // 3 is for clusters that are lost, which is all that may happen.
        let check = bench.run(&["check", "-f", "qcow2", "disk"]);
        assert!(matches!(check.status.code(), Some(0 | 3)), "round {round}, {kind}: {check:?}");
        let disk = open(&bench.path("disk"));
        let found = read(&disk, 0, SIZE);
        let possible = possible(round, &told, first);
        for (number, (found, values)) in found.chunks(512).zip(possible).enumerate() {
            let Some(values) = values else { continue };
            assert!(
                values.iter().any(|&value| found == sector(value)),
                "round {round}, {kind}: sector {number} is {:x?}, not of {values:x?}",
                &found[..16]
            );
        }
        // And it can be used on.
        exercise(&disk, &mut found.clone(), &mut random, 30);
        drop(disk);
        let check = bench.run(&["check", "-f", "qcow2", "disk"]);
        assert!(matches!(check.status.code(), Some(0 | 3)), "round {round}, {kind}: {check:?}");
    }
    // How many a busy machine gets done is not ours to say, but kills before there was anything to lose prove nothing.
    assert!(flushes >= 10, "{flushes}");
}
