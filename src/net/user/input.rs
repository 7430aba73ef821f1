//! What the guest sends: checked, and given to whoever it is for.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use smoltcp::wire::{EthernetFrame, EthernetProtocol, Icmpv6Packet, IpProtocol, UdpPacket};

use super::frame::{self, ETHERNET, Fault, HEAD, Packet};
use super::icmp::{self, Quote, Trouble};
use super::router::{DNS, Way};
use super::udp::Key;
use super::{Protocol, User, arp, dhcp, fragment, ndp};
use crate::memory::{BufferList, Buffers};
use crate::net::{Header, MacAddr};
use crate::virtio::Sources;

impl User {
    /// Takes a frame.
    pub(super) fn input(
        &mut self,
        header: &Header,
        frame: Buffers<'_>,
        total: usize,
        sources: Sources<'_>,
    ) {
        let mut head = [0; HEAD];
        let count = frame.copy_to(&mut head);
        let head = head.get(..count).unwrap_or_default();
        let Ok(ethernet) = EthernetFrame::new_checked(head) else {
            return self.wire.count().malformed.one();
        };
        let (from, to) = (MacAddr(ethernet.src_addr().0), MacAddr(ethernet.dst_addr().0));
        if from.is_multicast() {
            return self.wire.count().spoofed.one();
        }
        if to != self.wire.ends.gateway && !to.is_multicast() {
            return self.wire.count().unroutable.one();
        }
        self.wire.ends.guest = from;
        let (kind, head) = (ethernet.ethertype(), ethernet.payload());
        let total = total - ETHERNET;
        let packet = match kind {
            EthernetProtocol::Arp => {
                if arp::input(&mut self.wire, &self.router.plan, head).is_none() {
                    self.wire.count().malformed.one();
                }
                return;
            }
            EthernetProtocol::Ipv4 => Packet::ipv4(head, total),
            EthernetProtocol::Ipv6 if self.router.plan.v6.is_some() => Packet::ipv6(head, total),
            _ => return self.wire.count().unroutable.one(),
        };
        let packet = match packet {
            Ok(packet) => packet,
            Err(Fault::Malformed) => return self.wire.count().malformed.one(),
            Err(Fault::Checksum) => return self.wire.count().bad_checksums.one(),
        };
        if !self.may_send(&packet) {
            return self.wire.count().spoofed.one();
        }
        // The checksum of such a packet is not there yet, and on its way here nothing can have happened to it.
        let good = header.flags & Header::NEEDS_CSUM != 0;
        // Short frames are filled up with what belongs to nobody.
        let list = std::mem::take(&mut self.spare);
        let list = list.refill(frame, ETHERNET + packet.header, packet.payload);
        let payload = list.all();
        if packet.protocol == IpProtocol::Tcp && packet.part.is_none() {
            self.tcp_input(&packet, good, payload, (head, total), sources);
        } else {
            let mut scratch = std::mem::take(&mut self.scratch);
            scratch.resize(packet.payload, 0);
            payload.copy_to(&mut scratch);
            self.other_input(&packet, good, &scratch, total, sources);
            self.scratch = scratch;
        }
        self.spare = list.recycle();
    }

    /// Whether the guest may send a packet with this source.
    fn may_send(&self, packet: &Packet) -> bool {
        let plan = &self.router.plan;
        if plan.may_be_guest(packet.source) {
            return true;
        }
        // Who has no address yet may ask for one.
        packet.source.is_unspecified()
            && match packet.destination {
                IpAddr::V4(to) => packet.protocol == IpProtocol::Udp && to.is_broadcast(),
                IpAddr::V6(to) => packet.protocol == IpProtocol::Icmpv6 && to.is_multicast(),
            }
    }

    /// Tells the guest if a packet cannot go on for what its IP header says; and whether it can.
    fn may_pass(&mut self, packet: &Packet, payload: &[u8], total: usize) -> bool {
        if self.router.plan.is_ours(packet.destination) || packet.destination.is_multicast() {
            return true;
        }
        let trouble = if packet.hops <= 1 {
            Trouble::Hops
        } else if packet.whole && total > usize::from(self.wire.ends.mtu) {
            Trouble::TooLarge(self.wire.ends.mtu.into())
        } else {
            return true;
        };
        self.wire.count().undeliverable.one();
        // Nobody is told about messages that tell of errors.
        if let Some(gateway) = self.router.plan.gateway_for(packet.source)
            && !is_error(packet, payload)
        {
            icmp::trouble(&mut self.wire, gateway, &Quote::new(packet, payload), trouble);
        }
        false
    }

