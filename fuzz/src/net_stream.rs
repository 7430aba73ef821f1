//! Peers of a network card over stream sockets: what they write, in pieces, while frames are sent and received.
//!
//! A model reads the same bytes. Frames arrive as they are in there, up to a length that is none; what the peer reads
//! is what was sent, whole frames in order; and the link is up as long as there is a peer that keeps to the protocol.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use hyperkit::memory::BufferList;
use hyperkit::net::{Header, NetBackend, Stream, Vpnkit};
use hyperkit::virtio::Sources;
use mio::{Events, Poll};

use crate::ops::parse;
use crate::{fields, operations};

fields! {
    /// The start of an input.
    pub struct Head {
        /// QEMU's protocol, VPNKit's after what it begins with, or VPNKit's.
        pub peer: u8,
    }
}

operations! {
    /// What happens at both ends.
    pub enum Op(10) {
        /// The peer writes a length.
        0 => Length { length: u32 },
        /// The peer writes bytes, all the same.
        1 => Bytes { count: u16, value: u8 },
        /// The peer writes a few bytes.
        2 => Few { count: u8, bytes: u64 },
        /// The peer writes a frame, after its length.
        3 => Frame { length: u16, value: u8 },
        /// The peer writes what a VPNKit server begins with.
        4 => Init { version: u32 },
        /// The peer writes a VPNKit server's reply.
        5 => Reply { kind: u8, mtu: u16, size: u16, mac: u16 },
        /// The guest sends a frame.
        6 => Send { length: u16, pieces: u8, value: u8 },
        /// The guest receives frames into buffers of so many bytes.
        7 => Receive { count: u8, space: u16 },
        /// The peer reads.
        8 => Read { count: u16 },
        /// The peer goes.
        9 => Close {},
    }
}

/// Bytes of a VPNKit server's Init and reply.
const GREETING: usize = 49 + 258;
/// Bytes of a VPNKit client's Init and command.
const INTRODUCTION: usize = 49 + 41;
/// The longest frame there is.
const MOST: usize = 65_550;

struct Session {
    vpnkit: bool,
    card: Box<dyn NetBackend>,
    poll: Poll,
    events: Events,
    /// Gone after [`Op::Close`].
    peer: Option<UnixStream>,
    /// What the peer wrote.
    written: Vec<u8>,
    /// Where in there the next frame is.
    next: usize,
    /// What the peer is to read.
    sent: Vec<u8>,
    /// How much of it there was.
    read: usize,
}

/// Carries out an input.
pub fn run(data: &[u8]) {
    let (head, ops): (Head, Vec<Op>) = parse(data);
    let poll = Poll::new().expect("there is an epoll");
    let vpnkit = head.peer % 3 != 0;
    let (card, peer): (Box<dyn NetBackend>, _) = if vpnkit {
        let (card, peer) = server(&poll);
        (Box::new(card), peer)
    } else {
        let (ours, peer) = UnixStream::pair().expect("there are sockets");
        let mut card = Stream::from_fd(ours.into());
        card.start(Sources::new(poll.registry())).expect("a socket that is connected");
        (Box::new(card), peer)
    };
    peer.set_nonblocking(true).expect("a socket can be told not to block");
    let mut session = Session {
        vpnkit,
        card,
        poll,
        events: Events::with_capacity(4),
        peer: Some(peer),
        written: Vec::new(),
        next: if vpnkit { GREETING } else { 0 },
        sent: vec![0; if vpnkit { INTRODUCTION } else { 0 }],
        read: 0,
    };
    if head.peer % 3 == 1 {
        session.apply(Op::Init { version: 22 });
        session.apply(Op::Reply { kind: 1, mtu: 1500, size: 1550, mac: 0 });
    }
    for op in ops {
        session.apply(op);
        session.turn();
    }
    session.receive(usize::MAX, usize::MAX);
}

/// A VPNKit client whose server has not said anything.
fn server(poll: &Poll) -> (Vpnkit, UnixStream) {
    let path = std::env::temp_dir().join(format!("fuzz-net-stream-{}", std::process::id()));
    // One of a process that failed and had the same number.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("a socket can have a path");
    let mut card = Vpnkit::new(&path);
    card.start(Sources::new(poll.registry())).expect("nothing can fail yet");
    let (peer, _) = listener.accept().expect("the card is there already");
    let _ = std::fs::remove_file(&path);
    (card, peer)
}

