//! Tests of VPNKit's protocol against servers in this process, byte for byte.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use uuid::uuid;

use super::*;
use crate::net::MacAddr;
use crate::net::stream::rig::{Rig, frame};

const UUID: Uuid = uuid!("0f0e0d0c-0b0a-0908-0706-050403020100");
const MAC: [u8; 6] = [0x02, 0x50, 0, 0, 0, 1];

fn init(version: u32) -> Vec<u8> {
    [b"VMN3T".as_slice(), &version.to_le_bytes(), &b"0123456789".repeat(4)].concat()
}

fn vif(mtu: u16, max_packet_size: u16, mac: [u8; 6]) -> Vec<u8> {
    let mut reply = vec![1];
    reply.extend_from_slice(&mtu.to_le_bytes());
    reply.extend_from_slice(&max_packet_size.to_le_bytes());
    reply.extend_from_slice(&mac);
    reply.resize(258, 0);
    reply
}

fn disconnect(len: u8, message: &[u8]) -> Vec<u8> {
    let mut reply = vec![2, len];
    reply.extend_from_slice(message);
    reply.resize(258, 0);
    reply
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u16).to_le_bytes(), frame].concat()
}

struct Server {
    folder: tempfile::TempDir,
    listener: UnixListener,
}

impl Server {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("peer")).unwrap();
        Self { folder, listener }
    }

    fn client(&self) -> Vpnkit {
        Vpnkit::new(self.folder.path().join("peer")).uuid(UUID)
    }

    /// Waits for a client, and for what it begins with.
    fn accept(&self, rig: &mut Rig<Vpnkit>) -> UnixStream {
        self.listener.set_nonblocking(true).unwrap();
        let mut stream = None;
        rig.until("a connection", |_| {
            stream = self.listener.accept().ok();
            stream.is_some()
        });
        let (mut stream, _) = stream.unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut begin = [0; 49];
        stream.read_exact(&mut begin).unwrap();
        assert_eq!(&begin[..9], b"VMN3T\x16\0\0\0");
        assert!(begin[9..].iter().all(u8::is_ascii_hexdigit), "{begin:?}");
        stream
    }

    /// Answers, and returns what the client wants.
    fn agree(&self, rig: &mut Rig<Vpnkit>, reply: &[u8]) -> (UnixStream, [u8; 41]) {
        let mut stream = self.accept(rig);
        stream.write_all(&init(22)).unwrap();
        rig.settle();
        let mut command = [0; 41];
        stream.read_exact(&mut command).unwrap();
        stream.write_all(reply).unwrap();
        rig.settle();
        (stream, command)
    }
}

/// Frames go both ways.
fn works(rig: &mut Rig<Vpnkit>, peer: &mut UnixStream) {
    for len in [60, 61, 1514] {
        rig.send(&frame(len, 1)).unwrap();
        let mut got = vec![0; len + 2];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(got, framed(&frame(len, 1)));
        peer.write_all(&framed(&frame(len, 2))).unwrap();
        assert_eq!(rig.frame(), frame(len, 2));
    }
}

#[test]
fn a_client_says_who_it_is_and_learns_what_its_card_is_like() {
    let server = Server::new();
    let mut rig = Rig::start(server.client());
    assert!(!rig.link);
    let unknown = Properties { mac: None, mtu: 1500, offloads: Offloads::empty(), queues: 1 };
    assert_eq!(rig.backend.properties(), unknown);
    let (mut peer, command) = server.agree(&mut rig, &vif(1400, 1450, MAC));
    assert_eq!(command, *b"\x010f0e0d0c-0b0a-0908-0706-050403020100\0\0\0\0");
    assert!(rig.link);
    let known = Properties { mac: Some(MacAddr(MAC)), ..unknown };
    assert_eq!(rig.backend.properties(), known);
    assert_eq!(rig.backend.deadline(), None);
    rig.send(&frame(1418, 1)).unwrap();
    peer.read_exact(&mut [0; 1420]).unwrap();
    assert!(rig.link);
}

