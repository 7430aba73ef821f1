//! Frames in every shape, both ways.

use super::super::*;
use super::support::*;
use crate::net::Offloads;
use crate::virtio::testing::{Buffer, Guest};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_net::*;
use vm_memory::{Bytes, GuestAddress};

const PLAIN: Header =
    Header { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };
const CSUM: Header = Header { flags: 1, csum_start: 34, csum_offset: 16, ..PLAIN };
const TCP: Header = Header { gso_type: 1, hdr_len: 54, gso_size: 1448, ..CSUM };

fn script() -> Script {
    Script::new(Offloads::all(), 1)
}

#[test]
fn a_frame_is_sent_however_it_is_cut() {
    let mut machine = Machine::new(script(), Features::empty());
    let cuts: [&[usize]; 9] =
        [&[], &[12], &[1], &[11, 1], &[13], &[12, 6, 6, 2], &[5, 5, 5, 5], &[0, 12, 0], &[26]];
    for (n, cut) in cuts.iter().enumerate() {
        let bytes = frame(60 + n);
        machine.send_raw_quietly(0, &before(CSUM, &bytes), cut);
        machine.kick(1);
        assert_eq!(machine.guest.wait(&mut machine.rings[1]).1, 0);
        assert_eq!(machine.script.state().sent.pop(), Some((0, CSUM, bytes)), "cut {cut:?}");
    }
    let counters = machine.handle.counters();
    assert_eq!(counters.sent, Traffic { frames: 9, bytes: (60..69).sum() });
    assert_eq!(counters.send_drops, SendDrops::default());
}

#[test]
fn room_that_comes_with_a_frame_to_send_is_left_alone() {
    let mut machine = Machine::new(script(), Features::empty());
    let bytes = before(PLAIN, &frame(64));
    let (out, back) = (machine.alloc(bytes.len()), machine.alloc(64));
    machine.guest.memory.write_slice(&bytes, GuestAddress(out)).unwrap();
    machine.rings[1].request(&[Buffer::Out(out, bytes.len() as u32), Buffer::In(back, 64)]);
    machine.kick(1);
    assert_eq!(machine.guest.wait(&mut machine.rings[1]).1, 0);
    let mut after = [0; 64];
    machine.guest.memory.read_slice(&mut after, GuestAddress(back)).unwrap();
    assert_eq!(after, [0xee; 64]);
    assert_eq!(machine.handle.counters().sent.frames, 1);
}

#[test]
fn a_frame_is_received_however_the_room_is_cut() {
    let cuts: [&[usize]; 7] = [
        &[1600],
        &[12, 1588],
        &[1, 1599],
        &[11, 1, 1600],
        &[4, 4, 4, 4, 1600],
        &[800, 800],
        &[13, 1587],
    ];
    for without in [Features::empty(), Features::MRG_RXBUF, Features::GUEST_TSO4] {
        let mut machine = Machine::new(Script::new(Offloads::empty(), 1), without);
        for (n, cut) in cuts.iter().enumerate() {
            let bytes = frame(60 + 200 * n);
            machine.post(0, cut);
            machine.script.give(0, PLAIN, &bytes);
            let used = vec![bytes.len() as u32 + 12];
            assert_eq!(machine.got(0), Got { header: PLAIN, bytes, used }, "{cut:?}, {without:?}");
        }
        assert_eq!(machine.handle.counters().received.frames, 7);
    }
}

#[test]
fn a_frame_is_spread_over_as_many_buffers_as_it_takes() {
    let mut machine = Machine::new(script(), Features::empty());
    // Lengths around the ends of buffers of 1000 bytes, the first of which also has the header.
    for len in [60, 987, 988, 989, 1987, 1988, 1989, 20_000, 59_988, 59_989] {
        for _ in 0..62 {
            machine.post_quietly(0, &[1000]);
        }
        machine.kick(0);
        let bytes = frame(len);
        machine.script.give(0, TCP, &bytes);
        let got = machine.got_large(&bytes);
        let total = len + 12;
        let mut used = vec![1000; total / 1000];
        used.extend((total % 1000 != 0).then_some(total as u32 % 1000));
        assert_eq!(got, used, "{len} bytes");
        machine.start(Features::empty());
    }
}

