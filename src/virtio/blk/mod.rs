//! The block device (§5.2): a disk.
//!
//! The device takes requests apart, checks them, and hands them to the disk's engine; what can be done at once is answered
//! in the same turn, everything else when the engine says so. How much is under way at a time is bounded in requests,
//! by the size of the queues, and in bytes.
//!
//! ```
//! use hyperkit::disk::{Disk, MemoryDisk};
//! use hyperkit::virtio::blk::Block;
//!
//! # fn main() -> Result<(), hyperkit::disk::Error> {
//! let device = Block::new(Disk::backend(MemoryDisk::new(1 << 20)).open()?, 1)?;
//! assert_eq!(device.handle().size(), 1 << 20);
//! # Ok(()) }
//! ```

mod config;
mod handle;
mod limits;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::{ConfigSpace, Context, Error, HostEvent, Interest, Sources, VirtioDevice};
use crate::disk::{self, BufferList, Done, Front, Limiter, Op, OpenDisk, SECTOR};
use crate::sys::Notifier;
use handle::Shared;
use request::{Parsed, Rules, Status, Ticket};

pub use handle::DiskHandle;

// Host descriptors.
const DONE: u32 = 0;
const RESIZED: u32 = 1;

/// Queues of a machine's disk, unless its owner says otherwise.
const MOST_QUEUES: u16 = 8;

/// A disk's log lines come no closer than this.
const COMPLAINTS: Duration = Duration::from_secs(10);

/// A block device.
pub struct Block {
    shared: Arc<Shared>,
    front: Front<Ticket>,
    /// Set when the engine is done with something.
    done: Notifier,
    queues: Vec<u16>,
    offered: u64,
    read_only: bool,
    serial: String,
    accepted: u64,
    limiter: Limiter,
    /// When the limits allow the next request.
    throttled: Option<Instant>,
    /// Requests, and bytes, that the engine has.
    requests: usize,
    bytes: u64,
    /// Queues that have, or may have, chains nobody has taken yet.
    stalled: Vec<bool>,
    /// The first of them to go on.
    first: usize,
    /// Room for lists, to be used again.
    ended: Vec<Done<Ticket>>,
    spare: Vec<BufferList<'static>>,
    complaints: Complaints,
}

impl Block {
    /// A device for `disk`, in a machine of `cpus` vCPUs.
    pub fn new(disk: OpenDisk, cpus: u32) -> Result<Self, disk::Error> {
        let OpenDisk { target, read_only, engine, serial, queues, limits } = disk;
        let notifier = || Notifier::new().map_err(disk::Error::NoNotifier);
        let done = notifier()?;
        let count =
            queues.unwrap_or_else(|| u16::try_from(cpus).unwrap_or(u16::MAX).clamp(1, MOST_QUEUES));
        let properties = target.backend().properties();
        let sectors = target.backend().size() / SECTOR;
        Ok(Self {
            front: Front::new(&target, engine, &done)?,
            offered: config::features(&properties, read_only, count),
            shared: Arc::new(Shared {
                config: Arc::new(config::space(&properties, sectors, count)),
                read_only,
                sectors: AtomicU64::new(sectors),
                storage: Mutex::new(Some(target)),
                resized: notifier()?,
                shrunk: AtomicBool::new(false),
            }),
            done,
            queues: vec![limits::QUEUE; count.into()],
            read_only,
            serial,
            accepted: 0,
            limiter: Limiter::new(limits, Instant::now()),
            throttled: None,
            requests: 0,
            bytes: 0,
            stalled: vec![false; count.into()],
            first: 0,
            ended: Vec::new(),
            spare: Vec::new(),
            complaints: Complaints::default(),
        })
    }

    /// A handle on the disk, for whoever owns the machine.
    pub fn handle(&self) -> DiskHandle {
        DiskHandle(self.shared.clone())
    }

    fn has(&self, feature: u32) -> bool {
        self.accepted & 1 << feature != 0
    }

    /// Whether as many bytes are on their way as may be.
    fn is_full(&self) -> bool {
        self.bytes >= limits::IN_FLIGHT
    }

