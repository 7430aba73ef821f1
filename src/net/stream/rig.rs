//! A host side under test, and what a card knows of it: only what it was told.

use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use crate::memory::BufferList;
use crate::net::{Header, NetBackend, Wake};
use crate::virtio::Sources;

/// Longer than anything here takes, short enough to be waited for.
const LIMIT: Duration = Duration::from_secs(20);

pub(in crate::net) struct Rig<B> {
    pub backend: B,
    /// The link, as far as the card was told.
    pub link: bool,
    /// Frames that were lost on the way to the guest.
    pub lost: usize,
    can_receive: bool,
    can_send: bool,
    poll: Poll,
    events: Events,
    space: Vec<u8>,
}

impl<B: NetBackend> Rig<B> {
    pub fn start(backend: B) -> Self {
        Self::try_start(backend).unwrap()
    }

    pub fn try_start(mut backend: B) -> io::Result<Self> {
        let poll = Poll::new()?;
        backend.start(Sources::new(poll.registry()))?;
        Ok(Self {
            link: backend.link(),
            backend,
            lost: 0,
            can_receive: true,
            can_send: true,
            poll,
            events: Events::with_capacity(8),
            space: vec![0; 70_000],
        })
    }

    /// Waits for events as a card's thread does, but not past `until`; tells whether there was anything.
    pub fn turn(&mut self, until: Instant) -> bool {
        let end = self.backend.deadline().map_or(until, |deadline| deadline.min(until));
        let wait = end.saturating_duration_since(Instant::now());
        self.poll.poll(&mut self.events, Some(wait)).unwrap();
        let mut told = Vec::new();
        for event in &self.events {
            let wake = self.backend.host_ready(event.into(), Sources::new(self.poll.registry()));
            told.push((wake, self.backend.link()));
        }
        if self.backend.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            let wake = self.backend.timer(Sources::new(self.poll.registry()));
            told.push((wake, self.backend.link()));
        }
        for &(Wake { receive, send, link }, up) in &told {
            self.can_receive |= receive;
            self.can_send |= send;
            self.link = if link { up } else { self.link };
        }
        !told.is_empty()
    }

    /// Takes in what is there already.
    pub fn settle(&mut self) {
        while self.turn(Instant::now()) {}
    }

    /// Turns until something is the case.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let limit = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < limit, "{what}: not within {LIMIT:?}");
            self.turn(limit);
        }
    }

    /// Turns until the card knows that the link is up, or down.
    pub fn until_link(&mut self, up: bool) {
        self.until("the link", |rig| rig.link == up);
    }

    /// Gives the host side a frame.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.send_in(frame, frame.len().max(1))
    }

    /// Gives the host side a frame that is in pieces.
    pub fn send_in(&mut self, frame: &[u8], size: usize) -> io::Result<()> {
        let mut bytes = frame.to_vec();
        let list: BufferList<'_> = bytes.chunks_mut(size).map(Into::into).collect();
        let sources = Sources::new(self.poll.registry());
        let result = self.backend.send(0, &Header::default(), list.all(), sources);
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.can_send = false;
        }
        result
    }

    /// Whether the card was told that it may send, or was never told otherwise.
    pub fn can_send(&self) -> bool {
        self.can_send
    }

    /// Takes the next frame, if the card has reason to believe in one.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        self.receive_in(usize::MAX)
    }

    /// The same with buffers of so many bytes.
    pub fn receive_in(&mut self, space: usize) -> Option<Vec<u8>> {
        while self.can_receive {
            let len = space.min(self.space.len());
            // Two pieces, so that the frame is cut.
            let (left, right) = self.space[..len].split_at_mut(len.min(33));
            let list: BufferList<'_> = [left.into(), right.into()].into_iter().collect();
            let mut header = Header::default();
            let sources = Sources::new(self.poll.registry());
            match self.backend.receive(0, &mut header, list.all(), sources) {
                Ok(len) => return Some(self.space[..len].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.can_receive = false,
                Err(_) => self.lost += 1,
            }
        }
        None
    }

    /// Loses the next frame, and leaves the host side alone until it calls.
    pub fn lose(&mut self) {
        let mut space = [0; 1];
        let list = BufferList::from(space.as_mut_slice());
        let sources = Sources::new(self.poll.registry());
        let error =
            self.backend.receive(0, &mut Header::default(), list.all(), sources).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::WouldBlock);
        self.can_receive = false;
    }

    /// Turns until there is a frame.
    pub fn frame(&mut self) -> Vec<u8> {
        let mut frame = None;
        self.until("a frame", |rig| {
            frame = rig.receive();
            frame.is_some()
        });
        frame.unwrap()
    }
}

/// A frame of `len` bytes that differs from others.
pub(in crate::net) fn frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 251 + seed * 31) as u8).collect()
}
