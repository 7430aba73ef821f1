//! Tests of queues, registers and threads, with drivers that behave and drivers that do not.

mod buffers;
mod hostile;
mod life;
mod output;
#[cfg(target_os = "linux")]
mod process_linux;
mod queue;
mod registers;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::testing::{Buffer, Guest, PATIENCE, RAM, Ring};
use super::*;
use crate::sys::Notifier;

/// Nobody hears interrupts.
pub struct Nobody;

impl Interrupt for Nobody {
    fn queue(&self, _index: u16) {}
    fn config(&self) {}
    fn needs_reset(&self, _why: &dyn std::fmt::Display) {}
}

/// What a [`Loopback`] shares with its test.
pub struct Controls {
    /// Chains are kept in flight until `release` is notified.
    pub hold: AtomicU32,
    pub release: Notifier,
    /// Chains in flight.
    pub held: AtomicU32,
    /// What was called, but for queue events.
    pub log: Mutex<Vec<&'static str>>,
    /// Calls of `queue_ready`.
    pub turns: AtomicU32,
    /// When the device wants to be called by its timer.
    pub deadline: Mutex<Option<Instant>>,
    /// What the configuration space held when the driver last wrote there.
    pub config: ConfigSpace,
}

impl Controls {
    fn note(&self, what: &'static str) {
        self.log.lock().unwrap().push(what);
    }

    pub fn noted(&self, what: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|noted| **noted == what).count()
    }

    pub fn hold(&self, on: bool) {
        self.hold.store(on.into(), Ordering::SeqCst);
    }
}

/// A device with two queues that copies what it reads to where it may write, at once or when it is told to.
pub struct Loopback {
    controls: Arc<Controls>,
    config: Arc<ConfigSpace>,
    held: Vec<(u16, Chain)>,
}

pub const LOOPBACK_FEATURE: u64 = 1 << 5;
pub const LOOPBACK_SIZES: [u16; 2] = [256, 16];

impl Loopback {
    pub fn new() -> (Self, Arc<Controls>) {
        let controls = Arc::new(Controls {
            hold: AtomicU32::new(0),
            release: Notifier::new().unwrap(),
            held: AtomicU32::new(0),
            log: Mutex::default(),
            turns: AtomicU32::new(0),
            deadline: Mutex::default(),
            config: ConfigSpace::new([0; 8]),
        });
        let config = ConfigSpace::with_writable(*b"\x01\x02\x03\x04....", [0, 0, 0, 0, 0xff, 0xff]);
        let config = Arc::new(config);
        (Self { controls: controls.clone(), config, held: Vec::new() }, controls)
    }

