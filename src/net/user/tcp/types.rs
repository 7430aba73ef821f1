//! What whoever uses connections has to know of them.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::net::MacAddr;

/// What connections have to keep to.
#[derive(Debug, Clone)]
pub(in crate::net::user) struct Config {
    /// The largest IP packet on the link to the guest.
    pub mtu: u16,
    /// Connections at a time, 65,536 at most; one more takes the place of the one that was idle longest.
    pub max_flows: usize,
    /// Connections at a time that are not established yet.
    pub max_half_open: usize,
    /// Bytes of memory for what one side has sent and the other has not taken.
    pub memory: usize,
    /// For how long an established connection may be silent.
    pub idle: Duration,
    /// For how long a connection may take to be established.
    pub half_open: Duration,
    /// For how long a connection may be silent that one side has ended.
    pub half_closed: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mtu: 1500,
            max_flows: 4096,
            max_half_open: 512,
            memory: 64 << 20,
            idle: Duration::from_secs(2 * 60 * 60),
            half_open: Duration::from_secs(60),
            half_closed: Duration::from_secs(60),
        }
    }
}

/// Where a new connection of the guest goes.
#[derive(Debug)]
pub(in crate::net::user) enum Route {
    /// To an address, as the host reaches it.
    Host(SocketAddr),
    /// To a unix socket.
    Unix(PathBuf),
    /// To whoever has the other half of this.
    Stream(UnixStream),
    /// Nowhere, and the guest is told so.
    Refuse,
    /// Nowhere, and nobody is told.
    Drop,
}

/// A connection of the host.
#[derive(Debug)]
pub(in crate::net::user) enum HostStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Who is on the two ends of the link.
#[derive(Debug, Clone, Copy)]
pub(in crate::net::user) struct Link {
    /// Where frames come from.
    pub ours: MacAddr,
    /// Where they go.
    pub guest: MacAddr,
}

/// A connection of the guest that the host's network could not make: something for an ICMP message.
#[derive(Debug)]
pub(in crate::net::user) struct Unreachable {
    pub guest: SocketAddr,
    pub remote: SocketAddr,
    /// The sequence number of the guest's SYN.
    pub sequence: u32,
    /// Such as [`io::ErrorKind::HostUnreachable`].
    pub kind: io::ErrorKind,
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::net::user) struct TcpCounters {
    /// Connections there are now.
    pub flows: usize,
    /// Connections that the guest opened …
    pub opened: u64,
    /// … and that the host did.
    pub accepted: u64,
    /// Connections of the guest that were refused or could not be made.
    pub refused: u64,
    /// Connections that made room for others.
    pub evicted: u64,
    /// Connections that were silent for too long, or stopped answering.
    pub timed_out: u64,
    /// Connections that either side reset.
    pub reset: u64,
    /// Frames that were sent to the guest again.
    pub retransmitted: u64,
    /// Packets of the guest that were malformed or out of place.
    pub dropped: u64,
    /// Bytes that the host's sockets took from the guest …
    pub bytes_out: u64,
    /// … and the guest from them.
    pub bytes_in: u64,
}
