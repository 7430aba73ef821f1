//! A share whose messages another process answers.
//!
//! Requests go to a socket as they are, and replies come back by their tags, whatever the dialect and in whatever order:
//! a read of a stream may wait for hours beside others that take no time. Of the messages no more is looked at than
//! size, type and tag; but for the versions that both sides name, so as to refuse what cannot be had in words that the
//! guest's kernel understands, and the tag that a Tflush names, so as to give back what the server forgets.
//!
//! A session begins with a Tversion and lasts as long as the connection. When the server goes, or says what is no
//! message, every request of the session ends with an error, and so does every later one, until the guest mounts again:
//! the files that it holds are of a server that is no more. Its Tversion has the connection made anew, as often as
//! it takes, for ten seconds, each attempt a little later than the last. Nothing is tried while nobody waits for it.
//!
//! Everything happens on the device's thread, and nothing in here blocks.

mod dialect;
mod incoming;
#[cfg(test)]
mod tests;

use std::fmt;
use std::mem;
use std::os::fd::OwnedFd;
use std::time::Instant;

use self::dialect::Dialect;
use self::incoming::{Incoming, Progress};
use super::envelope::{Answer, HEADER, Header, RFLUSH, RVERSION, TFLUSH, TVERSION, flushed_tag};
use super::spec::{Address, RelayTo};
use crate::memory::BufferList;
use crate::net::reconnect::{Backoff, PATIENCE, Target};
use crate::sys::socket;
use crate::virtio::{Chain, HostEvent, Interest, Sources};

/// The name of the only descriptor there is.
const SOCKET: u32 = 0;

/// A way to another process.
pub(crate) struct Relay {
    target: Target,
    backoff: Backoff,
    link: Link,
    /// While there is no connection: when to try, or to give up trying.
    at: Option<Instant>,
    /// A Tversion has been sent on this connection.
    asked: bool,
    /// The largest message, once the server has agreed to a version.
    msize: Option<u32>,
    dialect: Dialect,
    /// Requests that were not answered, as they came; one whose reply is coming is in `incoming`.
    flights: Vec<Flight>,
    /// How many of them, the first ones, the server has.
    sent: usize,
    /// Bytes of the next one that it has.
    begun: usize,
    /// The socket takes no more for now.
    blocked: bool,
    incoming: Incoming,
    /// Counts requests.
    next: u64,
    /// Room for lists of memory.
    room: BufferList<'static>,
}

enum Link {
    Down,
    Connecting(OwnedFd),
    Up(OwnedFd),
}

/// A request.
struct Flight {
    /// Which came earlier?
    id: u64,
    chain: Chain,
    /// As it is sent.
    header: Header,
    /// When it came, if it is a Tversion, which waits for the server.
    since: Option<Instant>,
}

impl Relay {
    /// A way to a server, which need not be there yet.
    pub fn new(to: RelayTo) -> Self {
        let target = match to.0 {
            Address::Unix(path) => Target::Unix(path),
            Address::Tcp(address) => Target::Tcp(address),
        };
        Self {
            target,
            backoff: Backoff::default(),
            link: Link::Down,
            at: None,
            asked: false,
            msize: None,
            dialect: Dialect::default(),
            flights: Vec::new(),
            sent: 0,
            begun: 0,
            blocked: false,
            incoming: Incoming::default(),
            next: 0,
            room: BufferList::default(),
        }
    }

