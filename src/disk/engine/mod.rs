//! Having requests carried out without keeping the device waiting.
//!
//! A [`Runner`] takes requests and gives them back when they are done; a [`Notifier`] says that some are. It owns what
//! it was given until then, the memory of the request included: nothing that the guest or the device does
//! meanwhile can take a buffer away from under a running request.

mod front;
mod pool;
#[cfg(target_os = "linux")]
mod uring;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) use front::Front;
#[cfg(test)]
pub(crate) use front::runner;
#[cfg(all(test, target_os = "linux"))]
pub(crate) use uring::Uring;

use super::backend::{BlockBackend, BufferList};

/// How requests are carried out on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Engine {
    /// io_uring where the host has it, threads where not.
    #[default]
    Auto,
    /// Linux's io_uring; an error where there is none.
    IoUring,
    /// Threads that block, started as they are needed.
    Threads,
}

/// What is to be done. Offsets and lengths are in bytes and within the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Read { offset: u64 },
    Write { offset: u64 },
    Flush,
    Discard(Vec<Extent>),
    WriteZeroes(Vec<Extent>),
}

/// A part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub offset: u64,
    pub len: u64,
    /// Storage may be given back when zeroing.
    pub unmap: bool,
}

/// A request, and what whoever made it wants to have back: `token` keeps the memory that `buffers` are in.
#[derive(Debug)]
pub(crate) struct Request<T> {
    pub op: Op,
    pub buffers: BufferList<'static>,
    pub token: T,
}

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct Done<T> {
    pub request: Request<T>,
    pub result: io::Result<()>,
}

/// Carries requests out.
pub(crate) trait Runner<T>: Send {
    /// Takes a request. It may not begin before the next [`collect`](Self::collect) or [`wait`](Self::wait).
    fn submit(&mut self, request: Request<T>);

    /// Begins what was submitted, and puts what has ended into `done`, without waiting.
    fn collect(&mut self, done: &mut Vec<Done<T>>);

    /// Waits until something can be collected. Not to be called if nothing is under way.
    fn wait(&mut self);

    /// Drops every request: those that have not begun at once, the others as soon as they let go of their memory.
    fn cancel(&mut self);
}

/// What was done to a request because the disk was taken away from its guest.
pub(crate) fn cancelled() -> io::Error {
    io::Error::other("cancelled")
}

/// Requests are carried out in steps of this size, between which they can be cancelled.
pub(crate) const STEP: usize = 4 << 20;
/// The same for zeroing, which may mean writing.
const ZERO_STEP: u64 = 64 << 20;

/// Carries a request out on this thread. Between two steps, `cancel` ends it.
pub(crate) fn carry_out(
    backend: &dyn BlockBackend,
    op: &Op,
    buffers: &mut BufferList<'static>,
    cancel: &AtomicBool,
) -> io::Result<()> {
    match op {
        Op::Read { offset } => {
            in_steps(*offset, buffers, cancel, |offset, step| backend.read(offset, step.all()))
        }
        Op::Write { offset } => {
            in_steps(*offset, buffers, cancel, |offset, step| backend.write(offset, step.all()))
        }
        Op::Flush => backend.flush(),
        Op::Discard(extents) => extents.iter().try_for_each(|extent| {
            check(cancel)?;
            backend.discard(extent.offset, extent.len)
        }),
        Op::WriteZeroes(extents) => extents.iter().try_for_each(|extent| {
            let (mut offset, mut left) = (extent.offset, extent.len);
            while left > 0 {
                check(cancel)?;
                let step = left.min(ZERO_STEP);
                backend.write_zeroes(offset, step, extent.unmap)?;
                offset += step;
                left -= step;
            }
            Ok(())
        }),
    }
}

fn in_steps(
    mut offset: u64,
    buffers: &mut BufferList<'static>,
    cancel: &AtomicBool,
    step: impl Fn(u64, &BufferList<'static>) -> io::Result<()>,
) -> io::Result<()> {
    if buffers.all().total() <= STEP {
        return step(offset, buffers);
    }
    loop {
        check(cancel)?;
        let now = buffers.take_front(STEP);
        let count = now.all().total();
        if count == 0 {
            return Ok(());
        }
        step(offset, &now)?;
        offset += count as u64;
    }
}

fn check(cancel: &AtomicBool) -> io::Result<()> {
    if cancel.load(Ordering::Relaxed) { Err(cancelled()) } else { Ok(()) }
}
