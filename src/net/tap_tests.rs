//! A card on a tap, and the kernel's own stack on the other side: in a network namespace of the test's own, in a
//! process of its own.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::net::MacAddr;
use crate::virtio::feature;
use crate::virtio::net::{Card, CardHandle, Features, Options};
use crate::virtio::testing::{Buffer, Guest, PATIENCE, Ring};

const INSIDE: &str = "HYPERKIT_TEST_NAMESPACE";

/// Runs `test`, which is called `name`, where it may make interfaces as it likes.
fn in_namespace(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let works = |command: &mut Command| command.output().is_ok_and(|out| out.status.success());
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "--"]);
        command
    };
    if !works(unshare().args(["ip", "tuntap", "add", "tap0", "mode", "tap"])) {
        eprintln!(
            "skipped: no network namespace with a tap in it can be made (unshare, ip, /dev/net/tun)"
        );
        return;
    }
    let name = format!("net::tap::tests::{name}");
    let mut command = unshare();
    command.arg(std::env::current_exe().unwrap()).args(["--exact", &name]).env(INSIDE, "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
const ROOM: u32 = 4000;

/// A guest with a card on a tap.
struct Machine {
    guest: Guest,
    handle: CardHandle,
    rings: Vec<Ring>,
    buffers: Vec<u64>,
    out: u64,
}

impl Machine {
    fn new(tap: Tap, without: Features) -> Self {
        let card = Card::new(Box::new(tap), MAC, Options::without(without)).unwrap();
        let handle = card.handle();
        let mut guest = Guest::new(card);
        let features = guest.offered() & feature::DEVICE | feature::EVENT_IDX;
        let mut rings = guest.start(features, 64);
        rings.iter_mut().for_each(|ring| ring.event_idx = true);
        let mut machine = Self { out: guest.alloc(70_000), guest, handle, rings, buffers: vec![] };
        for _ in 0..64 {
            let at = machine.guest.alloc(ROOM as usize);
            machine.rings[0].request(&[Buffer::In(at, ROOM)]);
            machine.buffers.push(at);
        }
        machine.guest.kick(&mut machine.rings[0]);
        machine
    }

    fn send_on(&mut self, queue: usize, header: Header, frame: &[u8]) {
        let bytes = [&header.to_bytes()[..], &[0, 0], frame].concat();
        self.guest.memory.write_slice(&bytes, GuestAddress(self.out)).unwrap();
        let ring = &mut self.rings[queue];
        ring.request(&[Buffer::Out(self.out, bytes.len() as u32)]);
        self.guest.kick(ring);
        self.guest.wait(ring);
    }

    fn send(&mut self, header: Header, frame: &[u8]) {
        self.send_on(1, header, frame);
    }

    fn until_link(&self, up: bool) {
        let end = Instant::now() + PATIENCE;
        while self.handle.link() != up {
            assert!(Instant::now() < end, "the link does not become {up}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The next frame that `wanted` is true of.
    fn receive(&mut self, wanted: impl Fn(&[u8]) -> bool) -> (Header, Vec<u8>) {
        loop {
            let mut all = Vec::new();
            let mut left = 1;
            while left > 0 {
                let (head, len) = self.guest.wait(&mut self.rings[0]);
                let at = self.buffers[usize::from(head)];
                let mut bytes = vec![0; len as usize];
                self.guest.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
                if all.is_empty() {
                    left = u16::from_le_bytes([bytes[10], bytes[11]]);
                }
                all.extend(bytes);
                left -= 1;
                assert_eq!(self.rings[0].request(&[Buffer::In(at, ROOM)]), head);
            }
            self.guest.kick(&mut self.rings[0]);
            let frame = all.split_off(12);
            if wanted(&frame) {
                return (Header::from_bytes(all[..10].try_into().unwrap()), frame);
            }
        }
    }
}

/// The Internet's checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let pairs =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | *pair.get(1).unwrap_or(&0) as u32);
    let mut sum: u32 = pairs.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// From 192.0.2.2 to 192.0.2.1.
fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header =
        vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
    header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&[0xff; 6], &MAC.0[..], &[8, 0], &header, payload].concat()
}

/// A UDP datagram from port 9 whose checksum covers nothing but the pseudo header.
fn udp(port: u16, data: &[u8]) -> Vec<u8> {
    let len = 8 + data.len() as u16;
    let pseudo = [&[192, 0, 2, 2, 192, 0, 2, 1, 0, 17][..], &len.to_be_bytes()].concat();
    let partial = !checksum(&pseudo);
    let fields = [9, port, len, partial].map(u16::to_be_bytes);
    ipv4(17, &[fields.as_flattened(), data].concat())
}

/// A tap with so many queues, up and with an address. The kernel drops what it would send on an interface that was up
/// before somebody opened it, until it finds the time to notice.
fn set_up(queues: u16) -> Tap {
    let tap = Tap::open("tap0", queues).unwrap();
    let quiet = std::fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1");
    quiet.unwrap_or_default();
    ip("address replace 192.0.2.1/24 dev tap0");
    ip("link set tap0 up");
    ip("neighbour replace 192.0.2.2 lladdr 52:54:00:01:02:03 dev tap0 nud permanent");
    tap
}

const PLAIN: Header =
    Header { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

#[test]
fn the_kernel_answers_arp_and_ping() {
    in_namespace("the_kernel_answers_arp_and_ping", || {
        ip("tuntap add tap0 mode tap");
        ip("link set tap0 mtu 4000");
        let tap = set_up(1);
        assert_eq!((tap.interface(), tap.properties().mtu), ("tap0", 4000));
        let mut machine = Machine::new(tap, Features::empty());
        let question = [0, 1, 8, 0, 6, 4, 0, 1];
        let arp = [
            &[0xff; 6],
            &MAC.0[..],
            &[8, 6],
            &question,
            &MAC.0,
            &[192, 0, 2, 2],
            &[0; 6],
            &[192, 0, 2, 1],
        ]
        .concat();
        machine.send(PLAIN, &arp);
        let (header, answer) = machine.receive(|frame| frame[12..14] == [8, 6] && frame[21] == 2);
        assert_eq!(header, PLAIN);
        assert_eq!(answer[..6], MAC.0);
        assert_eq!(answer[28..32], [192, 0, 2, 1]);

        for len in [0, 1, 56, 1400, 3972] {
            let data: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut echo = [&[8, 0, 0, 0, 0x12, 0x34, 0, 1], &data[..]].concat();
            let sum = checksum(&echo);
            echo[2..4].copy_from_slice(&sum.to_be_bytes());
            machine.send(PLAIN, &ipv4(1, &echo));
            let (_, answer) = machine.receive(|frame| frame[12..14] == [8, 0] && frame[23] == 1);
            assert_eq!((answer[34], &answer[38..42]), (0, &echo[4..8]));
            assert_eq!(&answer[42..], data, "{len} bytes");
        }
        let counters = machine.handle.counters();
        assert_eq!(counters.sent.frames, 6);
        assert_eq!((counters.send_drops, counters.receive_drops), Default::default());
    });
}

#[test]
fn checksums_and_large_packets_are_left_to_the_other_side() {
    in_namespace("checksums_and_large_packets_are_left_to_the_other_side", || {
        ip("tuntap add tap0 mode tap");
        let tap = set_up(1);
        let host = UdpSocket::bind("192.0.2.1:0").unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = host.local_addr().unwrap().port();
        let offloads = tap.properties().offloads;
        assert!(offloads.contains(Offloads::CSUM | Offloads::TSO4 | Offloads::GUEST_TSO6));
        let mut machine = Machine::new(tap, Features::empty());
        let data: Vec<u8> = (0..5000_u32).map(|n| (n * 7) as u8).collect();
        let mut got = [0; 2000];
        let csum = Header { flags: 1, csum_start: 34, csum_offset: 6, ..PLAIN };

        machine.send(csum, &udp(port, &data[..700]));
        assert_eq!(host.recv(&mut got).unwrap(), 700);
        assert_eq!(got[..700], data[..700]);
        // Without the flag the same is a wrong checksum, and not received.
        machine.send(PLAIN, &udp(port, &data[..701]));
        host.send_to(&data[..800], "192.0.2.2:9").unwrap();
        let to_us = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 17;
        let (header, frame) = machine.receive(to_us);
        assert_eq!(header.flags & 1, 1, "the checksum is not complete");
        assert_eq!(frame[42..], data[..800]);

        if !offloads.contains(Offloads::USO | Offloads::GUEST_USO4) {
            eprintln!("skipped: the kernel has no large UDP packets on taps");
            return;
        }
        let large = Header { gso_type: 5, hdr_len: 42, gso_size: 1000, ..csum };
        machine.send(large, &udp(port, &data));
        for piece in data.chunks(1000) {
            assert_eq!(host.recv(&mut got).unwrap(), 1000);
            assert_eq!(&got[..1000], piece);
        }
        let size: libc::c_int = 1000;
        // SAFETY: the call reads a number of the size that is told.
        let set = unsafe {
            libc::setsockopt(
                host.as_raw_fd(),
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                (&raw const size).cast(),
                4,
            )
        };
        assert_eq!(set, 0);
        host.send_to(&data, "192.0.2.2:9").unwrap();
        let (header, frame) = machine.receive(to_us);
        assert_eq!((header.gso_type, header.gso_size), (5, 1000));
        // In two buffers.
        assert_eq!(frame[42..], data);

        // A driver that takes none of it gets the pieces, with checksums.
        drop(machine);
        ip("link set tap0 down");
        let mut machine = Machine::new(set_up(1), Features::GUEST_CSUM | Features::CSUM);
        host.send_to(&data, "192.0.2.2:9").unwrap();
        for piece in data.chunks(1000) {
            let (header, frame) = machine.receive(to_us);
            assert_eq!(header, PLAIN);
            assert_eq!(&frame[42..], piece);
        }
    });
}

#[test]
fn several_queues_serve_a_driver_of_one() {
    in_namespace("several_queues_serve_a_driver_of_one", || {
        ip("tuntap add tap0 mode tap multi_queue");
        let mut machine = Machine::new(set_up(4), Features::empty());
        assert_eq!(machine.rings.len(), 9);
        // The kernel spreads flows over the queues; the driver has not asked for more than one.
        for n in 0..40 {
            let host = UdpSocket::bind("192.0.2.1:0").unwrap();
            host.set_read_timeout(Some(PATIENCE)).unwrap();
            host.send_to(&[n; 100], "192.0.2.2:9").unwrap();
            let (_, frame) = machine.receive(|frame| frame[12..14] == [8, 0] && frame[23] == 17);
            assert_eq!(frame[42..], [n; 100]);
            let csum = Header { flags: 1, csum_start: 34, csum_offset: 6, ..PLAIN };
            let port = host.local_addr().unwrap().port();
            machine.send_on(1 + 2 * usize::from(n % 4), csum, &udp(port, &[n; 50]));
            assert_eq!(host.recv(&mut [0; 100]).unwrap(), 50);
        }
    });
}

#[test]
fn an_interface_that_goes_takes_the_link_down() {
    in_namespace("an_interface_that_goes_takes_the_link_down", || {
        let mut machine = Machine::new(set_up(1), Features::empty());
        assert!(machine.handle.link());
        ip("link delete tap0");
        machine.until_link(false);
        machine.send(PLAIN, &ipv4(1, &[0; 8]));
        assert_eq!(machine.handle.counters().send_drops.link_down, 1);
        machine.guest.reset();
        assert!(machine.guest.negotiate(feature::VERSION_1));
        machine.guest.driver_ok();
    });
}

#[test]
fn an_interface_that_is_set_down_takes_the_link_with_it_until_it_is_up_again() {
    in_namespace(
        "an_interface_that_is_set_down_takes_the_link_with_it_until_it_is_up_again",
        || {
            let mut machine = Machine::new(set_up(1), Features::empty());
            for round in 1..=3 {
                ip("link set tap0 down");
                machine.send(PLAIN, &ipv4(1, &[0; 8]));
                machine.until_link(false);
                machine.send(PLAIN, &ipv4(1, &[0; 8]));
                let drops = machine.handle.counters().send_drops;
                assert_eq!((drops.failed, drops.link_down), (round, round));
                ip("link set tap0 up");
                machine.until_link(true);
                let mut echo = [8, 0, 0, 0, 0x12, 0x34, 0, round as u8];
                let sum = checksum(&echo);
                echo[2..4].copy_from_slice(&sum.to_be_bytes());
                ip("neighbour replace 192.0.2.2 lladdr 52:54:00:01:02:03 dev tap0 nud permanent");
                machine.send(PLAIN, &ipv4(1, &echo));
                let (_, answer) =
                    machine.receive(|frame| frame[12..14] == [8, 0] && frame[23] == 1);
                assert_eq!((answer[34], &answer[38..42]), (0, &echo[4..8]));
            }
        },
    );
}

#[test]
fn what_is_wrong_with_a_tap_is_said() {
    in_namespace("what_is_wrong_with_a_tap_is_said", || {
        let error = |name: &str, queues| Tap::open(name, queues).unwrap_err();
        ip("tuntap add tap0 mode tap");
        assert!(matches!(error("tap0", 2), TapError::Kind { queues: 2, .. }));
        let _first = Tap::open("tap0", 1).unwrap();
        assert!(matches!(error("tap0", 1), TapError::Busy(_)));
        ip("tuntap add many mode tap multi_queue");
        assert!(matches!(error("many", 1), TapError::Kind { queues: 1, .. }));
        assert!(matches!(error("lo", 1), TapError::Kind { .. }));
        // One that the kernel names, and whose descriptors go from hand to hand.
        let tap = Tap::open("hk%d", 2).unwrap();
        assert_eq!(tap.interface(), "hk0");
        let fds = tap.queues.into_iter().map(|queue| queue.fd).collect();
        let again = Tap::from_fds(fds).unwrap();
        assert_eq!((again.interface(), again.properties().queues), ("hk0", 2));
        let other = Tap::open("hk%d", 2).unwrap();
        assert_eq!(other.interface(), "hk1");
        let mixed = again.queues.into_iter().chain(other.queues).map(|queue| queue.fd).collect();
        assert!(matches!(Tap::from_fds(mixed), Err(TapError::NotTap { number: 2, .. })));
    });
}

#[test]
fn names_and_descriptors_that_cannot_be_taps() {
    for name in ["", "a-name-of-16-byt", "a/b", "a b", "a\0"] {
        assert!(matches!(Tap::open(name, 1), Err(TapError::Name(_))), "{name:?}");
    }
    for queues in [0, 257] {
        assert!(matches!(Tap::open("tap0", queues), Err(TapError::Queues(_))));
    }
    assert!(matches!(Tap::from_fds(vec![]), Err(TapError::Queues(0))));
    let file = std::fs::File::open("/dev/null").unwrap();
    let error = Tap::from_fds(vec![file.into()]).unwrap_err();
    assert!(error.to_string().contains("file descriptor 0"), "{error}");
}
