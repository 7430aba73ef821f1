//! A network in user space: whatever the guest sends becomes traffic of ordinary sockets of this process.
//!
//! It needs no privilege and no helper, and passes through whatever the host's own programs pass through. To the guest
//! it is an Ethernet with a router on it:
//!
//! | what | IPv4 | IPv6 |
//! | --- | --- | --- |
//! | network | 192.168.65.0/24 | fd68:6b6e:6574:41::/64 |
//! | gateway and name server, `gateway.internal` | .1 | ::1, fe80::1 |
//! | the host's loopback, `host.internal` | .2 | ::2 |
//! | guest | .3, by DHCP | of its own choice |
//!
//! TCP, UDP and echo requests go anywhere that the host can go, unless a [`Policy`] says otherwise. [`Forward`]s lead
//! from the host into the guest, and from addresses that the guest sees to places on the host. One guest is on it, with
//! one Ethernet address and any of the networks' addresses that are not ours.
//!
//! All of it lives on the card's thread. Frames for the guest are taken where they wait, in the kernel or in the TCP
//! engine's memory, when the guest has room for them; only small ones wait in a queue, which is bounded.

mod arp;
mod config;
mod counters;
mod dhcp;
mod dns;
mod forward;
mod fragment;
mod frame;
mod host;
#[cfg(target_os = "linux")]
mod host_linux;
#[cfg(target_os = "macos")]
mod host_macos;
mod icmp;
mod inbound;
mod input;
mod ndp;
mod outbox;
mod pcap;
mod policy;
mod resolvers;
mod router;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::config::Plan;
use self::dns::{Dns, Streams};
use self::forward::{ID_LIMIT, Shared};
use self::fragment::Reassembly;
use self::inbound::Inbound;
use self::outbox::{Ends, Outbox};
use self::pcap::Capture;
use self::router::Router;
use self::tcp::{Link, Tcp};
use self::udp::Flows;
use self::wire::Wire;
use super::{Header, MacAddr, NetBackend, Offloads, Properties, Wake};
use crate::memory::{BufferList, Buffers};
use crate::virtio::{HostEvent, Interest, Sources};

pub use self::config::{Error, GATEWAY_MAC, PREFIX, SUBNET, UserNet};
pub use self::counters::Counters;
pub use self::forward::{Bound, Endpoint, Forward, ForwardId, UserHandle};
pub use self::policy::{Flow, Policy, Protocol, Target, Verdict};

// Names of host descriptors.
const WAKE: u32 = 0;
const UDP: u32 = 0x0100_0000;
const QUERIES: u32 = 0x0200_0000;
const QUESTIONS: u32 = 0x0280_0000;
const FORWARDS: u32 = 0x0300_0000;
const TCP: u32 = 0x4000_0000;

/// No flow of datagrams is silent for longer than this, and no clock overflows.
const LONGEST_IDLE: Duration = Duration::from_secs(1 << 30);

/// The host side of a card that is on a network of this process.
pub struct User {
    properties: Properties,
    wire: Wire,
    router: Router,
    names: dhcp::Names,
    tcp: Tcp,
    flows: Flows,
    dns: Dns,
    /// Questions that come by TCP.
    questions: Streams,
    inbound: Inbound,
    parts: Reassembly,
    capture: Option<Capture>,
    /// A driver is there.
    active: bool,
    /// What the last one left is to be cleared away.
    stale: bool,
    /// When the guest is told again about its router.
    advertise: Option<Instant>,
    /// Datagrams come next, and not TCP.
    datagrams: bool,
    /// Room for a packet, and for a list of its pieces.
    scratch: Vec<u8>,
    spare: BufferList<'static>,
}

