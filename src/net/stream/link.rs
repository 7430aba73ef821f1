//! A connection that carries frames, each after its length: found, kept, and found again.
//!
//! What the lengths look like, and what is said before the first of them, is a [`Protocol`]'s. Writability is only
//! watched while something does not fit: a peer that reads would else wake the card's thread for every frame.
//!
//! The peer may be anybody. It holds no more of our memory than the two buffers, one frame each way at least; what is
//! not of the protocol ends the connection; and it has ten seconds to connect and to introduce itself.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::net::SocketType;

use super::inbox::Inbox;
use crate::memory::Buffers;
use crate::net::reconnect::{AGAIN, Backoff, PATIENCE, Target};
use crate::net::{Properties, Wake};
use crate::sys::socket;
use crate::virtio::{HostEvent, Interest, Sources};

/// The longest frame in either direction.
pub(in crate::net) const MOST: usize = 65_550;

/// The shortest: an Ethernet header.
pub(in crate::net) const LEAST: usize = 14;

/// The name of the only descriptor there is.
const SOCKET: u32 = 0;

/// What distinguishes one kind of peer from another.
pub(in crate::net) trait Protocol: Send {
    /// Bytes of a length.
    const PREFIX: usize;

    /// A word for messages.
    const NAME: &'static str;

    /// The length that is in the first [`PREFIX`](Self::PREFIX) of these bytes.
    fn decode(prefix: [u8; 4]) -> usize;

    /// The bytes of a length.
    fn encode(length: usize) -> [u8; 4];

    fn properties(&self) -> Properties;

    /// The largest frame that the peer takes.
    fn most(&self) -> usize {
        MOST
    }

    /// The shortest; frames are filled up to it.
    fn least(&self) -> usize {
        0
    }

    /// The peer is there: what is it told first? Returns whether it has to answer.
    fn greet(&mut self, say: &mut Vec<u8>) -> bool;

    /// What it answered begins with `heard`. An error ends the connection.
    fn hear(&mut self, heard: &[u8], say: &mut Vec<u8>) -> Result<Heard, String>;
}

/// How much of an answer was understood.
pub(in crate::net) enum Heard {
    /// Nothing yet: there must be more of it.
    Part,
    /// So many bytes; others are to follow.
    Some(usize),
    /// So many bytes, and frames follow.
    All(usize),
}

enum State {
    Down,
    Connecting(OwnedFd),
    Greeting(OwnedFd),
    Up(OwnedFd),
}

pub(in crate::net) struct Link<P> {
    pub protocol: P,
    target: Target,
    backoff: Backoff,
    state: State,
    /// When it is time to connect again, or to give up on a peer that does not answer.
    at: Option<Instant>,
    /// The peer was lost in a call that could not say so.
    lost: Option<Instant>,
    /// A frame was lost, and what is behind it is not to wait for more from the peer should the card leave it there.
    again: Option<Instant>,
    inbox: Inbox,
    /// The rest of what was begun. There is some only while `blocked`.
    outbox: Vec<u8>,
    sent: usize,
    /// Waiting until the socket takes more.
    blocked: bool,
}

impl<P: Protocol> Link<P> {
    pub fn new(target: Target, protocol: P) -> Self {
        Self {
            protocol,
            target,
            backoff: Backoff::default(),
            state: State::Down,
            at: None,
            lost: None,
            again: None,
            inbox: Inbox::new(),
            outbox: Vec::new(),
            sent: 0,
            blocked: false,
        }
    }

