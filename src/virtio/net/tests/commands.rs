//! The control queue: which frames the driver wants, its address, its queues, and what it takes.

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_net::*;

use super::super::*;
use super::support::*;
use crate::net::Offloads;
use crate::virtio::testing::Buffer;

const OK: u8 = VIRTIO_NET_OK as u8;
const ERR: u8 = VIRTIO_NET_ERR as u8;
const PLAIN: Header =
    Header { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

const GROUP: MacAddr = MacAddr([0x01, 0, 0x5e, 0, 0, 1]);
const LISTED: MacAddr = MacAddr([0x52, 0x54, 0, 7, 7, 7]);

fn machine() -> Machine {
    let mut machine = Machine::new(Script::new(Offloads::empty(), 1), Features::empty());
    machine.post(0, &[1600]);
    machine
}

/// The two tables.
fn tables(unicast: &[MacAddr], multicast: &[MacAddr]) -> Vec<u8> {
    let table = |list: &[MacAddr]| {
        let mut bytes = (list.len() as u32).to_le_bytes().to_vec();
        list.iter().for_each(|address| bytes.extend(address.0));
        bytes
    };
    [table(unicast), table(multicast)].concat()
}

impl Machine {
    fn rx(&mut self, command: u32, on: u8) {
        assert_eq!(self.command(VIRTIO_NET_CTRL_RX, command, &[on]), OK);
    }

    /// Which of these addresses frames get through to.
    fn wanted(&mut self) -> [bool; 5] {
        [MAC, OTHER, LISTED, GROUP, MacAddr::BROADCAST]
            .map(|address| self.passes(&frame_to(address, 60)))
    }
}

#[test]
fn frames_are_filtered_as_the_driver_says() {
    let mut machine = machine();
    // Ourselves, a stranger, one that is listed later, a group, everybody.
    assert_eq!(machine.wanted(), [true, false, false, false, true]);
    let steps: [(u32, u8, [bool; 5]); 12] = [
        (VIRTIO_NET_CTRL_RX_PROMISC, 1, [true; 5]),
        (VIRTIO_NET_CTRL_RX_NOUNI, 1, [true; 5]),
        (VIRTIO_NET_CTRL_RX_NOUNI, 0, [true; 5]),
        (VIRTIO_NET_CTRL_RX_PROMISC, 0, [true, false, false, false, true]),
        (VIRTIO_NET_CTRL_RX_ALLMULTI, 1, [true, false, false, true, true]),
        (VIRTIO_NET_CTRL_RX_NOMULTI, 1, [true, false, false, false, true]),
        (VIRTIO_NET_CTRL_RX_ALLMULTI, 0, [true, false, false, false, true]),
        (VIRTIO_NET_CTRL_RX_ALLUNI, 1, [true, true, true, false, true]),
        (VIRTIO_NET_CTRL_RX_NOUNI, 1, [false, false, false, false, true]),
        (VIRTIO_NET_CTRL_RX_NOBCAST, 1, [false; 5]),
        (VIRTIO_NET_CTRL_RX_NOBCAST, 0, [false, false, false, false, true]),
        (VIRTIO_NET_CTRL_RX_PROMISC, 0xff, [true; 5]),
    ];
    for (command, on, wanted) in steps {
        machine.rx(command, on);
        assert_eq!(machine.wanted(), wanted, "after {command} {on}");
    }
    machine.start(Features::empty());
    machine.post(0, &[1600]);
    assert_eq!(machine.wanted(), [true, false, false, false, true], "a reset ends it");
}

#[test]
fn tables_add_addresses_and_too_many_add_all() {
    let mut machine = machine();
    let set = |machine: &mut Machine, unicast: &[MacAddr], multicast: &[MacAddr]| {
        let answer = machine.command(
            VIRTIO_NET_CTRL_MAC,
            VIRTIO_NET_CTRL_MAC_TABLE_SET,
            &tables(unicast, multicast),
        );
        assert_eq!(answer, OK);
    };
    set(&mut machine, &[LISTED], &[GROUP]);
    assert_eq!(machine.wanted(), [true, false, true, true, true]);
    set(&mut machine, &[], &[]);
    assert_eq!(machine.wanted(), [true, false, false, false, true]);
    let many = |count: usize| vec![MacAddr([2; 6]); count];
    set(&mut machine, &many(64), &many(64));
    assert_eq!(machine.wanted(), [true, false, false, false, true]);
    set(&mut machine, &many(65), &[GROUP]);
    assert_eq!(machine.wanted(), [true, true, true, true, true]);
    set(&mut machine, &[LISTED], &many(1000));
    assert_eq!(machine.wanted(), [true, false, true, true, true]);
}

#[test]
fn without_a_say_the_driver_gets_all_frames() {
    for without in [Features::CTRL_RX, Features::CTRL_VQ] {
        let mut machine = Machine::new(Script::new(Offloads::empty(), 1), without);
        machine.post(0, &[1600]);
        assert_eq!(machine.wanted(), [true; 5]);
    }
}

#[test]
fn the_driver_changes_its_address() {
    let mut machine = machine();
    let set = |machine: &mut Machine, address: MacAddr| {
        machine.command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, &address.0)
    };
    assert_eq!(set(&mut machine, OTHER), OK);
    assert_eq!(machine.wanted(), [false, true, false, false, true]);
    assert_eq!(machine.handle.mac(), OTHER);
    assert_eq!(set(&mut machine, GROUP), ERR);
    assert_eq!(machine.handle.mac(), OTHER);
    machine.start(Features::empty());
    assert_eq!(machine.handle.mac(), MAC);
}