    /// Whether another request may be taken now.
    fn may_take(&mut self) -> bool {
        if self.is_full() {
            return false;
        }
        if self.limiter.is_set() {
            self.throttled = self.limiter.wait(Instant::now());
        }
        self.throttled.is_none()
    }

    /// Takes requests of a queue, as many as there are and may be taken.
    fn work(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error> {
        let mut moved = 0;
        let mut stalled = false;
        loop {
            if !self.may_take() {
                stalled = true;
                break;
            }
            let Some(queue) = cx.queue(index) else { break };
            let Some(chain) = queue.pop()? else { break };
            let rules = Rules {
                sectors: self.shared.sectors.load(Ordering::Relaxed),
                read_only: self.read_only,
                discard: self.has(VIRTIO_BLK_F_DISCARD),
                write_zeroes: self.has(VIRTIO_BLK_F_WRITE_ZEROES),
                serial: &self.serial,
            };
            let room = self.spare.pop().unwrap_or_default();
            match request::parse(index, chain, &rules, room)? {
                Parsed::Answer(ticket, status) => answer(ticket, status, cx)?,
                Parsed::Request(request) => {
                    let bytes = request.token.bytes + zeroed(&request.op);
                    self.limiter.take(bytes);
                    self.requests += 1;
                    self.bytes += request.token.bytes;
                    if let Some(done) = self.front.submit(request) {
                        self.complete(done, cx)?;
                        moved += bytes;
                        if moved >= limits::TURN {
                            if let Some(queue) = cx.queue(index) {
                                queue.end_turn();
                            }
                            break;
                        }
                    }
                }
            }
        }
        if let Some(place) = self.stalled.get_mut(usize::from(index)) {
            *place = stalled;
        }
        self.collect(cx)
    }

    /// Gives queues that had to wait another turn if there is nothing left that they wait for: the engine does not
    /// notify of what had ended by the time it was asked.
    fn let_go_on(&self, cx: &mut Context<'_>) {
        if self.throttled.is_some() || self.is_full() {
            return;
        }
        for (index, &stalled) in (0..).zip(&self.stalled) {
            if stalled && let Some(queue) = cx.queue(index) {
                queue.end_turn();
            }
        }
    }

    /// Answers what the engine is done with.
    fn collect(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let mut ended = std::mem::take(&mut self.ended);
        loop {
            self.front.collect(&mut ended);
            if ended.is_empty() {
                break;
            }
            for done in ended.drain(..) {
                self.complete(done, cx)?;
            }
        }
        self.ended = ended;
        Ok(())
    }

    /// Answers a request that has ended.
    fn complete(&mut self, mut done: Done<Ticket>, cx: &mut Context<'_>) -> Result<(), Error> {
        // Without a cache, what was written has to be flushed before it counts (§5.2.6.2).
        if writes(&done.request.op) && done.result.is_ok() && !self.write_back() {
            let mut request = done.request;
            request.op = Op::Flush;
            done = match self.front.submit(request) {
                Some(done) => done,
                None => return Ok(()),
            };
        }
        let Done { request: disk::Request { op, buffers, token }, result } = done;
        self.requests -= 1;
        self.bytes -= token.bytes;
        self.spare.push(buffers.recycle());
        let status = match result {
            Ok(()) => Status::Ok,
            Err(error) => {
                self.complaints.add(&self.serial, &op, &error);
                Status::Failed
            }
        };
        answer(token, status, cx)
    }

    /// Goes on with queues that had to wait; they take turns at being the first, which may leave nothing to the others.
    fn work_stalled(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let queues = self.stalled.len();
        let first = self.first;
        let mut served = false;
        for index in (first..queues).chain(0..first) {
            if self.stalled.get_mut(index).is_some_and(std::mem::take) {
                if !std::mem::replace(&mut served, true) {
                    self.first = index + 1;
                }
                self.work(index as u16, cx)?;
            }
        }
        self.let_go_on(cx);
        Ok(())
    }

    /// Whether a write that ends now may wait for a flush. The driver may have turned the cache off before it sent the
    /// write, so the field is looked at and not what the device was last told of it.
    fn write_back(&self) -> bool {
        if !self.has(VIRTIO_BLK_F_CONFIG_WCE) {
            return self.has(VIRTIO_BLK_F_FLUSH);
        }
        let mut byte = [0];
        self.shared.config.read(config::WRITEBACK, &mut byte);
        byte != [0]
    }
}

/// Whether a request changes the disk.
fn writes(op: &Op) -> bool {
    matches!(op, Op::Write { .. } | Op::Discard(_) | Op::WriteZeroes(_))
}

/// Bytes that are written without being in the request.
fn zeroed(op: &Op) -> u64 {
    match op {
        Op::WriteZeroes(extents) => extents.iter().map(|extent| extent.len).sum(),
        _ => 0,
    }
}

/// Gives a chain back to the driver.
fn answer(ticket: Ticket, status: Status, cx: &mut Context<'_>) -> Result<(), Error> {
    // A queue that was given up wants nothing back.
    let Some(queue) = cx.queue(ticket.queue) else { return Ok(()) };
    let (chain, written) = ticket.close(status);
    Ok(queue.push(chain, written)?)
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &str {
        "blk"
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.shared.config.clone()
    }

    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        sources.add(&self.done, DONE, Interest::READABLE)?;
        sources.add(&self.shared.resized, RESIZED, Interest::READABLE)
    }

