//! A driver that is no guest: for tests, benches and fuzz targets, ours and those of other devices' authors.
//!
//! It works a device through its registers and rings as a guest would, in this process, and lets its user do what no
//! sane guest does. It is not hardened: a device that misbehaves makes it panic.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::device::feature;
use super::setup::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use super::{Layout, MmioTransport, VirtioDevice};
use crate::accel::IrqLine;
use crate::bus::BusDevice;

/// How long a device may take to answer before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where a [`Guest`]'s memory is: two regions with a hole between them, address and length.
pub const RAM: [(u64, usize); 2] = [(0, 4 << 20), (16 << 20, 4 << 20)];

/// An interrupt line that counts its edges.
#[derive(Default)]
pub struct CountingLine {
    edges: Mutex<u64>,
    changed: Condvar,
}

impl CountingLine {
    /// Edges so far.
    pub fn edges(&self) -> u64 {
        *self.edges.lock().unwrap()
    }

    /// Waits until there are more than `seen` edges, and tells whether there are.
    pub fn wait(&self, seen: u64, patience: Duration) -> bool {
        let edges = self.edges.lock().unwrap();
        let wait = self.changed.wait_timeout_while(edges, patience, |edges| *edges <= seen);
        *wait.unwrap().0 > seen
    }
}

impl IrqLine for CountingLine {
    fn pulse(&self) {
        *self.edges.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    fn set_level(&self, _high: bool) {}
}

/// A device, its registers, and memory to talk through.
pub struct Guest {
    /// The registers.
    pub transport: Arc<MmioTransport>,
    /// The memory.
    pub memory: GuestMemoryMmap,
    /// The interrupt.
    pub line: Arc<CountingLine>,
    /// Where the next ring or buffer goes.
    free: u64,
}

impl Guest {
    /// A machine with nothing but `device`.
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        let ranges = RAM.map(|(start, len)| (GuestAddress(start), len));
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let line = Arc::new(CountingLine::default());
        let transport = MmioTransport::new(Box::new(device), memory.clone(), line.clone()).unwrap();
        Self { transport, memory, line, free: 0x1_0000 }
    }

    /// Reads a register.
    pub fn read(&self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&self, register: u32, value: u32) {
        let _ = self.transport.write(register.into(), &value.to_le_bytes());
    }

    /// The device status.
    pub fn status(&self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// Resets the device and forgets all memory.
    pub fn reset(&mut self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.status(), 0);
        self.free = 0x1_0000;
    }

    /// Goes through the set-up as far as FEATURES_OK, and tells whether the device agreed.
    pub fn negotiate(&self, features: u64) -> bool {
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        for (select, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    /// The features the device offers.
    pub fn offered(&self) -> u64 {
        [1, 0].iter().fold(0, |sum, &select| {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            sum << 32 | u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES))
        })
    }

