//! Where a new flow of the guest goes.
//!
//! In order: what no guest may reach; the owner's policy; forwards from the guest; our own services; the host; the
//! world. The same for every protocol, so that nothing can be had by another protocol that one of them denies.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use super::config::{self, Plan};
use super::counters::Tally;
use super::forward::{Guestside, Shared};
use super::resolvers::Resolvers;
use super::tcp::Route;
use super::{Flow, Policy, Protocol, Target, Verdict};

/// The port of name service.
pub const DNS: u16 = 53;
/// Names of addresses that are remembered.
const NAMES: usize = 4096;

/// Where a flow goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// To an address, as the host reaches it.
    Host(SocketAddr),
    /// To a unix socket.
    Unix(PathBuf),
    /// It is for the gateway itself.
    Gateway,
    /// Nowhere, and the guest is told so.
    Refuse,
    /// Nowhere, and nobody is told.
    Drop,
}

/// Who decides.
pub struct Router {
    pub plan: Plan,
    pub resolvers: Resolvers,
    loopback: bool,
    policy: Option<Arc<dyn Policy>>,
    names: Names,
    shared: Arc<Shared>,
}

impl Router {
    pub fn new(config: &super::UserNet, plan: Plan, shared: Arc<Shared>) -> Self {
        Self {
            plan,
            resolvers: Resolvers::new(config.servers.clone()),
            loopback: config.loopback,
            policy: config.policy.clone(),
            names: Names::default(),
            shared,
        }
    }

    fn counters(&self) -> &Tally {
        &self.shared.counters
    }

    /// Whether somebody wants to hear names.
    pub fn wants_names(&self) -> bool {
        self.policy.is_some()
    }

    /// The guest was told that `name` has `address`.
    pub fn learn(&mut self, name: &str, address: IpAddr) {
        if self.policy.is_some() {
            self.names.learn(name, address);
        }
    }

    /// Forgets what it has learned.
    pub fn reset(&mut self) {
        self.names = Names::default();
    }

    /// What the owner says about a flow.
    pub fn verdict(
        &self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        name: Option<&str>,
    ) -> Verdict {
        let Some(policy) = &self.policy else { return Verdict::Allow };
        let name = name.or_else(|| self.names.get(destination.ip()));
        let verdict = policy.verdict(&Flow { protocol, source, destination, name });
        match verdict {
            Verdict::Allow => {}
            Verdict::Refuse | Verdict::Drop => self.counters().denied.one(),
            Verdict::Redirect(_) => self.counters().redirected.one(),
        }
        verdict
    }

    /// Where a flow goes.
    pub fn way(&self, protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Way {
        let address = destination.ip();
        if !config::unicast(address) && !self.plan.is_ours(address) {
            self.counters().unroutable.one();
            return Way::Drop;
        }
        // Questions are asked about one by one, by name.
        let question = matches!(protocol, Protocol::Udp | Protocol::Tcp)
            && destination.port() == DNS
            && self.plan.is_gateway(address);
        let verdict = match question {
            true => Verdict::Allow,
            false => self.verdict(protocol, source, destination, None),
        };
        match verdict {
            Verdict::Allow => {}
            Verdict::Refuse => return Way::Refuse,
            Verdict::Drop => return Way::Drop,
            Verdict::Redirect(Target::Address(target)) => return Way::Host(target),
            Verdict::Redirect(Target::Unix(path)) if protocol == Protocol::Tcp => {
                return Way::Unix(path);
            }
            Verdict::Redirect(Target::Unix(_)) => return Way::Refuse,
        }
        match self.shared.guestside(protocol, destination) {
            Some(Guestside::Host(target)) => return Way::Host(target),
            Some(Guestside::Unix(path)) => return Way::Unix(path),
            None => {}
        }
        if self.plan.is_gateway(address) {
            return Way::Gateway;
        }
        if self.plan.is_host(address) {
            return match (self.loopback, address) {
                (false, _) => Way::Refuse,
                (true, IpAddr::V4(_)) => with_ip(destination, Ipv4Addr::LOCALHOST.into()),
                (true, IpAddr::V6(_)) => with_ip(destination, Ipv6Addr::LOCALHOST.into()),
            };
        }
        if self.plan.inside(address) {
            // A neighbour that is not there.
            self.counters().unroutable.one();
            return Way::Drop;
        }
        Way::Host(destination)
    }

    /// Where a TCP connection goes; `questions` makes one for those to our name server.
    pub fn tcp(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        questions: impl FnOnce() -> io::Result<UnixStream>,
    ) -> Route {
        match self.way(Protocol::Tcp, source, destination) {
            Way::Host(address) => Route::Host(address),
            Way::Unix(path) => Route::Unix(path),
            Way::Gateway if destination.port() == DNS => match questions() {
                Ok(stream) => Route::Stream(stream),
                Err(_) => Route::Refuse,
            },
            Way::Gateway | Way::Refuse => Route::Refuse,
            Way::Drop => Route::Drop,
        }
    }
}

fn with_ip(address: SocketAddr, ip: IpAddr) -> Way {
    Way::Host(SocketAddr::new(ip, address.port()))
}

/// The last name that the guest was told for an address.
#[derive(Debug, Default)]
struct Names {
    names: HashMap<IpAddr, String>,
    /// In the order they were learned in.
    order: VecDeque<IpAddr>,
}

impl Names {
    fn learn(&mut self, name: &str, address: IpAddr) {
        if let Some(known) = self.names.get_mut(&address) {
            if known != name {
                *known = name.to_owned();
            }
            return;
        }
        if self.order.len() >= NAMES
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
        self.names.insert(address, name.to_owned());
        self.order.push_back(address);
    }

    fn get(&self, address: IpAddr) -> Option<&str> {
        self.names.get(&address).map(String::as_str)
    }
}
