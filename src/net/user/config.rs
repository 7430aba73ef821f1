//! What a network is like, before there is one.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Forward, Policy, User};
use crate::net::{MacAddr, Offloads};

/// The gateway's Ethernet address, VPNKit's.
pub const GATEWAY_MAC: MacAddr = MacAddr([0xf6, 0x16, 0x36, 0xbc, 0xf9, 0xc6]);
/// The IPv4 network.
pub const SUBNET: (Ipv4Addr, u8) = (Ipv4Addr::new(192, 168, 65, 0), 24);
/// The IPv6 network, which is 64 bits long: unique local addresses (RFC 4193).
pub const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd68, 0x6b6e, 0x6574, 0x41, 0, 0, 0, 0);

/// What is wrong with a network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A network this small has no room for a gateway, the host and a guest; or it is too large.
    #[error("the network {0}/{1} should have a prefix of 8 to 29 bits, and unicast addresses")]
    Subnet(Ipv4Addr, u8),
    /// It has to be inside the network, and nobody else's.
    #[error("{0} cannot be the guest's address in this network")]
    GuestAddress(Ipv4Addr),
    /// It has to be a unicast prefix of 64 bits.
    #[error("{0}/64 cannot be an IPv6 network for a guest")]
    Prefix(Ipv6Addr),
    /// The smallest is IPv6's, the largest is what a length of 16 bits leaves.
    #[error("an MTU of {0} is not between 1280 and 65520")]
    Mtu(u16),
    /// An Ethernet address of one station was wanted.
    #[error("{0} is a group's Ethernet address")]
    Mac(MacAddr),
    /// A name that name service cannot have.
    #[error("{0:?} is not a name of a host or a domain")]
    Name(String),
    /// It cannot be watched.
    #[error("cannot make a notifier for the user-mode network: {0}")]
    NoNotifier(io::Error),
    /// The file for the capture cannot be made.
    #[error("cannot write a capture to {path:?}: {error}", path = .0, error = .1)]
    Capture(PathBuf, io::Error),
    /// A port or a path of a forward is not to be had.
    #[error("cannot forward {0}: {1}")]
    Forward(Forward, io::Error),
}

/// A network for one guest, made of this process's sockets.
///
/// ```
/// use hyperkit::net::user::{Forward, UserNet};
///
/// # fn main() -> Result<(), hyperkit::net::user::Error> {
/// let net = UserNet::new().forward(Forward::tcp(0, 80)).open()?;
/// let handle = net.handle();
/// assert_eq!(handle.forwards().len(), 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct UserNet {
    pub(super) subnet: (Ipv4Addr, u8),
    pub(super) guest: Option<Ipv4Addr>,
    pub(super) prefix: Option<Ipv6Addr>,
    pub(super) mtu: u16,
    pub(super) gateway_mac: MacAddr,
    pub(super) mac: Option<MacAddr>,
    pub(super) offloads: Offloads,
    pub(super) servers: Option<Vec<SocketAddr>>,
    pub(super) domain: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) hosts: Vec<(String, IpAddr)>,
    pub(super) loopback: bool,
    pub(super) forwards: Vec<Forward>,
    pub(super) policy: Option<Arc<dyn Policy>>,
    pub(super) capture: Option<(PathBuf, u32)>,
    pub(super) udp_flows: usize,
    pub(super) udp_idle: Duration,
    pub(super) tcp_flows: usize,
    pub(super) tcp_idle: Duration,
    pub(super) tcp_half_open: Duration,
    pub(super) tcp_half_closed: Duration,
}

impl Default for UserNet {
    fn default() -> Self {
        Self::new()
    }
}

impl UserNet {
    /// One with everything at its default: 192.168.65.0/24 with the gateway and name server at .1, the host at .2 and
    /// the guest at .3; fd68:6b6e:6574:41::/64 beside it; an MTU of 1500; the host's loopback can be reached.
    pub fn new() -> Self {
        Self {
            subnet: SUBNET,
            guest: None,
            prefix: Some(PREFIX),
            mtu: 1500,
            gateway_mac: GATEWAY_MAC,
            mac: None,
            offloads: Offloads::CSUM
                | Offloads::TSO4
                | Offloads::TSO6
                | Offloads::GUEST_CSUM
                | Offloads::GUEST_TSO4
                | Offloads::GUEST_TSO6,
            servers: None,
            domain: None,
            hostname: None,
            hosts: Vec::new(),
            loopback: true,
            forwards: Vec::new(),
            policy: None,
            capture: None,
            udp_flows: 1024,
            udp_idle: Duration::from_secs(60),
            tcp_flows: 4096,
            tcp_idle: Duration::from_secs(2 * 60 * 60),
            tcp_half_open: Duration::from_secs(60),
            tcp_half_closed: Duration::from_secs(60),
        }
    }