    fn tcp_input(
        &mut self,
        packet: &Packet,
        good: bool,
        payload: Buffers<'_>,
        (head, total): (&[u8], usize),
        sources: Sources<'_>,
    ) {
        // Large packets are cut by whoever sends them on, so that their size says nothing.
        if packet.hops <= 1 {
            let quoted = head.get(packet.header..).unwrap_or_default();
            let quoted = quoted.get(..packet.payload).unwrap_or(quoted);
            if !self.may_pass(packet, quoted, total.min(usize::from(self.wire.ends.mtu))) {
                return;
            }
        }
        if !good && !frame::verify(packet, payload) {
            return self.wire.count().bad_checksums.one();
        }
        let mut ports = [0; 4];
        if payload.copy_to(&mut ports) < ports.len() || packet.destination.is_multicast() {
            return self.wire.count().malformed.one();
        }
        let [a, b, c, d] = ports;
        let source = SocketAddr::new(packet.source, u16::from_be_bytes([a, b]));
        let destination = SocketAddr::new(packet.destination, u16::from_be_bytes([c, d]));
        let (router, questions) = (&self.router, &mut self.questions);
        let mut route = |source, destination| {
            router.tcp(source, destination, || questions.open((source, destination), sources))
        };
        self.tcp.packet(source, destination, payload, &mut route, sources);
    }

    fn other_input(
        &mut self,
        packet: &Packet,
        good: bool,
        payload: &[u8],
        total: usize,
        sources: Sources<'_>,
    ) {
        let Some(part) = packet.part else {
            if self.may_pass(packet, payload, total) {
                self.transport(packet, good, payload, sources);
            }
            return;
        };
        match self.parts.add(packet, part, payload, Instant::now()) {
            fragment::Outcome::Missing => {}
            fragment::Outcome::Failed(count) => self.wire.count().reassembly_failed.add(count),
            fragment::Outcome::Whole(mut bytes) => {
                self.wire.count().reassembled.one();
                let packet = Packet { part: None, payload: bytes.len(), whole: false, ..*packet };
                if !self.may_pass(&packet, &bytes, total) {
                    return;
                }
                if packet.protocol == IpProtocol::Tcp {
                    let list = BufferList::from(&mut bytes[..]);
                    self.tcp_input(&packet, false, list.all(), (&[], total), sources);
                } else {
                    self.transport(&packet, false, &bytes, sources);
                }
            }
        }
    }

    fn transport(&mut self, packet: &Packet, good: bool, payload: &[u8], sources: Sources<'_>) {
        match (packet.protocol, packet.destination) {
            (IpProtocol::Udp, _) => self.udp_input(packet, good, payload, sources),
            (IpProtocol::Icmp, IpAddr::V4(_)) => self.icmp_input(packet, payload, sources),
            (IpProtocol::Icmpv6, IpAddr::V6(_)) => self.icmp6_input(packet, payload, sources),
            _ => self.wire.count().unroutable.one(),
        }
    }

    fn udp_input(&mut self, packet: &Packet, good: bool, payload: &[u8], sources: Sources<'_>) {
        let Ok(datagram) = UdpPacket::new_checked(payload) else {
            return self.wire.count().malformed.one();
        };
        // Only IPv4 may go without a checksum.
        let none = datagram.checksum() == 0 && packet.source.is_ipv4();
        if !good && !none {
            let (source, destination) = (packet.source.into(), packet.destination.into());
            if datagram.checksum() == 0 || !datagram.verify_checksum(&source, &destination) {
                return self.wire.count().bad_checksums.one();
            }
        }
        let source = SocketAddr::new(packet.source, datagram.src_port());
        let destination = SocketAddr::new(packet.destination, datagram.dst_port());
        let data = datagram.payload();
        if self.services(source, destination, data, sources) {
            return;
        }
        if packet.source.is_unspecified() || packet.destination.is_multicast() {
            return self.wire.count().unroutable.one();
        }
        if destination.port() == 0 || source.port() == 0 {
            return self.wire.count().malformed.one();
        }
        if self.router.plan.is_gateway(packet.destination) {
            let quote = Quote::new(packet, payload);
            if self.inbound.send(source, destination, &quote, data, &mut self.wire) {
                return;
            }
        }
        let key = Key { protocol: Protocol::Udp, source };
        let (wire, router) = (&mut self.wire, &self.router);
        self.flows.send(key, destination, packet, (payload, data), (wire, router), sources);
    }

