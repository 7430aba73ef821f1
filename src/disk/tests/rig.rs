//! Requests with memory of their own, and whatever carries them out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::VolatileSlice;

use super::super::engine::{Done, Front, Op, Request, Runner, runner};
use super::super::spec::Target;
use super::*;
use crate::sys::Notifier;

/// What comes back with a request.
#[derive(Debug)]
pub struct Token {
    pub number: usize,
    memory: Vec<u8>,
    /// Tokens there are.
    alive: Arc<AtomicUsize>,
}

impl Drop for Token {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Token {
    pub fn bytes(&self) -> &[u8] {
        &self.memory
    }
}

/// What is tested: an engine, alone or behind the short way.
pub enum Under {
    Front(Front<Token>),
    Alone(Box<dyn Runner<Token>>),
}

/// Something that carries out requests.
pub struct Rig {
    pub under: Under,
    pub notifier: Notifier,
    pub alive: Arc<AtomicUsize>,
    next: usize,
}

impl Rig {
    /// `engine` for `target`, alone or not; `None`, with a line that says so, where the host has no such engine.
    pub fn new(target: &Target, engine: Engine, alone: bool) -> Option<Self> {
        let notifier = Notifier::new().unwrap();
        let under = match alone {
            true => runner(target, engine, &notifier).map(Under::Alone),
            false => Front::new(target, engine, &notifier).map(Under::Front),
        };
        match under {
            Ok(under) => Some(Self { under, notifier, alive: Arc::default(), next: 0 }),
            Err(error) if engine == Engine::IoUring => {
                println!("skipped: {error}");
                None
            }
            Err(error) => panic!("{engine:?}: {error}"),
        }
    }

    /// A request for `memory`, in pieces of these lengths and the rest.
    pub fn request(&mut self, op: Op, mut memory: Vec<u8>, cut: &[usize]) -> Request<Token> {
        let mut buffers = BufferList::default();
        let mut rest = &mut memory[..];
        for len in cut.iter().copied().chain([usize::MAX]) {
            let (piece, later) = rest.split_at_mut(len.min(rest.len()));
            rest = later;
            if !piece.is_empty() {
                // SAFETY: the memory is in the token, which is not touched before the request is done.
                buffers.push(unsafe { VolatileSlice::new(piece.as_mut_ptr(), piece.len()) });
            }
        }
        self.alive.fetch_add(1, Ordering::SeqCst);
        self.next += 1;
        let token = Token { number: self.next - 1, memory, alive: self.alive.clone() };
        Request { op, buffers, token }
    }

    /// Submits a request, and returns what has ended with that.
    pub fn submit(&mut self, request: Request<Token>) -> Option<Done<Token>> {
        match &mut self.under {
            Under::Front(front) => front.submit(request),
            Under::Alone(runner) => {
                runner.submit(request);
                None
            }
        }
    }

    pub fn collect(&mut self) -> Vec<Done<Token>> {
        let mut done = Vec::new();
        match &mut self.under {
            Under::Front(front) => front.collect(&mut done),
            Under::Alone(runner) => runner.collect(&mut done),
        }
        done
    }

    /// What ends next, waiting for it in one of the two ways there are.
    pub fn wait(&mut self, by_notifier: bool) -> Vec<Done<Token>> {
        loop {
            let done = self.collect();
            if !done.is_empty() {
                return done;
            }
            if by_notifier {
                let mut fds = [PollFd::new(&self.notifier, PollFlags::IN)];
                let patience = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
                assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1, "nobody said anything");
                self.notifier.clear();
            } else {
                match &mut self.under {
                    Under::Front(front) => front.wait(),
                    Under::Alone(runner) => runner.wait(),
                }
            }
        }
    }

    pub fn cancel(&mut self) {
        match &mut self.under {
            Under::Front(front) => front.cancel(),
            Under::Alone(runner) => runner.cancel(),
        }
    }

    /// One request from begin to end.
    pub fn run(&mut self, op: Op, memory: Vec<u8>) -> (std::io::Result<()>, Vec<u8>) {
        let request = self.request(op, memory, &[]);
        let mut done = match self.submit(request) {
            Some(done) => done,
            None => self.wait(false).pop().unwrap(),
        };
        (done.result, std::mem::take(&mut done.request.token.memory))
    }
}

/// A file as a target.
pub fn target(path: &Path) -> Target {
    Target::Raw(Arc::new(raw(path)))
}

/// Every engine on a file, alone and behind the short way, as far as the host has them.
pub fn rigs(path: &Path) -> Vec<Rig> {
    let target = target(path);
    let cases = [Engine::IoUring, Engine::Threads].map(|engine| [(engine, false), (engine, true)]);
    let cases = cases.concat().into_iter();
    cases.filter_map(|(engine, alone)| Rig::new(&target, engine, alone)).collect()
}
