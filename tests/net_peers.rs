//! Real peers over sockets: passt, and QEMU with its own user-mode network behind it. A whole guest's stack (smoltcp) asks
//! them for an address, and moves data.
//!
//! passt wants a network to copy, and gets one in a namespace of its own. Nothing leaves the machine.

#![cfg(target_os = "linux")]
#![allow(missing_docs)]

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant as Clock};

use hyperkit::memory::BufferList;
use hyperkit::net::{Datagram, DatagramOptions, Header, NetBackend, Stream, Wake};
use hyperkit::virtio::Sources;
use mio::{Events, Poll};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

const LIMIT: Duration = Duration::from_secs(30);

/// A card and its thread, but for the queues.
struct Card {
    backend: Box<dyn NetBackend>,
    poll: Poll,
    events: Events,
    link: bool,
    receive: bool,
    send: bool,
    inbound: VecDeque<Vec<u8>>,
}

impl Card {
    fn new(mut backend: impl NetBackend + 'static) -> Self {
        let poll = Poll::new().unwrap();
        backend.start(Sources::new(poll.registry())).unwrap();
        Self {
            link: backend.link(),
            backend: Box::new(backend),
            poll,
            events: Events::with_capacity(8),
            receive: true,
            send: true,
            inbound: VecDeque::new(),
        }
    }

    fn turn(&mut self, wait: Duration) {
        let until = self.backend.deadline().map(|at| at.saturating_duration_since(Clock::now()));
        self.poll
            .poll(&mut self.events, Some(until.map_or(wait, |until| until.min(wait))))
            .unwrap();
        let mut told = Wake::default();
        let mut tell = |wake: Wake| {
            told.receive |= wake.receive;
            told.send |= wake.send;
            told.link |= wake.link;
        };
        let sources = Sources::new(self.poll.registry());
        for event in &self.events {
            tell(self.backend.host_ready(event.into(), sources));
        }
        if self.backend.deadline().is_some_and(|deadline| deadline <= Clock::now()) {
            tell(self.backend.timer(sources));
        }
        self.receive |= told.receive;
        self.send |= told.send;
        if told.link {
            self.link = self.backend.link();
        }
        let mut space = vec![0; 70_000];
        while self.receive && self.inbound.len() < 64 {
            let list = BufferList::from(space.as_mut_slice());
            match self.backend.receive(0, &mut Header::default(), list.all(), sources) {
                Ok(len) => self.inbound.push_back(space[..len].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.receive = false,
                Err(error) => panic!("a frame was lost: {error}"),
            }
        }
    }

    fn until_link(&mut self, up: bool) {
        let limit = Clock::now() + LIMIT;
        while self.link != up {
            assert!(Clock::now() < limit, "the link is not what it should be: {up}");
            self.turn(limit.saturating_duration_since(Clock::now()));
        }
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Sender<'a>(&'a mut Card);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        let list = BufferList::from(frame.as_mut_slice());
        let sources = Sources::new(self.0.poll.registry());
        match self.0.backend.send(0, &Header::default(), list.all(), sources) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.0.send = false,
            // A frame that is lost is sent again by those who care.
            _ => {}
        }
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.inbound.pop_front()?;
        Some((Received(frame), Sender(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        self.send.then_some(Sender(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A guest's stack.
struct Guest {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Guest {
    fn new(mut card: Card) -> Self {
        let mac = EthernetAddress([0x52, 0x54, 0, 1, 2, 3]);
        let interface = Interface::new(Config::new(mac.into()), &mut card, Instant::now());
        Self { card, interface, sockets: SocketSet::new(Vec::new()) }
    }

    /// Works until there is a result.
    fn until<T>(&mut self, what: &str, mut result: impl FnMut(&mut Self) -> Option<T>) -> T {
        let limit = Clock::now() + LIMIT;
        loop {
            if let Some(result) = result(self) {
                return result;
            }
            assert!(Clock::now() < limit, "{what}: not within {LIMIT:?}");
            let now = Instant::now();
            self.interface.poll(now, &mut self.card, &mut self.sockets);
            let wait = self.interface.poll_delay(now, &self.sockets).map_or(LIMIT, Into::into);
            let wait = if self.card.inbound.is_empty() { wait } else { Duration::ZERO };
            self.card.turn(wait.min(Duration::from_millis(100)));
        }
    }

    /// Asks for an address, takes it, and returns it and the router's.
    fn lease(&mut self) -> (Ipv4Cidr, Ipv4Addr) {
        let handle = self.sockets.add(dhcpv4::Socket::new());
        let (address, router) = self.until("a lease", |guest| {
            match guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
                Some(dhcpv4::Event::Configured(lease)) => Some((lease.address, lease.router)),
                _ => None,
            }
        });
        self.sockets.remove(handle);
        let router = router.expect("a router");
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            addresses.push(IpCidr::Ipv4(address)).unwrap();
        });
        self.interface.routes_mut().add_default_ipv4_route(router).unwrap();
        (address, router)
    }

    /// Connects to an echo service and compares what comes back.
    fn echo(&mut self, host: Ipv4Addr, port: u16, total: usize) {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        let handle = self.sockets.add(tcp::Socket::new(buffer(), buffer()));
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), (host, port), 40_000).unwrap();
        let (mut sent, mut got) = (0, 0);
        let byte = |at: usize| (at * 31 + at / 65_521) as u8;
        self.until("the echo", |guest| {
            let socket = guest.sockets.get_mut::<tcp::Socket<'_>>(handle);
            while socket.can_send() && sent < total {
                let count = (total - sent).min(16 << 10);
                let part: Vec<u8> = (sent..sent + count).map(byte).collect();
                sent += socket.send_slice(&part).unwrap();
            }
            while socket.can_recv() {
                let part = socket.recv(|part| (part.len(), part.to_vec())).unwrap();
                assert!(part.iter().enumerate().all(|(i, &b)| b == byte(got + i)), "at {got}");
                got += part.len();
            }
            (got == total).then_some(())
        });
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
        self.until("the end", |guest| {
            (!guest.sockets.get::<tcp::Socket<'_>>(handle).is_open()).then_some(())
        });
        self.sockets.remove(handle);
    }
}

/// Sends back what it gets.
fn echo_service() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
            thread::spawn(move || io::copy(&mut from, &mut to));
        }
    });
    port
}

