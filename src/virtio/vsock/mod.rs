//! The socket device (§5.10): connections between programs on the host and programs in the guest.
//!
//! Every connection has a unix socket on the host, and all of them are worked by the device's one thread, in turns. What
//! may be kept in here is bounded: data for a host that does not read by the credit that the guest is given, which is
//! shared out from one sum; packets for the guest by the number of connections, as each of them has a few bits that
//! say what it is to be told; and refusals by taking nothing more from a guest that does not take them.

mod backlog;
mod connection;
mod credit;
mod packet;
mod receive;
mod table;
#[cfg(test)]
mod tests;
mod transmit;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use self::connection::{Connection, Phase};
use self::packet::Ports;
use self::table::Table;
use super::{Chain, ConfigSpace, Context, Error, HostEvent, Interest, Sources, VirtioDevice};
use crate::memory::BufferList;
use crate::sys::socket::HAS_SEQPACKET;
use crate::vsock::{Call, Dial, Kind, OpenVsock, SOURCES, Tally, Want};

/// VIRTIO_VSOCK_F_STREAM: connections that carry bytes.
pub const F_STREAM: u64 = 1 << 0;
/// VIRTIO_VSOCK_F_SEQPACKET: connections that carry messages.
pub const F_SEQPACKET: u64 = 1 << 1;
/// What this host can offer.
const FEATURES: u64 = if HAS_SEQPACKET { F_STREAM | F_SEQPACKET } else { F_STREAM };

/// Packets to the guest.
const RECEIVE: u16 = 0;
/// Packets from the guest.
const TRANSMIT: u16 = 1;
/// Events.
const EVENT: u16 = 2;
const QUEUES: [u16; 3] = [256, 256, 16];

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: u32 = 0;

/// The host (VMADDR_CID_HOST).
const HOST: u64 = 2;

/// Ports of the host that connections of its own come from: those that are not likely to be listened on.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// How long a program on the host may be too busy to take a connection: as long as Linux waits for one.
const HOST_PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts: a part of what has passed, within these.
const REDIAL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// How long the guest may take to confirm the end of a connection: as long as Linux does.
const CLOSING_PATIENCE: Duration = Duration::from_secs(8);

/// Refusals that wait for the guest before nothing more is taken from it.
const MOST_RESETS: usize = 1024;

/// A packet that says that there is no connection.
struct Reset {
    cid: u64,
    ports: Ports,
    kind: u16,
}

/// A socket device.
pub struct SocketDevice {
    host: OpenVsock,
    config: Arc<ConfigSpace>,
    /// The guest's CID.
    cid: u64,
    table: Table,
    tally: Arc<Tally>,
    /// A driver is there.
    active: bool,
    /// It knows of connections that carry messages.
    seqpacket: bool,
    resets: VecDeque<Reset>,
    /// The transmit queue waits until there are fewer resets.
    held_up: bool,
    /// The driver has not heard yet that the transport was reset.
    event: bool,
    next_port: u32,
    /// Room to be used again.
    wants: Vec<Want>,
    chains: Vec<Chain>,
    room: BufferList<'static>,
    scratch: Vec<u8>,
}

impl SocketDevice {
    /// A socket device with `host` as its host side.
    pub fn new(host: OpenVsock) -> Self {
        let settings = *host.settings();
        Self {
            config: Arc::new(ConfigSpace::new(settings.cid.to_le_bytes())),
            cid: settings.cid,
            table: Table::new(settings.connections, settings.buffer, settings.memory),
            tally: host.tally().clone(),
            active: false,
            seqpacket: false,
            resets: VecDeque::new(),
            held_up: false,
            event: false,
            next_port: FIRST_PORT,
            wants: Vec::new(),
            chains: Vec::new(),
            room: BufferList::default(),
            scratch: Vec::new(),
            host,
        }
    }

    /// Whether the driver can have connections of this kind.
    fn has(&self, kind: Kind) -> bool {
        kind == Kind::Stream || self.seqpacket
    }

    /// Does what the host side has collected.
    fn fulfil(&mut self, sources: Sources<'_>) {
        let mut wants = std::mem::take(&mut self.wants);
        for want in wants.drain(..) {
            match want {
                Want::Connect(call) => self.call(call, sources),
                Want::TransportReset => {
                    self.clear("the transport was reset");
                    self.event = self.active;
                }
            }
        }
        self.wants = wants;
    }