    pub fn name(&self) -> &'static str {
        P::NAME
    }

    pub fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        if let Target::Given(Some(fd)) = &self.target {
            socket::adopt(fd, SocketType::STREAM)?;
        }
        self.connect(sources);
        Ok(())
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    pub fn deadline(&self) -> Option<Instant> {
        [self.lost, self.at, self.again].into_iter().flatten().min()
    }

    pub fn timer(&mut self, sources: Sources<'_>) -> Wake {
        let before = self.before();
        if self.at.is_some_and(|at| at <= Instant::now()) {
            match self.state {
                State::Down => self.connect(sources),
                State::Connecting(_) | State::Greeting(_) => self.fail(&"no answer", sources),
                State::Up(_) => self.at = None,
            }
        }
        let again = self.again.take_if(|again| *again <= Instant::now()).is_some();
        let mut wake = self.wake(before);
        wake.receive |= again && self.is_up();
        wake
    }

    pub fn host_ready(&mut self, event: HostEvent, sources: Sources<'_>) -> Wake {
        let before = self.before();
        let mut wake = Wake::default();
        match &self.state {
            State::Down => {}
            State::Connecting(fd) => match socket::connected(fd) {
                Ok(true) => self.connected(sources),
                Ok(false) => {}
                Err(error) => self.fail(&error, sources),
            },
            State::Greeting(_) | State::Up(_) => {
                if event.writable && self.blocked && self.flush(sources) {
                    wake.send = true;
                }
                // The end of the stream is to be noticed even if nobody takes frames.
                if event.readable && self.inbox.is_empty() {
                    self.fill(sources);
                }
                if matches!(self.state, State::Greeting(_)) {
                    self.hear(sources);
                }
                wake.receive = event.readable;
            }
        }
        let Wake { receive, send, link } = self.wake(before);
        let up = self.is_up();
        Wake { receive: receive || up && wake.receive, send: send || up && wake.send, link }
    }

    pub fn send(&mut self, frame: Buffers<'_>, sources: Sources<'_>) -> io::Result<()> {
        let State::Up(fd) = &self.state else { return Err(io::ErrorKind::NotConnected.into()) };
        if self.blocked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = frame.total();
        if !(LEAST..=self.protocol.most().min(MOST)).contains(&len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let padding = &[0; 64];
        let padding = padding.get(..self.protocol.least().saturating_sub(len)).unwrap_or_default();
        let prefix = P::encode(len + padding.len());
        let prefix = prefix.get(..P::PREFIX).unwrap_or_default();
        let result = if frame.iovecs().len() <= socket::PIECES {
            socket::send(fd, prefix, frame, padding)
        } else {
            keep(&mut self.outbox, prefix, frame, padding);
            let result = socket::send_bytes(fd, &self.outbox);
            self.outbox.clear();
            result
        };
        match result {
            Ok(sent) if sent == prefix.len() + len + padding.len() => Ok(()),
            Ok(sent) => {
                keep(&mut self.outbox, prefix, frame, padding);
                self.sent = sent;
                self.block(sources);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.block(sources);
                Err(error)
            }
            Err(error) => {
                if !socket::is_short_of_memory(&error) {
                    self.fail(&error, sources);
                }
                Err(error)
            }
        }
    }

    pub fn receive(&mut self, space: Buffers<'_>, sources: Sources<'_>) -> io::Result<usize> {
        self.again = None;
        while self.is_up() {
            let data = self.inbox.data();
            if let Some(prefix) = prefix::<P>(data) {
                let length = P::decode(prefix);
                if length > MOST {
                    self.fail(&format_args!("a frame of {length} bytes"), sources);
                    break;
                }
                if let Some(frame) = data.get(P::PREFIX..P::PREFIX + length) {
                    let fits = length >= LEAST && space.fill_from(frame) == length;
                    self.inbox.consume(P::PREFIX + length);
                    if fits {
                        return Ok(length);
                    }
                    self.again = Some(Instant::now() + AGAIN);
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
            if !self.fill(sources) {
                break;
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// As if the peer's time had passed.
    #[cfg(test)]
    pub fn lose_patience(&mut self) {
        self.at = self.at.map(|_| Instant::now());
    }

    fn connect(&mut self, sources: Sources<'_>) {
        self.at = None;
        let attempt = match &mut self.target {
            Target::Unix(path) => socket::connect_unix(path),
            Target::Tcp(address) => socket::connect_tcp(address),
            Target::Given(fd) => match fd.take() {
                Some(fd) => Ok(socket::Connect::Done(fd)),
                None => return,
            },
        };
        let (fd, done) = match attempt {
            Ok(socket::Connect::Done(fd)) => (fd, true),
            Ok(socket::Connect::UnderWay(fd)) => (fd, false),
            Err(error) => return self.fail(&error, sources),
        };
        let both = Interest::READABLE | Interest::WRITABLE;
        let interest = if done { Interest::READABLE } else { both };
        if let Err(error) = sources.add(&fd, SOCKET, interest) {
            return self.fail(&error, sources);
        }
        self.state = State::Connecting(fd);
        self.at = Some(Instant::now() + PATIENCE);
        self.blocked = !done;
        if done {
            self.connected(sources);
        }
    }

    fn connected(&mut self, sources: Sources<'_>) {
        match mem::replace(&mut self.state, State::Down) {
            State::Connecting(fd) => self.state = State::Greeting(fd),
            other => {
                self.state = other;
                return;
            }
        }
        let tcp = matches!(self.target, Target::Tcp(_));
        if tcp && self.socket().is_some_and(socket::met_itself) {
            return self.fail(&io::Error::from(io::ErrorKind::ConnectionRefused), sources);
        }
        let answers = self.protocol.greet(&mut self.outbox);
        self.flush(sources);
        if !answers {
            self.up();
        }
    }

    /// Goes through the peer's answer.
    fn hear(&mut self, sources: Sources<'_>) {
        while matches!(self.state, State::Greeting(_)) {
            let said = self.outbox.len();
            match self.protocol.hear(self.inbox.data(), &mut self.outbox) {
                Ok(Heard::Part) => {
                    if !self.fill(sources) {
                        return;
                    }
                }
                Ok(Heard::Some(count)) => self.inbox.consume(count),
                Ok(Heard::All(count)) => {
                    self.inbox.consume(count);
                    self.up();
                }
                Err(why) => return self.fail(&why, sources),
            }
            if self.outbox.len() > said {
                self.flush(sources);
            }
        }
    }

    fn up(&mut self) {
        if let State::Greeting(fd) = mem::replace(&mut self.state, State::Down) {
            self.state = State::Up(fd);
            self.at = None;
            self.backoff.connected(&format_args!("net {}", P::NAME), &self.target);
        }
    }

    /// Ends the connection, if there is one, and sees to the next.
    fn fail(&mut self, why: &dyn fmt::Display, sources: Sources<'_>) {
        let up = self.is_up();
        if let State::Connecting(fd) | State::Greeting(fd) | State::Up(fd) =
            mem::replace(&mut self.state, State::Down)
        {
            // Closing it ends the watch as well.
            let _ = sources.remove(&fd);
        }
        self.inbox.clear();
        self.outbox.clear();
        (self.sent, self.blocked, self.again) = (0, false, None);
        self.at = self.backoff.failed(&format_args!("net {}", P::NAME), &self.target, why);
        if up {
            self.lost = Some(Instant::now());
        }
    }

    fn socket(&self) -> Option<&OwnedFd> {
        match &self.state {
            State::Down => None,
            State::Connecting(fd) | State::Greeting(fd) | State::Up(fd) => Some(fd),
        }
    }

    /// Reads once. `false` if there was nothing, or the connection has ended.
    fn fill(&mut self, sources: Sources<'_>) -> bool {
        let (State::Greeting(fd) | State::Up(fd)) = &self.state else { return false };
        match self.inbox.fill(fd, MOST + P::PREFIX) {
            Ok(0) => self.fail(&"the peer has closed the connection", sources),
            Ok(_) => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.fail(&error, sources),
        }
        false
    }

    /// Sends what was begun. `true` if the socket takes more.
    fn flush(&mut self, sources: Sources<'_>) -> bool {
        loop {
            let rest = self.outbox.get(self.sent..).unwrap_or_default();
            let Some(fd) = self.socket() else { return false };
            if rest.is_empty() {
                break;
            }
            match socket::send_bytes(fd, rest) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.block(sources);
                    return false;
                }
                Err(error) => {
                    self.fail(&error, sources);
                    return false;
                }
            }
        }
        self.outbox.clear();
        self.sent = 0;
        if mem::take(&mut self.blocked) {
            self.watch(Interest::READABLE, sources);
        }
        self.socket().is_some()
    }

    /// Asks to hear when the socket takes more.
    fn block(&mut self, sources: Sources<'_>) {
        if !mem::replace(&mut self.blocked, true) {
            self.watch(Interest::READABLE | Interest::WRITABLE, sources);
        }
    }

    fn watch(&mut self, interest: Interest, sources: Sources<'_>) {
        let Some(fd) = self.socket() else { return };
        if let Err(error) = sources.change(fd, SOCKET, interest) {
            self.fail(&error, sources);
        }
    }

    /// Whether there is a link that the card knows of.
    fn before(&self) -> bool {
        self.lost.is_none() && self.is_up()
    }

    /// What has changed since `before`, and in calls that could not say so.
    fn wake(&mut self, before: bool) -> Wake {
        let lost = self.lost.take().is_some();
        let new = self.is_up() && !before;
        Wake { receive: new, send: new, link: lost || new }
    }
}

/// The length that `data` begins with.
fn prefix<P: Protocol>(data: &[u8]) -> Option<[u8; 4]> {
    let mut bytes = [0; 4];
    bytes.get_mut(..P::PREFIX)?.copy_from_slice(data.get(..P::PREFIX)?);
    Some(bytes)
}

/// Gathers a frame and what goes around it.
fn keep(outbox: &mut Vec<u8>, prefix: &[u8], frame: Buffers<'_>, padding: &[u8]) {
    outbox.clear();
    outbox.extend_from_slice(prefix);
    let start = outbox.len();
    outbox.resize(start + frame.total(), 0);
    frame.copy_to(outbox.get_mut(start..).unwrap_or_default());
    outbox.extend_from_slice(padding);
}