struct Peer(Child);

impl Peer {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Waits until it listens; tells whether it does.
    fn listens(&mut self, path: &Path) -> bool {
        let limit = Clock::now() + LIMIT;
        while !path.exists() {
            assert!(Clock::now() < limit, "no socket");
            if self.0.try_wait().unwrap().is_some() {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a program is there; says that the test is skipped if not.
fn has(program: &str, package: &str) -> bool {
    let mut command = Command::new(program);
    let found = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if let Err(error) = &found {
        eprintln!("skipped: {program} (package {package}): {error}");
    }
    found.is_ok()
}

/// QEMU as nothing but a switch, with its user-mode network on one port and a peer of ours on the other.
fn qemu(peer: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "none", "-nodefaults", "-display", "none"]);
    command.args(["-netdev", peer, "-netdev", "hubport,id=h0,hubid=0,netdev=peer"]);
    command.args(["-netdev", "user,id=user", "-netdev", "hubport,id=h1,hubid=0,netdev=user"]);
    command
}

#[test]
fn passt_gives_an_address_and_does_so_again_after_it_was_killed() {
    if !has("passt", "passt") || !has("unshare", "util-linux") || !has("ip", "iproute2") {
        return;
    }
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    // passt runs as nobody.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let path = folder.path().join("passt.socket");
    // The card is there first.
    let mut guest = Guest::new(Card::new(Stream::unix(&path)));
    assert!(!guest.card.link);
    let network = "ip link set lo up && ip link add v0 type veth peer name v1 && ip link set v0 up \
        && ip link set v1 up && ip addr add 10.9.8.2/24 dev v0 && ip route add default via 10.9.8.1 \
        && exec passt --foreground --ipv4-only --runas 0 --socket \"$0\"";
    for _ in 0..2 {
        let _ = std::fs::remove_file(&path);
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--net", "sh", "-c", network]).arg(&path);
        let mut passt = Peer::start(&mut command);
        if !passt.listens(&path) {
            eprintln!("skipped: passt does not start here, or there are no namespaces");
            return;
        }
        guest.card.until_link(true);
        let (address, router) = guest.lease();
        assert_eq!(address, Ipv4Cidr::new(Ipv4Addr::new(10, 9, 8, 2), 24));
        assert_eq!(router, Ipv4Addr::new(10, 9, 8, 1));
        drop(passt);
        guest.card.until_link(false);
    }
}

#[test]
fn qemus_stream_gives_an_address_and_carries_a_connection() {
    if !has("qemu-system-x86_64", "qemu-system-x86") {
        return;
    }
    let port = echo_service();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qemu.socket");
    let mut guest = Guest::new(Card::new(Stream::unix(&path)));
    for total in [100_000, 8 << 20] {
        let _ = std::fs::remove_file(&path);
        let address = format!("addr.type=unix,addr.path={}", path.display());
        let peer = Peer::start(&mut qemu(&format!("stream,id=peer,server=on,{address}")));
        guest.card.until_link(true);
        let (_, router) = guest.lease();
        guest.echo(router, port, total);
        drop(peer);
        guest.card.until_link(false);
    }
}

#[test]
fn qemus_datagrams_give_an_address_and_carry_a_connection() {
    if !has("qemu-system-x86_64", "qemu-system-x86") {
        return;
    }
    let port = echo_service();
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let mut command = qemu("dgram,id=peer,local.type=fd,local.str=0");
    let _peer = Peer::start(command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs))));
    drop(command);
    let mut guest =
        Guest::new(Card::new(Datagram::from_fd(ours.into(), DatagramOptions::default())));
    assert!(guest.card.link);
    let (_, router) = guest.lease();
    guest.echo(router, port, 8 << 20);
}
