//! Peers that speak QEMU's stream protocol: passt, gvproxy, socket_vmnet, and QEMU itself.
//!
//! Over a stream socket, each frame goes after its length, 32 bits with the highest first. Nothing else is said.

mod inbox;
pub(super) mod link;
#[cfg(test)]
pub(super) mod rig;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use self::link::{Heard, Link, Protocol};
use super::reconnect::Target;
use super::{Header, NetBackend, Offloads, Properties, Wake};
use crate::memory::Buffers;
use crate::virtio::{HostEvent, Sources};

/// The MTU of a peer that nobody has said more about.
pub(super) const MTU: u16 = 1500;

/// The host side of a card whose peer speaks QEMU's stream protocol.
///
/// A peer that is not there, or goes away, is looked for again: after 100 ms at first, every five seconds at last.
/// Until it is found the card's link is down.
pub struct Stream(Link<Qemu>);

impl Stream {
    /// A peer that listens on a unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::new(Target::Unix(path.into()))
    }

    /// A peer that listens on a TCP port.
    pub fn tcp(address: SocketAddr) -> Self {
        Self::new(Target::Tcp(address))
    }

    /// A peer at the other end of a connected stream socket. Once it has gone the link stays down.
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self::new(Target::Given(Some(socket)))
    }

    /// The largest packet that the peer is known to take; 1500 bytes if nothing is said.
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.0.protocol.mtu = mtu;
        self
    }

    fn new(target: Target) -> Self {
        Self(Link::new(target, Qemu { mtu: MTU }))
    }
}

struct Qemu {
    mtu: u16,
}

impl Protocol for Qemu {
    const PREFIX: usize = 4;
    const NAME: &'static str = "stream";

    fn decode(prefix: [u8; 4]) -> usize {
        usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX)
    }

    fn encode(length: usize) -> [u8; 4] {
        (length as u32).to_be_bytes()
    }

    fn properties(&self) -> Properties {
        Properties { mac: None, mtu: self.mtu, offloads: Offloads::empty(), queues: 1 }
    }

    fn greet(&mut self, _: &mut Vec<u8>) -> bool {
        false
    }

    fn hear(&mut self, _: &[u8], _: &mut Vec<u8>) -> Result<Heard, String> {
        Ok(Heard::All(0))
    }
}

/// Makes a type around a [`Link`] a host side.
macro_rules! backend_of_link {
    ($name:ident) => {
        impl NetBackend for $name {
            fn name(&self) -> &str {
                self.0.name()
            }

            fn properties(&self) -> Properties {
                self.0.protocol.properties()
            }

            fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
                self.0.start(sources)
            }

            fn send(
                &mut self,
                _queue: u16,
                _header: &Header,
                frame: Buffers<'_>,
                sources: Sources<'_>,
            ) -> io::Result<()> {
                self.0.send(frame, sources)
            }

            fn receive(
                &mut self,
                _queue: u16,
                header: &mut Header,
                space: Buffers<'_>,
                sources: Sources<'_>,
            ) -> io::Result<usize> {
                *header = Header::default();
                self.0.receive(space, sources)
            }

            fn host_ready(&mut self, event: HostEvent, sources: Sources<'_>) -> Wake {
                self.0.host_ready(event, sources)
            }

            fn deadline(&self) -> Option<Instant> {
                self.0.deadline()
            }

            fn timer(&mut self, sources: Sources<'_>) -> Wake {
                self.0.timer(sources)
            }

            fn link(&self) -> bool {
                self.0.is_up()
            }
        }
    };
}
pub(super) use backend_of_link;

backend_of_link!(Stream);
