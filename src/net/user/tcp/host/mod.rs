//! The socket behind a connection.

#[cfg_attr(target_os = "macos", path = "macos.rs")]
#[cfg_attr(not(target_os = "macos"), path = "linux.rs")]
mod platform;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvFlags, sockopt};

use super::HostStream;
use crate::memory::Buffers;
use crate::sys::socket;

/// A stream socket that does not block.
#[derive(Debug)]
pub(super) struct Host {
    fd: OwnedFd,
    is_tcp: bool,
}

impl AsFd for Host {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Host {
    /// Begins to connect.
    pub fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = mio::net::TcpStream::connect(to)?;
        Self { fd: stream.into(), is_tcp: true }.prepared()
    }

    /// Begins to connect to a unix socket.
    pub fn connect_unix(to: &Path) -> io::Result<Self> {
        let stream = mio::net::UnixStream::connect(to)?;
        Self { fd: stream.into(), is_tcp: false }.prepared()
    }

    /// Takes a connection over.
    pub fn adopt(stream: HostStream) -> io::Result<Self> {
        let host = match stream {
            HostStream::Tcp(stream) => Self { fd: stream.into(), is_tcp: true },
            HostStream::Unix(stream) => Self { fd: stream.into(), is_tcp: false },
        };
        rustix::io::ioctl_fionbio(&host.fd, true)?;
        host.prepared()
    }

    fn prepared(self) -> io::Result<Self> {
        socket::make_silent(&self.fd)?;
        if self.is_tcp {
            // The guest has decided already what is worth a segment.
            sockopt::set_tcp_nodelay(&self.fd, true)?;
            sockopt::set_socket_keepalive(&self.fd, true)?;
            // Urgent data is data: left out of the stream, it would make holes where it is peeked at.
            sockopt::set_socket_oobinline(&self.fd, true)?;
        }
        Ok(self)
    }

    /// Whether the connection is there, or why it is not.
    pub fn connected(&self) -> io::Result<bool> {
        socket::connected(&self.fd)
    }

    /// Sends once, maybe less than all.
    pub fn send(&self, from: Buffers<'_>) -> io::Result<usize> {
        socket::send_buffers(&self.fd, from)
    }

    /// Sends once, maybe less than all.
    pub fn send_bytes(&self, bytes: &[u8]) -> io::Result<usize> {
        socket::send_bytes(&self.fd, bytes)
    }

    /// Receives once, and leaves it there if it is to be seen again; 0 is the end.
    pub fn peek(&self, into: Buffers<'_>) -> io::Result<usize> {
        Ok(socket::receive(&self.fd, into, libc::MSG_PEEK)?.len)
    }

    /// Receives once; 0 is the end.
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        let count = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.fd, &mut *into, RecvFlags::empty()).map(|(count, _)| count)
        })?;
        Ok(count)
    }

    /// Whether [`peek`](Self::peek) can begin anywhere, and [`discard`](Self::discard) is there.
    pub fn can_peek_anywhere(&self) -> bool {
        self.is_tcp && platform::peek_from(&self.fd, 0).is_ok()
    }

    /// Where the next peek begins.
    pub fn peek_from(&self, offset: usize) -> io::Result<()> {
        platform::peek_from(&self.fd, offset)
    }

    /// Takes `count` bytes that have been seen out of the socket.
    pub fn discard(&self, mut count: usize) -> io::Result<()> {
        while count > 0 {
            match socket::retry(|| platform::discard(&self.fd, count))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                done => count = count.saturating_sub(done),
            }
        }
        Ok(())
    }

    /// Ends the sending side.
    pub fn shut(&self) {
        // What fails here is a connection that is over, which is found out by reading.
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Write);
    }

    /// Closing is to be a reset, not an end.
    pub fn reset_on_close(&self) {
        if self.is_tcp {
            // There is no other way to say it, and the connection is closed in any case.
            let _ = sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO));
        }
    }
}
