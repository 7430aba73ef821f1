//! A guest that floods its serial port, and a host side that takes nothing: the host's memory does not grow.
//!
//! Alone in its file, because it measures the memory of its process.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use hyperkit::accel::IrqLine;
use hyperkit::bus::{Bus, BusView};
use hyperkit::console::Console;
use hyperkit::device::serial::Serial;

struct NoLine;

impl IrqLine for NoLine {
    fn pulse(&self) {}
    fn set_level(&self, _high: bool) {}
}

/// Stuck until the other end is dropped.
struct Stuck(Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Resident bytes of this process, where the system tells.
fn resident() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

#[test]
fn a_flood_against_blocked_sinks_is_dropped_and_counted() {
    const FLOOD: usize = 2 << 20;
    let (release, stuck) = channel();
    // One sink of each kind: a thread of its own, and a pseudo-terminal that nobody reads.
    let console = Console::output(Stuck(stuck)).and(Console::pty().unwrap()).open().unwrap();
    let port = console.port();
    let mut bus = Bus::new();
    bus.insert("COM1", 0x3f8, 8, Serial::new(port.clone(), Arc::new(NoLine))).unwrap();
    let mut bus = BusView::new(Arc::new(bus));

    // The queues fill first; what they may hold is theirs.
    let mut flood = |count| (0..count).for_each(|_| assert!(bus.write(0x3f8, b"x").is_continue()));
    flood(256 << 10);
    let before = resident();
    flood(FLOOD);
    let grown = resident().zip(before).map(|(after, before)| after.saturating_sub(before));
    assert!(grown.unwrap_or(0) < 512 << 10, "grew by {grown:?} bytes");

    let (written, held) = (2 * (FLOOD + (256 << 10)), 2 * (64 << 10) + (64 << 10));
    let dropped = port.dropped() as usize;
    assert!((written - held..written).contains(&dropped), "{dropped} of {written} dropped");
    drop(console);
    drop(release);
}
