//! The short way: what can be done without waiting is done at once, on the device's own thread.
//!
//! Most of what guests read is in the host's page cache, and most of what they write goes there. Handing such a
//! request to another thread, or to the kernel's own workers, costs several times what it takes to copy the bytes. So
//! reads are tried in a way that gives up rather than wait for the drive; writes, and reads where there is no such way,
//! are timed: if one takes long, the next ones go to the runner for a while.

use std::io;
use std::sync::atomic::AtomicBool;

use super::super::error::Error;
#[cfg(feature = "qcow2")]
use super::super::qcow2::Found;
use super::super::raw::RawFile;
use super::super::spec::Target;
use super::pool::{Pool, carry_out_safely};
use super::{Done, Engine, Op, Request, Runner};
use crate::memory::Buffers;
use crate::pace::Pace;
use crate::sys::Notifier;
use crate::sys::file::{self, Flush};

/// Larger requests are worth a thread of their own.
const MOST: usize = 256 << 10;

/// Threads for one disk.
const THREADS: usize = 16;

/// Carries out requests to one disk.
pub(crate) struct Front<T> {
    target: Target,
    runner: Box<dyn Runner<T>>,
    moves: Moves,
}

impl<T: Send + 'static> Front<T> {
    /// For `target`, with `engine` for what takes longer. `notifier` is set when something has ended that
    /// [`submit`](Self::submit) has not returned.
    pub fn new(target: &Target, engine: Engine, notifier: &Notifier) -> Result<Self, Error> {
        Ok(Self {
            target: target.clone(),
            runner: runner(target, engine, notifier)?,
            moves: Moves::default(),
        })
    }

    /// Takes a request; returns it if it has ended already.
    pub fn submit(&mut self, mut request: Request<T>) -> Option<Done<T>> {
        match self.now(&mut request) {
            Some(result) => Some(Done { request, result }),
            None => {
                self.runner.submit(request);
                None
            }
        }
    }

    /// Begins what was submitted, and puts what has ended into `done`, without waiting.
    pub fn collect(&mut self, done: &mut Vec<Done<T>>) {
        self.runner.collect(done);
    }

    /// Waits until something can be collected. Not to be called if nothing is under way.
    pub fn wait(&mut self) {
        self.runner.wait();
    }

    /// Drops every request, and waits until all memory is let go of.
    pub fn cancel(&mut self) {
        self.runner.cancel();
    }

    /// What a request ends with, if it can end at once. If not, a part of it may be done.
    fn now(&mut self, request: &mut Request<T>) -> Option<io::Result<()>> {
        let buffers = request.buffers.all();
        let total = buffers.total();
        let (offset, writing) = match (&self.target, &request.op) {
            (Target::Backend(backend), _) if backend.blocks() => return None,
            (Target::Backend(_), _) => {
                let never = AtomicBool::new(false);
                return Some(carry_out_safely(&self.target, request, &never));
            }
            (Target::Raw(file), Op::Flush) if file.policy() == Flush::None => return Some(Ok(())),
            (_, Op::Read { offset }) if total <= MOST => (*offset, false),
            (_, Op::Write { offset }) if total <= MOST => (*offset, true),
            _ => return None,
        };
        #[cfg(feature = "qcow2")]
        let place;
        let (file, at) = match &self.target {
            Target::Raw(file) => (&**file, offset),
            // An image whose data is in files, in one piece.
            #[cfg(feature = "qcow2")]
            Target::Qcow2(image) => match image.find_now(offset, total as u64, writing)? {
                found if found.len() < total as u64 => return None,
                Found::Zeros(_) => {
                    buffers.zero();
                    return Some(Ok(()));
                }
                Found::Data(found) => {
                    place = found;
                    (place.file(), place.offset)
                }
            },
            Target::Backend(_) => return None,
        };
        match self.moves.transfer(file, at, writing, buffers, total)? {
            // The runner finds out what that means.
            Ok(0) => None,
            Ok(count) if count >= total => Some(Ok(())),
            Ok(count) => {
                request.buffers.advance(count);
                if let Op::Read { offset } | Op::Write { offset } = &mut request.op {
                    *offset += count as u64;
                }
                None
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// What carries out requests that take time.
pub(crate) fn runner<T: Send + 'static>(
    target: &Target,
    engine: Engine,
    notifier: &Notifier,
) -> Result<Box<dyn Runner<T>>, Error> {
    match ring(target, engine, notifier) {
        Some(Ok(ring)) => return Ok(ring),
        Some(Err(error)) if engine == Engine::IoUring => return Err(Error::NoIoUring(error)),
        Some(Err(error)) => log::debug!("no io_uring for a disk, but threads: {error}"),
        None => {}
    }
    let notifier = notifier.try_clone().map_err(Error::NoNotifier)?;
    Ok(Box::new(Pool::new(target.clone(), notifier, THREADS)))
}

/// io_uring, where it is wanted and there is a way to use it.
#[cfg(target_os = "linux")]
fn ring<T: Send + 'static>(
    target: &Target,
    engine: Engine,
    notifier: &Notifier,
) -> Option<io::Result<Box<dyn Runner<T>>>> {
    match target {
        Target::Backend(_) => None,
        _ if engine == Engine::Threads => None,
        target => {
            let ring = super::uring::Uring::new(target, notifier);
            Some(ring.map(|ring| Box::new(ring) as Box<dyn Runner<T>>))
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn ring<T>(
    _target: &Target,
    engine: Engine,
    _notifier: &Notifier,
) -> Option<io::Result<Box<dyn Runner<T>>>> {
    (engine == Engine::IoUring).then(|| Err(io::ErrorKind::Unsupported.into()))
}

/// What is done at once.
#[derive(Debug)]
struct Moves {
    /// The host can read without waiting.
    reads_now: bool,
    pace: Pace,
}

impl Default for Moves {
    fn default() -> Self {
        Self { reads_now: true, pace: Pace::default() }
    }
}

impl Moves {
    /// Reads or writes once, maybe less than the `total` bytes of `buffers`; `None` if that would take time.
    fn transfer(
        &mut self,
        file: &RawFile,
        offset: u64,
        writing: bool,
        buffers: Buffers<'_>,
        total: usize,
    ) -> Option<io::Result<usize>> {
        if writing {
            return self.keep(total, || file.write_once(offset, buffers));
        }
        if self.reads_now {
            match file.read_now(offset, buffers) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if file::is_unsupported(&error) => self.reads_now = false,
                done => return Some(done),
            }
        }
        self.keep(total, || file.read_once(offset, buffers))
    }

    /// Makes a call on `bytes` bytes, which most likely takes no time; `None` if this is no time for it.
    fn keep<R>(&mut self, bytes: usize, call: impl FnOnce() -> R) -> Option<R> {
        let start = self.pace.start()?;
        let done = call();
        self.pace.end(start, bytes);
        Some(done)
    }
}