impl User {
    fn new(config: UserNet) -> Result<Self, Error> {
        let plan = Plan::new(&config)?;
        if !(1280..=65520).contains(&config.mtu) {
            return Err(Error::Mtu(config.mtu));
        }
        for mac in [Some(config.gateway_mac), config.mac].into_iter().flatten() {
            if mac.is_multicast() {
                return Err(Error::Mac(mac));
            }
        }
        let names = config.hosts.iter().map(|(name, _)| name);
        let names = names.chain(&config.domain).chain(&config.hostname);
        for name in names {
            if !config::is_name(name) {
                return Err(Error::Name(name.clone()));
            }
        }
        let shared = Arc::new(Shared::new(plan.guest, plan.gateway).map_err(Error::NoNotifier)?);
        let capture = match &config.capture {
            None => None,
            Some((path, snap)) => {
                let failed = |error| Error::Capture(path.clone(), error);
                Some(Capture::create(path, *snap).map_err(failed)?)
            }
        };
        for forward in &config.forwards {
            shared.add(forward.clone())?;
        }
        let ends = Ends {
            guest: config.mac.unwrap_or(MacAddr::BROADCAST),
            gateway: config.gateway_mac,
            mtu: config.mtu,
            partial: false,
        };
        let tcp = tcp::Config {
            mtu: config.mtu,
            max_flows: config.tcp_flows.clamp(1, 1 << 16),
            idle: config.tcp_idle,
            half_open: config.tcp_half_open,
            half_closed: config.tcp_half_closed,
            ..tcp::Config::default()
        };
        let udp_flows = config.udp_flows.clamp(1, 1 << 16);
        let udp_idle = config.udp_idle.min(LONGEST_IDLE);
        Ok(Self {
            properties: Properties {
                mac: config.mac,
                mtu: config.mtu,
                offloads: config.offloads,
                queues: 1,
            },
            dns: Dns::new(&config, &plan, QUERIES),
            questions: Streams::new(QUESTIONS),
            router: Router::new(&config, plan, shared.clone()),
            wire: Wire { ends, outbox: Outbox::new(), shared },
            tcp: Tcp::new(tcp, TCP),
            flows: Flows::new(udp_flows, udp_idle, UDP),
            inbound: Inbound::new(udp_flows.min(1 << 14), udp_idle, FORWARDS),
            parts: Reassembly::default(),
            names: dhcp::Names { domain: config.domain, hostname: config.hostname },
            capture,
            active: false,
            stale: false,
            advertise: None,
            datagrams: false,
            scratch: Vec::new(),
            spare: BufferList::default(),
        })
    }

    /// A handle on the network, for whoever owns the machine.
    pub fn handle(&self) -> UserHandle {
        UserHandle(self.wire.shared.clone())
    }

    /// Clears away what the last driver left.
    fn settle(&mut self, sources: Sources<'_>) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        self.tcp.reset(sources);
        self.flows.reset(sources);
        self.dns.reset(sources);
        self.questions.reset(sources);
        self.inbound.reset();
        self.parts.clear();
        self.wire.outbox.clear();
        self.router.reset();
        self.wire.ends.guest = self.properties.mac.unwrap_or(MacAddr::BROADCAST);
        self.scratch = Vec::new();
        self.advertise = None;
        self.publish();
    }

    /// Tells the guest about its router, if it has IPv6.
    fn advertise(&mut self, now: Instant) {
        if let Some(v6) = self.router.plan.v6 {
            ndp::advertise_router(&mut self.wire, &v6, self.names.domain.as_deref());
            self.advertise = Some(now + ndp::AGAIN);
        }
    }

    /// Whether there may be something for the guest.
    fn has_frames(&self) -> bool {
        !self.wire.outbox.is_empty()
            || self.flows.has_frames()
            || self.inbound.has_frames()
            || self.tcp.has_frames()
    }

    fn wake(&mut self) -> Wake {
        self.unreachable();
        self.publish();
        Wake { receive: self.has_frames(), ..Wake::default() }
    }

    /// Lets others see what was counted.
    fn publish(&self) {
        let counters = self.wire.count();
        counters.tcp(&self.tcp.counters());
        counters.udp_flows.set((self.flows.len() + self.inbound.len()) as u64);
        counters.lost_in.set(self.wire.outbox.dropped);
    }

    /// Writes a frame to the capture, for as long as that works.
    fn captured(&mut self, frame: Buffers<'_>, length: usize) {
        let Some(capture) = &mut self.capture else { return };
        if let Err(error) = capture.frame(frame, length) {
            log::warn!("the capture ends: {error}");
            self.capture = None;
        }
    }

    /// Puts the next frame for the guest into `space`.
    fn next_frame(
        &mut self,
        header: &mut Header,
        space: Buffers<'_>,
        sources: Sources<'_>,
    ) -> io::Result<usize> {
        loop {
            if let Some(frame) = self.wire.outbox.pop() {
                let length = frame.bytes.len();
                let fits = space.fill_from(&frame.bytes) == length;
                *header = frame.header;
                self.wire.outbox.recycle(frame.bytes);
                if !fits {
                    self.wire.outbox.dropped += 1;
                    return Err(io::Error::other("the guest has no room for a frame"));
                }
                return Ok(length);
            }
            self.datagrams = !self.datagrams;
            if self.datagrams && self.next_datagram() {
                continue;
            }
            let link = Link { ours: self.wire.ends.gateway, guest: self.wire.ends.guest };
            if let Some(length) = self.tcp.receive(&link, header, space, sources) {
                return Ok(length);
            }
            if !self.next_datagram() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }

    /// Makes a frame of the next datagram.
    fn next_datagram(&mut self) -> bool {
        self.flows.receive(&mut self.wire, &self.router)
            || self.inbound.receive(&mut self.wire, &self.router.plan)
    }
}

impl NetBackend for User {
    fn name(&self) -> &str {
        "user"
    }

