//! Questions that come by TCP (RFC 7766).
//!
//! The TCP engine ends connections in sockets, so each of these ends in one half of a pair, and the other half is here.
//! What is known is answered as it is for datagrams. Other questions go to the same servers, by TCP too, since the guest
//! may come this way because a reply was too long for the other; each on a connection of its own, and to the next
//! server if one does not answer. One question of a client is answered before the next is read.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{ATTEMPTS, Dns, LARGEST, PATIENCE, Router, Told, failure, is_answer, learn};
use crate::net::user::counters::Tally;
use crate::virtio::{HostEvent, Interest, Sources};

/// Clients at a time. One more takes the place of the one that would be given up first.
const CLIENTS: usize = 32;
/// For how long a client may have nothing to ask, or not take its reply.
const IDLE: Duration = Duration::from_secs(10);
/// Bytes of the length before a message.
const LENGTH: usize = 2;
/// Bytes that are read at a time.
const CHUNK: usize = 4096;

/// A server that was asked.
#[derive(Debug)]
struct Asked {
    socket: TcpStream,
    connected: bool,
    attempt: usize,
    /// How much of the question has gone.
    sent: usize,
    heard: Vec<u8>,
}

/// A question that somebody else has to answer.
#[derive(Debug)]
struct Query {
    /// After its length.
    bytes: Vec<u8>,
    /// Where the question in it ends.
    end: usize,
    servers: Vec<SocketAddr>,
    asked: Asked,
}

/// A connection of the guest.
#[derive(Debug)]
struct Client {
    socket: UnixStream,
    /// Who asks whom.
    ends: (SocketAddr, SocketAddr),
    heard: Vec<u8>,
    /// A reply that has not been taken yet.
    say: Vec<u8>,
    query: Option<Query>,
    /// When it, or the server, is given up.
    until: Instant,
}

/// All connections of the guest to the name server.
#[derive(Debug)]
pub struct Streams {
    clients: Vec<Option<Client>>,
    /// A client has two names of descriptors: its own, and after it the server's.
    first_token: u32,
}

/// What questions are answered with.
pub type Knowledge<'a> = (&'a Dns, &'a Tally, &'a mut Router);

/// What becomes of a client.
enum Next {
    Wait,
    Close,
}

impl Streams {
    pub fn new(first_token: u32) -> Self {
        Self { clients: Vec::new(), first_token }
    }

    /// A connection for `ends`, the guest and the address it asks: this is the half for TCP.
    pub fn open(
        &mut self,
        ends: (SocketAddr, SocketAddr),
        sources: Sources<'_>,
    ) -> io::Result<UnixStream> {
        let free = self.clients.iter().position(Option::is_none);
        let slot = match free {
            Some(slot) => slot,
            None if self.clients.len() < CLIENTS => self.clients.len(),
            None => {
                let until = |slot: &usize| self.clients.get(*slot)?.as_ref().map(|c| c.until);
                let slot = (0..CLIENTS).min_by_key(until).unwrap_or_default();
                self.close(slot, sources);
                slot
            }
        };
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        sources.add(&socket, self.first_token + 2 * slot as u32, interest)?;
        let (heard, say, until) = (Vec::new(), Vec::new(), Instant::now() + IDLE);
        let client = Client { socket, ends, heard, say, query: None, until };
        match self.clients.get_mut(slot) {
            Some(free) => *free = Some(client),
            None => self.clients.push(Some(client)),
        }
        Ok(theirs)
    }

    /// A client or a server may be ready.
    pub fn host_ready(&mut self, event: HostEvent, with: Knowledge<'_>, sources: Sources<'_>) {
        let slot = event.source.wrapping_sub(self.first_token) / 2;
        self.go_on(slot as usize, with, sources);
    }

    fn go_on(&mut self, slot: usize, with: Knowledge<'_>, sources: Sources<'_>) {
        let token = self.first_token + 2 * slot as u32 + 1;
        let Some(client) = self.clients.get_mut(slot).and_then(Option::as_mut) else { return };
        if let Ok(Next::Close) | Err(_) = client.go_on(token, with, sources) {
            self.close(slot, sources);
        }
    }

    fn close(&mut self, slot: usize, sources: Sources<'_>) {
        if let Some(mut client) = self.clients.get_mut(slot).and_then(Option::take) {
            client.forget(sources);
            let _ = sources.remove(&client.socket);
        }
        if self.clients.iter().all(Option::is_none) {
            self.clients = Vec::new();
        }
    }

    /// When [`timer`](Self::timer) is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.iter().flatten().map(|client| client.until).min()
    }

    /// Gives up on clients that are silent, and on servers.
    pub fn timer(
        &mut self,
        now: Instant,
        (dns, counters, router): Knowledge<'_>,
        sources: Sources<'_>,
    ) {
        for slot in 0..self.clients.len() {
            let token = self.first_token + 2 * slot as u32 + 1;
            let client = self.clients.get_mut(slot).and_then(Option::as_mut);
            let Some(client) = client.filter(|client| client.until <= now) else { continue };
            if client.query.is_some() {
                client.next_server(token, counters, sources);
                self.go_on(slot, (dns, counters, &mut *router), sources);
            } else {
                self.close(slot, sources);
            }
        }
    }

    /// Forgets all clients.
    pub fn reset(&mut self, sources: Sources<'_>) {
        for slot in 0..self.clients.len() {
            self.close(slot, sources);
        }
    }
}

