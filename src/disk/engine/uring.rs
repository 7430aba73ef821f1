//! Linux's io_uring, for files: reads, writes and flushes are handed to the kernel in batches, and as many of
//! them run at a time as the guest asks for, without a thread for each.
//!
//! What is rare and may mean many calls (discarding, zeroing) goes to a thread. So does what an image cannot tell the
//! place of at once: data that has none yet, or that is compressed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::super::backend::BufferList;
use super::super::flushes::Queued;
#[cfg(feature = "qcow2")]
use super::super::qcow2::{self, Found, Qcow2};
use super::super::raw::RawFile;
use super::super::spec::Target;
use super::pool::Pool;
use super::{Done, Op, Request, Runner, STEP};
use crate::sys::Notifier;
use crate::sys::file::Flush;

/// Requests that the kernel has at a time; others wait here. A reset waits for no more than these.
const DEPTH: usize = 128;

/// Threads for what an image has to be asked.
#[cfg(feature = "qcow2")]
const THREADS: usize = 8;

/// A ring for one disk.
pub(crate) struct Uring<T> {
    ring: IoUring,
    source: Source,
    slots: Vec<Option<Slot<T>>>,
    free: Vec<usize>,
    waiting: VecDeque<Request<T>>,
    /// Flushes of a raw file.
    flushes: Queued<Request<T>>,
    done: Vec<Done<T>>,
    /// Nothing goes on after the kernel's next answer.
    cancelled: bool,
    /// What goes to a thread.
    others: Pool<T>,
}

/// Where data is.
enum Source {
    Raw(Arc<RawFile>),
    #[cfg(feature = "qcow2")]
    Qcow2(Arc<Qcow2>),
}

/// A request that the kernel has.
struct Slot<T> {
    request: Request<T>,
    step: Step,
}

/// What the kernel is at; the request is what comes after it.
struct Step {
    buffers: BufferList<'static>,
    offset: u64,
    place: Place,
}

/// Keeps the file, and the data where it is.
enum Place {
    Raw(Arc<RawFile>),
    #[cfg(feature = "qcow2")]
    Qcow2(qcow2::place::Place),
}

/// What becomes of a request.
enum Next<T> {
    Kernel(Slot<T>),
    #[cfg(feature = "qcow2")]
    Elsewhere(Request<T>),
    Done(Done<T>),
}

impl<T> Slot<T> {
    fn end(self, result: io::Result<()>) -> Next<T> {
        let Self { mut request, step } = self;
        // The room of the list goes back with the request, to be used again.
        if request.buffers.all().iovecs().is_empty() {
            request.buffers = step.buffers;
        }
        Next::Done(Done { request, result })
    }
}

