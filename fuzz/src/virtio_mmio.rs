//! Registers of a virtio device: any access, in any order, while its queues work or are paused.

use hyperkit::bus::BusDevice;
use hyperkit::virtio::testing::RAM;
use hyperkit::virtio::{Layout, feature};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;

use crate::device::Device;
use crate::ops::{access, parse};
use crate::ring::{Descriptor, RawRing};
use crate::{fields, operations};

fields! {
    /// The start of an input.
    pub struct Head {
        /// 0 is rng, 1 is the console, 2 is a disk, 3 are sockets; other bits do not count.
        pub device: u8,
    }
}

operations! {
    /// What a guest, or the machine's owner, does.
    pub enum Op(10) {
        /// A load.
        0 => Read { offset: u16, len: u8 },
        /// A store.
        1 => Write { offset: u16, len: u8, value: u64 },
        /// A store of four bytes to a register that there is.
        2 => Register { number: u8, value: u32 },
        /// A store to memory.
        3 => Poke { at: u32, len: u8, value: u64 },
        /// What an accelerator with doorbells does for a kick.
        4 => Kick { queue: u8 },
        /// Status and features, as a sane driver does it, with the features chosen by bits.
        5 => Negotiate { features: u8 },
        /// A queue where it can be, in one of a few places.
        6 => Queue { queue: u8, size: u8, place: u8 },
        /// The last step, DRIVER_OK.
        7 => Go {},
        /// A request at the next free place of a queue that lies where [`Op::Queue`] puts it.
        8 => Request { queue: u8, place: u8, len: u16 },
        /// 0 pauses, 1 resumes, 2 waits for kicks to be seen to, 3 is the machine's reset.
        9 => Owner { what: u8 },
    }
}

/// Registers that drivers write.
const REGISTERS: [u32; 15] = [
    VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_QUEUE_USED_HIGH,
];

/// Where queue memory is: in both regions, at the end of one, over its end, in the hole, and over each other.
const PLACES: [u64; 6] = [
    0x2_0000,
    RAM[1].0,
    RAM[0].1 as u64 - 0x3000,
    RAM[0].1 as u64 - 0x1000,
    RAM[0].1 as u64 + 0x1000,
    0x2_1000,
];

/// Where the buffers of requests are.
const BUFFER: u64 = 0x8_0000;
/// Stores to memory go below this, somewhat behind the end of RAM.
const MEMORY_END: u64 = RAM[1].0 + RAM[1].1 as u64 + 0x1000;

fn layout(queue: u8, size: u8, place: u8) -> Layout {
    let base = PLACES[usize::from(place) % PLACES.len()] + u64::from(queue % 4) * 0x4000;
    Layout {
        size: u32::from(size),
        descriptors: base,
        driver: base + 0x1000,
        device: base + 0x2000,
    }
}

/// Carries out an input.
pub fn run(data: &[u8]) {
    let (Head { device }, ops) = parse(data);
    let (mut device, _host) = match device & 3 {
        0 => (Device::rng(), None),
        2 => (Device::disk(0), None),
        3 => (Device::sockets(), None),
        _ => {
            let (device, host) = Device::console(None);
            (device, Some(host))
        }
    };
    let mut bus = device.bus();
    for op in ops {
        let guest = &device.guest;
        match op {
            Op::Read { offset, len } => bus.read(offset.into(), access(&mut [0; 8], len)),
            Op::Write { offset, len, value } => {
                let flow = bus.write(offset.into(), access(&mut value.to_le_bytes(), len));
                assert!(flow.is_continue(), "a virtio device ends no run");
            }
            Op::Register { number, value } => {
                guest.write(REGISTERS[usize::from(number) % REGISTERS.len()], value);
            }
            Op::Poke { at, len, value } => {
                let ring = RawRing { memory: &guest.memory, layout: Layout::default() };
                ring.write(u64::from(at) % MEMORY_END, access(&mut value.to_le_bytes(), len));
            }
            Op::Kick { queue } => {
                if let Some(doorbell) = guest.transport.doorbell(queue.into()) {
                    doorbell.notify();
                }
            }
            Op::Negotiate { features } => {
                let bits = [feature::VERSION_1, feature::INDIRECT_DESC, feature::EVENT_IDX, 1];
                let chosen = bits.iter().enumerate().filter(|(n, _)| features >> n & 1 != 0);
                guest.negotiate(chosen.map(|(_, bit)| bit).sum());
            }
            Op::Queue { queue, size, place } => {
                guest.lay_out(queue.into(), layout(queue, size, place));
            }
            Op::Go {} => guest.driver_ok(),
            Op::Request { queue, place, len } => request(&device, queue, place, len),
            Op::Owner { what } => match what % 4 {
                0 => guest.transport.pause(),
                1 => guest.transport.resume(),
                2 => device.settle(),
                _ => guest.transport.reset(),
            },
        }
    }
    device.recover();
}

/// Offers one buffer; an odd `len` is for the device to write.
fn request(device: &Device, queue: u8, place: u8, len: u16) {
    let ring = RawRing { memory: &device.guest.memory, layout: layout(queue, 8, place) };
    let flags = if len & 1 == 0 { 0 } else { VRING_DESC_F_WRITE as u16 };
    let buffer = Descriptor { address: BUFFER, len: len.into(), flags, next: 0 };
    ring.describe(ring.layout.descriptors, 0, buffer);
    ring.offer(0);
}
