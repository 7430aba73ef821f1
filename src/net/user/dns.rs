//! The name server at the gateway.
//!
//! A few names are known here. Every other question goes to the host's servers as it came, but for its number: each
//! from a socket of its own, with a random number and port, so that nobody can answer who has not seen it. A server
//! that does not answer is followed by the next.

mod stream;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use simple_dns::rdata::{A, AAAA, PTR, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord};
use simple_dns::{TYPE, header_buffer};

pub use self::stream::Streams;
use super::config::Plan;
use super::counters::Tally;
use super::frame::copy;
use super::router::Router;
use super::wire::Wire;
use super::{Protocol, Target, UserNet, Verdict};
use crate::virtio::{HostEvent, Interest, Sources};

/// Questions under way at a time.
const QUERIES: usize = 256;
/// For how long a server is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Servers that are asked, one after the other, and all of them once more.
const ATTEMPTS: usize = 6;
/// Bytes of a DNS header.
const HEADER: usize = 12;
/// The largest question.
const LARGEST: usize = 4096;
/// Records of a reply that are looked at for addresses.
const RECORDS: u16 = 64;
/// For how long a name that is known here may be kept, in seconds.
const TTL: u32 = 60;

/// A question that a server was asked.
#[derive(Debug)]
struct Query {
    socket: UdpSocket,
    /// Who asked whom.
    client: SocketAddr,
    asked: SocketAddr,
    /// The number that the client gave it.
    number: u16,
    /// With our number.
    bytes: Vec<u8>,
    /// Where the question in it ends.
    end: usize,
    servers: Vec<SocketAddr>,
    attempt: usize,
    until: Instant,
}

/// The name server.
#[derive(Debug)]
pub struct Dns {
    names: HashMap<String, Vec<IpAddr>>,
    /// The other way round.
    addresses: HashMap<IpAddr, String>,
    queries: Vec<Option<Query>>,
    next: Option<Instant>,
    first_token: u32,
}

/// What becomes of a question.
enum Answer {
    /// It is known here.
    Known(Vec<RData<'static>>),
    /// Somebody is to be asked.
    Ask(Vec<SocketAddr>),
    /// It ends here.
    End(RCODE),
    Nothing,
}

/// What is to be done about a message.
enum Told {
    Nothing,
    /// This is sent back.
    Reply(Vec<u8>),
    /// These are asked, one after the other. The question ends at `end`.
    Ask {
        servers: Vec<SocketAddr>,
        end: usize,
    },
}

impl Dns {
    /// One that knows the names of `config`.
    pub fn new(config: &UserNet, plan: &Plan, first_token: u32) -> Self {
        let mut names: HashMap<String, Vec<IpAddr>> = HashMap::new();
        let mut addresses = HashMap::new();
        let mut add = |name: &str, address: IpAddr| {
            let name = key(name);
            addresses.entry(address).or_insert_with(|| name.clone());
            names.entry(name).or_default().push(address);
        };
        add("host.internal", plan.host.into());
        add("gateway.internal", plan.gateway.into());
        if let Some(v6) = &plan.v6 {
            add("host.internal", v6.host.into());
            add("gateway.internal", v6.gateway.into());
        }
        for (name, address) in &config.hosts {
            add(name, *address);
        }
        Self { names, addresses, queries: Vec::new(), next: None, first_token }
    }

    /// Takes a datagram from `client` to `asked`.
    pub fn input(
        &mut self,
        (client, asked): (SocketAddr, SocketAddr),
        bytes: &[u8],
        (wire, router): (&mut Wire, &mut Router),
        sources: Sources<'_>,
    ) {
        match self.look((client, asked), bytes, wire.count(), router) {
            Told::Nothing => {}
            Told::Reply(reply) => wire.udp(asked, client, &reply),
            Told::Ask { servers, end } => {
                let number = bytes.first_chunk().copied().map_or(0, u16::from_be_bytes);
                let again = |query: &Query| {
                    (query.client, query.asked, query.number) == (client, asked, number)
                        && query.bytes.get(HEADER..) == bytes.get(HEADER..)
                };
                if self.queries.iter().flatten().any(again) {
                    return;
                }
                let whom = (client, asked, number);
                if let Err(error) = self.ask(whom, bytes.to_vec(), end, servers, sources) {
                    log::debug!("cannot ask a name server: {error}");
                    wire.count().dns_failed.one();
                    if let Some(reply) = failure(bytes) {
                        wire.udp(asked, client, &reply);
                    }
                }
            }
        }
    }