    /// Gives a datagram to one of our own services, and tells whether it was for one.
    fn services(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
        sources: Sources<'_>,
    ) -> bool {
        let plan = &self.router.plan;
        match (destination.ip(), destination.port()) {
            (IpAddr::V4(to), port) if port == dhcp::PORTS.0 => {
                if !to.is_broadcast() && to != plan.gateway && to != plan.broadcast() {
                    return false;
                }
                if dhcp::input(&mut self.wire, plan, &self.names, data).is_none() {
                    self.wire.count().malformed.one();
                }
            }
            (IpAddr::V6(to), port) if port == dhcp::PORTS6.0 => {
                let Some(v6) = plan.v6 else { return false };
                if to != dhcp::SERVERS6 && !plan.is_gateway(to.into()) {
                    return false;
                }
                let client = source.ip();
                if dhcp::input6(&mut self.wire, &v6, &self.names, client, data).is_none() {
                    self.wire.count().malformed.one();
                }
            }
            (to, DNS) if plan.is_gateway(to) => {
                let guestside = self.router.way(Protocol::Udp, source, destination);
                if guestside != Way::Gateway {
                    return false;
                }
                let ends = (source, destination);
                self.dns.input(ends, data, (&mut self.wire, &mut self.router), sources);
            }
            _ => return false,
        }
        true
    }

    fn icmp_input(&mut self, packet: &Packet, message: &[u8], sources: Sources<'_>) {
        if message.len() < icmp::HEADER {
            return self.wire.count().malformed.one();
        }
        if !icmp::verify(message, packet.source, packet.destination) {
            return self.wire.count().bad_checksums.one();
        }
        if message.first() == Some(&icmp::ECHO.0) {
            self.echo(packet, message, sources);
        }
    }

    fn icmp6_input(&mut self, packet: &Packet, message: &[u8], sources: Sources<'_>) {
        let Ok(parsed) = Icmpv6Packet::new_checked(message) else {
            return self.wire.count().malformed.one();
        };
        if message.len() < icmp::HEADER {
            return self.wire.count().malformed.one();
        }
        if !icmp::verify(message, packet.source, packet.destination) {
            return self.wire.count().bad_checksums.one();
        }
        if ndp::is_for_us(&parsed) {
            let (plan, domain) = (&self.router.plan, self.names.domain.as_deref());
            if ndp::input(&mut self.wire, plan, domain, packet, &parsed).is_none() {
                self.wire.count().malformed.one();
            }
        } else if message.first() == Some(&icmp::ECHO6.0) {
            self.echo(packet, message, sources);
        }
    }

    fn echo(&mut self, packet: &Packet, message: &[u8], sources: Sources<'_>) {
        if packet.source.is_unspecified() || packet.destination.is_multicast() {
            return self.wire.count().unroutable.one();
        }
        if self.router.plan.is_ours(packet.destination) {
            return icmp::answer(&mut self.wire, packet, message);
        }
        let Some(&[_, _, _, _, a, b, ..]) = message.first_chunk::<8>() else { return };
        let source = SocketAddr::new(packet.source, u16::from_be_bytes([a, b]));
        let key = Key { protocol: Protocol::Echo, source };
        let destination = SocketAddr::new(packet.destination, 0);
        let (wire, router) = (&mut self.wire, &self.router);
        self.flows.send(key, destination, packet, (message, message), (wire, router), sources);
    }

    /// Tells the guest about connections that the host's network could not make.
    pub(super) fn unreachable(&mut self) {
        while let Some(unreachable) = self.tcp.unreachable() {
            let (source, destination) = (unreachable.guest, unreachable.remote);
            let trouble = match unreachable.kind {
                io::ErrorKind::HostUnreachable => Trouble::Host,
                io::ErrorKind::PermissionDenied => Trouble::Denied,
                _ => Trouble::Network,
            };
            let [a, b] = source.port().to_be_bytes();
            let [c, d] = destination.port().to_be_bytes();
            let [e, f, g, h] = unreachable.sequence.to_be_bytes();
            let quote = Quote {
                source: source.ip(),
                destination: destination.ip(),
                protocol: IpProtocol::Tcp,
                hops: 64,
                payload: &[a, b, c, d, e, f, g, h],
                length: 20,
            };
            if let Some(gateway) = self.router.plan.gateway_for(source.ip()) {
                icmp::trouble(&mut self.wire, gateway, &quote, trouble);
            }
        }
    }
}

/// Whether a packet is an ICMP message about an error.
fn is_error(packet: &Packet, payload: &[u8]) -> bool {
    match (packet.protocol, payload.first()) {
        (IpProtocol::Icmp, Some(kind)) => ![icmp::ECHO.0, icmp::ECHO.1].contains(kind),
        (IpProtocol::Icmpv6, Some(kind)) => *kind < 128,
        _ => false,
    }
}