impl Client {
    /// Does what can be done. An error is one of the client's connection.
    fn go_on(
        &mut self,
        token: u32,
        (dns, counters, router): Knowledge<'_>,
        sources: Sources<'_>,
    ) -> io::Result<Next> {
        loop {
            while !self.say.is_empty() {
                match self.socket.write(&self.say) {
                    Ok(count) => drop(self.say.drain(..count)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Next::Wait),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if let Some(query) = &mut self.query {
                match query.go_on() {
                    Ok(reply) => {
                        if router.wants_names() {
                            learn(&reply, router);
                        }
                        self.forget(sources);
                        self.reply(&reply);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Next::Wait),
                    Err(_) => self.next_server(token, counters, sources),
                }
                continue;
            }
            if let Some(message) = take_message(&mut self.heard) {
                if message.len() > LARGEST {
                    counters.malformed.one();
                    return Ok(Next::Close);
                }
                match dns.look(self.ends, &message, counters, router) {
                    Told::Nothing => {}
                    Told::Reply(reply) => self.reply(&reply),
                    Told::Ask { servers, end } => {
                        self.ask(&message, end, servers, token, counters, sources);
                    }
                }
                continue;
            }
            let mut room = [0; CHUNK];
            match self.socket.read(&mut room) {
                Ok(0) => return Ok(Next::Close),
                Ok(count) => self.heard.extend_from_slice(room.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Next::Wait),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn reply(&mut self, message: &[u8]) {
        self.say = with_length(message);
        self.until = Instant::now() + IDLE;
    }

    fn ask(
        &mut self,
        message: &[u8],
        end: usize,
        servers: Vec<SocketAddr>,
        token: u32,
        counters: &Tally,
        sources: Sources<'_>,
    ) {
        let bytes = with_length(message);
        match Asked::connect(&servers, 0, token, sources) {
            Some(asked) => {
                self.query = Some(Query { bytes, end, servers, asked });
                self.until = Instant::now() + PATIENCE;
            }
            None => self.failed(message, counters),
        }
    }

    /// Asks the next server, or tells the client that there is none.
    fn next_server(&mut self, token: u32, counters: &Tally, sources: Sources<'_>) {
        let Some(query) = &mut self.query else { return };
        let _ = sources.remove(&query.asked.socket);
        match Asked::connect(&query.servers, query.asked.attempt + 1, token, sources) {
            Some(asked) => {
                query.asked = asked;
                self.until = Instant::now() + PATIENCE;
            }
            None => {
                let query = self.query.take();
                let bytes = query.as_ref().and_then(|query| query.bytes.get(LENGTH..));
                self.failed(bytes.unwrap_or_default(), counters);
            }
        }
    }

    fn failed(&mut self, question: &[u8], counters: &Tally) {
        counters.dns_failed.one();
        if let Some(reply) = failure(question) {
            self.reply(&reply);
        }
    }

    /// Lets the server go.
    fn forget(&mut self, sources: Sources<'_>) {
        if let Some(query) = self.query.take() {
            let _ = sources.remove(&query.asked.socket);
        }
    }
}

impl Asked {
    /// Begins to connect to a server, the `from`th or one after it.
    fn connect(
        servers: &[SocketAddr],
        from: usize,
        token: u32,
        sources: Sources<'_>,
    ) -> Option<Self> {
        let attempts = ATTEMPTS.min(2 * servers.len());
        let each = servers.iter().cycle().enumerate().take(attempts).skip(from);
        each.filter_map(|(attempt, server)| {
            let stream = mio::net::TcpStream::connect(*server).ok()?;
            let socket = TcpStream::from(OwnedFd::from(stream));
            sources.add(&socket, token, Interest::READABLE | Interest::WRITABLE).ok()?;
            Some(Self { socket, connected: false, attempt, sent: 0, heard: Vec::new() })
        })
        .next()
    }

    /// Waits for the connection to be there.
    fn connected(&mut self) -> io::Result<()> {
        if self.connected {
            return Ok(());
        }
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        // Systems differ in what they say before.
        self.socket.peer_addr().map_err(|_| ErrorKind::WouldBlock)?;
        self.connected = true;
        Ok(())
    }
}

impl Query {
    /// The reply, or why there is none: [`ErrorKind::WouldBlock`] if none yet.
    fn go_on(&mut self) -> io::Result<Vec<u8>> {
        let asked = &mut self.asked;
        asked.connected()?;
        while let Some(rest @ [_, ..]) = self.bytes.get(asked.sent..) {
            match asked.socket.write(rest) {
                Ok(count) => asked.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        loop {
            if let Some(reply) = take_message(&mut asked.heard) {
                let question = self.bytes.get(LENGTH..).unwrap_or_default();
                let answers = is_answer(&reply, question, self.end);
                return if answers { Ok(reply) } else { Err(ErrorKind::InvalidData.into()) };
            }
            let mut room = [0; CHUNK];
            match asked.socket.read(&mut room) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => asked.heard.extend_from_slice(room.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Takes the first message out of `heard`, if it is whole.
fn take_message(heard: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = heard.first_chunk().copied().map(u16::from_be_bytes)?;
    let end = LENGTH + usize::from(length);
    let message = heard.get(LENGTH..end)?.to_vec();
    heard.drain(..end);
    Some(message)
}

/// A message as it goes by TCP. None of ours is longer than its length can say.
fn with_length(message: &[u8]) -> Vec<u8> {
    let length = message.len().min(u16::MAX.into()) as u16;
    let message = message.get(..length.into()).unwrap_or_default();
    [&length.to_be_bytes(), message].concat()
}