    /// What is to be done about a message, whichever way it came.
    fn look(
        &self,
        ends: (SocketAddr, SocketAddr),
        bytes: &[u8],
        counters: &Tally,
        router: &mut Router,
    ) -> Told {
        let Some((&[a, b, flags, ..], _)) = bytes.split_first_chunk::<HEADER>() else {
            counters.malformed.one();
            return Told::Nothing;
        };
        // Replies are not for us.
        if flags & 0x80 != 0 {
            counters.malformed.one();
            return Told::Nothing;
        }
        counters.dns_queries.one();
        let Some((packet, end)) = parse(bytes) else {
            counters.malformed.one();
            let number = u16::from_be_bytes([a, b]);
            return Told::Reply(bare(number, flags, RCODE::FormatError));
        };
        let (code, records) = match self.answer(ends, &packet, router) {
            Answer::Nothing => return Told::Nothing,
            Answer::Ask(servers) => return Told::Ask { servers, end },
            Answer::End(code) => (code, Vec::new()),
            Answer::Known(records) => (RCODE::NoError, records),
        };
        counters.dns_local.one();
        Told::Reply(reply(&packet, code, records))
    }

    fn answer(
        &self,
        (client, asked): (SocketAddr, SocketAddr),
        packet: &Packet<'_>,
        router: &mut Router,
    ) -> Answer {
        if packet.opcode() != OPCODE::StandardQuery {
            return Answer::End(RCODE::NotImplemented);
        }
        let Some(question) = packet.questions.first() else {
            return Answer::End(RCODE::FormatError);
        };
        let name = key(&question.qname.to_string());
        let redirect = match router.verdict(Protocol::Dns, client, asked, Some(&name)) {
            Verdict::Allow => None,
            Verdict::Redirect(Target::Address(server)) => Some(server),
            Verdict::Refuse | Verdict::Redirect(_) => return Answer::End(RCODE::Refused),
            Verdict::Drop => return Answer::Nothing,
        };
        if let Some(server) = redirect {
            return Answer::Ask(vec![server]);
        }
        let internet = matches!(question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
        if internet && let Some(addresses) = self.names.get(&name) {
            let records = addresses.iter().filter_map(|address| match (address, question.qtype) {
                (IpAddr::V4(address), QTYPE::TYPE(TYPE::A) | QTYPE::ANY) => {
                    Some(RData::A(A::from(*address)))
                }
                (IpAddr::V6(address), QTYPE::TYPE(TYPE::AAAA) | QTYPE::ANY) => {
                    Some(RData::AAAA(AAAA::from(*address)))
                }
                _ => None,
            });
            return Answer::Known(records.collect());
        }
        if internet && let Some(address) = pointer(&name) {
            let name = self.addresses.get(&address);
            if let Some(name) = name {
                let name = Name::new_unchecked(name).into_owned();
                return Answer::Known(vec![RData::PTR(PTR(name))]);
            }
            // Nobody else knows our addresses.
            if router.plan.inside(address) {
                return Answer::End(RCODE::NameError);
            }
        }
        match router.resolvers.now() {
            [] => Answer::End(RCODE::ServerFailure),
            servers => Answer::Ask(servers.to_vec()),
        }
    }

    fn ask(
        &mut self,
        (client, asked, number): (SocketAddr, SocketAddr, u16),
        mut bytes: Vec<u8>,
        end: usize,
        servers: Vec<SocketAddr>,
        sources: Sources<'_>,
    ) -> io::Result<()> {
        let free = self.queries.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.queries.len());
        if slot >= QUERIES {
            return Err(io::Error::other("there are too many questions under way"));
        }
        let (attempt, socket) = connect(&servers, 0)?;
        copy(&mut bytes, 0, &random().to_be_bytes());
        let until = Instant::now() + PATIENCE;
        let query = Query { socket, client, asked, number, bytes, end, servers, attempt, until };
        sources.add(&query.socket, self.first_token + slot as u32, Interest::READABLE)?;
        // What goes wrong here is heard of, or waited out.
        let _ = query.socket.send(&query.bytes);
        match self.queries.get_mut(slot) {
            Some(free) => *free = Some(query),
            None => self.queries.push(Some(query)),
        }
        self.next = Some(self.next.map_or(until, |next| next.min(until)));
        Ok(())
    }