impl Machine {
    /// Waits for a large TCP packet with these bytes; returns what was used of each buffer.
    fn got_large(&mut self, bytes: &[u8]) -> Vec<u32> {
        let got = self.got(0);
        // A frame too short for what the header says is not to be had.
        assert_eq!(got.header, TCP);
        assert!(got.bytes == bytes);
        got.used
    }
}

#[test]
fn buffers_that_are_left_serve_the_next_frames() {
    let mut machine = Machine::new(script(), Features::empty());
    // More than the largest frame takes, then less and less.
    for _ in 0..31 {
        machine.post_quietly(0, &[1000, 1500]);
    }
    machine.kick(0);
    let lens = [60, 1514, 9000, 60, 3000, 2488, 2489, 20_000, 14];
    for len in lens {
        let header = if len > 1514 { TCP } else { PLAIN };
        machine.script.give(0, header, &frame(len));
    }
    for len in lens {
        let got = machine.got(0);
        assert_eq!(got.bytes.len(), len);
        assert!(got.bytes == frame(len));
        assert_eq!(got.used.iter().sum::<u32>() as usize, len + 12);
        assert!(got.used[..got.used.len() - 1].iter().all(|&used| used == 2500));
    }
    assert_eq!(machine.handle.counters().receive_drops, ReceiveDrops::default());
}

/// 64 KiB and nothing wasted; the room of the queue is used up to the last byte.
#[test]
fn the_largest_packet_there_can_be() {
    for without in [Features::empty(), Features::MRG_RXBUF] {
        let mut machine = Machine::new(script(), without);
        let bytes = frame(header::LONGEST);
        machine.post(0, &[12, 40_000, header::LONGEST - 40_000]);
        machine.script.give(0, TCP, &bytes);
        assert_eq!(machine.got_large(&bytes), [65562]);
        machine.send(TCP, &bytes);
        assert!(machine.script.state().sent.pop() == Some((0, TCP, bytes)));
        machine.send(TCP, &frame(header::LONGEST + 1));
        assert_eq!(machine.handle.counters().send_drops.too_large, 1);
        assert!(machine.script.state().sent.is_empty());
    }
}

/// Nobody says how large the next frame is, and a driver may have no more than this.
#[test]
fn a_driver_with_little_room_gets_what_fits() {
    let mut machine = Machine::new(script(), Features::empty());
    for _ in 0..2 {
        machine.post_quietly(0, &[1600]);
    }
    machine.kick(0);
    machine.script.give(0, PLAIN, &frame(1000));
    assert_eq!(machine.got(0).bytes, frame(1000));
    machine.post(0, &[1600]);
    // Too large for what there is, for now.
    machine.script.give(0, TCP, &frame(4000));
    machine.script.give(0, PLAIN, &frame(1001));
    machine.post(0, &[1600]);
    assert_eq!(machine.got(0).bytes, frame(4000));
    machine.post(0, &[1600]);
    assert_eq!(machine.got(0).bytes, frame(1001));
    assert_eq!(machine.handle.counters().receive_drops, ReceiveDrops::default());
}

#[test]
fn a_frame_that_gets_no_room_is_lost_in_the_end() {
    let mut machine = Machine::new(script(), Features::empty());
    machine.post(0, &[1600]);
    machine.script.give(0, TCP, &frame(20_000));
    machine.script.give(0, PLAIN, &frame(1001));
    assert_eq!(machine.got(0).bytes, frame(1001));
    assert_eq!(machine.handle.counters().receive_drops.failed, 1);
    // Nor does it wait for the next driver.
    machine.post(0, &[1600]);
    machine.script.give(0, TCP, &frame(20_000));
    machine.until("it is taken", |machine| machine.script.waiting() == 0);
    machine.start(Features::empty());
    machine.post(0, &[70_000]);
    machine.script.give(0, PLAIN, &frame(1002));
    assert_eq!(machine.got(0).bytes, frame(1002));
}

