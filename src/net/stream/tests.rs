//! Tests of QEMU's stream protocol against peers in this process.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use super::*;
use crate::net::stream::rig::{Rig, frame};
use crate::sys::socket;

/// As it is on the wire.
fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

/// Reads a frame as the peer does.
fn take(peer: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    peer.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    peer.read_exact(&mut frame)?;
    Ok(frame)
}

fn pair() -> (Rig<Stream>, UnixStream) {
    let (ours, peer) = UnixStream::pair().unwrap();
    let rig = Rig::start(Stream::from_fd(ours.into()));
    assert!(rig.link);
    assert_eq!(rig.backend.deadline(), None);
    (rig, peer)
}

fn listening() -> (tempfile::TempDir, PathBuf, UnixListener) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer");
    let listener = UnixListener::bind(&path).unwrap();
    (folder, path, listener)
}

/// Frames go both ways.
fn works(rig: &mut Rig<Stream>, peer: &mut (impl Read + Write), seed: usize) {
    for len in [14, 60, 1514] {
        rig.send(&frame(len, seed)).unwrap();
        assert_eq!(take(peer).unwrap(), frame(len, seed));
        peer.write_all(&framed(&frame(len, seed + 1))).unwrap();
        assert_eq!(rig.frame(), frame(len, seed + 1));
    }
}

#[test]
fn frames_arrive_whole_wherever_the_stream_is_cut() {
    let (mut rig, mut peer) = pair();
    let frames = [frame(14, 1), frame(60, 2), frame(150, 3)];
    let bytes = frames.each_ref().map(|frame| framed(frame)).concat();
    for cut in 0..=bytes.len() {
        let mut got = Vec::new();
        for part in [&bytes[..cut], &bytes[cut..]] {
            peer.write_all(part).unwrap();
            rig.settle();
            got.extend(std::iter::from_fn(|| rig.receive()));
        }
        assert_eq!(got, frames, "cut at {cut}");
    }
    let mut got = Vec::new();
    for byte in bytes.chunks(1) {
        peer.write_all(byte).unwrap();
        rig.settle();
        got.extend(rig.receive());
    }
    assert_eq!(got, frames, "byte by byte");
}

