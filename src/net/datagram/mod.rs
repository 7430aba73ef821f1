//! Peers that take each frame as a datagram over a unix socket: gvproxy (`-listen-vfkit`), vfkit's and krunkit's.
//!
//! The peer answers to the address it hears from, so there must be one: a socket in a folder of its own. Nothing
//! tells when such a peer has gone, but that it takes no more frames; what the guest sends next finds out.

mod folder;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net::{SocketAddrUnix, SocketType};

use self::folder::Folder;
use super::reconnect::{AGAIN, Backoff, Target};
use super::stream::MTU;
use super::stream::link::LEAST;
use super::{Header, NetBackend, Offloads, Properties, Wake};
use crate::memory::Buffers;
use crate::sys::socket;
use crate::virtio::{HostEvent, Interest, Sources};

const NAME: &str = "datagram";

/// The name of the only descriptor there is.
const SOCKET: u32 = 0;

/// What vfkit introduces itself with.
const MAGIC: &[u8] = b"VFKT";

/// The wait for room that nothing tells of: at first …
const SHORT: Duration = Duration::from_millis(1);
/// … and at last.
const LONG: Duration = Duration::from_millis(16);

/// How to talk to a peer that takes datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramOptions {
    /// Whether the first datagram is to be the four letters `VFKT`, which some peers ask for.
    pub magic: bool,
    /// The largest packet that the peer is known to take.
    pub mtu: u16,
}

impl Default for DatagramOptions {
    fn default() -> Self {
        Self { magic: false, mtu: MTU }
    }
}

/// The host side of a card whose peer takes each frame as a datagram.
///
/// A peer that is not there, or goes away, is looked for again: after 100 ms at first, every five seconds at last.
/// Until it is found the card's link is down.
pub struct Datagram {
    target: Target,
    options: DatagramOptions,
    backoff: Backoff,
    socket: Option<OwnedFd>,
    up: bool,
    /// When to connect again.
    at: Option<Instant>,
    /// The peer was lost in a call that could not say so.
    lost: Option<Instant>,
    /// A frame was lost, and what is behind it is not to wait for more from the peer should the card leave it there.
    again: Option<Instant>,
    /// Waiting until the socket takes more.
    blocked: bool,
    /// Waiting until the system has memory, which it does not tell.
    stalled: Option<Instant>,
    stall: Duration,
    _folder: Option<Folder>,
}

impl Datagram {
    /// A peer whose socket has a path.
    pub fn unix(path: impl Into<PathBuf>, options: DatagramOptions) -> Self {
        Self::new(Target::Unix(path.into()), options)
    }

    /// A peer at the other end of a connected datagram socket. Once it has gone the link stays down.
    pub fn from_fd(socket: OwnedFd, options: DatagramOptions) -> Self {
        Self::new(Target::Given(Some(socket)), options)
    }

    fn new(target: Target, options: DatagramOptions) -> Self {
        Self {
            target,
            options,
            backoff: Backoff::default(),
            socket: None,
            up: false,
            at: None,
            lost: None,
            again: None,
            blocked: false,
            stalled: None,
            stall: SHORT,
            _folder: None,
        }
    }

    fn connect(&mut self, sources: Sources<'_>) {
        self.at = None;
        let Some(socket) = &self.socket else { return };
        let connected = match &self.target {
            Target::Unix(path) => SocketAddrUnix::new(path.as_path())
                .and_then(|address| rustix::net::connect(socket, &address))
                .map_err(io::Error::from),
            _ => Ok(()),
        };
        let greeted = connected.and_then(|()| {
            if self.options.magic { socket::send_bytes(socket, MAGIC).map(drop) } else { Ok(()) }
        });
        match greeted {
            Ok(()) => {
                self.up = true;
                self.backoff.connected(&format_args!("net {NAME}"), &self.target);
            }
            Err(error) => self.fail(&error, sources),
        }
    }

    /// Gives up on the peer, and sees to the next attempt.
    fn fail(&mut self, why: &dyn fmt::Display, sources: Sources<'_>) {
        self.at = self.backoff.failed(&format_args!("net {NAME}"), &self.target, why);
        if std::mem::take(&mut self.up) {
            self.lost = Some(Instant::now());
        }
        self.unblock(sources);
        if self.at.is_none()
            && let Some(socket) = self.socket.take()
        {
            // Closing it ends the watch as well.
            let _ = sources.remove(&socket);
        }
    }

