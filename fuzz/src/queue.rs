//! Rings: a device that is set up as it should be, and anything at all in its queues.

use std::io::Cursor;

use hyperkit::virtio::testing::RAM;
use hyperkit::virtio::{Layout, feature};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::device::{DISK_QUEUES, Device};
use crate::ops::{access, parse};
use crate::ring::{Descriptor, RawRing};
use crate::{fields, operations};

fields! {
    /// The start of an input.
    pub struct Head {
        /// Bit 0: INDIRECT_DESC, bit 1: EVENT_IDX, bit 2: the device's own feature.
        pub features: u8,
        /// The size of the queues, as a power of two.
        pub size: u8,
        /// So many times 256 bytes are typed on a console. What a disk is on, see [`Device::disk`].
        pub typed: u8,
    }
}

operations! {
    /// What a driver does. A `place` is one of [`PLACES`], where `offset` counts from.
    pub enum Op(12) {
        /// An entry of the descriptor table of `table` 0 or 1, or of one of two indirect tables. `wide` shifts `len`.
        0 => Describe { table: u8, index: u8, place: u8, offset: u16, len: u16, wide: u8, flags: u8, next: u8 },
        /// A head, made available.
        1 => Offer { queue: u8, head: u16 },
        /// The available index.
        2 => Index { queue: u8, index: u16 },
        /// One entry of the available ring.
        3 => Slot { queue: u8, slot: u16, head: u16 },
        /// The available ring's flags and `used_event`.
        4 => Notifications { queue: u8, flags: u16, used_event: u16 },
        /// A kick; the device works while the driver goes on.
        5 => Kick { queue: u8 },
        /// Waits until kicks have been seen to.
        6 => Settle {},
        /// A store to memory.
        7 => Poke { place: u8, offset: u16, len: u8, value: u64 },
        /// A chain of `count` buffers of `len` bytes, those from number `split` on for the device to write; through an
        /// indirect table if bit 0 of `how` is set.
        8 => Chain { queue: u8, head: u8, count: u8, split: u8, len: u16, place: u8, how: u8 },
        /// Reset, and set up again with these features.
        9 => Restart { features: u8 },
        /// As [`Op::Restart`] if the device has asked for it.
        10 => Mend { features: u8 },
        /// A disk's request of [`KINDS`], from entry `head` on: a header, `len` bytes of data in a place of its own, a
        /// status. Through an indirect table if bit 0 of `how` is set; with bit 1, data and header, or data and
        /// status, are one buffer; with bit 2, the data is an extent of `len` sectors, and bit 3 its flag.
        11 => Request { queue: u8, head: u8, kind: u8, sector: u64, len: u16, how: u8 },
    }
}

/// The types of requests to a disk; any other number is itself.
pub const KINDS: [u32; 6] = [
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_WRITE_ZEROES,
];

const TABLES: u64 = 0x4_0000;
/// Addresses: buffers, the queues themselves, indirect tables, around the ends of both regions of RAM, the hole,
/// nothing, the end of the address space.
pub const PLACES: [u64; 11] = [
    0x8_0000,
    0x10_0000,
    queue_base(0),
    queue_base(1),
    TABLES,
    RAM[0].1 as u64 - 0x8000,
    RAM[0].1 as u64 + 0x1000,
    RAM[1].0 - 0x8000,
    RAM[1].0 + RAM[1].1 as u64 - 0x8000,
    0,
    u64::MAX - 0x7fff,
];

const fn queue_base(queue: u64) -> u64 {
    0x2_0000 + queue * 0x1_0000
}

/// One of the two indirect tables.
fn indirect_table(number: u8) -> u64 {
    TABLES + u64::from(number % 2) * 0x1000
}

fn address(place: u8, offset: u16) -> u64 {
    PLACES[usize::from(place) % PLACES.len()].wrapping_add(offset.into())
}

