//! Forwards: ports and sockets of the host that lead into the guest, and addresses that the guest sees and that lead to
//! the host. They come and go while the network runs.
//!
//! Listeners are bound and closed on the thread of whoever asks for it, so that errors are known at once and a port is
//! free when `remove` returns. The network's thread finds them in a table, and is told when there is something new.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::counters::{Counters, Tally};
use super::{Error, Protocol};
use crate::sys::Notifier;

/// An address and a port, or only the port: of the host's loopback, the guest's lease, or the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// A port at the usual address.
    Port(u16),
    /// A port at this address.
    Address(SocketAddr),
}

impl Endpoint {
    fn at(self, usual: impl Into<IpAddr>) -> SocketAddr {
        match self {
            Self::Port(port) => SocketAddr::new(usual.into(), port),
            Self::Address(address) => address,
        }
    }
}

impl From<u16> for Endpoint {
    fn from(port: u16) -> Self {
        Self::Port(port)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for Endpoint {
    fn from((address, port): (I, u16)) -> Self {
        Self::Address(SocketAddr::new(address.into(), port))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(out),
            Self::Address(address) => address.fmt(out),
        }
    }
}

/// A way into the guest, or out of it, that is always there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Tcp { host: Endpoint, guest: Endpoint },
    Udp { host: Endpoint, guest: Endpoint },
    Unix { path: PathBuf, guest: Endpoint },
    ToHost { protocol: Protocol, guest: Endpoint, host: SocketAddr },
    ToUnix { guest: Endpoint, path: PathBuf },
}

impl Forward {
    /// From a TCP port of the host, any free one if it is 0, to one of the guest.
    pub fn tcp(host: impl Into<Endpoint>, guest: impl Into<Endpoint>) -> Self {
        Self(Kind::Tcp { host: host.into(), guest: guest.into() })
    }

    /// From a UDP port of the host, any free one if it is 0, to one of the guest.
    pub fn udp(host: impl Into<Endpoint>, guest: impl Into<Endpoint>) -> Self {
        Self(Kind::Udp { host: host.into(), guest: guest.into() })
    }

    /// From a unix socket of the host, which is made, to a TCP port of the guest.
    pub fn unix(path: impl Into<PathBuf>, guest: impl Into<Endpoint>) -> Self {
        Self(Kind::Unix { path: path.into(), guest: guest.into() })
    }

    /// From an address and TCP port that the guest connects to, to one that the host can reach.
    pub fn tcp_to_host(guest: impl Into<Endpoint>, host: SocketAddr) -> Self {
        Self(Kind::ToHost { protocol: Protocol::Tcp, guest: guest.into(), host })
    }

    /// From an address and UDP port that the guest sends to, to one that the host can reach.
    pub fn udp_to_host(guest: impl Into<Endpoint>, host: SocketAddr) -> Self {
        Self(Kind::ToHost { protocol: Protocol::Udp, guest: guest.into(), host })
    }

    /// From an address and TCP port that the guest connects to, to a unix socket of the host.
    pub fn tcp_to_unix(guest: impl Into<Endpoint>, path: impl Into<PathBuf>) -> Self {
        Self(Kind::ToUnix { guest: guest.into(), path: path.into() })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Tcp { host, guest } => write!(out, "tcp {host} to the guest's {guest}"),
            Kind::Udp { host, guest } => write!(out, "udp {host} to the guest's {guest}"),
            Kind::Unix { path, guest } => {
                write!(out, "{} to the guest's tcp {guest}", path.display())
            }
            Kind::ToHost { protocol, guest, host } => {
                write!(out, "{protocol} {guest} of the guest to {host}")
            }
            Kind::ToUnix { guest, path } => {
                write!(out, "tcp {guest} of the guest to {}", path.display())
            }
        }
    }
}

/// Names a forward of one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForwardId(u32);

