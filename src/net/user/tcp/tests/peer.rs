//! A guest that sends whatever it is told to.

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::super::segment::{ACK, FIN, Key, PSH, RST, SYN, Segment};
use super::super::{HostStream, Tcp};
use super::{Lab, PATIENCE, key};
use crate::memory::BufferList;
use crate::virtio::Sources;

/// A segment to the guest, with its data.
#[derive(Debug, Clone)]
pub struct Got {
    pub segment: Segment,
    pub data: Vec<u8>,
    pub gso_size: u16,
}

/// A connection as the guest has it.
pub struct Peer {
    pub lab: Lab,
    pub key: Key,
    pub sequence: u32,
    pub acknowledged: u32,
    pub window: u16,
}

impl Peer {
    pub fn new(lab: Lab) -> Self {
        Self { lab, key: key(40_000, 80), sequence: 0xffff_f000, acknowledged: 0, window: 0xffff }
    }

    /// An established connection, and the stream on the other side of it.
    pub fn connected(lab: Lab, listener: &TcpListener) -> (Self, TcpStream) {
        Self::connected_with(lab, listener, &[2, 4, 0x05, 0xb4, 1, 3, 3, 0])
    }

    /// The same with other options in the SYN.
    pub fn connected_with(lab: Lab, listener: &TcpListener, options: &[u8]) -> (Self, TcpStream) {
        let mut peer = Self::new(lab);
        peer.connect_with(options);
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        (peer, stream)
    }

    /// Opens the connection.
    pub fn connect_with(&mut self, options: &[u8]) {
        self.send_with(SYN, options, b"");
        self.sequence = self.sequence.wrapping_add(1);
        let got = self.next();
        assert_eq!(got.segment.flags, SYN | ACK);
        assert_eq!(got.segment.acknowledged, self.sequence);
        self.acknowledged = got.segment.sequence.wrapping_add(1);
        self.send(ACK, b"");
    }

    /// A connection that the host has opened to the guest, and the stream on the other side of it.
    pub fn accepted(lab: Lab, listener: &TcpListener) -> (Self, TcpStream) {
        let mut peer = Self::new(lab);
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (host, _) = listener.accept().unwrap();
        assert!(peer.accept(HostStream::Tcp(host)));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        (peer, stream)
    }

    pub fn accept(&mut self, stream: HostStream) -> bool {
        let sources = Sources::new(self.lab.poll.registry());
        self.lab.tcp.accept(stream, self.key.remote, self.key.guest, sources)
    }

    pub fn send(&mut self, flags: u8, data: &[u8]) {
        self.send_with(flags, &[], data);
    }

    /// Sends from where the guest is, without going on from there.
    pub fn send_with(&mut self, flags: u8, options: &[u8], data: &[u8]) {
        self.send_at(self.sequence, self.acknowledged, flags, options, data);
    }

    pub fn send_at(
        &mut self,
        sequence: u32,
        acknowledged: u32,
        flags: u8,
        options: &[u8],
        data: &[u8],
    ) {
        let mut packet = Vec::new();
        packet.extend(self.key.guest.port().to_be_bytes());
        packet.extend(self.key.remote.port().to_be_bytes());
        packet.extend(sequence.to_be_bytes());
        packet.extend(acknowledged.to_be_bytes());
        packet.extend([(5 + options.len().div_ceil(4) as u8) << 4, flags]);
        packet.extend(self.window.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(options);
        packet.resize(packet.len().next_multiple_of(4), 0);
        packet.extend(data);
        self.lab.input(self.key.guest.ip(), self.key.remote.ip(), &packet);
    }

    /// Sends data and counts it as sent.
    pub fn push(&mut self, data: &[u8]) {
        self.send(ACK | PSH, data);
        self.sequence = self.sequence.wrapping_add(data.len() as u32);
    }

    pub fn end(&mut self) {
        self.send(ACK | FIN, b"");
        self.sequence = self.sequence.wrapping_add(1);
    }

    /// The next segment, if there is one now.
    pub fn poll(&mut self) -> Option<Got> {
        let packet = self.lab.output()?;
        let header = self.key.ip_header();
        let mut tcp = packet[header..].to_vec();
        let ports = [self.key.remote.port(), self.key.guest.port()];
        let segment = Segment::parse(BufferList::from(&mut tcp[..]).all()).unwrap();
        assert_eq!([segment.source, segment.destination], ports);
        let data = tcp.split_off(segment.header);
        Some(Got { segment, data, gso_size: self.lab.header.gso_size })
    }

    /// The next segment.
    pub fn next(&mut self) -> Got {
        let begun = Instant::now();
        loop {
            if let Some(got) = self.poll() {
                return got;
            }
            assert!(begun.elapsed() < PATIENCE, "nothing came: {:?}", self.lab.tcp.counters());
            self.lab.host(Duration::from_millis(10));
        }
    }

    /// There is no segment, even after the host's side has had its turn.
    pub fn nothing(&mut self) {
        self.lab.host(Duration::from_millis(20));
        let got = self.poll();
        assert!(got.is_none(), "{got:?}");
    }

    /// Takes `len` bytes of data, and acknowledges them one by one if `acknowledge`.
    pub fn take(&mut self, len: usize, acknowledge: bool) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < len {
            let got = self.next();
            assert!(!got.segment.has(RST | SYN | FIN), "{got:?}");
            if got.segment.sequence == self.acknowledged {
                self.acknowledged = self.acknowledged.wrapping_add(got.data.len() as u32);
                data.extend(got.data);
            }
            if acknowledge {
                self.send(ACK, b"");
            }
        }
        data
    }

    /// Takes the end of the stream.
    pub fn take_end(&mut self) {
        loop {
            let got = self.next();
            if got.segment.has(FIN) {
                assert_eq!(got.segment.sequence, self.acknowledged);
                self.acknowledged = self.acknowledged.wrapping_add(1);
                return self.send(ACK, b"");
            }
            assert_eq!(got.data.len(), 0);
        }
    }

    /// Reads `len` bytes on the far side, while this one goes on.
    pub fn drain(&mut self, stream: &mut TcpStream, len: usize) {
        stream.set_nonblocking(true).unwrap();
        let begun = Instant::now();
        let (mut done, mut room) = (0, vec![0; 100_000]);
        while done < len {
            assert!(begun.elapsed() < PATIENCE, "{done} of {len} bytes came");
            let most = room.len().min(len - done);
            match stream.read(&mut room[..most]) {
                Ok(count) => done += count,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            self.lab.host(Duration::ZERO);
        }
        stream.set_nonblocking(false).unwrap();
    }

    /// Waits until the host's side has come so far.
    pub fn until(&mut self, mut done: impl FnMut(&mut Tcp) -> bool) {
        let begun = Instant::now();
        while !done(&mut self.lab.tcp) {
            assert!(begun.elapsed() < PATIENCE, "it never came so far");
            self.lab.host(Duration::from_millis(10));
        }
    }
}