/// Fuzzes the entropy device.
pub fn rng(data: &[u8]) {
    let (head, ops) = parse(data);
    Run { device: Device::rng(), queues: 1, size: size(&head) }.all(head.features, ops);
}

/// Fuzzes the console.
pub fn console(data: &[u8]) {
    let (head, ops): (Head, _) = parse(data);
    let typed = 256 * usize::from(head.typed);
    let input = (typed > 0).then(|| Box::new(Cursor::new(vec![b'k'; typed])) as _);
    let (device, _host) = Device::console(input);
    Run { device, queues: 2, size: size(&head) }.all(head.features, ops);
}

/// Fuzzes the disk.
pub fn blk(data: &[u8]) {
    let (head, ops): (Head, _) = parse(data);
    let device = Device::disk(head.typed);
    Run { device, queues: DISK_QUEUES, size: size(&head) }.all(head.features, ops);
}

fn size(head: &Head) -> u32 {
    1 << (head.size % 7)
}

struct Run {
    device: Device,
    queues: u8,
    size: u32,
}

impl Run {
    fn all(mut self, features: u8, ops: Vec<Op>) {
        self.start(features);
        for op in ops {
            self.step(op);
        }
        self.device.recover();
    }

    /// Resets the device and sets it up with the features that bits of `features` stand for.
    fn start(&mut self, features: u8) {
        let guest = &mut self.device.guest;
        guest.reset();
        let own = guest.offered() & 0xff_ffff;
        let bits = [feature::INDIRECT_DESC, feature::EVENT_IDX, own];
        let chosen = bits.iter().enumerate().filter(|(n, _)| features >> n & 1 != 0);
        let chosen: u64 = chosen.map(|(_, bit)| bit).sum();
        assert!(guest.negotiate(feature::VERSION_1 | chosen), "features refused");
        for queue in 0..self.queues {
            self.device.guest.lay_out(queue.into(), self.layout(queue));
        }
        self.device.guest.driver_ok();
    }

    fn layout(&self, queue: u8) -> Layout {
        let base = queue_base((queue % self.queues).into());
        let [descriptors, driver, device] = [base, base + 0x1000, base + 0x2000];
        Layout { size: self.size, descriptors, driver, device }
    }

