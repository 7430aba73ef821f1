//! TCP through the user-mode network, between a guest's frames in this process and a socket of loopback.
//!
//! The time is that of the card's thread, its system calls included: how long the other side of the socket takes does
//! not count. One round moves as many bytes as the largest frame has, in frames of 64 KiB or of the MTU.

#[path = "support/clock.rs"]
mod clock;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use hyperkit::memory::BufferList;
use hyperkit::net::user::{GATEWAY_MAC, User, UserNet};
use hyperkit::net::{Header, NetBackend, Offloads};
use hyperkit::virtio::Sources;
use mio::{Events, Poll};

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 65, 3);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 65, 2);
const PORT: u16 = 40_000;
const HEADERS: usize = 54;
const ROUND: usize = 44 * 1460;

/// A guest with one connection.
struct Guest {
    net: User,
    poll: Poll,
    events: Events,
    port: u16,
    sequence: u32,
    acknowledged: u32,
    /// What the other side has acknowledged, and behind what it takes.
    confirmed: u32,
    edge: u32,
    frame: Vec<u8>,
    space: Vec<u8>,
}

impl Guest {
    fn connect(port: u16, offloads: Offloads) -> Self {
        let mut net = UserNet::new().open().unwrap();
        let poll = Poll::new().unwrap();
        net.start(Sources::new(poll.registry())).unwrap();
        net.activate(offloads).unwrap();
        let mut guest = Self {
            net,
            poll,
            events: Events::with_capacity(16),
            port,
            sequence: 1,
            acknowledged: 0,
            confirmed: 1,
            edge: 1,
            frame: vec![0x55; HEADERS + 8 + ROUND],
            space: vec![0; 70_000],
        };
        // The largest window, and a segment of 1460 bytes.
        guest.send(2, &[2, 4, 5, 0xb4, 1, 3, 3, 14], 0);
        guest.sequence += 1;
        while guest.acknowledged == 0 {
            guest.turn();
        }
        guest.send(16, &[], 0);
        guest
    }

    fn send(&mut self, flags: u8, options: &[u8], payload: usize) {
        let length = HEADERS + options.len() + payload;
        let mut headers = Vec::with_capacity(HEADERS + 8);
        headers.extend(GATEWAY_MAC.0);
        headers.extend([2, 0, 0, 0, 0, 9, 8, 0, 0x45, 0]);
        headers.extend(((length - 14) as u16).to_be_bytes());
        headers.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        headers.extend(GUEST.octets());
        headers.extend(HOST.octets());
        let mut sum = 0_u32;
        for word in headers[14..34].chunks_exact(2) {
            sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
        }
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        headers[24..26].copy_from_slice(&sum.to_be_bytes());
        headers.extend(PORT.to_be_bytes());
        headers.extend(self.port.to_be_bytes());
        headers.extend(self.sequence.to_be_bytes());
        headers.extend(self.acknowledged.to_be_bytes());
        headers.extend([(5 + options.len() as u8 / 4) << 4, flags, 0, 0xff, 0, 0, 0, 0]);
        headers.extend(options);
        self.frame[..headers.len()].copy_from_slice(&headers);
        let mut header = Header { flags: 1, csum_start: 34, csum_offset: 16, ..Header::default() };
        if payload > 1460 {
            header = Header { gso_type: 1, gso_size: 1460, hdr_len: HEADERS as u16, ..header };
        }
        let frame = BufferList::from(&mut self.frame[..length]);
        let sources = Sources::new(self.poll.registry());
        self.net.send(0, &header, frame.all(), sources).unwrap();
        self.sequence = self.sequence.wrapping_add(payload as u32);
    }

    /// Takes a frame, and tells how much data was in it.
    fn receive(&mut self) -> Option<usize> {
        let mut header = Header::default();
        let sources = Sources::new(self.poll.registry());
        let space = BufferList::from(&mut self.space[..]);
        let length = self.net.receive(0, &mut header, space.all(), sources).ok()?;
        drop(space);
        let frame = &self.space[..length];
        if frame[12..14] != [8, 0] || frame[23] != 6 {
            return Some(0);
        }
        let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        let data = length - 34 - usize::from(frame[46] >> 4) * 4;
        let flags = frame[47];
        assert_eq!(flags & 5, 0, "the connection has ended");
        let shift = if flags & 2 == 0 { 4 } else { 0 };
        self.acknowledged = word(38).wrapping_add(data as u32 + u32::from(flags >> 1 & 1));
        self.confirmed = word(42);
        let window = u32::from(u16::from_be_bytes([frame[48], frame[49]])) << shift;
        self.edge = self.confirmed.wrapping_add(window);
        Some(data)
    }

    /// All that there is to be received; waits if there is nothing.
    fn turn(&mut self) -> usize {
        let (mut frames, mut bytes) = (0, 0);
        while let Some(data) = self.receive() {
            frames += 1;
            bytes += data;
            // As a guest does: now and then.
            if data > 0 && (data > 1460 || frames % 16 == 0) {
                self.send(16, &[], 0);
            }
        }
        if bytes > 0 {
            self.send(16, &[], 0);
        }
        let patience = if frames == 0 { Duration::from_millis(50) } else { Duration::ZERO };
        self.poll.poll(&mut self.events, Some(patience)).unwrap();
        let sources = Sources::new(self.poll.registry());
        for event in &self.events {
            self.net.host_ready(event.into(), sources);
        }
        bytes
    }

    fn take(&mut self, mut bytes: usize) {
        while bytes > 0 {
            bytes = bytes.saturating_sub(self.turn());
        }
    }

    fn give(&mut self, rounds: u64, frame: usize) {
        for _ in 0..rounds {
            let mut left = ROUND;
            while left > 0 {
                while (self.edge.wrapping_sub(self.sequence) as i32) < frame as i32 {
                    self.turn();
                }
                self.send(16, &[], frame);
                left -= frame;
            }
            while self.receive().is_some() {}
        }
    }
}

/// A connection, and the stream on its other side.
fn connection(offloads: Offloads) -> (Guest, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let guest = Guest::connect(listener.local_addr().unwrap().port(), offloads);
    (guest, listener.accept().unwrap().0)
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let large = Offloads::all();
    let small = Offloads::CSUM | Offloads::GUEST_CSUM;
    let mut group = criterion.benchmark_group("user-mode TCP");
    group.throughput(Throughput::Bytes(ROUND as u64));
    for (name, offloads) in [("64 KiB frames", large), ("1500-byte frames", small)] {
        group.bench_function(format!("host to guest, {name}"), |b| {
            let (mut guest, mut stream) = connection(offloads);
            // Ends with the connection.
            thread::spawn(move || while stream.write_all(&[0x55; 256 << 10]).is_ok() {});
            guest.take(64 << 20);
            b.iter_custom(|rounds| clock::time(|| guest.take(rounds as usize * ROUND)).1);
        });
        let frame = if offloads == large { ROUND } else { 1460 };
        group.bench_function(format!("guest to host, {name}"), |b| {
            let (mut guest, mut stream) = connection(offloads);
            thread::spawn(move || {
                let mut room = vec![0; 256 << 10];
                while stream.read(&mut room).is_ok_and(|count| count > 0) {}
            });
            guest.give(1000, frame);
            b.iter_custom(|rounds| clock::time(|| guest.give(rounds, frame)).1);
        });
    }
    group.finish();
    criterion.final_summary();
}