    /// Asks the guest for a connection.
    fn call(&mut self, call: Call, sources: Sources<'_>) {
        let Call { socket, kind, port, until, answer } = call;
        if !self.active {
            let why = "the guest has no driver for its socket device, or not yet";
            return answer.refuse(io::Error::new(io::ErrorKind::NotConnected, why));
        }
        if !self.has(kind) {
            let why = "the guest's driver has no sockets that carry messages";
            return answer.refuse(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        if !self.has_room() {
            let why = "the socket device has as many connections as it may have";
            return answer.refuse(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        let Some(ports) = self.free_ports(port) else {
            let why = "every port of the host is connected to this port of the guest";
            return answer.refuse(io::Error::new(io::ErrorKind::AddrInUse, why));
        };
        let window = self.table.share(0);
        let connection = Connection::called(ports, kind, answer, socket, window);
        let slot = self.table.insert(connection);
        self.tally.open.set(self.table.len() as u64);
        self.table.set_alarm(slot, Some(until));
        match self.watch(slot, sources) {
            Ok(()) => self.table.enqueue(slot),
            Err(error) => self.end(slot, error),
        }
    }

    /// Ports for a connection to `guest`.
    fn free_ports(&mut self, guest: u32) -> Option<Ports> {
        // There are never as many connections as ports.
        for _ in 0..=self.table.len() {
            let ports = Ports { host: self.next_port, guest };
            self.next_port = if ports.host == LAST_PORT { FIRST_PORT } else { ports.host + 1 };
            if self.table.find(ports).is_none() {
                return Some(ports);
            }
        }
        None
    }

    /// Whether there is room for a connection. Where there is none, one goes that the guest has long forgotten.
    fn has_room(&mut self) -> bool {
        if self.table.is_full()
            && let Some(slot) = self.table.lingering()
        {
            self.forget(slot);
        }
        !self.table.is_full()
    }

    /// Watches the socket of a connection.
    fn watch(&mut self, slot: u32, sources: Sources<'_>) -> io::Result<()> {
        match self.table.get(slot).and_then(|connection| connection.socket()) {
            Some(socket) => sources.add(socket, slot, Interest::READABLE),
            None => Ok(()),
        }
    }

    /// Connects to the host for the guest; again and again, as long as a program there is busy.
    fn dial(&mut self, slot: u32, sources: Sources<'_>) {
        let Some(connection) = self.table.get(slot) else { return };
        let Phase::Dialing { since } = connection.phase else { return };
        let (kind, ports) = (connection.kind, connection.ports);
        match self.host.dial(kind, ports.host, ports.guest) {
            Dial::Connected(socket) => self.dialled(slot, socket, sources),
            Dial::Busy if since.elapsed() < HOST_PATIENCE => {
                let pause = (since.elapsed() / 4).clamp(REDIAL.0, REDIAL.1);
                self.table.set_alarm(slot, Some(Instant::now() + pause));
            }
            Dial::Busy | Dial::Refused => {
                self.tally.refused.add(1);
                self.reset_connection(slot);
            }
        }
    }

    fn dialled(&mut self, slot: u32, socket: OwnedFd, sources: Sources<'_>) {
        let Some(connection) = self.table.get(slot) else { return };
        connection.dialled(socket);
        if let Err(error) = self.watch(slot, sources) {
            log::warn!("virtio vsock: cannot watch a connection: {error}");
            return self.reset_connection(slot);
        }
        self.tally.from_guest.add(1);
        self.table.enqueue(slot);
    }

    /// Ends a connection for which the guest has nothing more to hear.
    fn forget(&mut self, slot: u32) {
        self.end(slot, io::ErrorKind::ConnectionReset.into());
    }

    /// Ends a connection, and tells the guest.
    fn reset_connection(&mut self, slot: u32) {
        self.reset_packet(slot);
        self.forget(slot);
    }

    /// Ends a connection that somebody has broken.
    fn break_off(&mut self, slot: u32) {
        self.tally.resets.add(1);
        self.reset_connection(slot);
    }

    /// Tells the guest that a connection of its is none.
    fn reset_packet(&mut self, slot: u32) {
        if let Some(connection) = self.table.get(slot)
            && connection.guest_has_it()
        {
            let kind = packet::kind_number(connection.kind);
            self.resets.push_back(Reset { cid: HOST, ports: connection.ports, kind });
        }
    }

    /// Ends a connection; `why`, for a program that waits for it.
    fn end(&mut self, slot: u32, why: io::Error) {
        if let Some(connection) = self.table.remove(slot) {
            // The socket leaves the event loop as it is closed: there is no other descriptor for it.
            connection.refuse(why);
            self.tally.open.set(self.table.len() as u64);
        }
    }

    /// Ends all connections, of which the guest knows already.
    fn clear(&mut self, why: &str) {
        for slot in self.table.slots() {
            self.end(slot, io::Error::new(io::ErrorKind::ConnectionReset, why));
        }
        self.resets.clear();
    }

    /// The socket of a connection is ready, or may be.
    fn socket_ready(&mut self, slot: u32, event: HostEvent, sources: Sources<'_>) {
        let Some(connection) = self.table.get(slot) else { return };
        if event.readable {
            connection.readable = true;
            connection.look_for_hang_up();
        }
        let outcome = if event.writable { connection.flush() } else { Ok(()) };
        match outcome {
            Ok(()) => self.look_after(slot, sources),
            Err(_) => self.break_off(slot),
        }
    }

    /// After anything that may have changed a connection: it gets a turn if it needs one, is watched for room if it
    /// needs that, and goes if nobody needs it any more.
    fn look_after(&mut self, slot: u32, sources: Sources<'_>) {
        let Some(connection) = self.table.get(slot) else { return };
        if connection.guest_has_left() && connection.backlog.is_empty() {
            return self.forget(slot);
        }
        let wants_turn = connection.has_due() || connection.wants_to_read();
        let full = !connection.backlog.is_empty();
        if full != connection.watched
            && let Some(socket) = connection.socket()
        {
            let both = Interest::READABLE | Interest::WRITABLE;
            let interest = if full { both } else { Interest::READABLE };
            if let Err(error) = sources.change(socket, slot, interest) {
                log::warn!("virtio vsock: cannot watch a connection: {error}");
                return self.break_off(slot);
            }
            connection.watched = full;
        }
        if wants_turn {
            self.table.enqueue(slot);
        }
    }

    /// Alarms that have gone off.
    fn alarms(&mut self, sources: Sources<'_>) {
        let now = Instant::now();
        while let Some(slot) = self.table.expired(now) {
            match self.table.get(slot).map(|connection| &connection.phase) {
                Some(Phase::Dialing { .. }) => self.dial(slot, sources),
                Some(Phase::Calling(_)) => {
                    self.reset_packet(slot);
                    let why = "the guest did not answer in time";
                    self.end(slot, io::Error::new(io::ErrorKind::TimedOut, why));
                }
                // The guest has not confirmed the end of it.
                Some(Phase::Open) => self.reset_connection(slot),
                None => {}
            }
        }
    }
}

impl VirtioDevice for SocketDevice {
    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn name(&self) -> &str {
        "vsock"
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.config.clone()
    }

    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        self.host.start(&sources)
    }

    fn activate(&mut self, features: u64, _cx: &mut Context<'_>) -> Result<(), Error> {
        self.active = true;
        self.seqpacket = features & F_SEQPACKET != 0;
        Ok(())
    }

    fn reset(&mut self) {
        self.clear("the guest has reset its socket device");
        self.chains.clear();
        (self.active, self.held_up, self.event) = (false, false, false);
    }

    fn queue_ready(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error> {
        match index {
            TRANSMIT => self.transmit(cx)?,
            EVENT => return self.send_event(cx),
            _ => {}
        }
        self.receive(cx)
    }

    fn host_ready(&mut self, event: HostEvent, cx: &mut Context<'_>) -> Result<(), Error> {
        let sources = cx.sources();
        if event.source < SOURCES {
            self.socket_ready(event.source, event, sources);
        } else {
            self.host.ready(event, &sources, &mut self.wants);
            self.fulfil(sources);
            self.send_event(cx)?;
        }
        self.receive(cx)
    }

    fn deadline(&self) -> Option<Instant> {
        let ours = self.table.next_alarm();
        self.host.deadline().into_iter().chain(ours).min()
    }

    fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let sources = cx.sources();
        self.host.timer(&sources, &mut self.wants);
        self.fulfil(sources);
        self.alarms(sources);
        self.receive(cx)
    }
}