    /// Takes a request, which is on its way with the next [`send`](Self::send), unless it ends at once: then it goes to
    /// `answers`.
    pub fn request(&mut self, chain: Chain, header: Header, answers: &mut Vec<Answer>) {
        let too_long = self.msize.is_some_and(|msize| header.size > msize);
        let is_message = (HEADER as u32..=chain.readable_len()).contains(&header.size);
        if !is_message || too_long && header.kind != TVERSION || self.is_taken(header.tag) {
            return self.refuse(chain, header.tag, answers);
        }
        let mut since = None;
        match header.kind {
            TVERSION => {
                let mut message = [0; dialect::VERSION];
                let len = chain.reader().read(&mut message).min(header.size as usize);
                if let Some((_, dialect)) = dialect::version(message.get(..len).unwrap_or_default())
                {
                    self.dialect = dialect;
                }
                since = Some(Instant::now());
            }
            TFLUSH if self.withdraw(&chain, header, answers) => {
                return answers.push(Answer::flushed(chain, header.tag));
            }
            // There is nothing that it could name.
            TFLUSH if !self.asked && self.begun == 0 => {
                return answers.push(Answer::flushed(chain, header.tag));
            }
            _ if self.asked => {}
            _ => return self.refuse(chain, header.tag, answers),
        }
        self.flights.push(Flight { id: self.next, chain, header, since });
        self.next += 1;
    }

    /// Whether a request has this tag. Replies have nothing else to be known by.
    fn is_taken(&self, tag: u16) -> bool {
        let coming = self.incoming.flight().into_iter();
        self.flights.iter().chain(coming).any(|flight| flight.header.tag == tag)
    }

    fn refuse(&self, chain: Chain, tag: u16, answers: &mut Vec<Answer>) {
        answers.push(Answer::new(chain, &self.dialect.refusal(tag)));
    }

    /// Gives back the request that a Tflush names, if the server has nothing of it, and tells whether that is so.
    fn withdraw(&mut self, chain: &Chain, header: Header, answers: &mut Vec<Answer>) -> bool {
        let Some(tag) = flushed_tag(chain, header) else { return false };
        let first = self.sent + usize::from(self.begun > 0);
        let mut waiting = self.flights.iter().enumerate().skip(first);
        match waiting.find(|(_, flight)| flight.header.tag == tag) {
            Some((index, _)) => {
                answers.push(Answer::none(self.flights.remove(index).chain));
                true
            }
            None => false,
        }
    }

    /// Sends what waits for it, or sees to it that there is somebody to send it to.
    pub fn send(&mut self, sources: Sources<'_>, answers: &mut Vec<Answer>) {
        if self.flights.is_empty() {
            return;
        }
        if matches!(self.link, Link::Down) && self.at.is_none_or(|at| at <= Instant::now()) {
            self.connect(sources, answers);
        }
        while let (Link::Up(fd), false) = (&self.link, self.blocked)
            && let Some(flight) = self.flights.get(self.sent)
        {
            match send(fd, flight, self.begun, &mut self.room) {
                Ok(count) => {
                    self.begun += count;
                    if self.begun >= flight.header.size as usize {
                        self.asked |= flight.header.kind == TVERSION;
                        self.sent += 1;
                        self.begun = 0;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.watch(true, sources, answers);
                }
                Err(error) => self.fail(&error, sources, answers),
            }
        }
    }

    /// The socket may be ready.
    pub fn host_ready(
        &mut self,
        event: HostEvent,
        sources: Sources<'_>,
        answers: &mut Vec<Answer>,
    ) {
        if let Link::Connecting(fd) = &self.link {
            match socket::connected(fd) {
                Ok(true) => self.connected(sources, answers),
                Ok(false) => return,
                Err(error) => return self.fail(&error, sources, answers),
            }
        } else if event.writable && self.blocked {
            self.watch(false, sources, answers);
        }
        if event.readable {
            self.receive(sources, answers);
        }
        self.send(sources, answers);
    }

    /// When [`timer`](Self::timer) is to be called: never, while the server is there or nobody waits for it.
    pub fn deadline(&self) -> Option<Instant> {
        let waiting = self.flights.iter().find_map(|flight| flight.since)?;
        match self.link {
            Link::Up(_) => None,
            _ => self.at.into_iter().chain([waiting + PATIENCE]).min(),
        }
    }

    /// It is time to try again, or to give up.
    pub fn timer(&mut self, sources: Sources<'_>, answers: &mut Vec<Answer>) {
        let now = Instant::now();
        match self.link {
            Link::Up(_) => return,
            Link::Connecting(_) if self.at.is_some_and(|at| at <= now) => {
                self.fail(&"no answer", sources, answers);
            }
            _ => {}
        }
        // None of them has been sent.
        let late = |flight: &mut Flight| {
            flight.since.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE)
        };
        let late: Vec<_> = self.flights.extract_if(.., late).collect();
        for Flight { chain, header, .. } in late {
            self.refuse(chain, header.tag, answers);
        }
        self.send(sources, answers);
    }