    fn block(&mut self, sources: Sources<'_>) {
        if !self.blocked
            && let Some(socket) = &self.socket
        {
            match sources.change(socket, SOCKET, Interest::READABLE | Interest::WRITABLE) {
                Ok(()) => self.blocked = true,
                Err(error) => self.fail(&error, sources),
            }
        }
    }

    fn unblock(&mut self, sources: Sources<'_>) {
        (self.stalled, self.stall) = (None, SHORT);
        if std::mem::take(&mut self.blocked)
            && let Some(socket) = &self.socket
        {
            // If that fails there are needless wake-ups, and no more.
            let _ = sources.change(socket, SOCKET, Interest::READABLE);
        }
    }

    /// Takes no frames for a while.
    fn stall(&mut self) {
        self.stalled = Some(Instant::now() + self.stall);
        self.stall = self.stall.saturating_mul(2).min(LONG);
    }

    /// Whether there is a link that the card knows of.
    fn before(&self) -> bool {
        self.lost.is_none() && self.up
    }

    /// What has changed since `before`, and in calls that could not say so.
    fn wake(&mut self, before: bool) -> Wake {
        let lost = self.lost.take().is_some();
        let new = self.up && !before;
        Wake { receive: new, send: new, link: lost || new }
    }
}

impl NetBackend for Datagram {
    fn name(&self) -> &str {
        NAME
    }

    fn properties(&self) -> Properties {
        let mtu = self.options.mtu;
        Properties { mac: None, mtu, offloads: Offloads::empty(), queues: 1 }
    }

    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        let socket = match &mut self.target {
            Target::Given(fd) => {
                let Some(fd) = fd.take() else { return Ok(()) };
                socket::adopt(&fd, SocketType::DGRAM)?;
                fd
            }
            _ => {
                let folder = Folder::new()?;
                let socket = socket::bind_datagram(&folder.file())?;
                self._folder = Some(folder);
                socket
            }
        };
        sources.add(&socket, SOCKET, Interest::READABLE)?;
        self.socket = Some(socket);
        self.connect(sources);
        Ok(())
    }

    fn send(
        &mut self,
        _queue: u16,
        _header: &Header,
        frame: Buffers<'_>,
        sources: Sources<'_>,
    ) -> io::Result<()> {
        let (true, Some(socket)) = (self.up, &self.socket) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if self.blocked || self.stalled.is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if frame.total() < LEAST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match socket::send_datagram(socket, frame) {
            Ok(()) => {
                self.stall = SHORT;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.block(sources);
                Err(error)
            }
            Err(error) if socket::is_short_of_memory(&error) => {
                self.stall();
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(error) => {
                if !socket::is_too_large(&error) {
                    self.fail(&error, sources);
                }
                Err(error)
            }
        }
    }

    fn receive(
        &mut self,
        _queue: u16,
        header: &mut Header,
        space: Buffers<'_>,
        sources: Sources<'_>,
    ) -> io::Result<usize> {
        let (true, Some(socket)) = (self.up, &self.socket) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        *header = Header::default();
        self.again = None;
        match socket::receive(socket, space, 0) {
            Ok(frame) if frame.cut || frame.len < LEAST => {
                self.again = Some(Instant::now() + AGAIN);
                Err(io::ErrorKind::InvalidData.into())
            }
            Ok(frame) => Ok(frame.len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(error) => {
                self.fail(&error, sources);
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }

    fn host_ready(&mut self, event: HostEvent, sources: Sources<'_>) -> Wake {
        let before = self.before();
        let unblocked = event.writable && self.blocked;
        if unblocked {
            self.unblock(sources);
        }
        let wake = self.wake(before);
        Wake {
            receive: wake.receive || self.up && event.readable,
            send: wake.send || self.up && unblocked,
            link: wake.link,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        [self.lost, self.at, self.again, self.stalled].into_iter().flatten().min()
    }

    fn timer(&mut self, sources: Sources<'_>) -> Wake {
        let (before, now) = (self.before(), Instant::now());
        if self.at.is_some_and(|at| at <= now) {
            self.connect(sources);
        }
        let rested = self.stalled.take_if(|until| *until <= now).is_some();
        let again = self.again.take_if(|until| *until <= now).is_some();
        let mut wake = self.wake(before);
        wake.send |= rested && self.up;
        wake.receive |= again && self.up;
        wake
    }

    fn link(&self) -> bool {
        self.up
    }
}
