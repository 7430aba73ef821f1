//! Connections of a Rust program to its guest.

use std::fmt;
use std::io::{self, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recvmsg};

use crate::sys::socket;

/// A connection, whatever it carries.
#[derive(Debug)]
pub(super) struct Connection {
    // What is asked of it here, any connected socket can do.
    socket: UnixStream,
    local: u32,
    peer: u32,
}

impl Connection {
    pub fn new(socket: OwnedFd, local: u32, peer: u32) -> Self {
        Self { socket: socket.into(), local, peer }
    }
}

/// A stream of bytes to a program in the guest and back.
///
/// It is a unix socket, whose other end is the device's; readiness of its descriptor is that of the connection, for
/// `poll`, mio or tokio. Closing it ends the connection; [`shutdown`](Self::shutdown) ends one direction.
pub struct VsockStream(Connection);

/// Messages to a program in the guest and back, each of which arrives whole. For systems that have sockets of that
/// kind, which Linux does and macOS does not.
pub struct VsockSeqPacket(Connection);

macro_rules! connection {
    ($name:ident) => {
        impl $name {
            pub(super) fn new(connection: Connection) -> Self {
                Self(connection)
            }

            /// The port that the connection has on the host.
            pub fn local_port(&self) -> u32 {
                self.0.local
            }

            /// The port that it has in the guest.
            pub fn peer_port(&self) -> u32 {
                self.0.peer
            }

            /// Ends one direction, or both. What was written before still arrives.
            pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
                self.0.socket.shutdown(how)
            }

            /// Another handle on the same connection, which ends when all of them are dropped.
            pub fn try_clone(&self) -> io::Result<Self> {
                let Connection { ref socket, local, peer } = self.0;
                Ok(Self(Connection { socket: socket.try_clone()?, local, peer }))
            }

            /// Whether calls that would have to wait give `WouldBlock` instead.
            pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
                self.0.socket.set_nonblocking(nonblocking)
            }

            /// How long reading may wait; `None`, as in the beginning, is for as long as it takes.
            pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                self.0.socket.set_read_timeout(timeout)
            }

            /// How long writing may wait.
            pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                self.0.socket.set_write_timeout(timeout)
            }
        }

        impl AsFd for $name {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.socket.as_fd()
            }
        }

        impl AsRawFd for $name {
            fn as_raw_fd(&self) -> RawFd {
                self.0.socket.as_raw_fd()
            }
        }

        impl From<$name> for OwnedFd {
            fn from(connection: $name) -> Self {
                connection.0.socket.into()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("local_port", &self.0.local)
                    .field("peer_port", &self.0.peer)
                    .finish_non_exhaustive()
            }
        }
    };
}

connection!(VsockStream);
connection!(VsockSeqPacket);

impl Read for &VsockStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&self.0.socket).read(bytes)
    }

    fn read_vectored(&mut self, bytes: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&self.0.socket).read_vectored(bytes)
    }
}

impl Write for &VsockStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        socket::send_bytes(self, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for VsockStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*self).read(bytes)
    }

    fn read_vectored(&mut self, bytes: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(bytes)
    }
}

impl Write for VsockStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl VsockSeqPacket {
    /// Most bytes of a message.
    pub const LONGEST: usize = 64 << 10;

    /// Sends a message of 1 to [`LONGEST`](Self::LONGEST) bytes.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        if message.is_empty() || message.len() > Self::LONGEST {
            let why = format!("a message has 1 to {} bytes", Self::LONGEST);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        socket::send_bytes(self, message).map(drop)
    }

    /// Receives the next message, and tells how long it is; 0 is the end. A message that is longer than `space` is
    /// lost, and an error of kind `InvalidData`.
    pub fn recv(&self, space: &mut [u8]) -> io::Result<usize> {
        loop {
            let (mut pieces, mut nothing) =
                ([IoSliceMut::new(space)], RecvAncillaryBuffer::default());
            match recvmsg(self, &mut pieces, &mut nothing, RecvFlags::empty()) {
                Ok(message) if message.flags.contains(ReturnFlags::TRUNC) => {
                    let why = "the message is longer than there is room for";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
                Ok(message) => return Ok(message.bytes),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