    fn properties(&self) -> Properties {
        self.properties
    }

    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        sources.add(&self.wire.shared.wake, WAKE, Interest::READABLE)?;
        self.inbound.watch(&self.wire, sources);
        Ok(())
    }

    fn activate(&mut self, offloads: Offloads) -> io::Result<()> {
        self.tcp.offloads(offloads);
        self.wire.ends.partial = offloads.contains(Offloads::GUEST_CSUM);
        self.active = true;
        // What the host has for the guest is looked at on the next occasion, which this is.
        self.wire.shared.wake.notify();
        Ok(())
    }

    fn send(
        &mut self,
        _queue: u16,
        header: &Header,
        frame: Buffers<'_>,
        sources: Sources<'_>,
    ) -> io::Result<()> {
        self.settle(sources);
        let total = frame.total();
        self.captured(frame, total);
        let counters = self.wire.count();
        counters.frames_out.one();
        counters.bytes_out.add(total as u64);
        self.input(header, frame, total, sources);
        self.unreachable();
        Ok(())
    }

    fn receive(
        &mut self,
        _queue: u16,
        header: &mut Header,
        space: Buffers<'_>,
        sources: Sources<'_>,
    ) -> io::Result<usize> {
        self.settle(sources);
        *header = Header::default();
        let length = match self.next_frame(header, space, sources) {
            Ok(length) => length,
            Err(error) => {
                self.publish();
                return Err(error);
            }
        };
        self.captured(space, length);
        let counters = self.wire.count();
        counters.frames_in.one();
        counters.bytes_in.add(length as u64);
        Ok(length)
    }

    fn host_ready(&mut self, event: HostEvent, sources: Sources<'_>) -> Wake {
        self.settle(sources);
        match event.source {
            WAKE => {
                self.wire.shared.wake.clear();
                self.inbound.watch(&self.wire, sources);
                if self.active {
                    if self.advertise.is_none() {
                        self.advertise(Instant::now());
                    }
                    let Self { inbound, wire, router, tcp, .. } = self;
                    inbound.look(wire, &router.plan, tcp, sources);
                }
            }
            UDP..QUERIES => self.flows.host_ready(event, &mut self.wire, &self.router),
            QUERIES..QUESTIONS => {
                self.dns.host_ready(event, (&mut self.wire, &mut self.router), sources);
            }
            QUESTIONS..FORWARDS => {
                let Self { questions, dns, wire, router, .. } = self;
                questions.host_ready(event, (dns, wire.count(), router), sources);
            }
            // Without a guest there is nobody to connect to.
            FORWARDS..TCP if self.active => {
                let Self { inbound, wire, router, tcp, .. } = self;
                inbound.host_ready(event.source, wire, &router.plan, tcp, sources);
            }
            TCP.. => {
                self.tcp.host_ready(event, sources);
            }
            _ => {}
        }
        self.wake()
    }

    fn deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.tcp.deadline(),
            self.flows.deadline(),
            self.dns.deadline(),
            self.questions.deadline(),
            self.inbound.deadline(),
            self.parts.deadline(),
            self.advertise,
        ];
        deadlines.into_iter().flatten().min()
    }

    fn timer(&mut self, sources: Sources<'_>) -> Wake {
        self.settle(sources);
        let now = Instant::now();
        if self.advertise.is_some_and(|advertise| advertise <= now) {
            self.advertise(now);
        }
        self.tcp.timer(now, sources);
        self.flows.timer(now, sources);
        self.dns.timer(now, &mut self.wire, sources);
        let Self { inbound, questions, dns, wire, router, tcp, .. } = self;
        questions.timer(now, (dns, wire.count(), &mut *router), sources);
        inbound.timer(now, wire, &router.plan, tcp, sources);
        let failed = self.parts.expire(now);
        self.wire.count().reassembly_failed.add(failed);
        self.wake()
    }

    fn reset(&mut self) {
        // Descriptors can be given up only where they are watched; that call comes at once.
        self.active = false;
        self.stale = true;
        self.wire.shared.wake.notify();
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.wire.shared.close();
    }
}

/// Forwards' names end where TCP's begin.
const _: () = assert!(FORWARDS + ID_LIMIT <= TCP);
