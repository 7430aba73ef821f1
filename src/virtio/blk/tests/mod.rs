//! Tests of the disk: storage that can be told to wait and to fail, and drivers that cut requests as they like.

mod bounds;
mod cache;
mod extents;
mod hostile;
mod life;
mod load;
mod resize;
mod shapes;
mod support;

use support::*;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::disk::{Disk, MemoryDisk, Properties};
use crate::random::Random;
use crate::virtio::feature;
use crate::virtio::testing::{Buffer, Guest, PATIENCE, Ring};

/// The size of the disk, unless a test says otherwise.
const SECTORS: u64 = 256;

const GUARD: u8 = 0xee;
/// Between any two buffers.
const GAP: u64 = 16;
/// Memory for the buffers of requests, and what is looked at behind them.
const SPACE: usize = 0x10_0000;
const MARGIN: usize = 4096;
/// A status that no device writes.
const UNTOUCHED: u8 = 0xa5;

/// Lengths to cut a stream of bytes in; the last piece is what is left.
type Cut<'a> = &'a [usize];

/// How a request is laid out: where what the device reads is cut, where what it writes is, and whether there is an
/// indirect table.
#[derive(Debug, Clone, Copy, Default)]
struct Shape<'a> {
    out: Cut<'a>,
    back: Cut<'a>,
    indirect: bool,
}

/// As Linux does it.
const USUAL: Shape<'static> = Shape { out: &[16], back: &[], indirect: false };

/// A request under way.
#[derive(Debug)]
struct Sent {
    head: u16,
    /// The pieces that the device may write.
    back: Vec<(u64, usize)>,
}

/// What came of a request.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u8,
    /// What lies before the status.
    data: Vec<u8>,
    /// The length that the device told.
    used: u32,
}

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// A guest with a disk, and its rings once it is started.
struct Machine {
    guest: Guest,
    handle: DiskHandle,
    rings: Vec<Ring>,
    /// Where buffers are, and where the next one goes.
    space: u64,
    next: u64,
    table: u64,
}

impl Machine {
    /// A machine that is started with all that the device offers, but for EVENT_IDX.
    fn new(disk: Disk) -> Self {
        let mut machine = Self::off(disk);
        machine.start(feature::INDIRECT_DESC);
        machine
    }

    /// A machine of two vCPUs whose driver has not come yet.
    fn off(disk: Disk) -> Self {
        let device = Block::new(disk.open().unwrap(), 2).unwrap();
        let handle = device.handle();
        let guest = Guest::new(device);
        Self { guest, handle, rings: Vec::new(), space: 0, next: 0, table: 0 }
    }

    /// What the device itself offers.
    fn offered(&self) -> u64 {
        self.guest.offered() & feature::DEVICE
    }

    /// Resets and starts, with all of the device's features and `extra`.
    fn start(&mut self, extra: u64) {
        self.start_with(self.offered() | extra);
    }

    fn start_with(&mut self, features: u64) {
        self.guest.reset();
        self.rings = self.guest.start(features, 64);
        for ring in &mut self.rings {
            ring.event_idx = features & feature::EVENT_IDX != 0;
        }
        self.space = self.guest.alloc(SPACE + MARGIN);
        self.next = self.space + SPACE as u64;
        self.table = self.guest.alloc(64 * 4096);
        self.clear();
    }

    /// Forgets all buffers.
    fn clear(&mut self) {
        self.fill(self.space, (self.next.max(self.space) - self.space) as usize + MARGIN, GUARD);
        self.next = self.space + GAP;
    }

    fn fill(&self, at: u64, len: usize, byte: u8) {
        self.guest.memory.write_slice(&vec![byte; len], GuestAddress(at)).unwrap();
    }

    fn pieces(&mut self, len: usize, cut: Cut<'_>) -> Vec<(u64, usize)> {
        let mut left = len;
        let mut pieces = Vec::new();
        for piece in cut.iter().copied().chain([usize::MAX]) {
            let piece = piece.min(left);
            left -= piece;
            // The last piece is empty if that is what the cut says.
            if piece == 0 && left == 0 && pieces.len() >= cut.len() && !pieces.is_empty() {
                break;
            }
            pieces.push((self.next, piece));
            self.next += piece as u64 + GAP;
        }
        assert!(self.next <= self.space + SPACE as u64, "no space left for buffers");
        pieces
    }

