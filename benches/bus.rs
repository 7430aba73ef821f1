//! From an address to the device that has it, and into its register.
//!
//! Each access is a search of the bus and one dynamic call; the device does nothing. What a guest does decides what
//! the search costs: the same device again, two in turn, any of them, or an address that nobody has.

#[path = "support/clock.rs"]
mod clock;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use hyperkit::bus::{Bus, BusDevice, BusView, Flow};

const FIRST: u64 = 0xd000_0000;
const STRIDE: u64 = 0x1000;
const LEN: u64 = 0x200;
/// Offset of the register that is written.
const REGISTER: u64 = 0x50;
/// Addresses in one pattern; a power of two.
const PATTERN: u64 = 1024;

struct Idle;

impl BusDevice for Idle {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, _data: &[u8]) -> Flow {
        Flow::Continue(())
    }
}

fn view(devices: u64) -> BusView {
    let mut bus = Bus::new();
    for n in 0..devices {
        bus.insert("idle", FIRST + n * STRIDE, LEN, Arc::new(Idle)).unwrap();
    }
    BusView::new(Arc::new(bus))
}

/// Numbers without an order that a processor could predict (splitmix64).
fn random(n: u64) -> u64 {
    let z = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn write(view: &mut BusView, addresses: &[u64], accesses: u64) -> Duration {
    let ((), took) = clock::time(|| {
        for n in 0..accesses {
            let address = addresses[(n % PATTERN) as usize];
            let _ = black_box(view.write(black_box(address), black_box(&[0; 4])));
        }
    });
    took
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for devices in [1, 16, 64] {
        let mut view = view(devices);
        let mut group = criterion.benchmark_group(format!("bus of {devices}"));
        let mut bench = |name, device: &dyn Fn(u64) -> u64, offset| {
            let addresses: Vec<u64> =
                (0..PATTERN).map(|n| FIRST + device(n) * STRIDE + offset).collect();
            group.bench_function(name, |b| {
                b.iter_custom(|accesses| write(&mut view, &addresses, accesses));
            });
        };
        bench("same device", &|_| devices / 2, REGISTER);
        if devices > 1 {
            bench("two in turn", &|n| devices / 2 + n % 2, REGISTER);
            bench("any device", &|n| random(n) % devices, REGISTER);
        }
        bench("nobody", &|n| random(n) % devices, LEN);
        group.finish();
    }
    criterion.final_summary();
}
