//! Linux's io_uring, for raw files: reads, writes and flushes are handed to the kernel in batches, and as many of
//! them run at a time as the guest asks for, without a thread for each.
//!
//! What is rare and may mean many calls (discarding, zeroing) goes to a thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::super::backend::BufferList;
use super::super::raw::RawFile;
use super::super::spec::Target;
use super::pool::Pool;
use super::{Done, Op, Request, Runner, STEP};
use crate::sys::Notifier;
use crate::sys::file::Flush;

/// Requests that the kernel has at a time; others wait here. A reset waits for no more than these.
const DEPTH: usize = 128;

/// Pieces of memory per call.
const PIECES: usize = 1024;

/// A ring for one disk.
pub(crate) struct Uring<T> {
    ring: IoUring,
    file: Arc<RawFile>,
    slots: Vec<Option<Slot<T>>>,
    free: Vec<usize>,
    waiting: VecDeque<Request<T>>,
    done: Vec<Done<T>>,
    /// Nothing goes on after the kernel's next answer.
    cancelled: bool,
    /// What goes to a thread.
    others: Pool<T>,
}

/// A request that the kernel has.
struct Slot<T> {
    request: Request<T>,
    /// What the kernel is at; `request.buffers` is what comes after it.
    now: BufferList<'static>,
    offset: u64,
}

impl<T> Slot<T> {
    fn end(self, result: io::Result<()>) -> Next<T> {
        let Self { mut request, now, .. } = self;
        // The room of the list goes back with the request, to be used again.
        if request.buffers.all().iovecs().is_empty() {
            request.buffers = now;
        }
        Next::Done(Done { request, result })
    }
}

impl<T: Send + 'static> Uring<T> {
    /// A ring for `file`. `notifier` is set when a request has ended.
    pub fn new(file: &Arc<RawFile>, notifier: &Notifier) -> io::Result<Self> {
        let ring = IoUring::new(DEPTH as u32)?;
        // The first kernels that have rings cannot do all of this.
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let codes = [
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
        ];
        if !codes.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        ring.submitter().register_eventfd(notifier.as_raw_fd())?;
        Ok(Self {
            ring,
            file: file.clone(),
            slots: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).collect(),
            waiting: VecDeque::new(),
            done: Vec::new(),
            cancelled: false,
            others: Pool::new(Target::Raw(file.clone()), notifier.try_clone()?, 1),
        })
    }

    /// Requests that the kernel has.
    fn in_kernel(&self) -> usize {
        DEPTH - self.free.len()
    }

    /// Gives the kernel as many requests as it may have.
    fn fill(&mut self) {
        while !self.waiting.is_empty()
            && let Some(index) = self.free.pop()
        {
            let Some(mut request) = self.waiting.pop_front() else { break };
            let offset = match request.op {
                Op::Read { offset } | Op::Write { offset } => offset,
                _ => 0,
            };
            let now = next_step(&mut request.buffers);
            self.give(index, Slot { request, now, offset });
        }
    }

    /// Gives a request to the kernel, from its `now` on.
    fn give(&mut self, index: usize, slot: Slot<T>) {
        let file = types::Fd(self.file.file().as_raw_fd());
        let pieces = slot.now.all().iovecs();
        let (list, count) = (pieces.as_ptr(), pieces.len().min(PIECES) as u32);
        let entry = match (&slot.request.op, pieces) {
            (Op::Read { .. }, [one]) => {
                opcode::Read::new(file, one.iov_base.cast(), one.iov_len as u32)
                    .offset(slot.offset)
                    .build()
            }
            (Op::Write { .. }, [one]) => {
                opcode::Write::new(file, one.iov_base.cast_const().cast(), one.iov_len as u32)
                    .offset(slot.offset)
                    .build()
            }
            (Op::Read { .. }, _) => {
                opcode::Readv::new(file, list, count).offset(slot.offset).build()
            }
            (Op::Write { .. }, _) => {
                opcode::Writev::new(file, list, count).offset(slot.offset).build()
            }
            _ => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        };
        if let Some(place) = self.slots.get_mut(index) {
            *place = Some(slot);
        }
        self.push(&entry.user_data(index as u64));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the memory, and the list of its pieces, are in the slot, where nothing is moved or dropped until the
        // kernel has answered: not by `cancel`, and not by `drop`, which wait for that.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.enter(0);
        }
    }

    /// Submits what was pushed, and waits for `want` answers.
    fn enter(&mut self, want: usize) {
        match self.ring.submit_and_wait(want) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The kernel is short of something for a moment, or wants its answers to be collected first.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                std::thread::yield_now();
            }
            Err(error) => log::error!("io_uring: {error}"),
        }
    }

    /// Takes the kernel's answers. Requests that are not at their end are given to it again.
    fn answers(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            let index = entry.user_data() as usize;
            let Some(slot) = self.slots.get_mut(index).and_then(Option::take) else { continue };
            match self.advance(slot, entry.result()) {
                Next::Again(slot) => self.give(index, slot),
                Next::Done(done) => {
                    self.free.push(index);
                    self.done.push(done);
                }
            }
        }
    }

    /// What becomes of a request after the kernel's answer.
    fn advance(&self, mut slot: Slot<T>, answer: i32) -> Next<T> {
        let count = match usize::try_from(answer) {
            Ok(count) => count,
            Err(_) if matches!(-answer, libc::EINTR | libc::EAGAIN) && !self.cancelled => {
                return Next::Again(slot);
            }
            Err(_) => {
                let error = Err(io::Error::from_raw_os_error(-answer));
                let flush = slot.request.op == Op::Flush;
                return slot.end(if flush { self.file.flushed(error) } else { error });
            }
        };
        let result = match slot.request.op {
            Op::Flush => self.file.flushed(Ok(())),
            Op::Read { .. } if count == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Op::Write { .. } if count == 0 => Err(io::ErrorKind::WriteZero.into()),
            _ => {
                slot.offset += count as u64;
                slot.now.advance(count);
                if slot.now.all().total() == 0 {
                    slot.now = next_step(&mut slot.request.buffers);
                }
                if slot.now.all().total() == 0 {
                    Ok(())
                } else if self.cancelled {
                    Err(super::cancelled())
                } else {
                    return Next::Again(slot);
                }
            }
        };
        slot.end(result)
    }

    /// Waits until the kernel has nothing of this ring.
    fn quiesce(&mut self) {
        self.cancelled = true;
        self.waiting.clear();
        while self.in_kernel() > 0 {
            self.enter(1);
            self.answers();
        }
        self.cancelled = false;
    }
}