/// A forward that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bound {
    /// Its name.
    pub id: ForwardId,
    /// What it is.
    pub forward: Forward,
    /// Where the host can be reached for it, if that is an address; or where the guest finds it.
    pub address: Option<SocketAddr>,
}

/// Whoever owns a network can do this with it, from any thread and while it runs.
#[derive(Debug, Clone)]
pub struct UserHandle(pub(super) Arc<Shared>);

impl UserHandle {
    /// Adds a forward. Its port or path is bound when this returns.
    pub fn forward(&self, forward: Forward) -> Result<Bound, Error> {
        self.0.add(forward)
    }

    /// Removes a forward, and tells whether it was there. Connections that came through it stay.
    pub fn remove(&self, id: ForwardId) -> bool {
        self.0.table().entries.remove(&id.0).is_some()
    }

    /// The forwards there are.
    pub fn forwards(&self) -> Vec<Bound> {
        let table = self.0.table();
        table.entries.iter().map(|(id, entry)| entry.bound(*id)).collect()
    }

    /// What the network has done so far.
    pub fn counters(&self) -> Counters {
        self.0.counters.read()
    }
}

/// What the network's thread and the handles share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Wakes the network's thread.
    pub wake: Notifier,
    pub counters: Tally,
    /// The usual addresses of a guest's port, and of one that the guest uses.
    usual: (Ipv4Addr, Ipv4Addr),
    table: Mutex<Table>,
}

/// Forwards at a time.
const FORWARDS: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Table {
    next: u32,
    entries: BTreeMap<u32, Entry>,
    /// Listeners that nobody watches yet.
    fresh: Vec<u32>,
    /// The network is gone.
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    forward: Forward,
    address: Option<SocketAddr>,
    /// Where in the guest it leads to, for those that lead there.
    guest: SocketAddr,
    listener: Listener,
}

/// What waits for the host's side.
#[derive(Debug)]
pub(super) enum Listener {
    None,
    Tcp(TcpListener),
    Udp(UdpSocket),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// Where something goes that the guest sends to a forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Guestside {
    Host(SocketAddr),
    Unix(PathBuf),
}

impl Entry {
    fn bound(&self, id: u32) -> Bound {
        Bound { id: ForwardId(id), forward: self.forward.clone(), address: self.address }
    }
}

