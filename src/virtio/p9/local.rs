//! Messages for the crate's own server, and the Tflush among them.
//!
//! To hand a message to a thread and its answer back costs several times what most answers take. So each is tried on
//! the device's own thread, in a way that gives up rather than to wait for a disk. What only most likely takes no time
//! is tried there as well, but not while other messages are under way: to make a file can take as long as the fsync
//! beside it. It is timed, and if one takes long the next ones go to the threads for a while.
//!
//! Tflush (flush(5)) asks that an earlier request be forgotten. It is answered when there is nothing left of that: a
//! request that no thread has begun with is given back without a reply, "as though it had never been sent"; one that a
//! thread is at is answered as it ends, and Tflush after it. A Tflush can be named by another one.
//!
//! Tags are the driver's affair: each chain gets its own reply, whatever the tags, and a Tflush that names several
//! requests waits for all of them.

use std::io;
use std::sync::Arc;

use mio::Interest;
use vm_memory::VolatileSlice;

use super::pool::{Job, Pool, Serve};
use crate::fs::{Answer, Header, Scratch, TFLUSH, Wait, flushed_tag};
use crate::memory::BufferList;
use crate::pace::Pace;
use crate::sys::Notifier;
use crate::virtio::{Chain, Sources};

/// The name of the only descriptor.
const DONE: u32 = 0;

/// Linux's number of "Invalid argument".
const EINVAL: u32 = 22;

/// What a message that was answered at once counts for besides its bytes.
const MESSAGE: usize = 8 << 10;

/// Bytes whose copying takes longer than to wake a thread.
const LARGE: usize = 64 << 10;

pub(super) struct Local {
    server: Arc<dyn Serve>,
    /// Of what is answered at once.
    scratch: Scratch,
    pace: Pace,
    /// For everything else.
    pool: Pool,
    /// Set when the pool has something to collect.
    done: Notifier,
    /// What is under way: not more than the queue has descriptors.
    flights: Vec<Flight>,
    /// The next message's.
    next: u64,
    /// Room for lists, to be used again.
    collected: Vec<Job>,
    spare: Vec<BufferList<'static>>,
}

/// A message that was not answered yet.
struct Flight {
    id: u64,
    tag: u16,
    flush: Option<Flush>,
}

/// A Tflush that waits.
struct Flush {
    chain: Chain,
    /// The tag of what it waits for …
    names: u16,
    /// … and how many of them there are.
    left: usize,
}

impl Local {
    pub fn new(server: Arc<dyn Serve>) -> io::Result<Self> {
        let done = Notifier::new()?;
        Ok(Self {
            pool: Pool::new(server.clone(), done.try_clone()?),
            server,
            scratch: Scratch::default(),
            pace: Pace::default(),
            done,
            flights: Vec::new(),
            next: 0,
            collected: Vec::new(),
            spare: Vec::new(),
        })
    }

    pub fn start(&self, sources: Sources<'_>) -> io::Result<()> {
        sources.add(&self.done, DONE, Interest::READABLE)
    }

    /// What was said about the pool is known.
    pub fn clear(&self) {
        self.done.clear();
    }

    pub fn is_busy(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Waits until something can be collected. Not to be called if nothing is under way.
    pub fn wait(&self) {
        self.pool.wait();
    }

    /// Takes a request. What it ends goes to `answers`. Returns how much has been done for it, in bytes or what takes
    /// as long; `moved` is that of those before it that did not wait either.
    pub fn request(
        &mut self,
        chain: Chain,
        header: Header,
        moved: usize,
        answers: &mut Vec<Answer>,
    ) -> usize {
        let id = self.next;
        self.next += 1;
        if header.kind == TFLUSH {
            self.flush(id, chain, header, answers);
            return MESSAGE;
        }
        let (mut request, mut reply) = (self.list(), self.list());
        let (mut reader, mut writer) = (chain.reader(), chain.writer());
        // SAFETY: the buffers are in the chain, which goes with them.
        unsafe {
            collect(&mut request, || reader.next_slice(usize::MAX));
            collect(&mut reply, || writer.next_slice(usize::MAX));
        }
        let mut job = Job { id, tag: header.tag, request, reply, chain, written: 0 };
        let sent = header.size.min(job.chain.readable_len()) as usize;
        let room = sent.saturating_add(job.chain.writable_len() as usize);
        // To copy much at a time is better done by several processors.
        let many = moved >= LARGE && room >= LARGE;
        if !many && self.answer_now(&mut job, sent) {
            let bytes = sent.saturating_add(job.written);
            answers.push(self.ended(job));
            return bytes.saturating_add(MESSAGE);
        }
        self.flights.push(Flight { id, tag: header.tag, flush: None });
        self.pool.submit(job);
        MESSAGE
    }

    /// Answers a message of `sent` bytes if that takes no time, as far as can be told.
    fn answer_now(&mut self, job: &mut Job, sent: usize) -> bool {
        let start = if self.flights.is_empty() { self.pace.start() } else { None };
        let wait = if start.is_some() { Wait::Brief } else { Wait::No };
        let answered = job.answer(&*self.server, &mut self.scratch, wait);
        if let Some(start) = start {
            self.pace.end(start, sent.saturating_add(job.written));
        }
        answered
    }

    fn list(&mut self) -> BufferList<'static> {
        self.spare.pop().unwrap_or_default()
    }

