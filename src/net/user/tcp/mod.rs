//! TCP between the guest and the host's sockets.
//!
//! Every connection of the guest ends here and goes on as a socket of the host; connections of the host go on as
//! connections to the guest. The link to the guest loses nothing by itself and has no bandwidth to share, so there is
//! no congestion control; but the guest may drop what it has no room for, so there is flow control both ways, and
//! what is not acknowledged is sent again.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::memory::Buffers;
use crate::net::{Header, MacAddr, Offloads};
use crate::virtio::{HostEvent, Sources};

/// What connections have to keep to.
#[derive(Debug, Clone)]
pub(super) struct Config {
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
#[derive(Debug, Clone)]
pub(super) enum Route {
    /// To an address, as the host reaches it.
    Host(SocketAddr),
    /// To a unix socket.
    Unix(PathBuf),
    /// Nowhere, and the guest is told so.
    Refuse,
    /// Nowhere, and nobody is told.
    Drop,
}

/// A connection of the host.
#[derive(Debug)]
pub(super) enum HostStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Who is on the two ends of the link.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// Where frames come from.
    pub ours: MacAddr,
    /// Where they go.
    pub guest: MacAddr,
}

/// A connection of the guest that the host's network could not make: something for an ICMP message.
#[derive(Debug)]
pub(super) struct Unreachable {
    pub guest: SocketAddr,
    pub remote: SocketAddr,
    /// The sequence number of the guest's SYN.
    pub sequence: u32,
    /// Such as [`io::ErrorKind::HostUnreachable`].
    pub kind: io::ErrorKind,
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct TcpCounters {
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

/// The connections of one guest.
pub(super) struct Tcp {
    config: Config,
    counters: TcpCounters,
}

impl Tcp {
    /// Without any connection. Host descriptors are registered under `first_token` to `first_token + 0x3fff_ffff`.
    pub fn new(config: Config, first_token: u32) -> Self {
        let _ = first_token;
        Self { config, counters: TcpCounters::default() }
    }

    /// What the driver has negotiated.
    pub fn offloads(&mut self, offloads: Offloads) {
        let _ = offloads;
    }

    /// Takes a packet from the guest: `packet` begins with the TCP header, and its checksum is good. `route` is asked
    /// for new connections only, with `source` and `destination`.
    pub fn packet(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        packet: Buffers<'_>,
        route: &mut dyn FnMut(SocketAddr, SocketAddr) -> Route,
        sources: Sources<'_>,
    ) {
        let _ = (source, destination, packet, route, sources, &self.config);
    }

    /// Carries a connection of the host to `to` in the guest, where it appears to come from `from`; `false`, and the
    /// connection is reset, if there is one between these two already, or no room.
    pub fn accept(
        &mut self,
        stream: HostStream,
        from: SocketAddr,
        to: SocketAddr,
        sources: Sources<'_>,
    ) -> bool {
        let _ = (stream, from, to, sources);
        false
    }

    /// Puts the next frame for the guest into `space`, the Ethernet header first, if there is one.
    pub fn receive(
        &mut self,
        link: &Link,
        header: &mut Header,
        space: Buffers<'_>,
        sources: Sources<'_>,
    ) -> Option<usize> {
        let _ = (link, header, space, sources);
        None
    }

    /// Whether [`receive`](Self::receive) may have a frame.
    pub fn has_frames(&self) -> bool {
        false
    }

    /// A host descriptor may be ready; tells whether there may be frames now.
    pub fn host_ready(&mut self, event: HostEvent, sources: Sources<'_>) -> bool {
        let _ = (event, sources);
        false
    }

    /// When [`timer`](Self::timer) is to be called, if at all.
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// It is `now`, and the deadline may have passed; tells whether there may be frames now.
    pub fn timer(&mut self, now: Instant, sources: Sources<'_>) -> bool {
        let _ = (now, sources);
        false
    }

    /// The next connection of the guest that the host's network could not make. The guest hears of it from whoever
    /// takes it from here, or tries again by itself.
    pub fn unreachable(&mut self) -> Option<Unreachable> {
        None
    }

    /// The guest has gone: all connections are reset.
    pub fn reset(&mut self, sources: Sources<'_>) {
        let _ = sources;
    }

    /// What has happened so far.
    pub fn counters(&self) -> TcpCounters {
        self.counters
    }
}
