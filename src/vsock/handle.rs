//! What a Rust program has of the sockets of its machine.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::listener::{Backlog, VsockListener};
use super::stream::{Connection, VsockSeqPacket, VsockStream};
use super::{Answer, Call, Counters, Dial, Kind, Tally, Want};
use crate::sys::{Notifier, unix};

/// How long a guest has to accept, and a program of the host to say where to, unless said otherwise.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Longer than this nobody waits, and no clock overflows.
const LONGEST_PATIENCE: Duration = Duration::from_secs(1 << 30);

/// Connections that programs may ask for before the device takes notice.
const MOST_CALLS: usize = 1024;

/// A handle on the sockets between host and guest. Copies are handles on the same ones; it may outlive the machine.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// # let vsock = hyperkit::vsock::Vsock::new().open().unwrap().handle();
/// use std::io::{BufRead, BufReader};
///
/// // Programs in the guest connect to CID 2, port 514.
/// let listener = vsock.listen(514)?;
/// for connection in listener.incoming() {
///     for line in BufReader::new(connection?).lines() {
///         println!("guest: {}", line?);
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct VsockHandle(pub(super) Arc<Shared>);

/// What handles, listeners and the device's thread share.
pub(super) struct Shared {
    pub cid: u32,
    pub tally: Arc<Tally>,
    /// Set when there is something for the device's thread in the state.
    pub wake: Notifier,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Connections that were asked for.
    calls: Vec<Call>,
    /// Every connection is to end.
    reset: bool,
    /// There is no machine, or none any more: what programs are told then.
    gone: Option<&'static str>,
    /// Ports of the host that this program listens on.
    listeners: HashMap<(Kind, u32), Arc<Backlog>>,
}

impl State {
    /// An error, if there is no machine.
    fn alive(&self) -> io::Result<()> {
        match self.gone {
            Some(why) => Err(io::Error::new(io::ErrorKind::NotConnected, why)),
            None => Ok(()),
        }
    }
}

impl Shared {
    pub fn new(cid: u32) -> io::Result<Self> {
        let (wake, state) = (Notifier::new()?, Mutex::default());
        Ok(Self { cid, tally: Arc::default(), wake, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the device what is wanted of the guest.
    pub fn take(&self, wants: &mut Vec<Want>) {
        self.wake.clear();
        let mut state = self.state();
        if std::mem::take(&mut state.reset) {
            wants.push(Want::TransportReset);
        }
        wants.extend(state.calls.drain(..).map(Want::Connect));
    }

    /// Takes a port for a listener.
    pub fn listen(&self, kind: Kind, port: u32, backlog: &Arc<Backlog>) -> io::Result<()> {
        let mut state = self.state();
        state.alive()?;
        match state.listeners.entry((kind, port)) {
            Entry::Occupied(_) => {
                let why = format!("this program listens on port {port} already");
                Err(io::Error::new(io::ErrorKind::AddrInUse, why))
            }
            Entry::Vacant(place) => {
                place.insert(backlog.clone());
                Ok(())
            }
        }
    }

    /// Gives a listener's port back.
    pub fn close(&self, kind: Kind, port: u32) {
        self.state().listeners.remove(&(kind, port));
    }

    /// Gives a connection of the guest to whoever listens in this program.
    pub fn dial(&self, kind: Kind, port: u32, from: u32) -> Option<Dial> {
        // The lock is held on: a listener that is dropped after this drops what waits.
        let state = self.state();
        state.listeners.get(&(kind, port)).map(|backlog| backlog.offer(kind, from))
    }

    /// The machine has ended, and nobody waits for it any more.
    pub fn end(&self) {
        let mut state = self.state();
        state.gone = Some(ENDED);
        state.calls.clear();
        for (_, backlog) in state.listeners.drain() {
            backlog.end();
        }
    }

    /// Asks for a connection, and waits for it: this end of it, and the port that it has on the host.
    fn call(&self, kind: Kind, port: u32, timeout: Duration) -> io::Result<(OwnedFd, u32)> {
        let (socket, theirs) = unix::pair(kind.socket_type()).map_err(|error| kind.none(error))?;
        let (reply, answer) = sync_channel(1);
        let now = Instant::now();
        let until = now + timeout.min(LONGEST_PATIENCE);
        {
            let mut state = self.state();
            state.alive()?;
            if state.calls.len() >= MOST_CALLS {
                // Whoever asked for these has given up.
                state.calls.retain(|call| call.until > now);
            }
            if state.calls.len() >= MOST_CALLS {
                let why = "too many connections to the guest are under way";
                return Err(io::Error::new(io::ErrorKind::WouldBlock, why));
            }
            let answer = Answer::Reply(reply);
            state.calls.push(Call { socket, kind, port, until, answer });
        }
        self.wake.notify();
        match answer.recv_timeout(until.saturating_duration_since(now)) {
            Ok(answer) => Ok((theirs, answer?)),
            Err(RecvTimeoutError::Timeout) => {
                let why = format!("the guest has not answered on port {port}");
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.state().alive()?;
                let why = "the guest has reset its device";
                Err(io::Error::new(io::ErrorKind::ConnectionReset, why))
            }
        }
    }
}

impl Kind {
    /// Why there is no socket of this kind.
    fn none(self, error: io::Error) -> io::Error {
        match (self, error.raw_os_error()) {
            (Self::SeqPacket, Some(libc::EPROTONOSUPPORT | libc::EPROTOTYPE)) => {
                let why = "this system has no sockets for messages";
                io::Error::new(io::ErrorKind::Unsupported, why)
            }
            _ => error,
        }
    }
}

/// What a program is told once there is no machine any more.
const ENDED: &str = "the machine has ended";

pub(super) fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, ENDED)
}

impl VsockHandle {
    /// What a machine without a socket device has.
    pub(crate) fn absent() -> io::Result<Self> {
        let shared = Shared::new(0)?;
        let why = "the machine has no socket device: give its builder a `vsock`";
        shared.state().gone = Some(why);
        Ok(Self(Arc::new(shared)))
    }

