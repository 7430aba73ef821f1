//! Nothing is forgotten: where nothing is lost, streams come to their end though no timer ever runs.
//!
//! Sockets are watched for changes only, so that one that is missed would be made up for by a timer at best.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::super::HostStream;
use super::super::segment::{ACK, FIN, RST, SYN};
use super::peer::Peer;
use super::{ALL, Config, Lab, Offloads, PATIENCE, Route, listener, noise};
use crate::random::Random;

/// Bytes each way.
const LEN: usize = 6 << 20;
/// What the guest has room for, and by how much its windows are shifted.
const ROOM: usize = 300_000;
const SHIFT: u32 = 5;

/// Writes and reads in pieces of all sizes, with pauses: what was read.
fn far<S: Read + Write + Send + 'static>(
    mut writer: S,
    mut reader: S,
    end: impl FnOnce(&S) + Send + 'static,
    seed: u64,
) -> JoinHandle<Vec<u8>> {
    let writing = thread::spawn(move || {
        let (out, mut dice) = (noise(LEN, 1), Random(seed));
        let mut at = 0;
        while at < out.len() {
            let piece = &out[at..];
            let most = if dice.below(2) == 0 { 3000 } else { 400_000 };
            let piece = &piece[..piece.len().min(1 + dice.below(most) as usize)];
            writer.write_all(piece).unwrap();
            at += piece.len();
            pause(&mut dice);
        }
        end(&writer);
    });
    thread::spawn(move || {
        let (mut got, mut room, mut dice) = (Vec::new(), vec![0; 400_000], Random(seed + 2));
        loop {
            let most = if dice.below(2) == 0 { 3000 } else { 400_000 };
            let count = reader.read(&mut room[..1 + dice.below(most) as usize]).unwrap();
            got.extend(&room[..count]);
            if count == 0 {
                break;
            }
            pause(&mut dice);
        }
        writing.join().unwrap();
        got
    })
}

fn pause(dice: &mut Random) {
    match dice.below(64) {
        0 => thread::sleep(Duration::from_millis(1)),
        1..8 => thread::yield_now(),
        _ => {}
    }
}

/// A guest that sends and takes all there is, and loses nothing.
struct Busy {
    peer: Peer,
    dice: Random,
    out: Vec<u8>,
    sent: usize,
    ended: bool,
    /// Behind what it may send.
    edge: u32,
    got: Vec<u8>,
    over: bool,
    /// What has come and has not been looked at yet; what has not been acknowledged.
    unread: usize,
    untold: u64,
}

impl Busy {
    fn acknowledge(&mut self) {
        self.untold = 0;
        self.peer.window = ((ROOM - self.unread) >> SHIFT) as u16;
        self.peer.send(ACK, b"");
    }

    /// Takes what is there. Tells whether there was anything.
    fn take(&mut self) -> bool {
        let mut any = false;
        while let Some(got) = self.peer.poll() {
            any = true;
            assert!(!got.segment.has(RST | SYN), "{got:?}");
            let edge = got.segment.acknowledged.wrapping_add(u32::from(got.segment.window) << 4);
            if (edge.wrapping_sub(self.edge) as i32) > 0 {
                self.edge = edge;
            }
            if got.data.is_empty() && !got.segment.has(FIN) {
                continue;
            }
            assert_eq!(got.segment.sequence, self.peer.acknowledged, "sent again, or too early");
            self.over |= got.segment.has(FIN);
            let span = got.segment.span();
            self.peer.acknowledged = self.peer.acknowledged.wrapping_add(span);
            self.unread += got.data.len();
            assert!(self.unread <= ROOM, "there was no room for this");
            self.got.extend(got.data);
            self.untold += 1;
            if self.untold > self.dice.below(24) {
                self.acknowledge();
            }
        }
        if self.untold > 0 {
            self.acknowledge();
        }
        any
    }

    /// Looks at some of what has come, and says so if there was little room.
    fn look(&mut self) {
        let before = ROOM - self.unread;
        self.unread -= self.unread.min(self.dice.below(ROOM as u64) as usize);
        if before < ROOM / 2 && ROOM - self.unread > before {
            self.acknowledge();
        }
    }

    /// Sends as much as may be. Tells whether there was anything.
    fn give(&mut self) -> bool {
        let most = if self.dice.below(2) == 0 { 1460 } else { 60_000 };
        let mut any = false;
        while self.sent < self.out.len() {
            let room = self.edge.wrapping_sub(self.peer.sequence) as usize;
            let len = room.min(self.out.len() - self.sent).min(1 + self.dice.below(most) as usize);
            if len == 0 || self.dice.below(16) == 0 {
                break;
            }
            let data = self.out[self.sent..self.sent + len].to_vec();
            self.peer.push(&data);
            self.sent += len;
            any = true;
        }
        if self.sent == self.out.len() && !self.ended {
            self.ended = true;
            self.peer.end();
        }
        any
    }

    fn run(mut self) -> Vec<u8> {
        let mut heard = Instant::now();
        while self.peer.lab.flows() > 0 {
            let any = self.take() | self.give();
            self.look();
            if any {
                heard = Instant::now();
            }
            let state = || (self.sent, self.got.len(), self.unread, self.ended, self.over);
            assert!(heard.elapsed() < PATIENCE, "nothing goes on: {:?}", state());
            self.peer.lab.ready(if any { Duration::ZERO } else { Duration::from_millis(1) });
        }
        assert!(self.over);
        assert_eq!(self.peer.lab.tcp.counters().retransmitted, 0);
        self.got
    }
}

fn stream(host: HostStream, far: JoinHandle<Vec<u8>>, offloads: Offloads, seed: u64) {
    let lab = Lab::new(Config::default(), offloads, Route::Refuse);
    let mut peer = Peer::new(lab);
    assert!(peer.accept(host));
    let syn = peer.next();
    peer.acknowledged = syn.segment.sequence.wrapping_add(1);
    peer.window = (ROOM >> SHIFT) as u16;
    peer.send_with(SYN | ACK, &[2, 4, 5, 0xb4, 1, 3, 3, SHIFT as u8], b"");
    peer.sequence = peer.sequence.wrapping_add(1);
    let edge = peer.sequence;
    let (out, dice) = (noise(LEN, 3), Random(seed));
    let (got, over, unread, untold) = (Vec::new(), false, 0, 0);
    let guest = Busy { peer, dice, out, sent: 0, ended: false, edge, got, over, unread, untold };
    assert!(guest.run() == noise(LEN, 1));
    assert!(far.join().unwrap() == noise(LEN, 3));
}

#[test]
fn unix_sockets_need_no_timer() {
    for (seed, offloads) in [(7, ALL), (11, Offloads::empty()), (13, ALL)] {
        let (near, other) = UnixStream::pair().unwrap();
        let end = |stream: &UnixStream| stream.shutdown(Shutdown::Write).unwrap();
        let far = far(other.try_clone().unwrap(), other, end, seed);
        stream(HostStream::Unix(near), far, offloads, seed);
    }
}

#[test]
fn tcp_sockets_need_no_timer() {
    for (seed, offloads) in [(17, ALL), (19, Offloads::empty()), (23, ALL)] {
        let listener = listener();
        let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let near = listener.accept().unwrap().0;
        let end = |stream: &TcpStream| stream.shutdown(Shutdown::Write).unwrap();
        let far = far(other.try_clone().unwrap(), other, end, seed);
        stream(HostStream::Tcp(near), far, offloads, seed);
    }
}