#[test]
fn commands_that_make_no_sense_change_nothing() {
    let mut machine = machine();
    let good = tables(&[LISTED], &[GROUP]);
    let mut wrong: Vec<Vec<u8>> =
        vec![vec![], vec![0], vec![0, 0], vec![0, 0, 1, 1], vec![0, 6, 1]];
    wrong.extend((0..good.len()).map(|len| [&[1, 0], &good[..len]].concat()));
    wrong.push([&[1, 0], &good[..], &[0]].concat());
    // 2³² addresses, and as many as wrap around to few.
    for count in [u32::MAX, 0x2aaa_aaab, 0x8000_0000, 3] {
        wrong.push([&[1, 0], &count.to_le_bytes()[..], &good].concat());
    }
    wrong.extend([5, 7].map(|len| [&[1, 1][..], &vec![2; len]].concat()));
    wrong.extend([0, 1, 3].map(|len| [&[4, 0][..], &vec![1; len]].concat()));
    wrong.extend([0, 7, 9].map(|len| [&[5, 0][..], &vec![0; len]].concat()));
    // CTRL_MQ was not negotiated; others do not exist.
    wrong.push(vec![4, 0, 1, 0]);
    wrong.extend([[2, 0], [2, 1], [3, 0], [6, 0], [8, 0], [255, 255]].map(|it| it.to_vec()));
    let cuts: [&[usize]; 3] = [&[], &[1], &[1, 1, 1, 1]];
    for (n, bytes) in wrong.iter().enumerate() {
        assert_eq!(machine.command_cut(bytes, cuts[n % 3]), ERR, "{bytes:x?}");
        if n % 50 == 49 {
            machine.start(Features::empty());
        }
    }
    machine.start(Features::empty());
    machine.post(0, &[1600]);
    for bytes in wrong.iter().take(8) {
        machine.command_cut(bytes, &[]);
    }
    assert_eq!(machine.wanted(), [true, false, false, false, true]);
    // However a good one is cut.
    for cut in cuts {
        assert_eq!(machine.command_cut(&[&[1, 0], &good[..]].concat(), cut), OK);
    }
    assert_eq!(machine.guest.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
}

#[test]
fn commands_that_were_not_negotiated_are_refused() {
    let all = Features::CTRL_RX
        | Features::CTRL_MAC_ADDR
        | Features::CTRL_GUEST_OFFLOADS
        | Features::CTRL_RX_EXTRA;
    let mut machine = Machine::new(Script::new(Offloads::all(), 1), all);
    let commands: [&[u8]; 5] = [
        &[0, 0, 1],
        &[0, 5, 1],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[1, 1, 2, 2, 2, 2, 2, 2],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    for command in commands {
        assert_eq!(machine.command_cut(command, &[]), ERR, "{command:x?}");
    }
    machine.start(Features::CTRL_RX_EXTRA);
    let answers = commands.map(|command| machine.command_cut(command, &[]));
    assert_eq!(answers, [OK, ERR, OK, OK, OK]);
}

#[test]
fn a_command_without_room_for_an_answer_breaks_the_queue() {
    let mut machine = machine();
    let at = machine.alloc(3);
    let ring = machine.rings.last_mut().unwrap();
    ring.request(&[Buffer::Out(at, 3)]);
    machine.guest.kick(ring);
    machine.guest.wait_status(VIRTIO_CONFIG_S_NEEDS_RESET);
    machine.start(Features::empty());
    machine.rx(VIRTIO_NET_CTRL_RX_PROMISC, 1);
}

#[test]
fn the_driver_takes_back_what_it_takes() {
    let mut machine = Machine::new(Script::new(Offloads::all(), 1), Features::empty());
    machine.post(0, &[70_000]);
    let large = Header {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
    };
    let set = |machine: &mut Machine, bits: u64| {
        machine.command(
            VIRTIO_NET_CTRL_GUEST_OFFLOADS,
            VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
            &bits.to_le_bytes(),
        )
    };
    assert_eq!(set(&mut machine, 0), OK);
    let sending = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6 | Offloads::USO;
    assert_eq!(machine.script.state().activated, [Offloads::all(), sending]);
    machine.script.give(0, large, &frame(1499));
    machine.script.give(0, PLAIN, &frame(1500));
    assert_eq!(machine.got(0).bytes, frame(1500));
    machine.post(0, &[70_000]);
    assert_eq!(set(&mut machine, Features::GUEST_OFFLOADS.bits()), OK);
    machine.script.give(0, large, &frame(3000));
    assert_eq!(machine.got(0).bytes, frame(3000));
    // What it never had.
    assert_eq!(set(&mut machine, Features::CSUM.bits()), ERR);
    assert_eq!(set(&mut machine, u64::MAX), ERR);
    assert_eq!(machine.script.state().activated.len(), 3);
}

#[test]
fn several_pairs_of_queues() {
    let mut machine = Machine::new(Script::new(Offloads::empty(), 4), Features::empty());
    assert_eq!(machine.rings.len(), 9);
    for pair in 0..4 {
        machine.post(pair, &[1600]);
        machine.post(pair, &[1600]);
    }
    // Only the first receives, whatever queue of the host side a frame is on; any sends.
    for pair in 0..4 {
        let bytes = before(PLAIN, &frame(60 + pair));
        machine.send_raw_quietly(pair, &bytes, &[]);
        machine.kick(2 * pair + 1);
        machine.guest.wait(&mut machine.rings[2 * pair + 1]);
        assert_eq!(machine.script.state().sent.pop(), Some((pair as u16, PLAIN, frame(60 + pair))));
        machine.script.give(pair, PLAIN, &frame(80 + pair));
        assert_eq!(machine.got(0).bytes, frame(80 + pair));
        machine.post(0, &[1600]);
    }
    let set = |machine: &mut Machine, pairs: u16| {
        let (class, command) = (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
        machine.command(class, command, &pairs.to_le_bytes())
    };
    for (pairs, answer) in [(0, ERR), (5, ERR), (0x8000, ERR), (u16::MAX, ERR), (4, OK)] {
        assert_eq!(set(&mut machine, pairs), answer, "{pairs} pairs");
    }
    for pair in 0..4 {
        machine.script.give(pair, PLAIN, &frame(100 + pair));
        assert_eq!(machine.got(pair).bytes, frame(100 + pair));
    }
    for pair in 0..3 {
        machine.post(pair, &[1600]);
    }
    assert_eq!(set(&mut machine, 3), OK);
    machine.script.give(3, PLAIN, &frame(200));
    assert_eq!(machine.got(0).bytes, frame(200));
}

/// A queue of the host side whose frames had no room gets another one with room.
#[test]
fn fewer_pairs_take_over_what_waits() {
    let mut machine = Machine::new(Script::new(Offloads::empty(), 2), Features::empty());
    assert_eq!(machine.command(VIRTIO_NET_CTRL_MQ, 0, &2_u16.to_le_bytes()), OK);
    machine.post(0, &[1600]);
    machine.script.give(1, PLAIN, &frame(60));
    machine.guest.settle();
    assert_eq!(machine.script.waiting(), 1);
    assert_eq!(machine.command(VIRTIO_NET_CTRL_MQ, 0, &1_u16.to_le_bytes()), OK);
    assert_eq!(machine.got(0).bytes, frame(60));
}

#[test]
fn a_driver_of_one_pair_finds_the_control_queue_behind_it() {
    let mut machine = Machine::new(Script::new(Offloads::empty(), 4), Features::MQ);
    machine.rings.truncate(3);
    machine.rx(VIRTIO_NET_CTRL_RX_PROMISC, 1);
    machine.post(0, &[1600]);
    machine.script.give(2, PLAIN, &frame_to(OTHER, 60));
    assert_eq!(machine.got(0).bytes, frame_to(OTHER, 60));
    assert_eq!(machine.command(VIRTIO_NET_CTRL_MQ, 0, &2_u16.to_le_bytes()), ERR);
}

#[test]
fn left_out_by_the_owner_there_is_one_pair() {
    let mut machine = Machine::off(Script::new(Offloads::empty(), 4), Features::MQ);
    machine.start(Features::empty());
    assert_eq!(machine.rings.len(), 3);
    machine.post(0, &[1600]);
    machine.script.give(3, PLAIN, &frame(60));
    assert_eq!(machine.got(0).bytes, frame(60));
}