impl Shared {
    pub fn new(guest: Ipv4Addr, gateway: Ipv4Addr) -> io::Result<Self> {
        Ok(Self {
            wake: Notifier::new()?,
            counters: Tally::default(),
            usual: (guest, gateway),
            table: Mutex::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing is left half done by a panic in here.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a forward.
    pub fn add(&self, forward: Forward) -> Result<Bound, Error> {
        let failed = |error| Error::Forward(forward.clone(), error);
        let entry = self.bind(&forward).map_err(failed)?;
        let mut table = self.table();
        if table.closed {
            return Err(failed(io::Error::new(io::ErrorKind::NotConnected, "the network is gone")));
        }
        let taken = |other: &Entry| {
            matches!(entry.listener, Listener::None)
                && matches!(other.listener, Listener::None)
                && other.address == entry.address
                && protocol(&other.forward) == protocol(&entry.forward)
        };
        if table.entries.values().any(taken) {
            return Err(failed(io::ErrorKind::AddrInUse.into()));
        }
        if table.entries.len() >= FORWARDS {
            return Err(failed(io::Error::other("there are too many forwards")));
        }
        // Few enough are there that a free number is found soon.
        let mut id = table.next;
        while table.entries.contains_key(&id) {
            id = (id + 1) % ID_LIMIT;
        }
        table.next = (id + 1) % ID_LIMIT;
        let bound = entry.bound(id);
        if !matches!(entry.listener, Listener::None) {
            table.fresh.push(id);
        }
        table.entries.insert(id, entry);
        drop(table);
        self.wake.notify();
        Ok(bound)
    }

    fn bind(&self, forward: &Forward) -> io::Result<Entry> {
        let (lease, gateway) = self.usual;
        let (address, guest, listener) = match &forward.0 {
            Kind::Tcp { host, guest } => {
                let listener = TcpListener::bind(host.at(Ipv4Addr::LOCALHOST))?;
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                (Some(address), guest.at(lease), Listener::Tcp(listener))
            }
            Kind::Udp { host, guest } => {
                let socket = UdpSocket::bind(host.at(Ipv4Addr::LOCALHOST))?;
                socket.set_nonblocking(true)?;
                super::host::prepare(&socket)?;
                (Some(socket.local_addr()?), guest.at(lease), Listener::Udp(socket))
            }
            Kind::Unix { path, guest } => (None, guest.at(lease), listen(path)?),
            Kind::ToHost { guest, .. } | Kind::ToUnix { guest, .. } => {
                let address = guest.at(gateway);
                (Some(address), address, Listener::None)
            }
        };
        if guest.port() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the guest has no port 0"));
        }
        Ok(Entry { forward: forward.clone(), address, guest, listener })
    }

    /// Where a new flow of the guest goes, if there is a forward for it.
    pub fn guestside(&self, protocol: Protocol, to: SocketAddr) -> Option<Guestside> {
        let table = self.table();
        table.entries.values().find_map(|entry| match &entry.forward.0 {
            Kind::ToHost { protocol: its, host, .. } if *its == protocol && entry.guest == to => {
                Some(Guestside::Host(*host))
            }
            Kind::ToUnix { path, .. } if protocol == Protocol::Tcp && entry.guest == to => {
                Some(Guestside::Unix(path.clone()))
            }
            _ => None,
        })
    }

    /// Calls `watch` with each listener that is new. One that cannot be watched is there and does nothing.
    pub fn fresh(&self, mut watch: impl FnMut(u32, &Listener)) {
        let mut table = self.table();
        for id in std::mem::take(&mut table.fresh) {
            if let Some(entry) = table.entries.get(&id) {
                watch(id, &entry.listener);
            }
        }
    }

    /// Calls `with` with a listener, and the address in the guest that it leads to.
    pub fn with<T>(&self, id: u32, with: impl FnOnce(&Listener, SocketAddr) -> T) -> Option<T> {
        self.table().entries.get(&id).map(|entry| with(&entry.listener, entry.guest))
    }

    /// Those that listen.
    pub fn listeners(&self) -> Vec<u32> {
        let table = self.table();
        let listens = |entry: &Entry| !matches!(entry.listener, Listener::None);
        table.entries.iter().filter(|(_, entry)| listens(entry)).map(|(id, _)| *id).collect()
    }

    /// The network is gone, and with it all forwards.
    pub fn close(&self) {
        let mut table = self.table();
        table.closed = true;
        table.entries.clear();
        table.fresh.clear();
    }
}

/// Forwards have numbers below this.
pub(super) const ID_LIMIT: u32 = 1 << 20;

fn protocol(forward: &Forward) -> Protocol {
    match forward.0 {
        Kind::Udp { .. } | Kind::ToHost { protocol: Protocol::Udp, .. } => Protocol::Udp,
        _ => Protocol::Tcp,
    }
}

/// Makes a unix socket. One that was left behind, and that nobody listens at, makes way.
fn listen(path: &Path) -> io::Result<Listener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && abandoned(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    let file = fs::symlink_metadata(path)?;
    let _file = SocketFile { path: path.to_owned(), device: file.dev(), inode: file.ino() };
    listener.set_nonblocking(true)?;
    Ok(Listener::Unix { listener, _file })
}

fn abandoned(path: &Path) -> bool {
    let socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = || UnixStream::connect(path).map_err(|error| error.kind());
    socket && refused().is_err_and(|kind| kind == io::ErrorKind::ConnectionRefused)
}

/// A socket's file, which goes with the socket unless it has become another's.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = |file: fs::Metadata| (file.dev(), file.ino()) == (self.device, self.inode);
        if fs::symlink_metadata(&self.path).is_ok_and(same) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