    /// The guest's context ID.
    pub fn cid(&self) -> u32 {
        self.0.cid
    }

    /// Connects to a port of the guest, and waits up to ten seconds for that.
    ///
    /// Errors are of kind `ConnectionRefused` if nobody listens there, `TimedOut` if the guest does not answer, which
    /// is the case before it has booted, `ConnectionReset` if it resets its device meanwhile, and `NotConnected` once
    /// the machine has ended.
    pub fn connect(&self, port: u32) -> io::Result<VsockStream> {
        self.connect_timeout(port, PATIENCE)
    }

    /// [Connects](Self::connect) to a port of the guest, and waits up to `timeout` for that.
    pub fn connect_timeout(&self, port: u32, timeout: Duration) -> io::Result<VsockStream> {
        let (socket, local) = self.0.call(Kind::Stream, port, timeout)?;
        Ok(VsockStream::new(Connection::new(socket, local, port)))
    }

    /// [Connects](Self::connect) to a port of the guest for messages. An error of kind `Unsupported` if the guest, or
    /// the host's system, has none.
    pub fn connect_seqpacket(&self, port: u32) -> io::Result<VsockSeqPacket> {
        let (socket, local) = self.0.call(Kind::SeqPacket, port, PATIENCE)?;
        Ok(VsockSeqPacket::new(Connection::new(socket, local, port)))
    }

    /// Listens on a port of the host. It goes before any unix socket that has this port. Up to 128 connections wait to
    /// be accepted; more are refused.
    ///
    /// Errors are of kind `AddrInUse` if a listener of this handle or a copy has the port, and `NotConnected` once the
    /// machine has ended.
    pub fn listen(&self, port: u32) -> io::Result<VsockListener> {
        VsockListener::new(&self.0, Kind::Stream, port, VsockStream::new)
    }

    /// [Listens](Self::listen) on a port of the host for connections that carry messages. An error of kind
    /// `Unsupported` if the host's system has none.
    pub fn listen_seqpacket(&self, port: u32) -> io::Result<VsockListener<VsockSeqPacket>> {
        unix::pair(Kind::SeqPacket.socket_type()).map_err(|error| Kind::SeqPacket.none(error))?;
        VsockListener::new(&self.0, Kind::SeqPacket, port, VsockSeqPacket::new)
    }

    /// What was done so far. Counts that are read while packets pass need not belong to the same instant.
    pub fn counters(&self) -> Counters {
        self.0.tally.read()
    }

    /// Ends all connections, and tells the guest that the transport was reset (§5.10.6.7), as is due after its state
    /// was restored from elsewhere. Returns at once.
    pub fn reset_transport(&self) {
        self.0.state().reset = true;
        self.0.wake.notify();
    }
}

impl fmt::Debug for VsockHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockHandle")
            .field("cid", &self.cid())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
