//! Messages a second through a share, with a driver in this process: one at a time, and many at once, which the threads
//! of the device share.

#[path = "support/p9.rs"]
mod p9;

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use p9::{Driver, Kind, MOST};

const BURSTS: [u16; 2] = [1, 32];

/// What is measured, with the names that it has in tables.
const KINDS: [(&str, Kind); 5] = [
    ("getattr", Kind::Getattr),
    ("walk", Kind::Walk),
    ("4 KiB read", Kind::Read(4 << 10)),
    ("128 KiB read", Kind::Read(MOST)),
    ("128 KiB write", Kind::Write(MOST)),
];

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let mut group = criterion.benchmark_group("share");
    let mut driver = Driver::new(Path::new(env!("CARGO_TARGET_TMPDIR")), |device| device);
    for (name, kind) in KINDS {
        for burst in BURSTS {
            group.throughput(Throughput::Elements(burst.into()));
            group.bench_function(format!("{name}, burst of {burst}"), |b| {
                b.iter_custom(|bursts| {
                    let burst_time = |_| {
                        let begun = Instant::now();
                        driver.burst(burst, kind);
                        let time = begun.elapsed();
                        driver.clunk(burst, kind);
                        time
                    };
                    (0..bursts).map(burst_time).sum()
                });
            });
        }
    }
    group.finish();
    criterion.final_summary();
}