    /// The driver has gone: so has its session.
    pub fn reset(&mut self) {
        if !matches!(self.link, Link::Down) {
            self.at = None;
        }
        // Closing it ends the watch as well.
        self.link = Link::Down;
        self.flights.clear();
        self.forget();
    }

    /// Forgets what was known of a connection. The requests that it had are gone already.
    fn forget(&mut self) {
        (self.sent, self.begun) = (0, 0);
        (self.asked, self.blocked) = (false, false);
        self.msize = None;
        self.incoming.abandon();
    }

    fn connect(&mut self, sources: Sources<'_>, answers: &mut Vec<Answer>) {
        let attempt = match &self.target {
            Target::Unix(path) => socket::connect_unix(path),
            Target::Tcp(address) => socket::connect_tcp(address),
            Target::Given(_) => return,
        };
        let (fd, done) = match attempt {
            Ok(socket::Connect::Done(fd)) => (fd, true),
            Ok(socket::Connect::UnderWay(fd)) => (fd, false),
            Err(error) => return self.fail(&error, sources, answers),
        };
        let both = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = sources.add(&fd, SOCKET, both) {
            return self.fail(&error, sources, answers);
        }
        self.at = Some(Instant::now() + PATIENCE);
        self.link = Link::Connecting(fd);
        if done {
            self.connected(sources, answers);
        }
    }

    fn connected(&mut self, sources: Sources<'_>, answers: &mut Vec<Answer>) {
        let Link::Connecting(fd) = mem::replace(&mut self.link, Link::Down) else { return };
        if matches!(self.target, Target::Tcp(_)) && socket::met_itself(&fd) {
            return self.fail(&"nobody listens", sources, answers);
        }
        self.at = None;
        self.link = Link::Up(fd);
        self.backoff.connected(&"9p relay", &self.target);
        self.blocked = true;
        self.watch(false, sources, answers);
    }

    /// Says whether to be told when the socket takes more.
    fn watch(&mut self, blocked: bool, sources: Sources<'_>, answers: &mut Vec<Answer>) {
        let Link::Up(fd) = &self.link else { return };
        let interest =
            if blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.blocked = blocked;
        if let Err(error) = sources.change(fd, SOCKET, interest) {
            self.fail(&error, sources, answers);
        }
    }

    /// Ends the connection, if there is one, and every request that it had. What only waits for a connection goes on
    /// waiting.
    fn fail(&mut self, why: &dyn fmt::Display, sources: Sources<'_>, answers: &mut Vec<Answer>) {
        if let Link::Connecting(fd) | Link::Up(fd) = mem::replace(&mut self.link, Link::Down) {
            // Closing it ends the watch as well.
            let _ = sources.remove(&fd);
        }
        self.at = self.backoff.failed(&"9p relay", &self.target, why);
        let begun = self.sent + usize::from(self.begun > 0);
        let mut index = 0;
        let lost = |flight: &mut Flight| {
            index += 1;
            index <= begun || flight.since.is_none()
        };
        let lost: Vec<_> = self.flights.extract_if(.., lost).collect();
        for Flight { chain, header, .. } in self.incoming.abandon().into_iter().chain(lost) {
            self.refuse(chain, header.tag, answers);
        }
        self.forget();
    }

