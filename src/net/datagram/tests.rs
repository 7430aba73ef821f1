//! Tests of datagram peers in this process.

use std::io::ErrorKind;
use std::os::unix::net::{UnixDatagram, UnixStream};

use super::*;
use crate::net::stream::rig::{Rig, frame};

fn peer() -> (tempfile::TempDir, PathBuf, UnixDatagram) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer");
    let peer = bind(&path);
    (folder, path, peer)
}

fn bind(path: &std::path::Path) -> UnixDatagram {
    let _ = std::fs::remove_file(path);
    UnixDatagram::bind(path).unwrap()
}

fn take(peer: &UnixDatagram) -> (Vec<u8>, PathBuf) {
    let mut frame = vec![0; 70_000];
    let (len, from) = peer.recv_from(&mut frame).unwrap();
    frame.truncate(len);
    (frame, from.as_pathname().map(Into::into).unwrap_or_default())
}

/// Frames go both ways, the peer answering to where they come from.
fn works(rig: &mut Rig<Datagram>, peer: &UnixDatagram, seed: usize) {
    for len in [14, 60, 1514, 65_550] {
        rig.send_in(&frame(len, seed), len.div_ceil(5)).unwrap();
        let (got, from) = take(peer);
        assert_eq!(got, frame(len, seed));
        peer.send_to(&frame(len, seed + 1), from).unwrap();
        assert_eq!(rig.frame(), frame(len, seed + 1));
    }
}

#[test]
fn frames_go_both_ways_and_the_path_goes_with_the_card() {
    let (_folder, path, peer) = peer();
    let mut rig = Rig::start(Datagram::unix(&path, DatagramOptions::default()));
    assert!(rig.link);
    assert_eq!(rig.backend.deadline(), None);
    works(&mut rig, &peer, 1);
    rig.send(&frame(60, 1)).unwrap();
    let (_, from) = take(&peer);
    let folder = from.parent().unwrap().to_owned();
    let mode = std::fs::metadata(&folder).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o700);
    drop(rig);
    assert!(!folder.exists());
}

#[test]
fn the_first_datagram_is_the_magic_if_it_is_wanted() {
    let (_folder, path, peer) = peer();
    let options = DatagramOptions { magic: true, mtu: 4000 };
    let mut rig = Rig::start(Datagram::unix(&path, options));
    assert_eq!(take(&peer).0, b"VFKT");
    assert_eq!(rig.backend.properties().mtu, 4000);
    works(&mut rig, &peer, 1);
}

#[test]
fn a_peer_that_does_not_read_holds_frames_up_and_loses_none() {
    let (_folder, path, peer) = peer();
    let mut rig = Rig::start(Datagram::unix(&path, DatagramOptions::default()));
    let (mut sent, mut held_up) = (0, 0);
    for seed in 0..500 {
        while sent < 500 && rig.can_send() {
            match rig.send(&frame(1514, sent)) {
                Ok(()) => sent += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    held_up += 1;
                    rig.settle();
                    assert!(!rig.can_send(), "nothing has been read yet");
                }
            }
        }
        assert_eq!(take(&peer).0, frame(1514, seed));
        rig.settle();
    }
    assert!(held_up > 0);
    rig.settle();
    assert_eq!(rig.backend.deadline(), None);
    works(&mut rig, &peer, 1);
}