#[test]
fn what_is_larger_than_the_servers_mtu_is_lost_and_nothing_else() {
    // The guest was told another before anybody knew, or was told this one.
    for (mtu, told) in [(None, 1500), (Some(1400), 1400), (Some(9000), 9000)] {
        let server = Server::new();
        let client = match mtu {
            Some(mtu) => server.client().mtu(mtu),
            None => server.client(),
        };
        let mut rig = Rig::start(client);
        assert_eq!(rig.backend.properties().mtu, told);
        // A packet of 1400 bytes, with a VLAN's tag or without; and as long as the server's frames may be.
        for (packets, longest, most) in [(1400, 1450, 1418), (1400, 1416, 1416), (1400, 1000, 1000)]
        {
            let (mut peer, _) = server.agree(&mut rig, &vif(packets, longest, MAC));
            assert_eq!(rig.backend.properties().mtu, told, "what a guest was told is so");
            for _ in 0..2 {
                let result = rig.send(&frame(most + 1, 1));
                assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
                rig.send(&frame(most, 1)).unwrap();
                let mut got = vec![0; most + 2];
                peer.read_exact(&mut got).unwrap();
                assert_eq!(got, framed(&frame(most, 1)));
            }
            assert!(rig.link);
            drop(peer);
            rig.until_link(false);
        }
    }
}

#[test]
fn an_address_can_be_asked_for() {
    let server = Server::new();
    let client = server.client().preferred_ipv4(Ipv4Addr::new(192, 168, 65, 3));
    let mut rig = Rig::start(client);
    let (mut peer, command) = server.agree(&mut rig, &vif(1500, 1550, MAC));
    assert_eq!(command, *b"\x080f0e0d0c-0b0a-0908-0706-050403020100\x03\x41\xa8\xc0");
    works(&mut rig, &mut peer);
}

#[test]
fn cards_are_different_unless_they_are_named() {
    let commands = [0, 1].map(|_| {
        let server = Server::new();
        let mut rig = Rig::start(Vpnkit::new(server.folder.path().join("peer")));
        let (_peer, command) = server.agree(&mut rig, &vif(1500, 1550, MAC));
        let uuid = std::str::from_utf8(&command[1..37]).unwrap().to_owned();
        assert!(Uuid::try_parse(&uuid).is_ok(), "{uuid}");
        uuid
    });
    assert_ne!(commands[0], commands[1]);
}

#[test]
fn answers_may_be_cut_anywhere_and_frames_may_follow_at_once() {
    let first = frame(100, 5);
    let answer = [init(22), vif(1500, 1514, MAC), framed(&first)].concat();
    for cut in 0..answer.len() {
        let server = Server::new();
        let mut rig = Rig::start(server.client());
        let mut peer = server.accept(&mut rig);
        for part in [&answer[..cut], &answer[cut..]] {
            assert_eq!(rig.receive(), None);
            peer.write_all(part).unwrap();
            rig.settle();
        }
        assert!(rig.link, "cut at {cut}");
        assert_eq!(rig.receive().as_ref(), Some(&first), "cut at {cut}");
        peer.read_exact(&mut [0; 41]).unwrap();
        rig.send(&frame(60, 1)).unwrap();
        peer.read_exact(&mut [0; 62]).unwrap();
    }
}

#[test]
fn short_frames_are_filled_up() {
    let server = Server::new();
    let mut rig = Rig::start(server.client());
    let (mut peer, _) = server.agree(&mut rig, &vif(1500, 1550, MAC));
    for len in 14..60 {
        rig.send_in(&frame(len, 1), 3).unwrap();
        let mut got = [0; 62];
        peer.read_exact(&mut got).unwrap();
        let mut filled = frame(len, 1);
        filled.resize(60, 0);
        assert_eq!(got.as_slice(), framed(&filled));
    }
}

#[test]
fn a_server_of_another_version_may_go_on_or_hang_up() {
    let server = Server::new();
    let mut rig = Rig::start(server.client());
    let mut peer = server.accept(&mut rig);
    peer.write_all(&init(1)).unwrap();
    drop(peer);
    let mut peer = server.accept(&mut rig);
    assert!(!rig.link);
    peer.write_all(&init(23)).unwrap();
    rig.settle();
    peer.read_exact(&mut [0; 41]).unwrap();
    peer.write_all(&vif(1500, 1550, MAC)).unwrap();
    rig.until_link(true);
    works(&mut rig, &mut peer);
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let server = Server::new();
    let mut rig = Rig::start(server.client());
    for said in [&[][..], &init(22)] {
        let mut peer = server.accept(&mut rig);
        peer.write_all(said).unwrap();
        rig.settle();
        assert!(rig.backend.deadline().is_some(), "nobody waits for ever");
        rig.backend.0.lose_patience();
        rig.settle();
        assert!(!rig.link);
        peer.read_to_end(&mut Vec::new()).unwrap();
    }
    let (mut peer, _) = server.agree(&mut rig, &vif(1500, 1550, MAC));
    works(&mut rig, &mut peer);
}