    /// Makes a request available and kicks: `out` is header and data, `room` is for data and status.
    fn send(&mut self, queue: usize, shape: Shape<'_>, out: &[u8], room: usize) -> Sent {
        let mut buffers = Vec::new();
        let mut rest = out;
        for (at, len) in self.pieces(out.len(), shape.out) {
            let (now, later) = rest.split_at(len);
            self.guest.memory.write_slice(now, GuestAddress(at)).unwrap();
            buffers.push(Buffer::Out(at, len as u32));
            rest = later;
        }
        let back = if room == 0 { Vec::new() } else { self.pieces(room, shape.back) };
        for &(at, len) in &back {
            self.fill(at, len, UNTOUCHED);
            buffers.push(Buffer::In(at, len as u32));
        }
        let ring = &mut self.rings[queue];
        let head = match shape.indirect {
            true => {
                let table = self.table + u64::from(ring.available % 64) * 4096;
                ring.request_indirect(table, &buffers)
            }
            false => ring.request(&buffers),
        };
        self.guest.kick(ring);
        Sent { head, back }
    }

    /// What a request has been answered with, once it is.
    fn answer(&mut self, queue: usize, sent: &Sent) -> Answer {
        let (head, used) = self.guest.wait(&mut self.rings[queue]);
        assert_eq!(head, sent.head, "another request was answered");
        self.look(sent, used)
    }

    /// What is in the memory of a request.
    fn look(&self, sent: &Sent, used: u32) -> Answer {
        let mut data = Vec::new();
        for &(at, len) in &sent.back {
            let mut piece = vec![0; len];
            self.guest.memory.read_slice(&mut piece, GuestAddress(at)).unwrap();
            data.extend(piece);
        }
        let status = data.pop().unwrap_or(UNTOUCHED);
        Answer { status, data, used }
    }

    /// Sends a request, waits for the answer, and makes sure that nothing was written beside its buffers.
    fn ask(&mut self, shape: Shape<'_>, out: &[u8], room: usize) -> Answer {
        self.clear();
        let sent = self.send(0, shape, out, room);
        let answer = self.answer(0, &sent);
        for &(at, len) in &sent.back {
            self.fill(at, len, GUARD);
        }
        let start = sent.back.first().map_or(self.space, |(at, _)| at - GAP);
        let mut beside = vec![0; (self.next - start) as usize + MARGIN];
        self.guest.memory.read_slice(&mut beside, GuestAddress(start)).unwrap();
        assert!(beside.iter().all(|&byte| byte == GUARD), "written beside the buffers: {shape:?}");
        answer
    }

    /// A request in the usual shape; returns the status.
    fn status(&mut self, kind: u32, sector: u64, data: &[u8]) -> u8 {
        self.ask(USUAL, &request(kind, sector, data), 1).status
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.status(VIRTIO_BLK_T_OUT, sector, data)
    }

    fn read(&mut self, sector: u64, len: usize) -> Answer {
        self.ask(USUAL, &request(VIRTIO_BLK_T_IN, sector, &[]), len + 1)
    }

    /// The disk does what a disk does.
    fn check(&mut self) {
        let data = pattern(0x77, 1024);
        assert_eq!(self.write(3, &data), OK);
        assert_eq!(self.read(3, 1024), Answer { status: OK, data, used: 1025 });
    }

    /// The same after a reset.
    fn check_after_reset(&mut self) {
        self.start(feature::INDIRECT_DESC | feature::EVENT_IDX);
        self.check();
    }
}

/// Header and data of a request.
fn request(kind: u32, sector: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    // `reserved`, which was once a priority.
    bytes.extend([0xff; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes.extend(data);
    bytes
}

/// An entry of a request to discard or zero.
fn extent(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Bytes that differ from place to place, and with `seed`.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let mut random = Random(seed.into());
    (0..len).map(|_| random.next() as u8).collect()
}

const fn bit(feature: u32) -> u64 {
    1 << feature
}