enum Next<T> {
    Again(Slot<T>),
    Done(Done<T>),
}

/// Takes the next step of a request out of its buffers.
fn next_step(buffers: &mut BufferList<'static>) -> BufferList<'static> {
    match buffers.all().total() <= STEP {
        true => std::mem::take(buffers),
        false => buffers.take_front(STEP),
    }
}

impl<T: Send + 'static> Runner<T> for Uring<T> {
    fn submit(&mut self, request: Request<T>) {
        match request.op {
            Op::Read { .. } | Op::Write { .. } => self.waiting.push_back(request),
            // Both sorts of drives are the same to Linux.
            Op::Flush if self.file.policy() != Flush::None => self.waiting.push_back(request),
            Op::Flush => self.done.push(Done { request, result: Ok(()) }),
            Op::Discard(_) | Op::WriteZeroes(_) => self.others.submit(request),
        }
    }

    fn collect(&mut self, done: &mut Vec<Done<T>>) {
        loop {
            self.answers();
            // Some may have made room for others, or have to go on.
            self.fill();
            if self.ring.submission().is_empty() {
                break;
            }
            self.enter(0);
        }
        done.append(&mut self.done);
        self.others.collect(done);
    }

    fn wait(&mut self) {
        self.fill();
        match self.in_kernel() {
            _ if !self.done.is_empty() => {}
            0 => self.others.wait(),
            _ => self.enter(1),
        }
    }

    fn cancel(&mut self) {
        self.quiesce();
        self.done.clear();
        self.others.cancel();
    }
}

impl<T> Drop for Uring<T> {
    fn drop(&mut self) {
        // The kernel still has the memory: what `cancel` has not waited for is waited for here.
        while self.slots.iter().any(Option::is_some) {
            if self.ring.submit_and_wait(1).is_err() {
                std::thread::yield_now();
            }
            for entry in self.ring.completion() {
                if let Some(slot) = self.slots.get_mut(entry.user_data() as usize) {
                    *slot = None;
                }
            }
        }
    }
}