#[test]
fn what_is_no_server_is_left_alone_and_asked_again_later() {
    let server = Server::new();
    let mut rig = Rig::start(server.client());
    let refused = [1; 258];
    let beginnings: [&[u8]; 4] = [b"HTTP/1.1 400 Bad", b"VMN3", b"x", &init(22)];
    for (beginning, reply) in beginnings.into_iter().zip([&[][..], b"S", b"", &[3; 258]]) {
        let mut peer = server.accept(&mut rig);
        peer.write_all(beginning).unwrap();
        rig.settle();
        if beginning.len() == 49 {
            peer.read_exact(&mut [0; 41]).unwrap();
        }
        peer.write_all(reply).unwrap_or_default();
        rig.settle();
        let mut rest = Vec::new();
        assert!(peer.read_to_end(&mut rest).is_err() || rest.is_empty(), "{rest:?}");
        assert!(!rig.link);
        assert!(rig.backend.deadline().is_some());
    }
    for reply in [
        vif(1500, 81, MAC),
        vif(67, 1500, MAC),
        vif(0, 0, MAC),
        vif(1500, 1550, [0; 6]),
        vif(1500, 1550, [1, 2, 3, 4, 5, 6]),
        refused.to_vec(),
    ] {
        drop(server.agree(&mut rig, &reply));
        assert!(!rig.link && rig.backend.properties().mac.is_none());
        // So as not to wait seconds for the next.
        rig = Rig::start(server.client());
    }
    let (mut peer, _) = server.agree(&mut rig, &vif(1500, 1550, MAC));
    works(&mut rig, &mut peer);
}

#[test]
fn a_refusal_is_not_the_end_and_is_not_asked_for_again_and_again() {
    let server = Server::new();
    let mut rig = Rig::start(server.client());
    let mut waits = Vec::new();
    for (len, message) in [(4, b"full".as_slice()), (255, &[0xff; 256]), (0, b"")].repeat(2) {
        drop(server.agree(&mut rig, &disconnect(len, message)));
        assert!(!rig.link);
        waits.push(rig.backend.deadline().unwrap().saturating_duration_since(Instant::now()));
    }
    // What is left of each when it is looked at; the last is 32 times as long as the first.
    assert!(waits[0] < waits[5], "{waits:?}");
    let (mut peer, _) = server.agree(&mut rig, &vif(1500, 1550, MAC));
    works(&mut rig, &mut peer);
}

#[test]
fn frames_larger_than_buffers_are_lost_and_no_others() {
    let server = Server::new();
    let mut rig = Rig::start(server.client());
    let (mut peer, _) = server.agree(&mut rig, &vif(1500, 1550, MAC));
    for len in [65_535, 0, 13, 2000] {
        peer.write_all(&framed(&frame(len, 1))).unwrap();
    }
    peer.write_all(&framed(&frame(1514, 2))).unwrap();
    let mut got = None;
    rig.until("a frame", |rig| {
        got = rig.receive_in(1526);
        got.is_some()
    });
    assert_eq!(got, Some(frame(1514, 2)));
    assert_eq!(rig.lost, 4);
}

#[test]
fn the_address_is_what_the_server_said_last_and_in_the_file() {
    let server = Server::new();
    let file = server.folder.path().join("mac");
    let mut rig = Rig::start(server.client().mac_file(&file));
    assert!(!file.exists());
    for last in [1, 2] {
        let mac = [0x02, 0x50, 0, 0, 0, last];
        let (mut peer, _) = server.agree(&mut rig, &vif(1500, 1550, mac));
        assert!(rig.link);
        assert_eq!(rig.backend.properties().mac, Some(MacAddr(mac)));
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("02:50:00:00:00:0{last}"));
        works(&mut rig, &mut peer);
        drop(peer);
        rig.until_link(false);
        assert_eq!(rig.backend.properties().mac, Some(MacAddr(mac)), "a card keeps its address");
    }
    assert_eq!(fs::read_dir(server.folder.path()).unwrap().count(), 2, "nothing else is left");
}

#[test]
fn a_file_that_cannot_be_written_does_not_keep_the_link_down() {
    let server = Server::new();
    let folder = server.folder.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let mut rig = Rig::start(server.client().mac_file(&folder));
    let (mut peer, _) = server.agree(&mut rig, &vif(1500, 1550, MAC));
    works(&mut rig, &mut peer);
    assert_eq!(fs::read_dir(server.folder.path()).unwrap().count(), 2, "nothing else is left");
}
