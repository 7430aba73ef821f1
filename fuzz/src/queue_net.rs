//! A network card: any frames, commands and rings, in front of a host side that does as it likes.
//!
//! What the host side is given must be a frame with a header that agrees with it, whatever the driver made up.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use hyperkit::memory::Buffers;
use hyperkit::net::{Header, MacAddr, NetBackend, Offloads, Properties, Wake};
use hyperkit::sys::Notifier;
use hyperkit::virtio::net::{Card, CardHandle, Features, Options};
use hyperkit::virtio::testing::{Buffer, Guest, RAM};
use hyperkit::virtio::{HostEvent, Interest, Layout, Sources, feature};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

use crate::ops::parse;
use crate::ring::{Descriptor, RawRing};
use crate::{fields, operations};

fields! {
    /// The start of an input.
    pub struct Head {
        /// The size of the queues, as a power of two.
        pub size: u8,
        /// What the host side does is drawn from this.
        pub seed: u64,
        /// Features, shifted by 50 where they are above that, that the driver does without.
        pub without: u32,
    }
}

operations! {
    /// What a driver, the host side and the owner do.
    pub enum Op(11) {
        /// `count` receive buffers of `len` bytes, in two pieces if bit 0 of `how` is set.
        0 => Post { queue: u8, count: u8, len: u16, how: u8 },
        /// A frame to send, `len` times 16 bytes long, with a header of these bytes.
        1 => Send { queue: u8, flags: u8, gso_type: u8, sizes: u32, csum: u32, len: u16 },
        /// A command with `len` bytes of data: these, then zeros.
        2 => Command { class: u8, command: u8, len: u8, value: u64 },
        /// An entry of a descriptor table.
        3 => Describe { queue: u8, index: u8, address: u32, len: u32, flags: u8, next: u8 },
        /// A head, made available.
        4 => Offer { queue: u8, head: u16 },
        /// The available index.
        5 => Index { queue: u8, index: u16 },
        /// A kick; the device works while the driver goes on.
        6 => Kick { queue: u8 },
        /// Waits until kicks have been seen to.
        7 => Settle {},
        /// The host side has so many frames more, and calls.
        8 => Host { frames: u8, wake: u8 },
        /// 0 pauses, 1 resumes, 2 pulls the cable, 3 plugs it in.
        9 => Owner { what: u8 },
        /// Reset, and set up again without these features.
        10 => Restart { without: u32 },
    }
}

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
const PAIRS: u16 = 2;
const QUEUES: u8 = 2 * PAIRS as u8 + 1;
/// Where buffers are.
const BUFFERS: u64 = 0x10_0000;

/// What the host side is about to do.
struct State {
    random: u64,
    /// Frames for the guest.
    frames: u64,
    wake: Wake,
    /// It takes everything, and sends it back.
    good: bool,
}

impl State {
    /// The next number of an xorshift generator.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[derive(Clone)]
struct Host(Arc<(Mutex<State>, Notifier)>);

impl Host {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().expect("nothing panics with it")
    }

    fn call(&self, frames: u8, bits: u8) {
        {
            let mut state = self.state();
            state.frames = state.frames.saturating_add(frames.into()).min(1000);
            let wake = Wake { receive: bits & 1 != 0, send: bits & 2 != 0, link: bits & 4 != 0 };
            state.wake = wake;
        }
        self.0.1.notify();
    }
}

impl NetBackend for Host {
    fn name(&self) -> &str {
        "fuzz"
    }