    /// Another IPv4 network: its first three addresses are the gateway's, the host's and the guest's.
    pub fn subnet(mut self, network: Ipv4Addr, prefix: u8) -> Self {
        self.subnet = (network, prefix);
        self
    }

    /// The address that the guest gets by DHCP, one of the IPv4 network's; its third, unless said otherwise.
    pub fn guest_address(mut self, address: Ipv4Addr) -> Self {
        self.guest = Some(address);
        self
    }

    /// Another IPv6 network, of 64 bits; `None` for none at all.
    pub fn ipv6(mut self, prefix: Option<Ipv6Addr>) -> Self {
        self.prefix = prefix;
        self
    }

    /// The largest packet on the link, 1280 to 65520 bytes; 1500 unless said otherwise. TCP is as fast with any, as
    /// long as the guest can send and take it in large pieces.
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }

    /// The guest's Ethernet address, which goes before that of [`Net::mac`](crate::net::Net::mac).
    pub fn mac(mut self, mac: MacAddr) -> Self {
        self.mac = Some(mac);
        self
    }

    /// The gateway's Ethernet address; [`GATEWAY_MAC`] unless said otherwise.
    pub fn gateway_mac(mut self, mac: MacAddr) -> Self {
        self.gateway_mac = mac;
        self
    }

    /// What the card may leave to this network. It can do checksums and TCP segmentation in both directions, which is
    /// what it does unless said otherwise; anything else is left out.
    pub fn offloads(mut self, offloads: Offloads) -> Self {
        self.offloads = Self::new().offloads & offloads;
        self
    }

    /// The servers that names are asked of, rather than the first three in the host's /etc/resolv.conf, which is read
    /// again when it changes. No more than the first six are asked.
    pub fn dns_servers(mut self, servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.servers = Some(servers.into_iter().collect());
        self
    }

    /// The guest's domain, which names are looked for in.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// The guest's name.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = Some(name.into());
        self
    }

    /// A name that the name server knows by itself, beside `host.internal` and `gateway.internal`; given several
    /// times, a name has several addresses.
    pub fn host_name(mut self, name: impl Into<String>, address: IpAddr) -> Self {
        self.hosts.push((name.into(), address));
        self
    }

    /// Whether the host's loopback interface can be reached at the host's address; it can, unless said otherwise.
    pub fn loopback(mut self, on: bool) -> Self {
        self.loopback = on;
        self
    }

    /// A forward that is there from the start.
    pub fn forward(mut self, forward: Forward) -> Self {
        self.forwards.push(forward);
        self
    }

    /// Who decides about each new flow of the guest.
    pub fn policy(mut self, policy: impl Policy + 'static) -> Self {
        self.policy = Some(Arc::new(policy));
        self
    }

    /// Writes the first `snap` bytes of each frame, 256 KiB at most, to a file at `path`, as tcpdump does. A file that
    /// is there is emptied. Unless this is called, nothing is written.
    pub fn capture(mut self, path: impl Into<PathBuf>, snap: u32) -> Self {
        self.capture = Some((path.into(), snap));
        self
    }

    /// How many flows of datagrams there are at a time, 1 to 65,536, and for how long each may be silent; 1024 and a
    /// minute unless said otherwise. One more takes the place of the one that was silent longest. As many again can
    /// come through forwards, 16,384 at most. A number beyond its limits stands for the nearest one.
    pub fn udp_limits(mut self, flows: usize, idle: Duration) -> Self {
        (self.udp_flows, self.udp_idle) = (flows, idle);
        self
    }

    /// The same for TCP connections, 1 to 65,536; 4096 and two hours unless said otherwise. None is silent for longer
    /// than ten years.
    pub fn tcp_limits(mut self, flows: usize, idle: Duration) -> Self {
        (self.tcp_flows, self.tcp_idle) = (flows, idle);
        self
    }

    /// For how long a TCP connection may take to be established, on either side: a minute, if nothing else is said.
    pub fn tcp_half_open(mut self, patience: Duration) -> Self {
        self.tcp_half_open = patience;
        self
    }

    /// For how long a TCP connection may be silent that one side has ended: a minute, if nothing else is said. One of
    /// which the other side has not ended by then is reset.
    pub fn tcp_half_closed(mut self, idle: Duration) -> Self {
        self.tcp_half_closed = idle;
        self
    }

    /// Checks everything, binds the forwards, and makes the network.
    pub fn open(self) -> Result<User, Error> {
        User::new(self)
    }
}