impl<T: Send + 'static> Uring<T> {
    /// A ring for an image. `notifier` is set when a request has ended.
    pub fn new(target: &Target, notifier: &Notifier) -> io::Result<Self> {
        let (source, threads) = match target {
            Target::Raw(file) => (Source::Raw(file.clone()), 1),
            #[cfg(feature = "qcow2")]
            Target::Qcow2(image) => (Source::Qcow2(image.clone()), THREADS),
            Target::Backend(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
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
            source,
            slots: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).collect(),
            waiting: VecDeque::new(),
            flushes: Queued::new(),
            done: Vec::new(),
            cancelled: false,
            others: Pool::new(target.clone(), notifier.try_clone()?, threads),
        })
    }

    /// Requests that the kernel has.
    pub fn in_kernel(&self) -> usize {
        DEPTH - self.free.len()
    }

    /// Gives the kernel as many requests as it may have.
    fn fill(&mut self) {
        while let Some(index) = self.free.pop() {
            let request = self.flushes.begin().or_else(|| self.waiting.pop_front());
            let Some(request) = request else {
                self.free.push(index);
                break;
            };
            let next = self.source.next(request);
            self.go_on(index, next);
        }
    }

    /// Does with a request what is to be done with it.
    fn go_on(&mut self, index: usize, next: Next<T>) {
        match next {
            Next::Kernel(slot) => self.give(index, slot),
            #[cfg(feature = "qcow2")]
            Next::Elsewhere(request) => {
                self.free.push(index);
                self.others.submit(request);
            }
            Next::Done(done) => {
                self.free.push(index);
                if let (Op::Flush, Source::Raw(file)) = (&done.request.op, &self.source) {
                    let shared = self.flushes.end();
                    let end = |request| Done { request, result: file.flushed(Ok(())) };
                    self.done.extend(shared.map(end));
                }
                self.done.push(done);
            }
        }
    }

    /// Gives a request to the kernel.
    fn give(&mut self, index: usize, slot: Slot<T>) {
        let Step { buffers, offset, place } = &slot.step;
        let file = types::Fd(place.file().file().as_raw_fd());
        let (pieces, offset) = (buffers.all().first_iovecs(), *offset);
        let (list, count) = (pieces.as_ptr(), pieces.len() as u32);
        let entry = match (&slot.request.op, pieces) {
            (Op::Read { .. }, [one]) => {
                opcode::Read::new(file, one.iov_base.cast(), one.iov_len as u32)
                    .offset(offset)
                    .build()
            }
            (Op::Write { .. }, [one]) => {
                opcode::Write::new(file, one.iov_base.cast_const().cast(), one.iov_len as u32)
                    .offset(offset)
                    .build()
            }
            (Op::Read { .. }, _) => opcode::Readv::new(file, list, count).offset(offset).build(),
            (Op::Write { .. }, _) => opcode::Writev::new(file, list, count).offset(offset).build(),
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
            let next = self.advance(slot, entry.result());
            self.go_on(index, next);
        }
    }

    /// What becomes of a request after the kernel's answer.
    fn advance(&self, mut slot: Slot<T>, answer: i32) -> Next<T> {
        let file = slot.step.place.file();
        let count = match usize::try_from(answer) {
            Ok(count) => count,
            Err(_) if matches!(-answer, libc::EINTR | libc::EAGAIN) && !self.cancelled => {
                return Next::Kernel(slot);
            }
            Err(_) => {
                let error = Err(io::Error::from_raw_os_error(-answer));
                let flush = slot.request.op == Op::Flush;
                let result = if flush { file.flushed(error) } else { error };
                return slot.end(result);
            }
        };
        let result = match slot.request.op {
            Op::Flush => file.flushed(Ok(())),
            Op::Read { .. } if count == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Op::Write { .. } if count == 0 => Err(io::ErrorKind::WriteZero.into()),
            _ => {
                slot.step.offset += count as u64;
                slot.step.buffers.advance(count);
                let (step, rest) = (slot.step.buffers.all(), slot.request.buffers.all());
                match (step.total() > 0, rest.total() > 0) {
                    (false, false) => Ok(()),
                    _ if self.cancelled => Err(super::cancelled()),
                    (true, _) => return Next::Kernel(slot),
                    (false, true) => return self.source.next(slot.request),
                }
            }
        };
        slot.end(result)
    }

    /// Waits until the kernel has nothing of this ring.
    fn quiesce(&mut self) {
        self.cancelled = true;
        self.waiting.clear();
        self.flushes.clear();
        while self.in_kernel() > 0 {
            self.enter(1);
            self.answers();
        }
        self.cancelled = false;
    }
}

impl Source {
    /// The next step of a request.
    fn next<T>(&self, mut request: Request<T>) -> Next<T> {
        let offset = match &mut request.op {
            Op::Read { offset } | Op::Write { offset } => offset,
            _ => &mut 0,
        };
        match self {
            Self::Raw(file) => {
                let buffers = take(&mut request.buffers, STEP);
                let step = Step { offset: *offset, place: Place::Raw(file.clone()), buffers };
                *offset += step.buffers.all().total() as u64;
                Next::Kernel(Slot { request, step })
            }
            #[cfg(feature = "qcow2")]
            Self::Qcow2(image) => {
                let writing = matches!(request.op, Op::Write { .. });
                let (Op::Read { offset } | Op::Write { offset }) = &mut request.op else {
                    return Next::Elsewhere(request);
                };
                loop {
                    let most = request.buffers.all().total().min(STEP) as u64;
                    if most == 0 {
                        return Next::Done(Done { request, result: Ok(()) });
                    }
                    let Some(found) = image.find_now(*offset, most, writing) else {
                        return Next::Elsewhere(request);
                    };
                    let buffers = take(&mut request.buffers, found.len() as usize);
                    *offset += found.len();
                    match found {
                        Found::Zeros(_) => buffers.all().zero(),
                        Found::Data(place) => {
                            let offset = place.offset;
                            let step = Step { buffers, offset, place: Place::Qcow2(place) };
                            return Next::Kernel(Slot { request, step });
                        }
                    }
                }
            }
        }
    }
}

impl Place {
    fn file(&self) -> &RawFile {
        match self {
            Self::Raw(file) => file,
            #[cfg(feature = "qcow2")]
            Self::Qcow2(place) => place.file(),
        }
    }
}

/// Takes the first bytes of a request's memory out.
fn take(buffers: &mut BufferList<'static>, most: usize) -> BufferList<'static> {
    match buffers.all().total() <= most {
        true => std::mem::take(buffers),
        false => buffers.take_front(most),
    }
}

impl<T: Send + 'static> Runner<T> for Uring<T> {
    fn submit(&mut self, request: Request<T>) {
        match (&request.op, &self.source) {
            (Op::Read { .. } | Op::Write { .. }, _) => self.waiting.push_back(request),
            (Op::Flush, Source::Raw(file)) => match file.policy() {
                Flush::None => self.done.push(Done { request, result: Ok(()) }),
                // Both sorts of drives are the same to Linux.
                _ => self.flushes.push(request),
            },
            // An image writes its tables first.
            _ => self.others.submit(request),
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
