//! Datagrams and echo requests of the guest, as the host sends them.
//!
//! Each port of the guest has a socket of its own, and so has each identifier of its echo requests. The socket is not
//! connected: the guest's port looks the same to all whom it talks to, and a reply may come from another port of the
//! same address, as TFTP's do. Replies of those that the guest has not talked to are dropped.
//!
//! What has arrived stays with the host's kernel until the guest has room.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use smoltcp::wire::IpProtocol;

use super::frame::{Packet, copy};
use super::host::{self, Failure};
use super::icmp::{self, Quote, Trouble};
use super::router::{Router, Way};
use super::wire::Wire;
use super::{Protocol, config};
use crate::virtio::{HostEvent, Interest, Sources};

/// Those that a port of the guest talks to, at a time.
const PEERS: usize = 64;
/// Packets that may go this far need no mention.
const FAR: u8 = 32;
/// What the host's sockets begin with.
const USUAL: u8 = 64;
/// What arrives for nobody is dropped this often in a row, before others have a turn.
const STRANGERS: usize = 256;
/// Errors that are looked at in a row.
const FAILURES: usize = 64;

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// [`Protocol::Udp`] or [`Protocol::Echo`].
    pub protocol: Protocol,
    /// The guest's end; for echo requests the port is their identifier.
    pub source: SocketAddr,
}

/// Somebody that a port of the guest talks to.
#[derive(Debug, Clone, Copy)]
struct Peer {
    /// As the guest knows it …
    guest: SocketAddr,
    /// … and as the host does.
    host: SocketAddr,
}

#[derive(Debug)]
struct Flow {
    key: Key,
    socket: UdpSocket,
    /// The last one that was sent to comes first.
    peers: Vec<Peer>,
    used: Instant,
    /// How far packets go.
    hops: u8,
    /// It is in the queue of those that may have something.
    ready: bool,
    /// Errors in a row.
    errors: usize,
}

/// The sockets.
#[derive(Debug)]
pub struct Flows {
    slots: Vec<Option<Flow>>,
    free: Vec<usize>,
    keys: HashMap<Key, usize>,
    /// Those that may have something for the guest.
    ready: VecDeque<usize>,
    /// When the next one may have been silent for too long.
    next: Option<Instant>,
    limit: usize,
    idle: Duration,
    first_token: u32,
    buffer: Vec<u8>,
}