    /// Tells the device where queue `index` is.
    pub fn lay_out(&self, index: u32, layout: Layout) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(VIRTIO_MMIO_QUEUE_NUM, layout.size);
        for (low, high, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, layout.descriptors),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, layout.driver),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, layout.device),
        ] {
            self.write(low, address as u32);
            self.write(high, (address >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Makes a queue in fresh memory and tells the device about it.
    pub fn queue(&mut self, index: u32, size: u16) -> Ring {
        let n = usize::from(size);
        let layout = Layout {
            size: size.into(),
            descriptors: self.alloc(16 * n),
            driver: self.alloc(6 + 2 * n),
            device: self.alloc(6 + 8 * n),
        };
        self.lay_out(index, layout);
        Ring::new(self.memory.clone(), index, layout)
    }

    /// Tells the device to begin.
    pub fn driver_ok(&self) {
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// The whole set-up with `features` and what every driver wants, every queue `size` long or as long as it may.
    pub fn start(&mut self, features: u64, size: u16) -> Vec<Ring> {
        assert!(self.negotiate(features | feature::VERSION_1), "features refused");
        let queues = u32::from(self.transport.queue_count());
        let rings = (0..queues)
            .map(|index| {
                self.write(VIRTIO_MMIO_QUEUE_SEL, index);
                let max = self.read(VIRTIO_MMIO_QUEUE_NUM_MAX) as u16;
                self.queue(index, size.min(max))
            })
            .collect();
        self.driver_ok();
        rings
    }

    /// Zeroed memory of `len` bytes on a page of its own.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let at = self.free;
        self.free = (at + len as u64).next_multiple_of(0x1000);
        assert!(self.free <= RAM[0].1 as u64, "out of memory");
        self.memory.write_slice(&vec![0; len], GuestAddress(at)).unwrap();
        at
    }

    /// Kicks the queue of `ring` if the device wants that, as a driver does.
    pub fn kick(&self, ring: &mut Ring) {
        if ring.wants_kick() {
            self.write(VIRTIO_MMIO_QUEUE_NOTIFY, ring.index);
        }
    }

    /// Waits for the next used chain, its head and the bytes written, as long as [`PATIENCE`] lasts.
    pub fn wait(&self, ring: &mut Ring) -> (u16, u32) {
        let end = Instant::now() + PATIENCE;
        loop {
            let seen = self.line.edges();
            if let Some(used) = ring.used() {
                return used;
            }
            // Asked for before the look, or an interrupt between the two is never sent.
            ring.want_interrupt();
            if let Some(used) = ring.used() {
                return used;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(self.line.wait(seen, left), "no answer on queue {}", ring.index);
            self.write(VIRTIO_MMIO_INTERRUPT_ACK, self.read(VIRTIO_MMIO_INTERRUPT_STATUS));
        }
    }

    /// Returns once the device's thread has noticed every kick. It gives the queue its turn before it takes an order.
    pub fn wait_doorbell(&self) {
        for queue in 0..self.transport.queue_count() {
            let Some(doorbell) = self.transport.doorbell(queue) else { continue };
            let mut fds = [PollFd::new(doorbell, PollFlags::IN)];
            while retry_on_intr(|| poll(&mut fds, Some(&Timespec::default()))).unwrap() > 0 {
                std::thread::yield_now();
            }
        }
    }

    /// Returns once every queue that was kicked has had a turn (one: a turn that was cut may go on after this).
    pub fn settle(&self) {
        self.wait_doorbell();
        self.transport.pause();
        self.transport.resume();
    }

    /// Waits until the device status has all of `bits`.
    pub fn wait_status(&self, bits: u32) {
        let end = Instant::now() + PATIENCE;
        while self.status() & bits != bits {
            assert!(Instant::now() < end, "status {:#x} has not {bits:#x}", self.status());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A buffer of a request.
#[derive(Debug, Clone, Copy)]
pub enum Buffer {
    /// For the device to read: address and length.
    Out(u64, u32),
    /// For the device to write: address and length.
    In(u64, u32),
}

/// The driver's side of a split virtqueue. Descriptors are taken in turn and never checked for being free.
pub struct Ring {
    memory: GuestMemoryMmap,
    index: u32,
    layout: Layout,
    next_descriptor: u16,
    /// The available index, as it will be or is published.
    pub available: u16,
    /// The available index at the last kick.
    kicked: u16,
    /// The used index up to which chains were taken back.
    pub seen: u16,
    /// VIRTIO_F_EVENT_IDX is on; set by the user, off at first.
    pub event_idx: bool,
}

impl Ring {
    /// The driver's side of a queue at `layout`.
    pub fn new(memory: GuestMemoryMmap, index: u32, layout: Layout) -> Self {
        Self {
            memory,
            index,
            layout,
            next_descriptor: 0,
            available: 0,
            kicked: 0,
            seen: 0,
            event_idx: false,
        }
    }

    /// Where it is.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    fn size(&self) -> u16 {
        self.layout.size as u16
    }

    /// Writes one descriptor.
    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.write_descriptor(self.layout.descriptors, index, address, len, flags, next);
    }

    /// Writes one descriptor of the table at `table`.
    pub fn write_descriptor(
        &self,
        table: u64,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let at = GuestAddress(table + 16 * u64::from(index));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, at).unwrap();
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size());
        self.store(self.layout.driver + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
        self.publish();
    }

    /// Publishes the available index.
    pub fn publish(&self) {
        fence(Ordering::Release);
        self.store(self.layout.driver + 2, self.available);
    }

    /// Makes a chain of `buffers` available and returns its head.
    pub fn request(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (n, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size();
            let last = n + 1 == buffers.len();
            let next = if last { 0 } else { VRING_DESC_F_NEXT as u16 };
            let (address, len, flags) = parts(*buffer);
            self.descriptor(index, address, len, flags | next, self.next_descriptor);
        }
        self.offer(head);
        head
    }

    /// The same through an indirect table at `table`.
    pub fn request_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        for (n, buffer) in buffers.iter().enumerate() {
            let n = n as u16;
            let last = usize::from(n) + 1 == buffers.len();
            let next = if last { 0 } else { VRING_DESC_F_NEXT as u16 };
            let (address, len, flags) = parts(*buffer);
            self.write_descriptor(table, n, address, len, flags | next, n + 1);
        }
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % self.size();
        let len = 16 * buffers.len() as u32;
        self.descriptor(head, table, len, VRING_DESC_F_INDIRECT as u16, 0);
        self.offer(head);
        head
    }

    /// Takes the next used chain back: its head and the bytes written.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if self.load(self.layout.device + 2) == self.seen {
            return None;
        }
        fence(Ordering::Acquire);
        let slot = u64::from(self.seen % self.size());
        let at = self.layout.device + 4 + 8 * slot;
        let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        self.seen = self.seen.wrapping_add(1);
        Some((u32::from_le(head) as u16, u32::from_le(len)))
    }

    /// Asks for an interrupt at the next used chain.
    pub fn want_interrupt(&self) {
        if self.event_idx {
            self.store(self.layout.driver + 4 + 2 * u64::from(self.size()), self.seen);
        }
        fence(Ordering::SeqCst);
    }

    /// Sets or clears VIRTQ_AVAIL_F_NO_INTERRUPT.
    pub fn set_no_interrupt(&self, on: bool) {
        self.store(self.layout.driver, on.into());
    }

    /// Whether the device wants to hear of what was made available since the last call.
    pub fn wants_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.kicked, self.available);
        if !self.event_idx {
            return self.load(self.layout.device) & 1 == 0;
        }
        let event = self.load(self.layout.device + 4 + 8 * u64::from(self.size()));
        let new = self.available;
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    fn load(&self, at: u64) -> u16 {
        u16::from_le(self.memory.load(GuestAddress(at), Ordering::Relaxed).unwrap())
    }

    fn store(&self, at: u64, value: u16) {
        self.memory.store(value.to_le(), GuestAddress(at), Ordering::Relaxed).unwrap();
    }
}

fn parts(buffer: Buffer) -> (u64, u32, u16) {
    match buffer {
        Buffer::Out(address, len) => (address, len, 0),
        Buffer::In(address, len) => (address, len, VRING_DESC_F_WRITE as u16),
    }
}
