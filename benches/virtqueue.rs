//! Requests a second through a device's queue, with a driver in this process.
//!
//! A burst of requests is made available and kicked once, and the next burst comes when all are used. So a
//! burst of one is a round trip from the driver to the device's thread and back, and a long one is the device's work.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use hyperkit::console::Port;
use hyperkit::virtio::testing::{Buffer, Guest, Ring};
use hyperkit::virtio::{VirtioDevice, console, feature, rng};

const SIZE: u16 = 64;
const BURSTS: [u16; 3] = [1, 8, 64];
/// Bytes in a request.
const REQUEST: u32 = 64;

struct Queue {
    guest: Guest,
    ring: Ring,
    buffer: Buffer,
}

impl Queue {
    fn new(device: impl VirtioDevice + 'static, queue: usize, write: bool) -> Self {
        let mut guest = Guest::new(device);
        let features = feature::INDIRECT_DESC | feature::EVENT_IDX;
        let mut ring = guest.start(features, SIZE).remove(queue);
        ring.event_idx = true;
        let at = guest.alloc(REQUEST as usize);
        let buffer = if write { Buffer::In(at, REQUEST) } else { Buffer::Out(at, REQUEST) };
        Self { guest, ring, buffer }
    }

    fn run(&mut self, burst: u16, bursts: u64) -> Duration {
        let begun = Instant::now();
        for _ in 0..bursts {
            for _ in 0..burst {
                self.ring.request(&[self.buffer]);
            }
            self.guest.kick(&mut self.ring);
            for _ in 0..burst {
                self.guest.wait(&mut self.ring);
            }
        }
        begun.elapsed()
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, mut queue) in [
        ("rng request", Queue::new(rng::Rng::new(), 0, true)),
        ("console output request", Queue::new(console::Console::new(Port::default()), 1, false)),
    ] {
        let mut group = criterion.benchmark_group(name);
        for burst in BURSTS {
            group.throughput(Throughput::Elements(burst.into()));
            group.bench_function(format!("burst of {burst}"), |b| {
                b.iter_custom(|bursts| queue.run(burst, bursts));
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
