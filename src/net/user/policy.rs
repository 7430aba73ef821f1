//! What the owner of a network has to say about each new flow.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a flow is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// A TCP connection.
    Tcp,
    /// Datagrams between a port of the guest and a port elsewhere.
    Udp,
    /// Echo requests to an address; ports are 0.
    Echo,
    /// A question to our name server.
    Dns,
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Echo => "echo",
            Self::Dns => "dns",
        })
    }
}

/// A flow that the guest begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Flow<'a> {
    /// What it is made of.
    pub protocol: Protocol,
    /// Where in the guest it comes from.
    pub source: SocketAddr,
    /// Where the guest wants it to go.
    pub destination: SocketAddr,
    /// The name that is asked for, or the last name that the guest was told this address for. The latter is a hint:
    /// many names may share an address.
    pub name: Option<&'a str>,
}

/// Where a flow goes instead.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// To an address, as the host reaches it. For a question it is the server to ask.
    Address(SocketAddr),
    /// To a unix socket; TCP only.
    Unix(PathBuf),
}

/// What becomes of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It goes where it would go.
    Allow,
    /// The guest is told that it cannot be.
    Refuse,
    /// The guest hears nothing.
    Drop,
    /// It goes elsewhere.
    Redirect(Target),
}

/// Decides about each new flow of the guest, on the network's thread: it must not block.
///
/// ```
/// use hyperkit::net::user::{Flow, Protocol, UserNet, Verdict};
///
/// // Name service, and nothing but HTTPS.
/// let net = UserNet::new().policy(|flow: &Flow<'_>| match flow.protocol {
///     Protocol::Dns => Verdict::Allow,
///     Protocol::Tcp if flow.destination.port() == 443 => Verdict::Allow,
///     _ => Verdict::Refuse,
/// });
/// ```
pub trait Policy: Send + Sync {
    /// What becomes of `flow`.
    fn verdict(&self, flow: &Flow<'_>) -> Verdict;
}

impl<F: Fn(&Flow<'_>) -> Verdict + Send + Sync> Policy for F {
    fn verdict(&self, flow: &Flow<'_>) -> Verdict {
        self(flow)
    }
}