    fn activate(&mut self, features: u64, _cx: &mut Context<'_>) -> Result<(), Error> {
        self.accepted = features;
        // A driver that cannot flush begins without a cache (§5.2.5.2).
        if !self.has(VIRTIO_BLK_F_FLUSH) {
            self.shared.config.set(config::WRITEBACK, &[0]);
        }
        Ok(())
    }

    fn queue_ready(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error> {
        self.work(index, cx)?;
        self.let_go_on(cx);
        Ok(())
    }

    fn host_ready(&mut self, event: HostEvent, cx: &mut Context<'_>) -> Result<(), Error> {
        if event.source == RESIZED {
            self.shared.resized.clear();
            cx.config_changed();
            if self.shared.shrunk.swap(false, Ordering::Relaxed) {
                self.pause(cx)?;
                if let Err(error) = self.shared.cut_again() {
                    log::warn!("disk {:?}: cannot cut it to its size: {error}", self.serial);
                }
                return self.work_stalled(cx);
            }
            return Ok(());
        }
        self.done.clear();
        self.collect(cx)?;
        self.work_stalled(cx)
    }

    fn deadline(&self) -> Option<Instant> {
        self.throttled
    }

    fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        self.throttled = None;
        self.work_stalled(cx)
    }

    fn pause(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        loop {
            self.collect(cx)?;
            if self.requests == 0 {
                return Ok(());
            }
            self.front.wait();
        }
    }

    fn resume(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        self.work_stalled(cx)
    }

    fn reset(&mut self) {
        self.front.cancel();
        self.ended.clear();
        (self.requests, self.bytes) = (0, 0);
        self.throttled = None;
        self.stalled.fill(false);
        self.accepted = 0;
        // The cache is on again.
        self.shared.config.set(config::WRITEBACK, &[1]);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        *self.shared.storage.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What goes wrong on the host, told so that a guest cannot fill the log with it.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    /// Not told since.
    kept: u64,
}

impl Complaints {
    fn add(&mut self, disk: &str, op: &Op, error: &io::Error) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < COMPLAINTS) {
            self.kept += 1;
            return;
        }
        let what = match op {
            Op::Read { .. } => "read",
            Op::Write { .. } => "write",
            Op::Flush => "flush",
            Op::Discard(_) => "discard",
            Op::WriteZeroes(_) => "zero",
        };
        let more = match std::mem::take(&mut self.kept) {
            0 => String::new(),
            kept => format!(" (and {kept} more errors since the last message)"),
        };
        log::warn!("disk {disk:?}: cannot {what}: {error}{more}");
        self.last = Some(now);
    }
}
