//! Ports of the host that a Rust program listens on.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::handle::{Shared, ended};
use super::stream::{Connection, VsockStream};
use super::{Dial, Kind};
use crate::sys::{Notifier, unix};

/// Connections that may wait to be accepted; more are refused.
pub(super) const BACKLOG: usize = 128;

/// Connections of the guest that wait for a listener to accept them.
#[derive(Debug)]
pub(super) struct Backlog {
    queue: Mutex<Queue>,
    /// Set while there is something in the queue, or has ended.
    ready: Notifier,
}

#[derive(Debug, Default)]
struct Queue {
    /// The program's ends, and the guest's ports.
    waiting: VecDeque<(OwnedFd, u32)>,
    ended: bool,
}

impl Backlog {
    fn new() -> io::Result<Self> {
        Ok(Self { queue: Mutex::default(), ready: Notifier::new()? })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection from port `from` of the guest.
    pub fn offer(&self, kind: Kind, from: u32) -> Dial {
        let mut queue = self.queue();
        if queue.waiting.len() >= BACKLOG {
            return Dial::Refused;
        }
        match unix::pair(kind.socket_type()) {
            Ok((ours, theirs)) => {
                queue.waiting.push_back((theirs, from));
                self.ready.notify();
                Dial::Connected(ours)
            }
            Err(error) => {
                log::debug!("vsock: a connection from port {from} of the guest: {error}");
                Dial::Refused
            }
        }
    }

    /// There will be no more.
    pub fn end(&self) {
        let mut queue = self.queue();
        queue.ended = true;
        queue.waiting.clear();
        self.ready.notify();
    }

    /// The next one; `WouldBlock` if there is none.
    fn take(&self) -> io::Result<(OwnedFd, u32)> {
        let mut queue = self.queue();
        if queue.ended {
            return Err(ended());
        }
        let next = queue.waiting.pop_front();
        if queue.waiting.is_empty() {
            self.ready.clear();
        }
        next.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }
}

/// A port of the host that the guest can connect to. Dropping it frees the port; connections that wait are reset.
///
/// Its descriptor is readable while connections wait, for `poll`, mio or tokio.
pub struct VsockListener<S = VsockStream> {
    shared: Arc<Shared>,
    kind: Kind,
    port: u32,
    backlog: Arc<Backlog>,
    nonblocking: AtomicBool,
    make: fn(Connection) -> S,
}

impl<S> VsockListener<S> {
    pub(super) fn new(
        shared: &Arc<Shared>,
        kind: Kind,
        port: u32,
        make: fn(Connection) -> S,
    ) -> io::Result<Self> {
        let backlog = Arc::new(Backlog::new()?);
        shared.listen(kind, port, &backlog)?;
        let (shared, nonblocking) = (shared.clone(), AtomicBool::new(false));
        Ok(Self { shared, kind, port, backlog, nonblocking, make })
    }

    /// The next connection, and the guest's port that it comes from. Waits for one as long as the machine is there;
    /// at its end, an error of kind `NotConnected`.
    pub fn accept(&self) -> io::Result<(S, u32)> {
        loop {
            match self.backlog.take() {
                Ok((socket, from)) => {
                    return Ok(((self.make)(Connection::new(socket, self.port, from)), from));
                }
                Err(error)
                    if error.kind() != io::ErrorKind::WouldBlock
                        || self.nonblocking.load(Ordering::Relaxed) =>
                {
                    return Err(error);
                }
                Err(_) => {}
            }
            match poll(&mut [PollFd::new(&self.backlog.ready, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Each connection as it comes. Ends with the machine.
    pub fn incoming(&self) -> Incoming<'_, S> {
        Incoming(self)
    }

    /// Whether [`accept`](Self::accept) gives `WouldBlock` rather than wait.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    /// The port.
    pub fn local_port(&self) -> u32 {
        self.port
    }
}

impl<S> Drop for VsockListener<S> {
    fn drop(&mut self) {
        self.shared.close(self.kind, self.port);
    }
}

impl<S> AsFd for VsockListener<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.backlog.ready.as_fd()
    }
}

impl<S> AsRawFd for VsockListener<S> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl<S> fmt::Debug for VsockListener<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockListener")
            .field("kind", &self.kind)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// The connections that come to a [`VsockListener`].
#[derive(Debug)]
pub struct Incoming<'a, S = VsockStream>(&'a VsockListener<S>);

impl<S> Iterator for Incoming<'_, S> {
    type Item = io::Result<S>;

    fn next(&mut self) -> Option<io::Result<S>> {
        match self.0.accept() {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => None,
            connection => Some(connection.map(|(connection, _)| connection)),
        }
    }
}

impl<'a, S> IntoIterator for &'a VsockListener<S> {
    type Item = io::Result<S>;
    type IntoIter = Incoming<'a, S>;

    fn into_iter(self) -> Incoming<'a, S> {
        self.incoming()
    }
}