impl fmt::Debug for UserNet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("UserNet")
            .field("subnet", &self.subnet)
            .field("prefix", &self.prefix)
            .field("mtu", &self.mtu)
            .field("forwards", &self.forwards)
            .finish_non_exhaustive()
    }
}

/// Who has which address.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub gateway: Ipv4Addr,
    pub host: Ipv4Addr,
    pub guest: Ipv4Addr,
    pub mask: Ipv4Addr,
    pub v6: Option<Plan6>,
}

/// The same for IPv6.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan6 {
    pub prefix: Ipv6Addr,
    pub gateway: Ipv6Addr,
    pub host: Ipv6Addr,
    /// The gateway, on the link.
    pub link: Ipv6Addr,
}

/// Bits of an IPv6 address that name the network.
const NETWORK6: u128 = !0 << 64;

impl Plan {
    pub fn new(config: &UserNet) -> Result<Self, Error> {
        let (network, length) = config.subnet;
        let wrong = Error::Subnet(network, length);
        if !(8..=29).contains(&length) {
            return Err(wrong);
        }
        let mask = Ipv4Addr::from_bits(u32::MAX << (32 - u32::from(length)));
        let base = network.to_bits() & mask.to_bits();
        let address = |n: u32| Ipv4Addr::from_bits(base | n);
        let (gateway, host) = (address(1), address(2));
        if [address(0), address(!mask.to_bits())].iter().any(|end| !unicast4(*end)) {
            return Err(wrong);
        }
        let guest = config.guest.unwrap_or(address(3));
        let v6 = match config.prefix {
            None => None,
            Some(prefix) => {
                let base = prefix.to_bits() & NETWORK6;
                let address = |n: u128| Ipv6Addr::from_bits(base | n);
                if !unicast6(address(1)) || address(1).is_unicast_link_local() {
                    return Err(Error::Prefix(prefix));
                }
                let link = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
                Some(Plan6 { prefix: address(0), gateway: address(1), host: address(2), link })
            }
        };
        let plan = Self { gateway, host, guest, mask, v6 };
        if plan.may_be_guest(guest.into()) { Ok(plan) } else { Err(Error::GuestAddress(guest)) }
    }

    /// The last address of the IPv4 network.
    pub fn broadcast(&self) -> Ipv4Addr {
        self.gateway | !self.mask
    }

    /// Whether an address is in one of the networks.
    pub fn inside(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address & self.mask == self.gateway & self.mask,
            IpAddr::V6(address) => self.v6.is_some_and(|v6| {
                address.to_bits() & NETWORK6 == v6.prefix.to_bits()
                    || address.is_unicast_link_local()
            }),
        }
    }

    /// The gateway's address for one who has `address`.
    pub fn gateway_for(&self, address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(_) => Some(self.gateway.into()),
            IpAddr::V6(_) => self.v6.map(|v6| v6.gateway.into()),
        }
    }

    /// Whether it is the gateway's, in either family.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.gateway,
            IpAddr::V6(address) => {
                self.v6.is_some_and(|v6| address == v6.gateway || address == v6.link)
            }
        }
    }

    /// Whether it stands for the host.
    pub fn is_host(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.host,
            IpAddr::V6(address) => self.v6.is_some_and(|v6| address == v6.host),
        }
    }

    /// Whether it is one of ours.
    pub fn is_ours(&self, address: IpAddr) -> bool {
        self.is_gateway(address) || self.is_host(address)
    }

    /// Whether a guest may send from it.
    pub fn may_be_guest(&self, address: IpAddr) -> bool {
        let nobody = match address {
            IpAddr::V4(address) => {
                address == self.broadcast() || address == self.gateway & self.mask
            }
            IpAddr::V6(address) => self.v6.is_some_and(|v6| address == v6.prefix),
        };
        self.inside(address) && !nobody && !self.is_ours(address)
    }
}

/// Whether the host may be asked to send to an address: not to itself in ways that the guest must not choose.
pub(super) fn unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => unicast4(address),
        IpAddr::V6(address) => unicast6(address),
    }
}

fn unicast4(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first != 0 && first != 127 && first < 224
}

fn unicast6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, ..] = address.segments();
    // Of ::/80 are the loopback address and those that are IPv4's in disguise.
    !address.is_multicast() && [a, b, c, d, e] != [0; 5]
}

/// Whether name service can have a name.
pub(super) fn is_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= 253 && name.split('.').all(label)
}