    /// Receives as much as there is.
    fn receive(&mut self, sources: Sources<'_>, answers: &mut Vec<Answer>) {
        while let Link::Up(fd) = &self.link {
            let mut progress = match self.incoming.receive(fd, &mut self.room) {
                Ok(Progress::Blocked) => return,
                Ok(progress) => progress,
                Err(error) => return self.fail(&error, sources, answers),
            };
            if let Progress::Whose(header) = progress {
                progress = match self.find(header) {
                    Ok(flight) => self.incoming.expect(flight),
                    Err(why) => return self.fail(&why, sources, answers),
                };
            }
            if let Progress::Whole(flight, header) = progress {
                self.replied(flight, header, answers);
            }
        }
    }

    /// The request that a reply with this header is for, if it can be the reply of a server.
    fn find(&mut self, header: Header) -> Result<Flight, String> {
        let Header { size, kind, tag } = header;
        let mut sent = self.flights.iter().take(self.sent);
        let Some(index) = sent.position(|flight| flight.header.tag == tag) else {
            return Err(format!("a message of type {kind} with the tag {tag}, which nothing has"));
        };
        let room = self.flights.get(index).map_or(0, |flight| flight.chain.writable_len());
        let most = self.msize.map_or(room, |msize| room.min(msize.max(HEADER as u32)));
        if !(HEADER as u32..=most).contains(&size) {
            return Err(format!("a message of {size} bytes where 7 to {most} can be"));
        }
        self.sent -= 1;
        Ok(self.flights.remove(index))
    }

    /// A request has its reply.
    fn replied(&mut self, flight: Flight, reply: Header, answers: &mut Vec<Answer>) {
        let Flight { id, chain, header, .. } = flight;
        match (header.kind, reply.kind) {
            (TVERSION, RVERSION) => self.begin(id, &chain, answers),
            (TFLUSH, RFLUSH) => {
                // What it named gets no reply any more, if it has none yet.
                let tag = flushed_tag(&chain, header);
                let named = |flight: &Flight| Some(flight.header.tag) == tag && flight.id < id;
                let mut sent = self.flights.iter().take(self.sent);
                if let Some(index) = sent.position(named) {
                    self.sent -= 1;
                    answers.push(Answer::none(self.flights.remove(index).chain));
                }
            }
            _ => {}
        }
        answers.push(Answer { chain, written: reply.size });
    }

    /// The server has agreed to a version in the reply that is in `chain`: what came before that is of no session.
    fn begin(&mut self, id: u64, chain: &Chain, answers: &mut Vec<Answer>) {
        let mut message = [0; dialect::VERSION];
        let mut writer = chain.writer();
        let mut len = 0;
        while let Some(place) = message.get_mut(len..)
            && let Some(slice) = writer.next_slice(place.len())
        {
            len += slice.copy_to(place);
        }
        let before = |flight: &mut Flight| flight.id < id;
        let lost: Vec<_> = self.flights.extract_if(.., before).collect();
        self.sent -= lost.len();
        for Flight { chain, header, .. } in lost {
            self.refuse(chain, header.tag, answers);
        }
        if let Some((msize, dialect)) = dialect::version(&message) {
            self.msize = Some(msize);
            self.dialect = dialect;
        }
    }
}

/// Sends once, from byte `skip` of a message on, and tells how many bytes went.
fn send(
    socket: &OwnedFd,
    flight: &Flight,
    skip: usize,
    room: &mut BufferList<'static>,
) -> std::io::Result<usize> {
    let header = flight.header.encode();
    let head = header.get(skip..).unwrap_or_default();
    let start = skip.max(HEADER);
    let mut left = (flight.header.size as usize).saturating_sub(start);
    let mut list = mem::take(room).recycle();
    let mut reader = flight.chain.reader();
    reader.skip(start);
    while list.all().iovecs().len() < socket::PIECES
        && let Some(slice) = reader.next_slice(left)
    {
        left -= slice.len();
        list.push(slice);
    }
    let result = socket::send(socket, head, list.all(), &[]);
    *room = list.recycle();
    result
}
