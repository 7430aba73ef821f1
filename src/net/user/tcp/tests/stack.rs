//! A guest with a TCP of its own: smoltcp.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as Time;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::{GUEST4, GUEST6, Lab, PATIENCE, Packets, REMOTE4, REMOTE6};

/// What happens to packets on the link.
#[derive(Default)]
pub struct Trouble {
    /// Each so-manieth packet to the guest is lost.
    pub lose_in: usize,
    /// Each so-manieth packet from the guest is lost …
    pub lose_out: usize,
    /// … or comes twice …
    pub repeat_out: usize,
    /// … or after the next one.
    pub delay_out: usize,
    seen_in: usize,
    seen_out: usize,
    delayed: Option<Vec<u8>>,
}

struct Wires {
    mtu: usize,
    to_guest: Packets,
    from_guest: Packets,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Packets);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wires {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Time) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.to_guest.pop_front()?), Tx(&mut self.from_guest)))
    }

    fn transmit(&mut self, _: Time) -> Option<Tx<'_>> {
        Some(Tx(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

pub struct Guest {
    pub lab: Lab,
    pub trouble: Trouble,
    pub sockets: SocketSet<'static>,
    interface: Interface,
    wires: Wires,
    begun: Instant,
    next_port: u16,
}

impl Guest {
    pub fn new(lab: Lab, mtu: usize) -> Self {
        let mut wires = Wires { mtu, to_guest: VecDeque::new(), from_guest: VecDeque::new() };
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut wires, Time::from_millis(0));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST4.into(), 0)).unwrap();
            addresses.push(IpCidr::new(GUEST6.into(), 0)).unwrap();
        });
        Self {
            lab,
            trouble: Trouble::default(),
            sockets: SocketSet::new(Vec::new()),
            interface,
            wires,
            begun: Instant::now(),
            next_port: 20_000,
        }
    }

    pub fn socket(&mut self, buffer: usize) -> SocketHandle {
        let room = || SocketBuffer::new(vec![0; buffer]);
        let mut socket = Socket::new(room(), room());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        self.sockets.add(socket)
    }

    pub fn connect(&mut self, buffer: usize, remote: IpAddr) -> SocketHandle {
        let handle = self.socket(buffer);
        self.next_port += 1;
        let local = if remote.is_ipv4() { GUEST4 } else { GUEST6 };
        let socket = self.sockets.get_mut::<Socket>(handle);
        let cx = self.interface.context();
        socket.connect(cx, (remote, 80), (local, self.next_port)).unwrap();
        handle
    }

    pub fn connect4(&mut self) -> SocketHandle {
        self.connect(200_000, REMOTE4)
    }

    pub fn connect6(&mut self) -> SocketHandle {
        self.connect(200_000, REMOTE6)
    }

    pub fn get(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// A turn of everything; waits a little if there is nothing to do.
    pub fn turn(&mut self) {
        let now = Time::from_micros(self.begun.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.wires, &mut self.sockets);
        let mut busy = false;
        while let Some(packet) = self.wires.from_guest.pop_front() {
            busy = true;
            self.send(packet);
        }
        for _ in 0..16 {
            let Some(packet) = self.lab.output() else { break };
            busy = true;
            self.trouble.seen_in += 1;
            if self.trouble.lose_in == 0
                || !self.trouble.seen_in.is_multiple_of(self.trouble.lose_in)
            {
                self.wires.to_guest.push_back(packet);
            }
        }
        self.lab.host(Duration::from_millis(u64::from(!busy)));
    }

    fn send(&mut self, packet: Vec<u8>) {
        let trouble = &mut self.trouble;
        trouble.seen_out += 1;
        let seen = trouble.seen_out;
        let hit = |each: usize| each != 0 && seen.is_multiple_of(each);
        if hit(trouble.lose_out) {
            return;
        }
        let repeat = hit(trouble.repeat_out);
        if hit(trouble.delay_out) && trouble.delayed.is_none() {
            trouble.delayed = Some(packet);
            return;
        }
        let delayed = trouble.delayed.take();
        self.pass(&packet);
        if repeat {
            self.pass(&packet);
        }
        if let Some(packet) = delayed {
            self.pass(&packet);
        }
    }

    fn pass(&mut self, packet: &[u8]) {
        if packet[0] >> 4 == 4 {
            self.lab.input(GUEST4, REMOTE4, &packet[20..]);
        } else if packet[6] == 6 {
            self.lab.input(GUEST6, REMOTE6, &packet[40..]);
        }
    }

    /// Takes turns until `done`.
    pub fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(
                begun.elapsed() < PATIENCE,
                "it never came so far: {:?}",
                self.lab.tcp.counters()
            );
            self.turn();
        }
    }
}