    /// A server may have answered.
    pub fn host_ready(
        &mut self,
        event: HostEvent,
        (wire, router): (&mut Wire, &mut Router),
        sources: Sources<'_>,
    ) {
        let slot = event.source.wrapping_sub(self.first_token) as usize;
        let Some(query) = self.queries.get_mut(slot).and_then(Option::as_mut) else { return };
        let mut buffer = vec![0; 1 << 16];
        loop {
            match query.socket.recv(&mut buffer) {
                Ok(length) => {
                    let reply = buffer.get_mut(..length).unwrap_or_default();
                    if !is_answer(reply, &query.bytes, query.end) {
                        wire.count().dns_false_replies.one();
                        continue;
                    }
                    if router.wants_names() {
                        learn(reply, router);
                    }
                    copy(reply, 0, &query.number.to_be_bytes());
                    wire.udp(query.asked, query.client, reply);
                    return self.close(slot, sources);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The server is not there.
                Err(_) => return self.go_on(slot, wire, sources),
            }
        }
    }

    /// Asks the next server.
    fn go_on(&mut self, slot: usize, wire: &mut Wire, sources: Sources<'_>) {
        let token = self.first_token + slot as u32;
        let Some(query) = self.queries.get_mut(slot).and_then(Option::as_mut) else { return };
        let next = connect(&query.servers, query.attempt + 1);
        let next = next.and_then(|(attempt, socket)| {
            sources.add(&socket, token, Interest::READABLE)?;
            Ok((attempt, socket))
        });
        let Ok((attempt, socket)) = next else {
            wire.count().dns_failed.one();
            let (client, asked, number) = (query.client, query.asked, query.number);
            copy(&mut query.bytes, 0, &number.to_be_bytes());
            if let Some(reply) = failure(&query.bytes) {
                wire.udp(asked, client, &reply);
            }
            return self.close(slot, sources);
        };
        let _ = sources.remove(&query.socket);
        (query.socket, query.attempt) = (socket, attempt);
        query.until = Instant::now() + PATIENCE;
        let _ = query.socket.send(&query.bytes);
        self.next = Some(self.next.map_or(query.until, |next| next.min(query.until)));
    }

    fn close(&mut self, slot: usize, sources: Sources<'_>) {
        if let Some(query) = self.queries.get_mut(slot).and_then(Option::take) {
            let _ = sources.remove(&query.socket);
        }
        if self.queries.iter().all(Option::is_none) {
            (self.queries, self.next) = (Vec::new(), None);
        }
    }

    /// When [`timer`](Self::timer) is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Gives up on servers that have not answered in time.
    pub fn timer(&mut self, now: Instant, wire: &mut Wire, sources: Sources<'_>) {
        if self.next.is_none_or(|next| next > now) {
            return;
        }
        self.next = None;
        for slot in 0..self.queries.len() {
            let late = |query: &Query| query.until <= now;
            if self.queries.get(slot).and_then(Option::as_ref).is_some_and(late) {
                self.go_on(slot, wire, sources);
            }
        }
        self.next = self.queries.iter().flatten().map(|query| query.until).min();
    }

    /// Forgets all questions.
    pub fn reset(&mut self, sources: Sources<'_>) {
        for query in self.queries.drain(..).flatten() {
            let _ = sources.remove(&query.socket);
        }
        (self.queries, self.next) = (Vec::new(), None);
    }
}

/// Whether `reply` is a reply to `question`, in which the question itself ends at `end`.
fn is_answer(reply: &[u8], question: &[u8], end: usize) -> bool {
    let is_reply = reply.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let same = |range: std::ops::Range<usize>| {
        reply.get(range.clone()).is_some_and(|part| Some(part) == question.get(range))
    };
    // Servers may leave out the question when they could not make anything of it.
    let asked = same(4..6) && same_name(reply, question, end);
    let empty = reply.len() == HEADER && header_buffer::questions(reply).is_ok_and(|n| n == 0);
    is_reply && same(0..2) && (asked || empty)
}

/// Whether two messages have the same question, which ends at `end`. Letters may differ in case.
fn same_name(a: &[u8], b: &[u8], end: usize) -> bool {
    match (a.get(HEADER..end), b.get(HEADER..end)) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        _ => false,
    }
}

/// A socket that is connected to one of the servers, and which attempt that is.
fn connect(servers: &[SocketAddr], from: usize) -> io::Result<(usize, UdpSocket)> {
    let mut last = io::Error::other("no server answers");
    let attempts = ATTEMPTS.min(2 * servers.len());
    for (attempt, server) in servers.iter().cycle().enumerate().take(attempts).skip(from) {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).and_then(|socket| {
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => return Ok((attempt, socket)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A number that cannot be foreseen.
fn random() -> u16 {
    let [a, b, ..] = uuid::Uuid::new_v4().into_bytes();
    u16::from_ne_bytes([a, b])
}

/// Takes a question apart, and tells where in the message it ends.
fn parse(bytes: &[u8]) -> Option<(Packet<'_>, usize)> {
    // A message that promises much would have much memory reserved.
    let one = header_buffer::questions(bytes).ok()? == 1
        && header_buffer::answers(bytes).ok()? == 0
        && header_buffer::name_servers(bytes).ok()? == 0
        && header_buffer::additional_records(bytes).ok()? <= 4;
    if !one || bytes.len() > LARGEST {
        return None;
    }
    let packet = Packet::parse(bytes).ok()?;
    // Names in questions have nothing before them that they could refer to.
    let mut at = HEADER;
    loop {
        match usize::from(*bytes.get(at)?) {
            0 => break,
            length @ 1..=63 => {
                // A dot that is none would make a policy see another name than servers do.
                let label = bytes.get(at + 1..)?.get(..length)?;
                if label.contains(&b'.') {
                    return None;
                }
                at += 1 + length;
            }
            _ => return None,
        }
    }
    let end = at + 5;
    (end <= bytes.len()).then_some((packet, end))
}

/// The reply to a question that could not be read.
fn bare(number: u16, flags: u8, code: RCODE) -> Vec<u8> {
    let [a, b] = number.to_be_bytes();
    // Who asked for recursion is told so; the operation comes back.
    vec![a, b, 0x80 | flags & 0x79, 0x80 | code as u8, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// The reply to a question.
fn reply(question: &Packet<'_>, code: RCODE, records: Vec<RData<'static>>) -> Vec<u8> {
    let mut packet = Packet::new_reply(question.id());
    packet.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if question.has_flags(PacketFlag::RECURSION_DESIRED) {
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    *packet.opcode_mut() = question.opcode();
    *packet.rcode_mut() = code;
    packet.questions = question.questions.clone();
    if let Some(question) = question.questions.first() {
        let record = |data| ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data);
        packet.answers = records.into_iter().map(record).collect();
    }
    packet.build_bytes_vec_compressed().unwrap_or_default()
}

/// The reply to a question that nobody has answered.
fn failure(question: &[u8]) -> Option<Vec<u8>> {
    let (packet, _) = parse(question)?;
    Some(reply(&packet, RCODE::ServerFailure, Vec::new()))
}

/// Tells the router what addresses the guest hears of.
fn learn(reply: &[u8], router: &mut Router) {
    let counts = [
        header_buffer::questions(reply),
        header_buffer::answers(reply),
        header_buffer::name_servers(reply),
        header_buffer::additional_records(reply),
    ];
    if !counts.iter().all(|count| count.as_ref().is_ok_and(|count| *count <= RECORDS)) {
        return;
    }
    let Ok(packet) = Packet::parse(reply) else { return };
    let Some(question) = packet.questions.first() else { return };
    let name = key(&question.qname.to_string());
    for record in &packet.answers {
        match &record.rdata {
            RData::A(A { address }) => router.learn(&name, Ipv4Addr::from_bits(*address).into()),
            RData::AAAA(AAAA { address }) => {
                router.learn(&name, Ipv6Addr::from_bits(*address).into());
            }
            _ => {}
        }
    }
}

/// A name as it is compared.
fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// The address that a name such as `1.65.168.192.in-addr.arpa` stands for.
fn pointer(name: &str) -> Option<IpAddr> {
    if let Some(bytes) = name.strip_suffix(".in-addr.arpa") {
        let mut bytes: Vec<&str> = bytes.split('.').collect();
        bytes.reverse();
        return bytes.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut count = 0;
    for digit in digits.split('.').rev() {
        let value = u128::from_str_radix(digit, 16).ok().filter(|_| digit.len() == 1)?;
        bits = bits << 4 | value;
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from_bits(bits).into())
}
