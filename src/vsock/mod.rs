//! Sockets between host and guest: what is behind a virtio-vsock device.
//!
//! Programs in the guest connect to ports of the host, context ID (CID) 2, and programs of the host to ports of the
//! guest, which has a CID of its own. This module is the host's side of it. In a Rust program that has the machine
//! that is a [`VsockHandle`]; for any other program it is unix sockets, by three conventions, all at once if need be:
//!
//! | convention | the host connects to guest port P | the guest connects to host port P |
//! |---|---|---|
//! | [HyperKit](Vsock::hyperkit) | `DIR/connect`, saying CID and P in hexadecimal, or `DIR/guest.P` | `DIR/00000002.P` |
//! | [Firecracker, Cloud Hypervisor](Vsock::hybrid) | `PATH`, saying `CONNECT P` | `PATH_P` |
//! | [vfkit](Vsock::guest_port), krunkit | a socket for each port | [a socket for each port](Vsock::host_port) |
//!
//! Whatever the way, a connection is a unix socket in the end, which the device reads and writes without blocking. A
//! Rust program has the other end of a pair of them.
//!
//! ```no_run
//! use std::io::{Read, Write};
//! use hyperkit::vsock::Vsock;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vsock = Vsock::new().hybrid("/run/machine/vsock").open()?;
//! let handle = vsock.handle();
//! // … the machine that has it runs …
//! let mut agent = handle.connect(1024)?;
//! agent.write_all(b"uptime\n")?;
//! let mut answer = String::new();
//! agent.read_to_string(&mut answer)?;
//! # Ok(()) }
//! ```

mod bound;
mod handle;
mod handshake;
mod listener;
mod open;
mod spec;
mod stream;
mod tally;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use rustix::net::SocketType;

pub use handle::VsockHandle;
pub use listener::{Incoming, VsockListener};
pub use open::OpenVsock;
pub use spec::{Error, Vsock};
pub use stream::{VsockSeqPacket, VsockStream};
pub use tally::Counters;
pub(crate) use tally::Tally;

/// What a connection carries (§5.10.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Bytes, VIRTIO_VSOCK_TYPE_STREAM.
    Stream,
    /// Messages, VIRTIO_VSOCK_TYPE_SEQPACKET.
    SeqPacket,
}

impl Kind {
    /// The unix sockets that carry the same.
    fn socket_type(self) -> SocketType {
        match self {
            Self::Stream => SocketType::STREAM,
            Self::SeqPacket => SocketType::SEQPACKET,
        }
    }
}

/// The first number that the host side watches descriptors under; those below are the device's.
pub(crate) const SOURCES: u32 = 1 << 31;

/// What the device is to keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The guest's CID.
    pub cid: u64,
    /// Most connections at a time.
    pub connections: usize,
    /// Most bytes that a connection may hold for the host …
    pub buffer: u32,
    /// … and all of them together.
    pub memory: usize,
}

/// What the host wants of the guest.
#[derive(Debug)]
pub(crate) enum Want {
    /// A connection to one of its ports.
    Connect(Call),
    /// Every connection is to end, and the guest is to be told that the transport was reset (§5.10.6.7).
    TransportReset,
}

/// A connection that somebody on the host has asked for.
#[derive(Debug)]
pub(crate) struct Call {
    /// The host's end, which does not block.
    pub socket: OwnedFd,
    pub kind: Kind,
    /// The guest's port.
    pub port: u32,
    /// When the guest must have answered.
    pub until: Instant,
    pub answer: Answer,
}

/// How whoever asked for a connection learns what became of it. Nothing here blocks. Where nothing is said, the end of
/// the socket is the answer.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Not at all, but for the end of the socket if there is no connection.
    Silent,
    /// A line on the socket.
    Line,
    /// A message to a thread of this process; dropped unsent if the device is reset.
    Reply(SyncSender<io::Result<u32>>),
}

impl Answer {
    /// The guest has accepted, and the connection has this port on the host.
    pub fn accept(self, socket: &OwnedFd, host_port: u32) {
        // In either case there may be nobody left to hear it, as the device will find out.
        match self {
            Self::Silent => {}
            Self::Line => {
                let _ =
                    crate::sys::socket::send_bytes(socket, format!("OK {host_port}\n").as_bytes());
            }
            Self::Reply(reply) => drop(reply.try_send(Ok(host_port))),
        }
    }

    /// There will be no connection. The socket is to be closed after this.
    pub fn refuse(self, why: io::Error) {
        if let Self::Reply(reply) = self {
            // Whoever asked may have given up.
            let _ = reply.try_send(Err(why));
        }
    }
}

/// What became of a connection that the guest asked for.
#[derive(Debug)]
pub(crate) enum Dial {
    /// There it is. The socket does not block.
    Connected(OwnedFd),
    /// Somebody listens, but has too many waiting already: to be asked again a little later.
    Busy,
    /// Nobody is there.
    Refused,
}
