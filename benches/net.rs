//! Frames a second through a network card, with a driver in this process and nothing behind the card.
//!
//! A burst of frames comes at once, and the next when all of it is there. Nothing is copied: it is the way of a frame
//! through queue and card, and that of the first one of a burst from thread to thread.

#[path = "support/net.rs"]
mod net;

use std::time::Instant;

use criterion::{Criterion, Throughput};
use net::Driver;

/// Sizes of frames, and how many come at once.
const KINDS: [(&str, usize, u64); 3] =
    [("64 bytes", 64, 64), ("1500 bytes", 1514, 64), ("64 KiB", 65550, 8)];

type Way = (&'static str, fn(&mut Driver, u64));

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let ways: [Way; 2] = [("send", Driver::send), ("receive", Driver::receive)];
    for (way, run) in ways {
        let mut group = criterion.benchmark_group(way);
        for (name, frame, burst) in KINDS {
            let mut driver = Driver::new(frame, |card| card);
            group.throughput(Throughput::Elements(burst));
            group.bench_function(name, |b| {
                b.iter_custom(|bursts| {
                    let begun = Instant::now();
                    (0..bursts).for_each(|_| run(&mut driver, burst));
                    begun.elapsed()
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
