//! What a network card is to be, in a sentence.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::{Datagram, DatagramOptions, MacAddr, NetBackend, Stream, Vpnkit};
use crate::virtio::net::{Card, Features, Options};

/// Why a network card could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The tap.
    #[cfg(target_os = "linux")]
    #[error(transparent)]
    Tap(#[from] super::TapError),
    /// The user-mode network.
    #[cfg(feature = "user-net")]
    #[error(transparent)]
    User(#[from] super::user::Error),
    /// The card itself.
    #[error("cannot make a network card: {0}")]
    Card(io::Error),
}

type Open = Box<dyn FnOnce() -> Result<Box<dyn NetBackend>, Error> + Send>;

/// A network card that a machine is to have, and what is behind it.
///
/// ```no_run
/// # #[cfg(feature = "user-net")]
/// use hyperkit::net::user::Forward;
/// use hyperkit::net::Net;
///
/// # #[cfg(feature = "user-net")]
/// # fn add(builder: hyperkit::VmBuilder) -> hyperkit::VmBuilder {
/// builder
///     .net(Net::user().forward(Forward::tcp(8080, 80)))
///     .net(Net::stream("/run/passt.sock"))
/// # }
/// ```
#[must_use = "a network card does nothing until a machine has it"]
pub struct Net {
    open: Open,
    mac: Option<MacAddr>,
    without: Features,
}

impl Net {
    /// A network made of this process's own sockets: no privilege, no helper, nothing to set up.
    #[cfg(feature = "user-net")]
    pub fn user() -> super::user::UserNet {
        super::user::UserNet::new()
    }

    /// An Ethernet interface of the host's. Linux only.
    #[cfg(target_os = "linux")]
    pub fn tap(name: impl Into<String>) -> Self {
        let name = name.into();
        Self::new(Box::new(move || Ok(Box::new(super::Tap::open(&name, 1)?))))
    }

    /// A peer that speaks QEMU's stream protocol, such as passt or gvproxy, on a unix socket.
    pub fn stream(path: impl Into<PathBuf>) -> Self {
        Stream::unix(path).into()
    }

    /// A peer that takes a frame per datagram, such as gvproxy or vfkit, on a unix socket.
    pub fn datagram(path: impl Into<PathBuf>) -> Self {
        Datagram::unix(path, DatagramOptions::default()).into()
    }

    /// VPNKit, on its Ethernet socket.
    pub fn vpnkit(path: impl Into<PathBuf>) -> Vpnkit {
        Vpnkit::new(path)
    }

    /// A host side of the caller's own.
    pub fn backend(backend: impl NetBackend + 'static) -> Self {
        Self::new(Box::new(move || Ok(Box::new(backend))))
    }

    fn new(open: Open) -> Self {
        Self { open, mac: None, without: Features::empty() }
    }

    /// The card's Ethernet address. The host side's own goes first; without either, one made of the machine's UUID.
    pub fn mac(mut self, mac: MacAddr) -> Self {
        self.mac = Some(mac);
        self
    }

    /// Features that the card is not to offer, though it could.
    pub fn without(mut self, features: Features) -> Self {
        self.without |= features;
        self
    }

    /// Opens what was named, and puts a card in front of it: with the address `mac`, if there is no other.
    pub fn open(self, mac: MacAddr) -> Result<Card, Error> {
        let backend = (self.open)()?;
        let mac = self.mac.unwrap_or(mac);
        Card::new(backend, mac, Options::without(self.without)).map_err(Error::Card)
    }
}

impl<B: NetBackend + 'static> From<B> for Net {
    fn from(backend: B) -> Self {
        Self::backend(backend)
    }
}

#[cfg(feature = "user-net")]
impl From<super::user::UserNet> for Net {
    fn from(net: super::user::UserNet) -> Self {
        Self::new(Box::new(move || Ok(Box::new(net.open()?))))
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Net").field("mac", &self.mac).finish_non_exhaustive()
    }
}