    fn flush(&mut self, id: u64, chain: Chain, header: Header, answers: &mut Vec<Answer>) {
        let tag = header.tag;
        let Some(names) = flushed_tag(&chain, header) else {
            return answers.push(Answer::error(chain, tag, EINVAL));
        };
        let mut left = self.flights.iter().filter(|flight| flight.tag == names).count();
        if left > 0 {
            // Withdrawing one may answer an earlier Tflush, and so more of them.
            let named = |flight: &&Flight| flight.tag == names && flight.flush.is_none();
            let named: Vec<u64> =
                self.flights.iter().filter(named).map(|flight| flight.id).collect();
            for id in named {
                if let Some(job) = self.pool.withdraw(id) {
                    self.recycle(job.request, job.reply);
                    answers.push(Answer::none(job.chain));
                    self.landed(id, answers);
                }
            }
            left = self.flights.iter().filter(|flight| flight.tag == names).count();
        }
        if left == 0 {
            return answers.push(Answer::flushed(chain, tag));
        }
        self.flights.push(Flight { id, tag, flush: Some(Flush { chain, names, left }) });
    }

    /// Puts what has ended into `answers`.
    pub fn collect(&mut self, answers: &mut Vec<Answer>) {
        let mut ended = std::mem::take(&mut self.collected);
        self.pool.collect(&mut ended);
        for job in ended.drain(..) {
            let id = job.id;
            answers.push(self.ended(job));
            self.landed(id, answers);
        }
        self.collected = ended;
    }

    /// What a message has ended with.
    fn ended(&mut self, Job { request, reply, chain, written, .. }: Job) -> Answer {
        self.recycle(request, reply);
        Answer { chain, written: u32::try_from(written).unwrap_or(u32::MAX) }
    }

    fn recycle(&mut self, request: BufferList<'static>, reply: BufferList<'static>) {
        self.spare.extend([request.recycle(), reply.recycle()]);
    }

    /// A message has been answered: so is a Tflush that waited for nothing else, and what waits for that.
    fn landed(&mut self, id: u64, answers: &mut Vec<Answer>) {
        let mut next = Some(id);
        while let Some(id) = next {
            let Some(index) = self.flights.iter().position(|flight| flight.id == id) else {
                return;
            };
            let Flight { tag, flush, .. } = self.flights.remove(index);
            if let Some(Flush { chain, .. }) = flush {
                answers.push(Answer::flushed(chain, tag));
            }
            for flight in &mut self.flights {
                if let Some(flush) = &mut flight.flush
                    && flush.names == tag
                    && flight.id > id
                {
                    flush.left -= 1;
                }
            }
            // In the order in which they came.
            let free =
                |flight: &&Flight| flight.flush.as_ref().is_some_and(|flush| flush.left == 0);
            next = self.flights.iter().find(free).map(|flight| flight.id);
        }
    }

    /// The driver has gone. Returns when no thread has anything of its memory.
    pub fn reset(&mut self) {
        self.pool.end();
        self.flights.clear();
        self.done.clear();
        self.server.reset();
    }
}

/// Adds what `next` gives to `buffers`.
///
/// # Safety
///
/// The memory lives as long as `buffers` are used.
unsafe fn collect<'a>(
    buffers: &mut BufferList<'static>,
    mut next: impl FnMut() -> Option<VolatileSlice<'a>>,
) {
    while let Some(slice) = next() {
        // SAFETY: the caller answers for the longer life.
        let slice = unsafe { VolatileSlice::new(slice.ptr_guard_mut().as_ptr(), slice.len()) };
        buffers.push(slice);
    }
}