#[test]
fn frames_are_sent_after_their_length_in_however_many_pieces_they_are() {
    let (mut rig, mut peer) = pair();
    for (seed, len) in [14, 15, 60, 1514, 9014, 65_550].into_iter().enumerate() {
        for pieces in [1, 2, 31, 32, 33, 2000] {
            let frame = frame(len, seed + pieces);
            rig.send_in(&frame, len.div_ceil(pieces)).unwrap();
            assert_eq!(take(&mut peer).unwrap(), frame, "{len} bytes in {pieces} pieces");
        }
    }
    for len in [0, 13, 65_551] {
        let error = rig.send(&frame(len, 0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{len} bytes");
    }
    works(&mut rig, &mut peer, 9);
}

#[test]
fn a_burst_comes_in_order() {
    let (mut rig, mut peer) = pair();
    let lengths =
        || (0..3000usize).map(|i| 14 + i * 7919 % if i % 50 == 0 { 65_537 } else { 1501 });
    let sender = thread::spawn(move || {
        for (seed, len) in lengths().enumerate() {
            peer.write_all(&framed(&frame(len, seed))).unwrap();
        }
        peer
    });
    for (seed, len) in lengths().enumerate() {
        assert!(rig.frame() == frame(len, seed), "frame {seed} of {len} bytes");
    }
    works(&mut rig, &mut sender.join().unwrap(), 1);
}

#[test]
fn a_slow_peer_holds_frames_up_and_loses_none() {
    let (mut rig, mut peer) = pair();
    peer.set_nonblocking(true).unwrap();
    let lengths = [60, 1514, 65_550, 14, 9014, 40_000];
    let frames: Vec<_> = (0..600).map(|i| frame(lengths[i % lengths.len()], i)).collect();
    let (mut next, mut held_up, mut got) = (0, 0, Vec::new());
    let all: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
    while got.len() < all.len() {
        while rig.can_send() && next < frames.len() {
            match rig.send_in(&frames[next], frames[next].len().div_ceil(1 + next % 40)) {
                Ok(()) => next += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    held_up += 1;
                }
            }
        }
        let mut part = [0; 30_011];
        let count = peer.read(&mut part).unwrap();
        got.extend_from_slice(&part[..count]);
        rig.settle();
    }
    assert!(got == all);
    assert!(held_up > 2, "{held_up}");
    assert_eq!(rig.backend.deadline(), None);
}

#[test]
fn frames_that_do_not_fit_and_frames_that_are_none_are_lost_and_no_others() {
    let (mut rig, mut peer) = pair();
    peer.write_all(&framed(&frame(2000, 1))).unwrap();
    peer.write_all(&framed(&frame(100, 2))).unwrap();
    rig.settle();
    assert_eq!(rig.receive_in(1999).unwrap(), frame(100, 2));
    for len in 0..14 {
        peer.write_all(&framed(&frame(len, 3))).unwrap();
    }
    works(&mut rig, &mut peer, 4);
    assert_eq!(rig.lost, 15);
}

#[test]
fn frames_behind_one_that_was_lost_do_not_wait_for_others() {
    let (mut rig, mut peer) = pair();
    for len in [3, 60, 61] {
        peer.write_all(&framed(&frame(len, 1))).unwrap();
    }
    rig.settle();
    rig.lose();
    assert_eq!(rig.frame(), frame(60, 1));
    rig.lose();
    assert_eq!(rig.receive(), None);
    rig.until("the end of it", |rig| rig.backend.deadline().is_none());
}

#[test]
fn a_length_that_is_none_ends_the_connection_and_the_next_one_works() {
    let (_folder, path, listener) = listening();
    let mut rig = Rig::start(Stream::unix(&path));
    for length in [65_551, 1 << 24, u32::MAX] {
        let (mut peer, _) = listener.accept().unwrap();
        rig.until_link(true);
        works(&mut rig, &mut peer, 1);
        peer.write_all(&framed(&frame(65_550, 2))).unwrap();
        assert_eq!(rig.frame(), frame(65_550, 2));
        peer.write_all(&length.to_be_bytes()).unwrap();
        rig.settle();
        assert_eq!(rig.receive(), None);
        rig.until_link(false);
        let error = rig.send(&frame(60, 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotConnected);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the connection is still there");
        rig.until_link(true);
    }
}

#[test]
fn a_peer_may_die_in_the_middle_of_a_frame_and_come_back() {
    let (_folder, path, listener) = listening();
    let mut rig = Rig::start(Stream::unix(&path));
    for cut in [1, 4, 5, 1000] {
        let (mut peer, _) = listener.accept().unwrap();
        rig.until_link(true);
        works(&mut rig, &mut peer, cut);
        peer.write_all(&framed(&frame(1514, 1))[..cut]).unwrap();
        rig.settle();
        assert_eq!(rig.receive(), None);
        // One that is half sent is not gone on with, either.
        while rig.can_send() {
            let _ = rig.send(&frame(65_550, 2));
        }
        drop(peer);
        rig.until("the loss", |rig| rig.receive().is_none() && !rig.link);
        rig.until_link(true);
    }
}

#[test]
fn a_peer_that_has_gone_is_noticed_when_sending() {
    let (_folder, path, listener) = listening();
    let mut rig = Rig::start(Stream::unix(&path));
    drop(listener.accept().unwrap());
    let error = rig.send(&frame(60, 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert!(rig.backend.deadline().is_some_and(|deadline| deadline <= Instant::now()));
    rig.until_link(false);
    rig.until_link(true);
    works(&mut rig, &mut listener.accept().unwrap().0, 1);
}

#[test]
fn a_peer_that_comes_later_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer");
    let mut rig = Rig::start(Stream::unix(&path));
    assert!(!rig.link);
    assert_eq!(rig.receive(), None);
    // A path that nobody listens on any more is no different.
    drop(UnixListener::bind(&path).unwrap());
    let second = rig.backend.deadline().unwrap();
    rig.until("an attempt", |rig| rig.backend.deadline() != Some(second));
    assert!(!rig.link);
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    rig.until_link(true);
    assert_eq!(rig.backend.deadline(), None, "nothing is to be done while it is there");
    works(&mut rig, &mut listener.accept().unwrap().0, 1);
}

#[test]
fn a_peer_that_does_not_accept_in_time_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer");
    let listener = listener_of_one(&path);
    let mut waiting = Vec::new();
    let mut rig = loop {
        let rig = Rig::start(Stream::unix(&path));
        if !rig.link {
            break rig;
        }
        waiting.push(rig);
        assert!(waiting.len() < 100);
    };
    for _ in &waiting {
        listener.accept().unwrap();
    }
    rig.until_link(true);
    works(&mut rig, &mut listener.accept().unwrap().0, 1);
}

/// A listener that lets few wait.
fn listener_of_one(path: &Path) -> UnixListener {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    socket.into()
}

#[test]
fn a_given_socket_is_not_connected_again_and_costs_nothing_then() {
    let (mut rig, mut peer) = pair();
    works(&mut rig, &mut peer, 1);
    drop(peer);
    rig.until_link(false);
    rig.settle();
    assert_eq!(rig.backend.deadline(), None);
    assert_eq!(rig.receive(), None);
    assert_eq!(rig.send(&frame(60, 1)).unwrap_err().kind(), ErrorKind::NotConnected);
}

#[test]
fn a_given_descriptor_has_to_be_a_stream_socket() {
    let datagrams = UnixDatagram::unbound().unwrap();
    let file = tempfile::tempfile().unwrap();
    for fd in [OwnedFd::from(datagrams), file.into()] {
        assert!(Rig::try_start(Stream::from_fd(fd)).is_err());
    }
}

#[test]
fn tcp_does_the_same() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut rig = Rig::start(Stream::tcp(address));
    for seed in 0..2 {
        rig.until_link(true);
        let (mut peer, _) = listener.accept().unwrap();
        works(&mut rig, &mut peer, seed);
        drop(peer);
        rig.until_link(false);
    }
    rig.until_link(true);
    drop(listener);
    rig.until_link(false);
    let first = rig.backend.deadline().unwrap();
    rig.until("a refusal", |rig| rig.backend.deadline().is_some_and(|next| next > first));
    assert!(!rig.link);
}

#[test]
fn a_socket_that_is_connected_to_itself_is_no_peer() {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = probe.local_addr().unwrap();
    drop(probe);
    let itself = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&itself, &address).unwrap();
    rustix::net::connect(&itself, &address).unwrap();
    assert!(socket::met_itself(&itself));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert!(!socket::met_itself(&other.into()));
}

#[test]
fn properties_are_what_was_said() {
    let stream = Stream::unix("/nowhere");
    let properties = Properties { mac: None, mtu: 1500, offloads: Offloads::empty(), queues: 1 };
    assert_eq!(stream.properties(), properties);
    assert_eq!(stream.mtu(65_520).properties(), Properties { mtu: 65_520, ..properties });
}