    fn ring(&self, queue: u8) -> RawRing<'_> {
        RawRing { memory: &self.device.guest.memory, layout: self.layout(queue) }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Describe { table, index, place, offset, len, wide, flags, next } => {
                let table = match table % 4 {
                    queue @ (0 | 1) => self.layout(queue).descriptors,
                    other => indirect_table(other),
                };
                let descriptor = Descriptor {
                    address: address(place, offset),
                    len: u32::from(len) << (wide % 17),
                    flags: flags.into(),
                    next: next.into(),
                };
                self.ring(0).describe(table, index.into(), descriptor);
            }
            Op::Offer { queue, head } => self.ring(queue).offer(head),
            Op::Index { queue, index } => self.ring(queue).index(index),
            Op::Slot { queue, slot, head } => self.ring(queue).slot(slot, head),
            Op::Notifications { queue, flags, used_event } => {
                self.ring(queue).notifications(flags, used_event);
            }
            Op::Kick { queue } => {
                let queue = queue % self.queues;
                self.device.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue.into());
            }
            Op::Settle {} => self.device.settle(),
            Op::Poke { place, offset, len, value } => {
                let at = address(place, offset);
                self.ring(0).write(at, access(&mut value.to_le_bytes(), len));
            }
            Op::Chain { queue, head, count, split, len, place, how } => {
                let buffers = Buffers { count, split, len, address: address(place, 0) };
                self.chain(queue, head.into(), buffers, how & 1 != 0);
            }
            Op::Request { queue, head, kind, sector, len, how } => {
                self.request(queue, head, kind, sector, len, how);
            }
            Op::Restart { features } => self.start(features),
            Op::Mend { features } => {
                if self.device.guest.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
                    self.start(features);
                }
            }
        }
    }

    /// Describes a request to a disk and offers it.
    fn request(&self, queue: u8, head: u8, kind: u8, sector: u64, len: u16, how: u8) {
        let ring = self.ring(queue);
        let number = KINDS.get(usize::from(kind)).copied().unwrap_or(kind.into());
        // A page for each, after which the data begins in another.
        let at = PLACES[0] + u64::from(head) * 0x400;
        let data = PLACES[1] + u64::from(head) * 0x1_0000;
        let whole = how & 2 != 0;
        let extent = how & 4 != 0;
        let read = matches!(number, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID);
        let bytes = if extent { 16 } else { len.into() };
        let header_at = if whole && !read { data } else { at };
        ring.write(header_at, &[u64::from(number), sector].map(u64::to_le_bytes).concat());
        let data = if whole && !read { data + 16 } else { data };
        if extent {
            let sectors_and_flags = u64::from(len) | u64::from(how >> 3 & 1) << 32;
            ring.write(data, &[sector, sectors_and_flags].map(u64::to_le_bytes).concat());
        }
        let write = VRING_DESC_F_WRITE as u16;
        let buffers = match (whole, read) {
            (true, true) => vec![(header_at, 16, 0), (data, bytes + 1, write)],
            (true, false) => vec![(header_at, 16 + bytes, 0), (at + 0x200, 1, write)],
            (false, _) => {
                let flags = if read { write } else { 0 };
                vec![(header_at, 16, 0), (data, bytes, flags), (at + 0x200, 1, write)]
            }
        };
        let indirect = how & 1 != 0;
        let (table, first) = match indirect {
            true => (indirect_table(queue), 0),
            false => (ring.layout.descriptors, u16::from(head)),
        };
        let count = buffers.len() as u32;
        for (n, (address, len, flags)) in (0..).zip(buffers) {
            let more = if n + 1 < count as u16 { VRING_DESC_F_NEXT as u16 } else { 0 };
            let (flags, next) = (flags | more, first + n + 1);
            ring.describe(table, first + n, Descriptor { address, len, flags, next });
        }
        if indirect {
            let flags = VRING_DESC_F_INDIRECT as u16;
            let table = Descriptor { address: table, len: 16 * count, flags, next: 0 };
            ring.describe(ring.layout.descriptors, head.into(), table);
        }
        ring.offer(head.into());
    }

    /// Describes buffers from entry `head` on and offers them.
    fn chain(&self, queue: u8, head: u16, buffers: Buffers, indirect: bool) {
        let ring = self.ring(queue);
        if indirect {
            let address = indirect_table(queue);
            let len = 16 * u32::from(buffers.count);
            let flags = VRING_DESC_F_INDIRECT as u16;
            buffers.describe(ring, address, 0);
            let table = Descriptor { address, len, flags, next: 0 };
            ring.describe(ring.layout.descriptors, head, table);
        } else {
            buffers.describe(ring, ring.layout.descriptors, head);
        }
        ring.offer(head);
    }
}

/// Equal buffers, one behind the other.
struct Buffers {
    count: u8,
    /// From this number on they are for the device to write.
    split: u8,
    len: u16,
    address: u64,
}

impl Buffers {
    fn describe(&self, ring: RawRing<'_>, table: u64, first: u16) {
        for n in 0..self.count {
            let last = n + 1 == self.count;
            let write = if n >= self.split { VRING_DESC_F_WRITE as u16 } else { 0 };
            let index = first.wrapping_add(n.into());
            let descriptor = Descriptor {
                address: self.address.wrapping_add(u64::from(self.len) * u64::from(n)),
                len: self.len.into(),
                flags: write | if last { 0 } else { VRING_DESC_F_NEXT as u16 },
                next: index.wrapping_add(1),
            };
            ring.describe(table, index, descriptor);
        }
    }
}
