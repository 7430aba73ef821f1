//! How fast a guest can print: bytes a second through the bus into a serial port.
//!
//! What is behind the port decides what a byte costs the guest, and must decide as little as possible: nothing, memory,
//! a host side that takes everything, one that takes nothing any more.

use std::hint::black_box;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use criterion::{Criterion, Throughput};
use hyperkit::bus::{Bus, BusView};
use hyperkit::console::{Console, OpenConsole, RingBuffer};
use hyperkit::device::serial::Serial;
use hyperkit::virtio::testing::CountingLine;

const COM1: u64 = 0x3f8;
const LINE_STATUS: u64 = COM1 + 5;

/// Takes nothing until the other end of the channel is dropped.
struct Blocked(Receiver<()>);

impl Write for Blocked {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn view(console: &OpenConsole) -> BusView {
    let mut bus = Bus::new();
    let serial = Serial::new(console.port(), Arc::new(CountingLine::default()));
    bus.insert("COM1", COM1, Serial::PORTS, serial).unwrap();
    BusView::new(Arc::new(bus))
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("serial byte");
    group.throughput(Throughput::Bytes(1));
    let (release, blocked) = channel();
    for (name, console) in [
        ("to nobody", Console::null()),
        ("to memory", Console::ring(RingBuffer::new())),
        ("to a writer that takes everything", Console::output(io::sink())),
        ("to a writer that is blocked", Console::output(Blocked(blocked))),
    ] {
        let console = console.open().unwrap();
        let mut bus = view(&console);
        group.bench_function(name, |b| {
            b.iter(|| black_box(bus.write(COM1, black_box(b"a"))));
        });
        // As Linux prints early, and when it panics.
        group.bench_function(format!("{name}, polled"), |b| {
            b.iter(|| {
                let mut status = [0];
                bus.read(LINE_STATUS, black_box(&mut status));
                black_box(bus.write(COM1, black_box(b"a")))
            });
        });
        if name.ends_with("blocked") {
            // Or closing the console would wait for it.
            drop(release);
            break;
        }
    }
    group.finish();
    criterion.final_summary();
}