#[test]
fn a_peer_that_dies_while_it_holds_frames_up_is_noticed() {
    let (_folder, path, peer) = peer();
    let mut rig = Rig::start(Datagram::unix(&path, DatagramOptions::default()));
    while rig.send(&frame(1514, 0)).is_ok() {}
    assert!(!rig.can_send());
    drop(peer);
    rig.until("that it may send", |rig| rig.can_send());
    assert_eq!(rig.send(&frame(60, 1)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    rig.until_link(false);
}

#[test]
fn a_peer_that_dies_and_comes_back_is_found_by_the_same_path() {
    let (_folder, path, mut peer) = peer();
    let mut rig = Rig::start(Datagram::unix(&path, DatagramOptions { magic: true, mtu: 1500 }));
    let (_, before) = take(&peer);
    for seed in 0..3 {
        works(&mut rig, &peer, seed);
        drop(peer);
        assert_eq!(rig.send(&frame(60, 1)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(rig.send(&frame(60, 1)).unwrap_err().kind(), ErrorKind::NotConnected);
        assert_eq!(rig.receive(), None);
        rig.until_link(false);
        peer = bind(&path);
        rig.until_link(true);
        assert_eq!(take(&peer), (b"VFKT".to_vec(), before.clone()));
    }
}

#[test]
fn a_peer_that_comes_later_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer");
    let mut rig = Rig::start(Datagram::unix(&path, DatagramOptions::default()));
    assert!(!rig.link);
    let second = rig.backend.deadline().unwrap();
    rig.until("an attempt", |rig| rig.backend.deadline() != Some(second));
    assert!(!rig.link);
    let peer = bind(&path);
    rig.until_link(true);
    assert_eq!(rig.backend.deadline(), None);
    works(&mut rig, &peer, 1);
}

#[test]
fn what_is_no_frame_is_lost_and_nothing_else() {
    let (ours, peer) = UnixDatagram::pair().unwrap();
    let mut rig = Rig::start(Datagram::from_fd(ours.into(), DatagramOptions::default()));
    for len in [0, 1, 13] {
        peer.send(&frame(len, 1)).unwrap();
        assert_eq!(rig.send(&frame(len, 1)).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    peer.send(&frame(101, 1)).unwrap();
    peer.send(&frame(100, 2)).unwrap();
    rig.settle();
    assert_eq!(rig.receive_in(100), Some(frame(100, 2)));
    assert_eq!(rig.lost, 4);
    // Too large for any socket.
    assert!(rig.send(&vec![0; 16 << 20]).is_err());
    assert!(rig.link && rig.can_send());
    rig.send(&frame(60, 3)).unwrap();
    assert_eq!(take(&peer).0, frame(60, 3));
}

#[test]
fn frames_behind_one_that_was_lost_do_not_wait_for_others() {
    let (ours, peer) = UnixDatagram::pair().unwrap();
    let mut rig = Rig::start(Datagram::from_fd(ours.into(), DatagramOptions::default()));
    for len in [3, 60, 61] {
        peer.send(&frame(len, 1)).unwrap();
    }
    rig.settle();
    rig.lose();
    assert_eq!(rig.frame(), frame(60, 1));
    rig.lose();
    assert_eq!(rig.receive(), None);
    rig.until("the end of it", |rig| rig.backend.deadline().is_none());
}

#[test]
fn a_given_socket_is_not_connected_again_and_costs_nothing_then() {
    let (ours, peer) = UnixDatagram::pair().unwrap();
    let mut rig = Rig::start(Datagram::from_fd(ours.into(), DatagramOptions::default()));
    assert!(rig.link);
    drop(peer);
    assert!(rig.send(&frame(60, 1)).is_err());
    rig.until_link(false);
    rig.settle();
    assert_eq!(rig.backend.deadline(), None);
    assert_eq!(rig.receive(), None);
}

#[test]
fn a_given_descriptor_has_to_be_a_datagram_socket() {
    let (stream, _peer) = UnixStream::pair().unwrap();
    assert!(Rig::try_start(Datagram::from_fd(stream.into(), DatagramOptions::default())).is_err());
}

#[test]
fn without_memory_it_waits_a_little_and_a_little_more() {
    let (ours, peer) = UnixDatagram::pair().unwrap();
    let mut rig = Rig::start(Datagram::from_fd(ours.into(), DatagramOptions::default()));
    rig.backend.stall();
    assert_eq!(rig.send(&frame(60, 1)).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(!rig.can_send());
    rig.until("that it may send", |rig| rig.can_send());
    assert_eq!(rig.backend.deadline(), None);
    rig.backend.stall();
    assert_eq!(rig.backend.stall, SHORT * 4);
    rig.until("that it may send", |rig| rig.backend.deadline().is_none());
    rig.send(&frame(60, 1)).unwrap();
    assert_eq!(rig.backend.stall, SHORT);
    assert_eq!(take(&peer).0, frame(60, 1));
}
