//! What sockets a machine is to have, in a sentence.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Settings;
use super::handle::Shared;
use super::open::OpenVsock;
use crate::sys::unix::LONGEST_PATH;

/// Why the host side of a device could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The options make no sense, or contradict each other.
    #[error("{0}")]
    Config(String),
    /// The name of a socket, or the longest that a convention makes of it, is longer than the system takes.
    #[error(
        "cannot have a unix socket at {}: its path has {} bytes, and this system takes at most {limit}",
        path.display(), path.as_os_str().len()
    )]
    PathTooLong {
        /// Which one.
        path: PathBuf,
        /// Most bytes of a path.
        limit: usize,
    },
    /// Somebody listens there.
    #[error("cannot listen at {}: it is in use", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// There is something else that nobody said could be removed.
    #[error("cannot listen at {}: there is {what} already", path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// The host refused something.
    #[error("cannot {what} {}: {source}", path.display())]
    Host {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the host answered.
        source: io::Error,
    },
    /// The host has no descriptor left to be told by that there is something to do.
    #[error("cannot make a notifier for sockets of a guest: {0}")]
    NoNotifier(io::Error),
}

/// The CID of a guest that nobody has said more about: the first that may be a guest's.
const CID: u32 = 3;
/// Most connections, unless said otherwise …
const CONNECTIONS: usize = 8192;
/// … and the most that can be said.
const MOST_CONNECTIONS: usize = 65_536;
const BUFFER: u32 = 256 << 10;
/// Less than a page for a connection would be all overhead.
const LEAST_BUFFER: u32 = 4 << 10;
const MEMORY: usize = 64 << 20;

/// The sockets that a machine is to have.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// use hyperkit::vsock::Vsock;
///
/// let vsock = Vsock::new()
///     .hyperkit(dir)                       // at `connect` and `00000002.*` in this folder,
///     .hyperkit_forward(2376)              // and at `guest.00000948` for port 2376;
///     .hybrid(dir.join("vsock"))           // at `vsock` and `vsock_*`, as Firecracker has it;
///     .guest_port(22, dir.join("ssh"))     // at `ssh`, for port 22 of the guest;
///     .host_port(514, dir.join("syslog"))  // and port 514 of the host is whoever listens at `syslog`
///     .open()?;                            // which a machine does when it is built
/// assert!(dir.join("guest.00000948").exists());
///
/// let other = Vsock::new().guest_port(80, dir.join("ssh")).open();
/// assert!(other.unwrap_err().to_string().ends_with("ssh: it is in use"));
///
/// drop(vsock);
/// assert!(!dir.join("ssh").exists());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "sockets are of no use until a machine has them"]
pub struct Vsock {
    pub(super) cid: u32,
    connections: usize,
    buffer: u32,
    memory: usize,
    pub(super) hyperkit: Option<PathBuf>,
    pub(super) forwards: Vec<u32>,
    pub(super) hybrid: Option<PathBuf>,
    pub(super) guest_ports: Vec<(u32, PathBuf)>,
    pub(super) host_ports: Vec<(u32, PathBuf)>,
}

impl Default for Vsock {
    fn default() -> Self {
        Self {
            cid: CID,
            connections: CONNECTIONS,
            buffer: BUFFER,
            memory: MEMORY,
            hyperkit: None,
            forwards: Vec::new(),
            hybrid: None,
            guest_ports: Vec::new(),
            host_ports: Vec::new(),
        }
    }
}

impl Vsock {
    /// Sockets for this program alone: see [`VsockHandle`](super::VsockHandle). Others can be let in by one or more of
    /// the conventions below. Socket files are made for their owner only, whatever the umask, and removed at the end;
    /// what a process that died has left of them is taken over.
    pub fn new() -> Self {
        Self::default()
    }

    /// The guest's context ID, 3 to `0xffff_fffe`; 3 if nothing is said.
    pub fn cid(mut self, cid: u32) -> Self {
        self.cid = cid;
        self
    }

    /// Most connections at a time, up to 65,536; 8,192 if nothing is said.
    ///
    /// Each needs a descriptor of this process (RLIMIT_NOFILE), and one more if this program has its other end. An eighth of
    /// what the process may have when the sockets are opened the guest does not get: what it asks for is refused then.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// Most bytes that the guest may send ahead on a connection while the host does not take them, at least 4 KiB;
    /// 256 KiB if nothing is said.
    pub fn buffer(mut self, bytes: u32) -> Self {
        self.buffer = bytes;
        self
    }