impl Session {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Length { length } if self.vpnkit => self.write(&(length as u16).to_le_bytes()),
            Op::Length { length } => self.write(&length.to_be_bytes()),
            Op::Bytes { count, value } => self.write(&vec![value; count.into()]),
            Op::Few { count, bytes } => {
                self.write(&bytes.to_le_bytes()[..usize::from(count % 8) + 1]);
            }
            Op::Frame { length, value } => {
                let frame = framed(self.vpnkit, &vec![value; length.into()]);
                self.write(&frame);
            }
            Op::Init { version } => {
                let init = [b"VMN3T".as_slice(), &version.to_le_bytes(), &[b'0'; 40]].concat();
                self.write(&init);
            }
            Op::Reply { kind, mtu, size, mac } => {
                let mut reply = vec![kind];
                reply.extend(mtu.to_le_bytes());
                reply.extend(size.to_le_bytes());
                reply.extend([0, 0x50, 0, 1]);
                reply.extend(mac.to_le_bytes());
                reply.resize(258, 0);
                self.write(&reply);
            }
            Op::Send { length, pieces, value } => self.send(length.into(), pieces.into(), value),
            Op::Receive { count, space } => self.receive(count.into(), space.into()),
            Op::Read { count } => self.read(count.into()),
            Op::Close {} => self.peer = None,
        }
    }

    /// The peer writes as much as goes.
    fn write(&mut self, bytes: &[u8]) {
        if let Some(Ok(count)) = self.peer.as_mut().map(|peer| peer.write(bytes)) {
            self.written.extend(&bytes[..count]);
        }
    }

    /// The peer reads as much as there is, and as it wants.
    fn read(&mut self, count: usize) {
        let mut bytes = vec![0; count];
        if let Some(Ok(count)) = self.peer.as_mut().map(|peer| peer.read(&mut bytes)) {
            let sent = &self.sent[self.read..];
            assert!(count <= sent.len(), "{count} bytes where {} were sent", sent.len());
            let skip = if self.vpnkit { INTRODUCTION.saturating_sub(self.read) } else { 0 };
            let skip = skip.min(count);
            assert!(bytes[skip..count] == sent[skip..count], "other bytes than were sent");
            self.read += count;
        }
    }

    fn send(&mut self, length: usize, pieces: usize, value: u8) {
        let mut frame = vec![value; length];
        let list: BufferList<'_> =
            frame.chunks_mut(length / (pieces + 1) + 1).map(Into::into).collect();
        let sources = Sources::new(self.poll.registry());
        match self.card.send(0, &Header::default(), list.all(), sources) {
            Ok(()) => {
                if self.vpnkit {
                    frame.resize(length.max(60), 0);
                }
                self.sent.extend(framed(self.vpnkit, &frame));
            }
            Err(error) if error.kind() == ErrorKind::NotConnected => {
                assert!(!self.card.link(), "no connection, but a link");
            }
            Err(_) => {}
        }
    }

    fn receive(&mut self, count: usize, space: usize) {
        let mut buffer = vec![0; space.min(MOST)];
        for _ in 0..count {
            let list = BufferList::from(buffer.as_mut_slice());
            let sources = Sources::new(self.poll.registry());
            match self.card.receive(0, &mut Header::default(), list.all(), sources) {
                Ok(length) => {
                    let frame = self.next_frame();
                    assert!(buffer[..length] == frame, "another frame than was written");
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    let length = self.next_frame().len();
                    assert!(length < 14 || length > space, "a frame of {length} bytes was lost");
                }
            }
        }
    }

    /// The next frame that the peer wrote, which has to be there.
    fn next_frame(&mut self) -> Vec<u8> {
        let rest = &self.written[self.next..];
        let (prefix, length) = if self.vpnkit {
            (2, usize::from(u16::from_le_bytes([rest[0], rest[1]])))
        } else {
            (4, u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize)
        };
        assert!(length <= MOST, "a frame of {length} bytes");
        self.next += prefix + length;
        rest[prefix..prefix + length].to_vec()
    }

    fn turn(&mut self) {
        self.poll.poll(&mut self.events, Some(Duration::ZERO)).expect("an epoll can be asked");
        let sources = Sources::new(self.poll.registry());
        for event in &self.events {
            self.card.host_ready(event.into(), sources);
        }
        if self.card.deadline().is_some_and(|deadline| deadline <= std::time::Instant::now()) {
            self.card.timer(sources);
        }
        // A peer that is there and has not lied is not given up.
        if !self.vpnkit && self.peer.is_some() && !self.card.link() {
            let rest = &self.written[self.next..];
            let length = rest.first_chunk().map_or(0, |prefix| u32::from_be_bytes(*prefix));
            assert!(length as usize > MOST, "the link is down");
        }
    }
}

fn framed(vpnkit: bool, frame: &[u8]) -> Vec<u8> {
    if vpnkit {
        [&(frame.len() as u16).to_le_bytes(), frame].concat()
    } else {
        [&(frame.len() as u32).to_be_bytes(), frame].concat()
    }
}
