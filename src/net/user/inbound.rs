//! What comes from the host through forwards: connections, and datagrams.
//!
//! The guest sees them come from ports of the gateway. Each host that sends datagrams to a forward has such a port for
//! as long as it is not silent; what the guest sends there goes back the same way.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::config::Plan;
use super::forward::{ID_LIMIT, Listener};
use super::icmp::{self, Quote, Trouble};
use super::tcp::{HostStream, Tcp};
use super::wire::Wire;
use crate::virtio::{Interest, Sources};

/// Ports of the gateway that these come from.
const PORTS: std::ops::RangeInclusive<u16> = 32768..=65535;
/// When listeners are looked at again, after a connection could not be taken.
const AGAIN: Duration = Duration::from_secs(1);

/// Datagrams of one host through one forward.
#[derive(Debug)]
struct Session {
    forward: u32,
    /// The host's end …
    host: SocketAddr,
    /// … and the guest's.
    guest: SocketAddr,
    used: Instant,
}

/// What comes from the host.
#[derive(Debug)]
pub struct Inbound {
    first_token: u32,
    /// By the port of the gateway.
    sessions: HashMap<u16, Session>,
    ports: HashMap<(u32, SocketAddr), u16>,
    next_port: u16,
    limit: usize,
    idle: Duration,
    /// When the next session may have been silent for too long.
    next: Option<Instant>,
    /// Forwards that may have datagrams.
    ready: VecDeque<u32>,
    /// When to look at the listeners again.
    again: Option<Instant>,
    buffer: Vec<u8>,
}

impl Inbound {
    /// No more than `limit` sessions, which are given up after having been `idle`.
    pub fn new(limit: usize, idle: Duration, first_token: u32) -> Self {
        Self {
            first_token,
            sessions: HashMap::new(),
            ports: HashMap::new(),
            next_port: *PORTS.start(),
            limit,
            idle,
            next: None,
            ready: VecDeque::new(),
            again: None,
            buffer: Vec::new(),
        }
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Watches what is new.
    pub fn watch(&mut self, wire: &Wire, sources: Sources<'_>) {
        let first_token = self.first_token;
        wire.shared.fresh(|id, listener| {
            let result = match listener {
                Listener::Tcp(listener) => {
                    sources.add(listener, first_token + id, Interest::READABLE)
                }
                Listener::Udp(socket) => sources.add(socket, first_token + id, Interest::READABLE),
                Listener::Unix { listener, .. } => {
                    sources.add(listener, first_token + id, Interest::READABLE)
                }
                Listener::None => Ok(()),
            };
            if let Err(error) = result {
                log::warn!("cannot watch a forward: {error}");
            }
        });
    }

    /// Looks at all listeners, since there is a guest now.
    pub fn look(&mut self, wire: &Wire, plan: &Plan, tcp: &mut Tcp, sources: Sources<'_>) {
        for id in wire.shared.listeners() {
            self.host_ready(self.first_token + id, wire, plan, tcp, sources);
        }
    }

    /// A listener may have something.
    pub fn host_ready(
        &mut self,
        token: u32,
        wire: &Wire,
        plan: &Plan,
        tcp: &mut Tcp,
        sources: Sources<'_>,
    ) {
        let id = token.wrapping_sub(self.first_token) % ID_LIMIT;
        loop {
            let taken = wire.shared.with(id, |listener, guest| {
                let stream = match listener {
                    Listener::Tcp(listener) => HostStream::Tcp(listener.accept()?.0),
                    Listener::Unix { listener, .. } => HostStream::Unix(listener.accept()?.0),
                    Listener::Udp(_) => return Ok(None),
                    Listener::None => return Err(io::ErrorKind::WouldBlock.into()),
                };
                Ok(Some((stream, guest)))
            });
            let taken: Option<io::Result<Option<(HostStream, SocketAddr)>>> = taken;
            match taken {
                None => return,
                Some(Ok(None)) => {
                    if !self.ready.contains(&id) {
                        self.ready.push_back(id);
                    }
                    return;
                }
                Some(Ok(Some((stream, guest)))) => self.connect(stream, guest, plan, tcp, sources),
                Some(Err(error)) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => {
                        // There may be too many open files. It will not be reported again.
                        log::debug!("cannot take a connection for a guest: {error}");
                        self.again = Some(Instant::now() + AGAIN);
                        return;
                    }
                },
            }
        }
    }

    fn connect(
        &mut self,
        stream: HostStream,
        guest: SocketAddr,
        plan: &Plan,
        tcp: &mut Tcp,
        sources: Sources<'_>,
    ) {
        let Some(gateway) = plan.gateway_for(guest.ip()) else { return };
        let from = SocketAddr::new(gateway, self.port());
        tcp.accept(stream, from, guest, sources);
    }

