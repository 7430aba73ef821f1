//! Packets a second through a connection of a socket device, with a driver in this process and a program on the host that
//! takes them, or makes them.
//!
//! A burst of packets comes at once, and the next when all of it has arrived. The kernel copies the bytes once on each side
//! of the unix socket between device and program.

#[path = "support/vsock.rs"]
mod vsock;

use std::time::Instant;

use criterion::{Criterion, Throughput};
use vsock::Driver;

/// Sizes of packets, and how many come at once: no more than the socket takes.
const KINDS: [(&str, usize, u64); 3] =
    [("64 bytes", 64, 64), ("4 KiB", 4 << 10, 16), ("64 KiB", 64 << 10, 2)];

type Way = (&'static str, fn(&mut Driver, u64));

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let ways: [Way; 2] = [("send", Driver::send), ("receive", Driver::receive)];
    for (way, run) in ways {
        let mut group = criterion.benchmark_group(way);
        for (name, packet, burst) in KINDS {
            let mut driver = Driver::new(packet, |device| device);
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