    fn finish(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        // Latest first: used buffers may come in any order.
        while let Some((index, chain)) = self.held.pop() {
            let Some(queue) = cx.queue(index) else { continue };
            let written = copy(&chain);
            queue.push(chain, written)?;
            self.controls.held.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

fn copy(chain: &Chain) -> u32 {
    let (mut reader, mut writer) = (chain.reader(), chain.writer());
    let mut bytes = [0; 100];
    loop {
        let count = reader.read(&mut bytes);
        if count == 0 || writer.write(&bytes[..count]) < count {
            return writer.written();
        }
    }
}

impl VirtioDevice for Loopback {
    fn id(&self) -> u32 {
        42
    }
    fn name(&self) -> &str {
        "loop"
    }
    fn features(&self) -> u64 {
        // The bit that is not a device's to offer must not get out.
        LOOPBACK_FEATURE | 1 << 40
    }
    fn queue_sizes(&self) -> &[u16] {
        &LOOPBACK_SIZES
    }
    fn config(&self) -> Arc<ConfigSpace> {
        self.config.clone()
    }
    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        sources.add(&self.controls.release, 7, Interest::READABLE)
    }
    fn activate(&mut self, features: u64, _cx: &mut Context<'_>) -> Result<(), Error> {
        assert_ne!(features & feature::VERSION_1, 0);
        self.controls.note("activate");
        Ok(())
    }
    fn queue_ready(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error> {
        self.controls.turns.fetch_add(1, Ordering::SeqCst);
        let Some(queue) = cx.queue(index) else { panic!("a turn without a queue") };
        while let Some(chain) = queue.pop()? {
            if self.controls.hold.load(Ordering::SeqCst) != 0 {
                self.held.push((index, chain));
                self.controls.held.fetch_add(1, Ordering::SeqCst);
            } else {
                let written = copy(&chain);
                queue.push(chain, written)?;
            }
        }
        Ok(())
    }
    fn host_ready(&mut self, event: HostEvent, cx: &mut Context<'_>) -> Result<(), Error> {
        assert_eq!(event.source, 7);
        assert!(event.readable);
        self.controls.release.clear();
        self.controls.note("host");
        self.finish(cx)
    }
    fn config_written(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let mut bytes = [0; 8];
        self.config.read(0, &mut bytes);
        self.controls.config.set(0, &bytes);
        self.controls.note("config");
        // What the driver wrote at 4 is answered at 0.
        match bytes[4] {
            0xee => Err(Error::Driver("as asked")),
            byte => {
                if self.config.set(0, &[byte]) {
                    cx.config_changed();
                }
                Ok(())
            }
        }
    }
    fn deadline(&self) -> Option<Instant> {
        *self.controls.deadline.lock().unwrap()
    }
    fn timer(&mut self, _cx: &mut Context<'_>) -> Result<(), Error> {
        *self.controls.deadline.lock().unwrap() = None;
        self.controls.note("timer");
        Ok(())
    }
    fn pause(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        self.controls.note("pause");
        self.finish(cx)
    }
    fn resume(&mut self, _cx: &mut Context<'_>) -> Result<(), Error> {
        self.controls.note("resume");
        Ok(())
    }
    fn reset(&mut self) {
        self.held.clear();
        self.controls.held.store(0, Ordering::SeqCst);
        self.controls.note("reset");
    }
}

/// A guest with a [`Loopback`], and its rings once it is started.
pub struct Machine {
    pub guest: Guest,
    pub controls: Arc<Controls>,
    pub rings: Vec<Ring>,
    pub buffer: u64,
}

impl Machine {
    pub fn new() -> Self {
        let (device, controls) = Loopback::new();
        Self { guest: Guest::new(device), controls, rings: Vec::new(), buffer: 0 }
    }

    pub fn started() -> Self {
        let mut machine = Self::new();
        machine.start(0);
        machine
    }

    /// Resets and starts, whatever state the device is in.
    pub fn start(&mut self, features: u64) {
        self.guest.reset();
        self.rings = self.guest.start(features, 16);
        for ring in &mut self.rings {
            ring.event_idx = features & feature::EVENT_IDX != 0;
        }
        self.buffer = self.guest.alloc(0x1000);
    }

    /// Sends a message through queue `index` without waiting for the answer.
    pub fn send(&mut self, index: usize, message: &[u8]) -> u16 {
        let (out, back) = (self.buffer, self.buffer + 0x800);
        self.guest.memory.write_slice(message, GuestAddress(out)).unwrap();
        self.guest.memory.write_slice(&[0; 0x400], GuestAddress(back)).unwrap();
        let ring = &mut self.rings[index];
        let head = ring.request(&[Buffer::Out(out, message.len() as u32), Buffer::In(back, 0x400)]);
        self.guest.kick(ring);
        head
    }

    /// Sends a message and checks what comes back.
    pub fn check(&mut self, index: usize, message: &[u8]) {
        let head = self.send(index, message);
        let used = self.guest.wait(&mut self.rings[index]);
        assert_eq!(used, (head, message.len() as u32));
        let mut back = vec![0; message.len()];
        self.guest.memory.read_slice(&mut back, GuestAddress(self.buffer + 0x800)).unwrap();
        assert_eq!(back, message);
    }

    /// The device works, if need be after a reset.
    pub fn check_after_reset(&mut self) {
        self.start(feature::INDIRECT_DESC | feature::EVENT_IDX);
        self.check(0, b"still there?");
        self.check(1, b"and there?");
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Guest memory as a [`Guest`] has it.
pub fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&RAM.map(|(start, len)| (GuestAddress(start), len))).unwrap()
}