    fn properties(&self) -> Properties {
        Properties { mac: None, mtu: 1500, offloads: Offloads::all(), queues: PAIRS }
    }

    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        sources.add(&self.0.1, 0, Interest::READABLE)
    }

    fn send(
        &mut self,
        _queue: u16,
        header: &Header,
        frame: Buffers<'_>,
        _sources: Sources<'_>,
    ) -> io::Result<()> {
        let len = frame.total();
        assert!((14..=65550).contains(&len), "a frame of {len} bytes");
        assert!(header.flags <= 1, "{header:?}");
        let end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
        assert!(header.flags == 0 || end <= len, "{header:?} of {len} bytes");
        match header.gso_type {
            0 => assert!(len <= 1518 && header.gso_size == 0, "{header:?} of {len} bytes"),
            1 | 4 | 5 => assert!(header.flags == 1 && header.gso_size > 0, "{header:?}"),
            _ => panic!("{header:?}"),
        }
        let mut state = self.state();
        match state.draw() % 8 {
            _ if state.good => state.frames = 1,
            0 | 1 => return Err(io::ErrorKind::WouldBlock.into()),
            2 => return Err(io::ErrorKind::PermissionDenied.into()),
            _ => {}
        }
        Ok(())
    }

    fn receive(
        &mut self,
        _queue: u16,
        header: &mut Header,
        space: Buffers<'_>,
        _sources: Sources<'_>,
    ) -> io::Result<usize> {
        let mut state = self.state();
        state.frames = state.frames.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        let draw = state.draw();
        if state.good {
            return Ok(space.fill_from(&[0xff; 60]));
        }
        if draw.is_multiple_of(8) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if draw.is_multiple_of(4) {
            let (low, high) = (draw.to_le_bytes(), state.draw().to_le_bytes());
            let mut bytes = [0; Header::LEN];
            bytes[..8].copy_from_slice(&low);
            bytes[8..].copy_from_slice(&high[..2]);
            // Mostly one that might be.
            bytes[0] &= 3;
            bytes[1] &= 7;
            *header = Header::from_bytes(bytes);
        }
        let len = match draw >> 8 & 7 {
            0 => draw >> 16 & 0xffff,
            1 => return Ok(usize::MAX >> (draw >> 16 & 63)),
            _ => draw >> 16 & 0x5ff,
        };
        let mut bytes = vec![0x5a; len as usize];
        let to = if draw >> 40 & 1 == 0 { MAC.0 } else { [0xff; 6] };
        bytes.iter_mut().zip(to).for_each(|(byte, to)| *byte = to);
        if bytes.len() > space.total() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(space.fill_from(&bytes))
    }

    fn host_ready(&mut self, _event: HostEvent, _sources: Sources<'_>) -> Wake {
        self.0.1.clear();
        std::mem::take(&mut self.state().wake)
    }

    fn link(&self) -> bool {
        let mut state = self.state();
        !state.draw().is_multiple_of(16) || state.good
    }
}

struct Run {
    guest: Guest,
    handle: CardHandle,
    size: u32,
}

/// Carries out an input.
pub fn run(data: &[u8]) {
    let (Head { size, seed, without }, ops) = parse(data);
    let state = State { random: seed | 1, frames: 0, wake: Wake::default(), good: false };
    let notifier = Notifier::new().expect("notifiers can be had");
    let host = Host(Arc::new((Mutex::new(state), notifier)));
    let card = Card::new(Box::new(host.clone()), MAC, Options::default()).expect("a card");
    let handle = card.handle();
    let mut run = Run { guest: Guest::new(card), handle, size: 1 << (size % 8) };
    run.start(without);
    for op in ops {
        run.step(op, &host);
    }
    run.recover(&host);
}

impl Run {
    fn start(&mut self, without: u32) {
        self.guest.reset();
        let without = u64::from(without & 0xff_ffff) | u64::from(without >> 24) << 50;
        let own = self.guest.offered() & Features::all().bits() & !without;
        let transport = feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX;
        assert!(self.guest.negotiate(own | transport), "features refused");
        for queue in 0..QUEUES {
            self.guest.lay_out(queue.into(), self.ring(queue).layout);
        }
        self.guest.driver_ok();
    }