    /// Most bytes that are held for the host on all connections together, at least those of one; 64 MiB if nothing is
    /// said. The more connections there are, the less each of them gets.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = bytes;
        self
    }

    /// HyperKit's convention, in the folder `dir`.
    ///
    /// Programs of the host connect to `DIR/connect` and say where to in 18 bytes, the guest's CID and port in
    /// hexadecimal: `00000003.0000f3a5\n`. Nothing is answered; a connection that the guest refuses is closed.
    ///
    /// When the guest connects to a port of the host, whoever listens at `DIR/00000002.<port>` gets the connection,
    /// with the port as eight hexadecimal digits in lower case.
    pub fn hyperkit(mut self, dir: impl Into<PathBuf>) -> Self {
        self.hyperkit = Some(dir.into());
        self
    }

    /// With [`hyperkit`](Self::hyperkit): a socket `DIR/<cid>.<port>`, with a symbolic link `DIR/guest.<port>` to it,
    /// whose connections go to this port of the guest. Any number of them.
    pub fn hyperkit_forward(mut self, port: u32) -> Self {
        self.forwards.push(port);
        self
    }

    /// The convention of Firecracker and Cloud Hypervisor, which they call a hybrid vsock, at `path`.
    ///
    /// Programs of the host connect to `PATH` and say which port of the guest they want, `CONNECT <port>\n`, in
    /// decimal. Once the guest has accepted they read `OK <port>\n`, with the port that the connection has on the
    /// host. A connection that the guest refuses is closed.
    ///
    /// When the guest connects to a port of the host, whoever listens at `PATH_<port>`, in decimal, gets the
    /// connection.
    pub fn hybrid(mut self, path: impl Into<PathBuf>) -> Self {
        self.hybrid = Some(path.into());
        self
    }

    /// A socket at `path`, made by this program: whoever connects to it is connected to this port of the guest. Any
    /// number of them.
    ///
    /// It is `virtio-vsock,port=PORT,socketURL=PATH,connect` of vfkit and krunkit, which say what becomes of the
    /// port: the host connects to it.
    pub fn guest_port(mut self, port: u32, path: impl Into<PathBuf>) -> Self {
        self.guest_ports.push((port, path.into()));
        self
    }

    /// A socket at `path`, made by another program: when the guest connects to this port of the host, whoever listens
    /// there gets the connection. It need not be there before the guest connects. Any number of them.
    ///
    /// It is `virtio-vsock,port=PORT,socketURL=PATH,listen` of vfkit and krunkit, or without `listen`: the host listens
    /// on the port.
    pub fn host_port(mut self, port: u32, path: impl Into<PathBuf>) -> Self {
        self.host_ports.push((port, path.into()));
        self
    }

    /// Makes the sockets. A machine does this when it is built; connections wait until it runs.
    pub fn open(self) -> Result<OpenVsock, Error> {
        let settings = self.settings()?;
        let shared = Shared::new(self.cid).map_err(Error::NoNotifier)?;
        OpenVsock::new(self, settings, Arc::new(shared))
    }

    fn settings(&self) -> Result<Settings, Error> {
        let wrong = |what: String| Err(Error::Config(what));
        let &Self { cid, connections, buffer, memory, .. } = self;
        if !(CID..u32::MAX).contains(&cid) {
            return wrong(format!("a guest's CID is 3 to 0xfffffffe, not {cid:#x}"));
        }
        if !(1..=MOST_CONNECTIONS).contains(&connections) {
            return wrong(format!(
                "a guest has 1 to {MOST_CONNECTIONS} connections, not {connections}"
            ));
        }
        if buffer < LEAST_BUFFER {
            return wrong(format!(
                "a connection's buffer has at least {LEAST_BUFFER} bytes, not {buffer}"
            ));
        }
        if memory < buffer as usize {
            return wrong(format!(
                "the connections of a guest need the memory of one at least: {buffer} bytes, not {memory}"
            ));
        }
        if let (None, Some(port)) = (&self.hyperkit, self.forwards.first()) {
            return wrong(format!(
                "a forward by HyperKit's convention, here to port {port}, needs its folder: call `hyperkit`"
            ));
        }
        let empty = |path: &Path| path.as_os_str().is_empty();
        if self.hybrid.as_deref().is_some_and(empty) {
            return wrong("the path of `hybrid` is empty".into());
        }
        for (ports, side) in [(&self.guest_ports, "guest"), (&self.host_ports, "host")] {
            if let Some((port, _)) = ports.iter().find(|(_, path)| empty(path)) {
                return wrong(format!(
                    "the path of the socket for port {port} of the {side} is empty"
                ));
            }
        }
        let mut ports: Vec<u32> = self.host_ports.iter().map(|&(port, _)| port).collect();
        ports.sort_unstable();
        if let Some(&[port, ..]) = ports.windows(2).find(|pair| pair.first() == pair.last()) {
            return wrong(format!("two sockets were named for the same port of the host, {port}"));
        }
        Ok(Settings { cid: cid.into(), connections, buffer, memory })
    }
}

/// Whether `path` can be a socket's.
pub(super) fn check_path(path: &Path) -> Result<(), Error> {
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(Error::PathTooLong { path: path.to_owned(), limit: LONGEST_PATH });
    }
    Ok(())
}