impl Flows {
    /// No more than `limit`, which are given up after having been `idle`. Their names begin at `first_token`.
    pub fn new(limit: usize, idle: Duration, first_token: u32) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            keys: HashMap::new(),
            ready: VecDeque::new(),
            next: None,
            limit,
            idle,
            first_token,
            buffer: Vec::new(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Sends `data`, which is what the guest's `packet` has for `destination`; `payload` is all that is in it.
    pub fn send(
        &mut self,
        key: Key,
        destination: SocketAddr,
        packet: &Packet,
        (payload, data): (&[u8], &[u8]),
        (wire, router): (&mut Wire, &Router),
        sources: Sources<'_>,
    ) {
        let quote = Quote::new(packet, payload);
        let known = self.keys.get(&key).and_then(|slot| self.slots.get_mut(*slot)?.as_mut());
        let way = known
            .and_then(|flow| flow.way(destination))
            .map_or_else(|| router.way(key.protocol, key.source, destination), Way::Host);
        let target = match way {
            Way::Host(target) => target,
            Way::Drop => return,
            Way::Gateway | Way::Unix(_) => {
                return icmp::trouble(wire, destination.ip(), &quote, Trouble::Port);
            }
            Way::Refuse => {
                let trouble = match key.protocol {
                    Protocol::Echo => Trouble::Denied,
                    _ => Trouble::Port,
                };
                return icmp::trouble(wire, destination.ip(), &quote, trouble);
            }
        };
        let now = Instant::now();
        let flow = match self.flow(key, now, wire, sources) {
            Ok(flow) => flow,
            Err(error) => {
                log::debug!("no socket for {} from {}: {error}", key.protocol, key.source);
                return wire.count().udp_failed.one();
            }
        };
        flow.used = now;
        flow.remember(Peer { guest: destination, host: target });
        flow.set_hops(packet.hops);
        let mut sent = flow.socket.send_to(data, target);
        if sent.is_err() {
            // It may have been about an earlier one.
            flow.failures(wire, router);
            sent = flow.socket.send_to(data, target);
        }
        if let Err(error) = sent {
            wire.count().lost_out.one();
            let trouble = match error.raw_os_error() {
                Some(libc::EMSGSIZE) => Some(Trouble::TooLarge(wire.ends.mtu.into())),
                _ => Trouble::of(&error),
            };
            let gateway = router.plan.gateway_for(key.source.ip());
            if let (Some(gateway), Some(trouble)) = (gateway, trouble) {
                icmp::trouble(wire, gateway, &quote, trouble);
            }
        }
    }

    /// Finds or makes a socket.
    fn flow(
        &mut self,
        key: Key,
        now: Instant,
        wire: &mut Wire,
        sources: Sources<'_>,
    ) -> io::Result<&mut Flow> {
        let missing = || io::Error::other("there is no room");
        if let Some(slot) = self.keys.get(&key) {
            return self.slots.get_mut(*slot).and_then(Option::as_mut).ok_or_else(missing);
        }
        if self.keys.len() >= self.limit {
            let flows = self.slots.iter().enumerate();
            let flows = flows.filter_map(|(slot, flow)| Some((slot, flow.as_ref()?.used)));
            let (oldest, _) = flows.min_by_key(|(_, used)| *used).ok_or_else(missing)?;
            self.close(oldest, sources);
            wire.count().udp_evicted.one();
        }
        let v6 = key.source.is_ipv6();
        let socket = match key.protocol {
            Protocol::Echo => host::ping(v6)?,
            _ => host::udp(v6)?,
        };
        let slot = self.free.pop().unwrap_or(self.slots.len());
        let token = self.first_token + slot as u32;
        if let Err(error) = sources.add(&socket, token, Interest::READABLE) {
            if slot < self.slots.len() {
                self.free.push(slot);
            }
            return Err(error);
        }
        let flow = Flow {
            key,
            socket,
            peers: Vec::new(),
            used: now,
            hops: USUAL,
            ready: false,
            errors: 0,
        };
        self.keys.insert(key, slot);
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        wire.count().udp_opened.one();
        self.next.get_or_insert(now + self.idle);
        let room = self.slots.get_mut(slot).ok_or_else(missing)?;
        Ok(room.insert(flow))
    }

    fn close(&mut self, slot: usize, sources: Sources<'_>) {
        let Some(flow) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        // It is closed whatever this says.
        let _ = sources.remove(&flow.socket);
        self.keys.remove(&flow.key);
        self.free.push(slot);
        if flow.ready {
            self.ready.retain(|ready| *ready != slot);
        }
    }

    /// A socket may have something.
    pub fn host_ready(&mut self, event: HostEvent, wire: &mut Wire, router: &Router) {
        let slot = event.source.wrapping_sub(self.first_token) as usize;
        let Some(flow) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        if event.writable {
            // Nobody waits for that: it is an error.
            flow.failures(wire, router);
        }
        if !std::mem::replace(&mut flow.ready, true) {
            self.ready.push_back(slot);
        }
    }

    /// Whether there may be something for the guest.
    pub fn has_frames(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes one datagram for the guest, and tells whether there was one.
    pub fn receive(&mut self, wire: &mut Wire, router: &Router) -> bool {
        self.buffer.resize(1 << 16, 0);
        for _ in 0..STRANGERS {
            let Some(slot) = self.ready.pop_front() else { return false };
            let Some(flow) = self.slots.get_mut(slot).and_then(Option::as_mut) else { continue };
            match flow.receive(&mut self.buffer, wire) {
                Ok(taken) => {
                    flow.errors = 0;
                    self.ready.push_back(slot);
                    if taken {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => flow.ready = false,
                Err(_) if flow.errors >= FAILURES => (flow.ready, flow.errors) = (false, 0),
                Err(_) => {
                    flow.errors += 1;
                    flow.failures(wire, router);
                    self.ready.push_back(slot);
                    if !wire.outbox.is_empty() {
                        return true;
                    }
                }
            }
        }
        // There is more to look at, later.
        wire.shared.wake.notify();
        false
    }

    /// When [`timer`](Self::timer) is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Closes what was silent for too long.
    pub fn timer(&mut self, now: Instant, sources: Sources<'_>) {
        if self.next.is_none_or(|next| next > now) {
            return;
        }
        let mut next = None;
        for slot in 0..self.slots.len() {
            let Some(flow) = self.slots.get(slot).and_then(Option::as_ref) else { continue };
            let until = flow.used + self.idle;
            if until <= now {
                self.close(slot, sources);
            } else {
                next = Some(next.map_or(until, |next: Instant| next.min(until)));
            }
        }
        self.next = next;
    }

    /// Closes all.
    pub fn reset(&mut self, sources: Sources<'_>) {
        for flow in self.slots.drain(..).flatten() {
            let _ = sources.remove(&flow.socket);
        }
        *self = Self::new(self.limit, self.idle, self.first_token);
    }
}

impl Flow {
    /// Where the host sends what the guest sends to `destination`, if it has done so lately.
    fn way(&self, destination: SocketAddr) -> Option<SocketAddr> {
        self.peers.iter().find(|peer| peer.guest == destination).map(|peer| peer.host)
    }

    /// Puts a peer before all others.
    fn remember(&mut self, peer: Peer) {
        match self.peers.iter().position(|known| known.guest == peer.guest) {
            Some(0) => {}
            Some(index) => self.peers.swap(0, index),
            None => {
                self.peers.truncate(PEERS - 1);
                self.peers.insert(0, peer);
            }
        }
    }

    /// Whom the guest knows `from` as.
    fn known(&self, from: SocketAddr) -> Option<SocketAddr> {
        let exact = self.peers.iter().find(|peer| peer.host == from).map(|peer| peer.guest);
        exact.or_else(|| {
            let same =
                |peer: &&Peer| peer.host.ip() == from.ip() && peer.host.port() == peer.guest.port();
            let peer = self.peers.iter().find(same)?;
            Some(SocketAddr::new(peer.guest.ip(), from.port()))
        })
    }

    fn set_hops(&mut self, hops: u8) {
        let hops = if hops > FAR { USUAL } else { hops.saturating_sub(1).max(1) };
        if hops != self.hops
            && host::set_hops(&self.socket, self.key.source.is_ipv6(), hops).is_ok()
        {
            self.hops = hops;
        }
    }

    /// Takes what has arrived, and tells whether it was for the guest.
    fn receive(&mut self, buffer: &mut [u8], wire: &mut Wire) -> io::Result<bool> {
        let (length, from) = self.socket.recv_from(buffer)?;
        let data = buffer.get_mut(..length).unwrap_or_default();
        if self.key.protocol == Protocol::Echo {
            return Ok(self.echo(data, from.ip(), wire));
        }
        let from = SocketAddr::new(from.ip(), from.port());
        let Some(from) = self.known(from) else { return Ok(false) };
        self.used = Instant::now();
        wire.udp(from, self.key.source, data);
        Ok(true)
    }

    fn echo(&mut self, data: &[u8], from: IpAddr, wire: &mut Wire) -> bool {
        let data = icmp::message(data);
        let v6 = from.is_ipv6();
        let (reply, protocol) = match v6 {
            false => (icmp::ECHO.1, IpProtocol::Icmp),
            true => (icmp::ECHO6.1, IpProtocol::Icmpv6),
        };
        let peer = self.peers.iter().find(|peer| peer.host.ip() == from);
        let (Some(peer), Some(&kind)) = (peer, data.first()) else { return false };
        let to = self.key.source;
        if data.len() < icmp::HEADER || kind != reply || !host::is_answer(data, to.port()) {
            return false;
        }
        self.used = Instant::now();
        let from = peer.guest.ip();
        let mut message = data.to_vec();
        copy(&mut message, 4, &to.port().to_be_bytes());
        icmp::seal(&mut message, from, to.ip());
        wire.ip((from, to.ip()), protocol, 64, &message);
        true
    }

    /// Tells the guest what the kernel has kept about packets that did not arrive.
    fn failures(&mut self, wire: &mut Wire, router: &Router) {
        for _ in 0..FAILURES {
            let Some(failure) = host::failure(&self.socket) else { return };
            self.failed(&failure, wire, router);
        }
    }

    fn failed(&self, failure: &Failure, wire: &mut Wire, router: &Router) {
        let Some(trouble) = Trouble::of_failure(failure) else { return };
        let is_target = |peer: &&Peer| match self.key.protocol {
            Protocol::Echo => peer.host.ip() == failure.destination.ip(),
            _ => {
                let Peer { host, .. } = peer;
                (host.ip(), host.port()) == (failure.destination.ip(), failure.destination.port())
            }
        };
        let Some(peer) = self.peers.iter().find(is_target) else { return };
        let from = match failure.offender {
            Some(offender) if offender == peer.host.ip() => peer.guest.ip(),
            Some(offender) if config::unicast(offender) => offender,
            _ => match router.plan.gateway_for(self.key.source.ip()) {
                Some(gateway) => gateway,
                None => return,
            },
        };
        let v6 = self.key.source.is_ipv6();
        let (protocol, payload) = match self.key.protocol {
            Protocol::Echo => {
                let mut message = failure.data.clone();
                copy(&mut message, 4, &self.key.source.port().to_be_bytes());
                (if v6 { IpProtocol::Icmpv6 } else { IpProtocol::Icmp }, message)
            }
            _ => {
                let length = (super::frame::UDP + failure.data.len()) as u16;
                let ports = [self.key.source.port(), peer.guest.port(), length, 0];
                let mut message: Vec<u8> =
                    ports.iter().flat_map(|word| word.to_be_bytes()).collect();
                message.extend_from_slice(&failure.data);
                (IpProtocol::Udp, message)
            }
        };
        let quote = Quote {
            source: self.key.source.ip(),
            destination: peer.guest.ip(),
            protocol,
            hops: 1,
            payload: &payload,
            length: payload.len(),
        };
        icmp::trouble(wire, from, &quote, trouble);
    }
}