#[test]
fn without_room_for_the_frame_it_is_lost_and_nothing_else() {
    let mut machine = Machine::new(script(), Features::MRG_RXBUF);
    machine.post(0, &[100]);
    machine.script.give(0, PLAIN, &frame(89));
    machine.script.give(0, PLAIN, &frame(88));
    assert_eq!(machine.got(0).bytes, frame(88));
    assert_eq!(machine.handle.counters().receive_drops.failed, 1);
}

#[test]
fn frames_that_cannot_be_are_dropped_and_counted() {
    let header = |change: fn(&mut Header)| {
        let mut header = TCP;
        change(&mut header);
        header
    };
    let wrong = [
        header(|it| it.csum_start = 10_000),
        header(|it| (it.csum_start, it.csum_offset) = (1999, 0)),
        header(|it| (it.csum_start, it.csum_offset) = (u16::MAX, u16::MAX)),
        header(|it| it.gso_size = 0),
        header(|it| it.gso_type = 2),
        header(|it| it.gso_type = 3),
        header(|it| it.gso_type = 0x81),
        header(|it| it.gso_type = 0xff),
        header(|it| it.flags = 0),
        header(|it| it.hdr_len = 2001),
    ];
    let mut machine = Machine::new(script(), Features::empty());
    for header in wrong {
        machine.send(header, &frame(2000));
    }
    for len in 0..26 {
        machine.send_raw_quietly(0, &before(PLAIN, &frame(14))[..len], &[]);
    }
    machine.kick(1);
    for _ in 0..26 {
        machine.guest.wait(&mut machine.rings[1]);
    }
    assert_eq!(machine.script.state().sent.len(), 0);
    let drops = machine.handle.counters().send_drops;
    assert_eq!(drops, SendDrops { malformed: 36, ..SendDrops::default() });
    // As long as the MTU allows, with a VLAN tag; then longer.
    for (len, sent) in [(14, 1), (1518, 2), (1519, 2), (65550, 2)] {
        machine.send(CSUM_AT_0, &frame(len));
        assert_eq!(machine.script.state().sent.len(), sent, "{len} bytes");
    }
    assert_eq!(machine.handle.counters().send_drops.too_large, 2);
    assert_eq!(machine.guest.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}

const CSUM_AT_0: Header = Header { flags: 1, csum_start: 6, csum_offset: 6, ..PLAIN };

#[test]
fn nothing_is_sent_or_received_that_was_not_negotiated() {
    let header = |gso_type| Header { gso_type, ..TCP };
    for (gso_type, host, guest) in [
        (1, Features::HOST_TSO4, Features::GUEST_TSO4),
        (4, Features::HOST_TSO6, Features::GUEST_TSO6),
        (5, Features::HOST_USO, Features::GUEST_USO4 | Features::GUEST_USO6),
        (0, Features::CSUM, Features::GUEST_CSUM),
    ] {
        let mut machine = Machine::new(script(), Features::empty());
        for negotiated in [true, false] {
            if !negotiated {
                machine.start(host | guest);
                machine.script.state().incoming[0].clear();
            }
            let before = machine.handle.counters();
            machine.post(0, &[70_000]);
            machine.send(header(gso_type), &frame(60));
            machine.script.give(0, header(gso_type), &frame(60));
            machine.script.give(0, PLAIN, &frame(1400));
            let expected = if negotiated { 60 } else { 1400 };
            assert_eq!(machine.got(0).bytes, frame(expected), "type {gso_type}");
            let after = machine.handle.counters();
            let sent = after.sent.frames - before.sent.frames;
            assert_eq!(
                (sent, after.send_drops.malformed),
                if negotiated { (1, 0) } else { (0, 1) }
            );
            assert_eq!(after.receive_drops.malformed, u64::from(!negotiated));
        }
    }
}

#[test]
fn what_has_no_meaning_in_a_header_goes_no_further() {
    let mut machine = Machine::new(script(), Features::empty());
    let noise = Header {
        flags: !1,
        gso_type: 0,
        hdr_len: 0xffff,
        gso_size: 0xffff,
        csum_start: 0xffff,
        csum_offset: 0xffff,
    };
    machine.send(noise, &frame(60));
    assert_eq!(machine.script.state().sent.pop(), Some((0, PLAIN, frame(60))));
    machine.post(0, &[70_000]);
    machine.script.give(0, noise, &frame(60));
    // VIRTIO_NET_HDR_F_DATA_VALID is for the driver.
    assert_eq!(machine.got(0).header, Header { flags: 2, ..PLAIN });
    machine.start(Features::GUEST_CSUM);
    machine.post(0, &[70_000]);
    machine.script.give(0, noise, &frame(60));
    assert_eq!(machine.got(0).header, PLAIN);
}

#[test]
fn frames_for_the_guest_that_are_no_frames_are_dropped() {
    let mut machine = Machine::new(script(), Features::empty());
    machine.post(0, &[70_000]);
    for len in [0, 6, 13] {
        machine.script.give(0, PLAIN, &frame(14)[..len]);
    }
    machine.script.give(0, Header { csum_start: 59, ..CSUM }, &frame(60));
    // What they leave behind the end of the next frame is nobody's.
    machine.script.give(0, PLAIN, &frame(60));
    assert_eq!(machine.got(0).bytes, frame(60));
    assert_eq!(machine.handle.counters().receive_drops.malformed, 4);
}

#[test]
fn a_receive_buffer_that_no_header_fits_into_breaks_the_queue() {
    for without in [Features::empty(), Features::MRG_RXBUF] {
        for cut in [&[11][..], &[5, 6], &[1]] {
            let mut machine = Machine::new(script(), without);
            machine.post(0, cut);
            machine.guest.wait_status(VIRTIO_CONFIG_S_NEEDS_RESET);
            machine.start(without);
            machine.post(0, &[70_000]);
            machine.script.give(0, PLAIN, &frame(60));
            assert_eq!(machine.got(0).bytes, frame(60));
        }
    }
}

#[test]
fn the_host_side_fails_and_the_frame_is_lost() {
    let mut machine = Machine::new(script(), Features::empty());
    machine.script.state().fault = Some(std::io::ErrorKind::PermissionDenied);
    machine.send(PLAIN, &frame(60));
    machine.post(0, &[70_000]);
    machine.until("it is asked", |machine| machine.handle.counters().receive_drops.failed > 0);
    assert!(!machine.has_frame(0));
    let asked = machine.script.state().asked;
    // It is not asked again and again.
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(machine.script.state().asked, asked);
    machine.script.state().fault = None;
    machine.send(PLAIN, &frame(61));
    machine.script.give(0, PLAIN, &frame(62));
    assert_eq!(machine.got(0).bytes, frame(62));
    assert_eq!(machine.script.state().sent.len(), 1);
    assert_eq!(machine.handle.counters().send_drops.failed, 1);
}

#[test]
fn a_card_offers_what_its_owner_and_its_host_side_leave() {
    for feature in Features::all().iter() {
        let card =
            Card::new(Box::new(Script::new(Offloads::all(), 2)), MAC, Options::without(feature));
        let guest = Guest::new(card.unwrap());
        assert_eq!(guest.offered() & feature.bits(), 0, "{feature:?}");
        let several = if feature == Features::MQ || feature == Features::CTRL_VQ { 1 } else { 2 };
        let control = usize::from(feature != Features::CTRL_VQ);
        assert_eq!(usize::from(guest.transport.queue_count()), 2 * several + control);
    }
}

#[test]
fn the_driver_is_told_address_status_queues_and_mtu() {
    let script = Script::new(Offloads::empty(), 3).mtu(9000);
    let machine = Machine::off(script.clone(), Features::empty());
    let config: Vec<u32> = (0..4).map(|n| machine.guest.read(0x100 + 4 * n)).collect();
    assert_eq!(config, [0x0100_5452, 0x0001_0302, 9000 << 16 | 3, 0]);
    assert_eq!(machine.handle.mac(), MAC);
    script.state().mac = Some(OTHER);
    assert_eq!(Machine::off(script, Features::empty()).handle.mac(), OTHER);
    assert_eq!(VIRTIO_NET_S_LINK_UP, 1);
}
