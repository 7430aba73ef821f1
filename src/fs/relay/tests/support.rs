//! A 9P server that a test plays, byte by byte.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::fs::envelope::{Header, RVERSION, TVERSION};
use crate::fs::{RelayTo, Share};
use crate::virtio::p9::P9;
use crate::virtio::p9::tests::driver::{Driver, message};
use crate::virtio::testing::PATIENCE;

/// A place that a server listens at, or not.
pub enum Place {
    Unix { dir: TempDir, listener: Option<UnixListener> },
    Tcp { address: SocketAddr, listener: Option<TcpListener> },
}

/// A connection, at the server's end.
pub struct Peer(pub File);

/// Calls `test` with a server at a unix socket, then with one at a TCP port.
pub fn both(test: fn(&mut Place)) {
    let mut unix = Place::Unix { dir: tempfile::tempdir().unwrap(), listener: None };
    unix.listen();
    test(&mut unix);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    test(&mut Place::Tcp { address, listener: Some(listener) });
}

impl Place {
    fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Unix { dir, .. } => Some(dir.path().join("9p")),
            Self::Tcp { .. } => None,
        }
    }

    /// Somebody listens.
    pub fn listen(&mut self) {
        let path = self.path();
        match self {
            Self::Unix { listener, .. } => *listener = UnixListener::bind(path.unwrap()).ok(),
            Self::Tcp { address, listener } => *listener = TcpListener::bind(*address).ok(),
        }
    }

    /// Nobody listens any more.
    pub fn close(&mut self) {
        if let Some(path) = self.path() {
            std::fs::remove_file(path).unwrap();
        }
        match self {
            Self::Unix { listener, .. } => *listener = None,
            Self::Tcp { listener, .. } => *listener = None,
        }
    }

    /// A driver of a share that is here.
    pub fn driver(&self) -> Driver {
        let to = match self {
            Self::Unix { .. } => RelayTo::unix(self.path().unwrap()),
            Self::Tcp { address, .. } => RelayTo::tcp(*address),
        };
        Driver::new(P9::new(Share::relay("relay", to).open().unwrap()).unwrap())
    }

    /// The next connection.
    pub fn accept(&mut self) -> Peer {
        let fd = match self {
            Self::Unix { listener, .. } => {
                let stream = listener.as_ref().unwrap().accept().unwrap().0;
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                OwnedFd::from(stream)
            }
            Self::Tcp { listener, .. } => {
                let stream = listener.as_ref().unwrap().accept().unwrap().0;
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_nodelay(true).unwrap();
                OwnedFd::from(stream)
            }
        };
        Peer(fd.into())
    }

    /// A session in this dialect, with messages of up to `msize` bytes.
    pub fn session(&mut self, driver: &mut Driver, dialect: &str, msize: u32) -> Peer {
        let version = version(msize, dialect);
        let sent = driver.send(TVERSION, 0xffff, &version);
        let mut peer = self.accept();
        assert_eq!(peer.take(), message(TVERSION, 0xffff, &version));
        peer.send(RVERSION, 0xffff, &version);
        assert_eq!(driver.reply(sent), message(RVERSION, 0xffff, &version));
        peer
    }
}

impl Peer {
    /// The next message.
    pub fn take(&mut self) -> Vec<u8> {
        let mut header = [0; 7];
        self.0.read_exact(&mut header).unwrap();
        let mut message = header.to_vec();
        message.resize(Header::decode(header).size as usize, 0);
        self.0.read_exact(&mut message[7..]).unwrap();
        message
    }

    pub fn send(&mut self, kind: u8, tag: u16, body: &[u8]) {
        self.0.write_all(&message(kind, tag, body)).unwrap();
    }

    /// Waits until the other end has gone.
    pub fn wait_end(mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            // What it had not read is lost on the way.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
}

/// The body of a Tversion or an Rversion.
pub fn version(msize: u32, dialect: &str) -> Vec<u8> {
    let len = dialect.len() as u16;
    [&msize.to_le_bytes()[..], &len.to_le_bytes(), dialect.as_bytes()].concat()
}