    fn ring(&self, queue: u8) -> RawRing<'_> {
        let base = 0x2_0000 + u64::from(queue % QUEUES) * 0x4000;
        let [descriptors, driver, device] = [base, base + 0x1000, base + 0x2000];
        let layout = Layout { size: self.size, descriptors, driver, device };
        RawRing { memory: &self.guest.memory, layout }
    }

    /// The queue's available index, which tells where the next chain begins.
    fn next(&self, ring: RawRing<'_>) -> u16 {
        let index: u16 = ring.memory.read_obj(GuestAddress(ring.layout.driver + 2)).unwrap_or(0);
        index.wrapping_mul(4) % self.size as u16
    }

    /// Describes and offers a chain of buffers: address, length, for the device to write.
    fn offer(&self, queue: u8, buffers: &[(u64, u32, bool)]) {
        let ring = self.ring(queue);
        let head = self.next(ring);
        for (n, &(address, len, write)) in (0..).zip(buffers) {
            let write = if write { VRING_DESC_F_WRITE as u16 } else { 0 };
            let last = usize::from(n) + 1 == buffers.len();
            let flags = write | if last { 0 } else { VRING_DESC_F_NEXT as u16 };
            let [index, next] = [n, n + 1].map(|n| (head + n) % self.size as u16);
            ring.describe(ring.layout.descriptors, index, Descriptor { address, len, flags, next });
        }
        ring.offer(head);
    }

    fn step(&mut self, op: Op, host: &Host) {
        match op {
            Op::Post { queue, count, len, how } => {
                for n in 0..u64::from(count % 64) {
                    let (at, len) = (BUFFERS + n * 0x1_0000 % 0x20_0000, u32::from(len));
                    let half = len / 2;
                    match how & 1 {
                        0 => self.offer(queue, &[(at, len, true)]),
                        _ => {
                            self.offer(queue, &[(at, half, true), (at + 0x8000, len - half, true)])
                        }
                    }
                }
            }
            Op::Send { queue, flags, gso_type, sizes, csum, len } => {
                let at = BUFFERS + 0x20_0000 - 0x1000;
                let numbers = [&[flags, gso_type][..], &sizes.to_le_bytes(), &csum.to_le_bytes()];
                self.ring(queue).write(at, &numbers.concat());
                self.offer(queue, &[(at, 12, false), (BUFFERS, u32::from(len) * 16, false)]);
            }
            Op::Command { class, command, len, value } => {
                let at = BUFFERS - 0x1000;
                let bytes = [&[class, command][..], &value.to_le_bytes(), &[0; 256]].concat();
                self.ring(QUEUES - 1).write(at, &bytes);
                let data = 2 + u32::from(len);
                self.offer(QUEUES - 1, &[(at, data, false), (at + 0x800, 1, true)]);
            }
            Op::Describe { queue, index, address, len, flags, next } => {
                let address = u64::from(address) % (RAM[1].0 + RAM[1].1 as u64 + 0x1000);
                let descriptor =
                    Descriptor { address, len, flags: flags.into(), next: next.into() };
                let ring = self.ring(queue);
                ring.describe(ring.layout.descriptors, index.into(), descriptor);
            }
            Op::Offer { queue, head } => self.ring(queue).offer(head),
            Op::Index { queue, index } => self.ring(queue).index(index),
            Op::Kick { queue } => {
                self.guest.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::from(queue % QUEUES));
            }
            Op::Settle {} => {
                for _ in 0..2 {
                    self.guest.transport.pause();
                    self.guest.transport.resume();
                }
            }
            Op::Host { frames, wake } => host.call(frames, wake),
            Op::Owner { what } => match what % 4 {
                0 => self.guest.transport.pause(),
                1 => self.guest.transport.resume(),
                other => self.handle.set_link(other == 3),
            },
            Op::Restart { without } => self.start(without),
        }
    }

    /// Resets the device; it must send a frame and receive one then.
    fn recover(&mut self, host: &Host) {
        self.guest.reset();
        self.guest.transport.resume();
        {
            let mut state = host.state();
            (state.good, state.frames) = (true, 0);
        }
        self.handle.set_link(true);
        host.call(0, 4);
        while !self.handle.link() {
            std::thread::yield_now();
        }
        let mut rings = self.guest.start(feature::INDIRECT_DESC, 64);
        let [receive, send, ..] = &mut rings[..] else {
            unreachable!("a card has two queues");
        };
        let [room, out] = [2048, 2048].map(|len| self.guest.alloc(len));
        let head = receive.request(&[Buffer::In(room, 2048)]);
        self.guest.kick(receive);
        send.request(&[Buffer::Out(out, 12 + 64)]);
        self.guest.kick(send);
        assert_eq!(self.guest.wait(send).1, 0);
        assert_eq!(self.guest.wait(receive), (head, 72));
        assert_eq!(self.guest.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    }
}