    /// The next port of the gateway; it may be in use.
    fn port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(*PORTS.start());
        port
    }

    /// Whether there may be something for the guest.
    pub fn has_frames(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes one datagram for the guest, and tells whether there was one.
    pub fn receive(&mut self, wire: &mut Wire, plan: &Plan) -> bool {
        self.buffer.resize(1 << 16, 0);
        while let Some(id) = self.ready.pop_front() {
            let buffer = &mut self.buffer;
            let taken = wire.shared.with(id, |listener, guest| match listener {
                Listener::Udp(socket) => {
                    let taken = socket.recv_from(buffer);
                    if taken.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock)
                    {
                        // Somebody on the host does not listen for replies any more.
                        while super::host::failure(socket).is_some() {}
                        return socket.recv_from(buffer).map(|taken| (taken, guest));
                    }
                    taken.map(|taken| (taken, guest))
                }
                _ => Err(io::ErrorKind::WouldBlock.into()),
            });
            let Some(Ok(((length, host), guest))) = taken else { continue };
            self.ready.push_back(id);
            let (Some(gateway), Some(port)) =
                (plan.gateway_for(guest.ip()), self.session(id, host, guest, wire))
            else {
                wire.count().lost_in.one();
                return true;
            };
            let data = self.buffer.get(..length).unwrap_or_default();
            wire.udp(SocketAddr::new(gateway, port), guest, data);
            return true;
        }
        false
    }

    /// The gateway's port for what `host` sends.
    fn session(
        &mut self,
        forward: u32,
        host: SocketAddr,
        guest: SocketAddr,
        wire: &Wire,
    ) -> Option<u16> {
        let now = Instant::now();
        if let Some(port) = self.ports.get(&(forward, host))
            && let Some(session) = self.sessions.get_mut(port)
            && session.guest == guest
        {
            session.used = now;
            return Some(*port);
        }
        if self.sessions.len() >= self.limit {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used);
            let oldest = oldest.map(|(port, _)| *port)?;
            self.close(oldest);
            wire.count().udp_evicted.one();
        }
        // There are more ports than sessions.
        let mut port = self.port();
        while self.sessions.contains_key(&port) {
            port = self.port();
        }
        self.sessions.insert(port, Session { forward, host, guest, used: now });
        self.ports.insert((forward, host), port);
        self.next.get_or_insert(now + self.idle);
        wire.count().udp_opened.one();
        Some(port)
    }

    fn close(&mut self, port: u16) {
        if let Some(session) = self.sessions.remove(&port) {
            self.ports.remove(&(session.forward, session.host));
        }
    }

    /// Sends the guest's datagram back to whom it is for; `false` if it is for none of these.
    pub fn send(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        quote: &Quote<'_>,
        data: &[u8],
        wire: &mut Wire,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(&to.port()) else { return false };
        // The guest may answer from another address than it was asked at, but not from another port.
        if session.guest.port() != from.port() || session.guest.is_ipv4() != from.is_ipv4() {
            return false;
        }
        session.used = Instant::now();
        let host = session.host;
        let sent = wire.shared.with(session.forward, |listener, _| match listener {
            Listener::Udp(socket) => socket.send_to(data, host).or_else(|_| {
                // It may have been about an earlier one.
                while super::host::failure(socket).is_some() {}
                socket.send_to(data, host)
            }),
            _ => Err(io::ErrorKind::NotConnected.into()),
        });
        match sent {
            // The forward was removed.
            None => {
                self.close(to.port());
                return false;
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                wire.count().lost_out.one();
                if let Some(trouble) = Trouble::of(&error) {
                    icmp::trouble(wire, to.ip(), quote, trouble);
                }
            }
        }
        true
    }

    /// When [`timer`](Self::timer) is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        [self.next, self.again].into_iter().flatten().min()
    }

    /// Ends what was silent for too long, and takes up what could not be done.
    pub fn timer(
        &mut self,
        now: Instant,
        wire: &Wire,
        plan: &Plan,
        tcp: &mut Tcp,
        sources: Sources<'_>,
    ) {
        if self.again.is_some_and(|again| again <= now) {
            self.again = None;
            self.look(wire, plan, tcp, sources);
        }
        if self.next.is_none_or(|next| next > now) {
            return;
        }
        let idle = self.idle;
        self.sessions.retain(|_, session| session.used + idle > now);
        let sessions = &self.sessions;
        self.ports.retain(|_, port| sessions.contains_key(port));
        self.next = self.sessions.values().map(|session| session.used + idle).min();
    }

    /// Ends all sessions. The listeners stay.
    pub fn reset(&mut self) {
        *self = Self {
            next_port: self.next_port,
            ..Self::new(self.limit, self.idle, self.first_token)
        };
    }
}
