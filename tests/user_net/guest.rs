//! A guest without a machine: smoltcp's stack, or bare frames, on one end of the network.

use std::collections::VecDeque;
use std::time::{Duration, Instant as Clock};

use hyperkit::memory::BufferList;
use hyperkit::net::user::{User, UserHandle, UserNet};
use hyperkit::net::{Header, MacAddr, NetBackend, Offloads};
use hyperkit::virtio::Sources;
use mio::{Events, Poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The guest's Ethernet address.
pub const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

/// The network and its event loop.
pub struct Net {
    pub user: User,
    pub handle: UserHandle,
    pub poll: Poll,
    events: Events,
    room: Vec<u8>,
}

impl Net {
    pub fn new(config: UserNet) -> Self {
        Self::with(config, Offloads::empty())
    }

    /// One that has said already what it says by itself.
    pub fn with(config: UserNet, offloads: Offloads) -> Self {
        let mut net = Self::fresh(config, offloads);
        net.drain();
        net
    }

    pub fn fresh(config: UserNet, offloads: Offloads) -> Self {
        let mut user = config.open().unwrap();
        let poll = Poll::new().unwrap();
        user.start(Sources::new(poll.registry())).unwrap();
        user.activate(offloads).unwrap();
        let (handle, events) = (user.handle(), Events::with_capacity(64));
        Self { user, handle, poll, events, room: vec![0; 1 << 17] }
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.send_with(&Header::default(), frame);
    }

    pub fn send_with(&mut self, header: &Header, frame: &[u8]) {
        let mut frame = frame.to_vec();
        let list = BufferList::from(&mut frame[..]);
        let sources = Sources::new(self.poll.registry());
        self.user.send(0, header, list.all(), sources).unwrap();
    }

    pub fn receive(&mut self) -> Option<Vec<u8>> {
        self.receive_with().map(|(_, frame)| frame)
    }

    pub fn receive_with(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut header = Header::default();
        let list = BufferList::from(&mut self.room[..]);
        let sources = Sources::new(self.poll.registry());
        match self.user.receive(0, &mut header, list.all(), sources) {
            Ok(length) => Some((header, self.room[..length].to_vec())),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
                None
            }
        }
    }

    /// What a device's thread does, for as long as `wait` if there is nothing to do.
    pub fn turn(&mut self, wait: Duration) {
        let now = Clock::now();
        let wait = match self.user.deadline() {
            Some(deadline) => wait.min(deadline.saturating_duration_since(now)),
            None => wait,
        };
        self.poll.poll(&mut self.events, Some(wait)).unwrap();
        let sources = Sources::new(self.poll.registry());
        for event in &self.events {
            self.user.host_ready(event.into(), sources);
        }
        if self.user.deadline().is_some_and(|deadline| deadline <= Clock::now()) {
            self.user.timer(sources);
        }
    }

    /// The next frame that `wanted` takes to; others are lost.
    pub fn expect<T>(&mut self, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        let end = Clock::now() + PATIENCE;
        loop {
            while let Some(frame) = self.receive() {
                if let Some(found) = wanted(&frame) {
                    return found;
                }
            }
            assert!(Clock::now() < end, "nothing came");
            self.turn(Duration::from_millis(20));
        }
    }

    /// All frames that there are now; the network has had a few turns to make them.
    pub fn drain(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for _ in 0..3 {
            self.turn(Duration::ZERO);
            frames.extend(std::iter::from_fn(|| self.receive()));
        }
        frames
    }
}

/// Frames on their way to and from the stack.
#[derive(Default)]
pub struct Link {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

pub struct Incoming(Vec<u8>);
pub struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        Some((Incoming(self.incoming.pop_front()?), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities.checksum.ipv4 = Checksum::Both;
        capabilities
    }
}

/// A guest with smoltcp's stack.
pub struct Guest {
    pub net: Net,
    link: Link,
    pub iface: Interface,
    pub sockets: SocketSet<'static>,
    began: Clock,
}

impl Guest {
    /// With an address of each kind, and routes.
    pub fn new(config: UserNet) -> Self {
        let mut guest = Self::bare(config);
        guest.iface.update_ip_addrs(|addresses| {
            for address in ["192.168.65.3/24", "fd68:6b6e:6574:41::3/64"] {
                addresses.push(address.parse::<IpCidr>().unwrap()).unwrap();
            }
        });
        let routes = guest.iface.routes_mut();
        routes.add_default_ipv4_route("192.168.65.1".parse().unwrap()).unwrap();
        routes.add_default_ipv6_route("fd68:6b6e:6574:41::1".parse().unwrap()).unwrap();
        guest
    }

    /// Without any address.
    pub fn bare(config: UserNet) -> Self {
        let net = Net::new(config);
        let mut link = Link::default();
        let address = HardwareAddress::Ethernet(EthernetAddress(MAC.0));
        let mut iface_config = Config::new(address);
        iface_config.random_seed = 7;
        let iface = Interface::new(iface_config, &mut link, Instant::ZERO);
        let sockets = SocketSet::new(Vec::new());
        Self { net, link, iface, sockets, began: Clock::now() }
    }

    pub fn now(&self) -> Instant {
        Instant::from_micros(self.began.elapsed().as_micros() as i64)
    }

    pub fn turn(&mut self) {
        let now = self.now();
        let changed = self.iface.poll(now, &mut self.link, &mut self.sockets);
        let mut busy = changed == smoltcp::iface::PollResult::SocketStateChanged;
        while let Some(frame) = self.link.outgoing.pop_front() {
            self.net.send(&frame);
            busy = true;
        }
        while let Some(frame) = self.net.receive() {
            self.link.incoming.push_back(frame);
            busy = true;
        }
        let wait = if busy { Duration::ZERO } else { Duration::from_millis(1) };
        self.net.turn(wait);
    }

    /// Goes on until `done` has something.
    pub fn until<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Clock::now() + PATIENCE;
        loop {
            if let Some(found) = done(self) {
                return found;
            }
            assert!(Clock::now() < end, "it takes too long: {:?}", self.net.handle.counters());
            self.turn();
        }
    }

    pub fn udp(&mut self, port: u16) -> SocketHandle {
        use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, Socket};
        let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; 64], vec![0; 1 << 16]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    pub fn tcp(&mut self) -> SocketHandle {
        use smoltcp::socket::tcp::{Socket, SocketBuffer};
        let buffer = || SocketBuffer::new(vec![0; 1 << 16]);
        self.sockets.add(Socket::new(buffer(), buffer()))
    }
}

/// Descriptors that this process has.
pub fn descriptors() -> usize {
    std::fs::read_dir("/dev/fd").unwrap().count()
}
