//! The link, and the address, as the host side and the owner change them.

use super::super::*;
use super::support::*;
use crate::net::Offloads;

const PLAIN: Header =
    Header { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

impl Machine {
    /// Changes something, and waits for the interrupt that tells of it.
    fn link_becomes(&mut self, up: bool, change: impl FnOnce(&Self)) {
        self.guest.write(0x064, 3);
        let (edges, generation) = (self.guest.line.edges(), self.guest.read(0x0fc));
        change(self);
        assert!(self.guest.line.wait(edges, crate::virtio::testing::PATIENCE));
        // VIRTIO_MMIO_INT_CONFIG.
        assert_ne!(self.guest.read(0x060) & 2, 0);
        assert_ne!(self.guest.read(0x0fc), generation);
        assert_eq!(self.guest.read(0x104) >> 16 & 1, u32::from(up));
        assert_eq!(self.handle.link(), up);
    }
}

#[test]
fn the_link_goes_down_and_comes_up_for_either_reason() {
    let mut machine = Machine::new(Script::new(Offloads::empty(), 1), Features::empty());
    machine.post(0, &[1600]);
    for _ in 0..3 {
        for by_owner in [true, false] {
            let set = move |machine: &Machine, up| match by_owner {
                true => machine.handle.set_link(up),
                false => machine.script.set_link(up),
            };
            let before = machine.handle.counters();
            machine.link_becomes(false, |machine| set(machine, false));
            machine.send(PLAIN, &frame(60));
            machine.script.give(0, PLAIN, &frame(61));
            assert!(!machine.has_frame(0));
            assert!(machine.script.state().sent.is_empty());
            assert_eq!(machine.script.waiting(), 1);
            let drops = machine.handle.counters().send_drops;
            assert_eq!(drops.link_down, before.send_drops.link_down + 1);
            machine.link_becomes(true, |machine| set(machine, true));
            assert_eq!(machine.got(0).bytes, frame(61));
            machine.post(0, &[1600]);
            machine.send(PLAIN, &frame(62));
            assert_eq!(machine.script.state().sent.pop(), Some((0, PLAIN, frame(62))));
        }
    }
}

#[test]
fn what_waited_for_the_host_side_goes_nowhere_when_the_link_goes_down() {
    let mut machine = Machine::new(Script::new(Offloads::empty(), 1), Features::empty());
    machine.script.state().room = Some(0);
    for _ in 0..10 {
        machine.send_quietly(PLAIN, &frame(60));
    }
    machine.kick(1);
    machine.guest.settle();
    assert_eq!(machine.rings[1].used(), None);
    machine.script.set_link(false);
    for _ in 0..10 {
        machine.guest.wait(&mut machine.rings[1]);
    }
    assert_eq!(machine.handle.counters().send_drops.link_down, 10);
}

#[test]
fn a_link_takes_both_sides() {
    let script = Script::new(Offloads::empty(), 1);
    script.state().down = true;
    let mut machine = Machine::off(script, Features::empty());
    assert!(!machine.handle.link());
    machine.handle.set_link(false);
    machine.script.set_link(true);
    machine.guest.settle();
    assert!(!machine.handle.link());
    machine.handle.set_link(true);
    machine.until("the link is up", |machine| machine.handle.link());
    machine.start(Features::STATUS);
    machine.send(PLAIN, &frame(60));
    assert_eq!(machine.script.state().sent.len(), 1);
}

#[test]
fn the_address_follows_the_host_side_between_drivers() {
    let script = Script::new(Offloads::empty(), 1);
    let mut machine = Machine::off(script, Features::empty());
    assert_eq!(machine.handle.mac(), MAC);
    let change = |machine: &Machine, mac| {
        machine.script.state().mac = mac;
        machine.script.set_link(true);
        machine.guest.settle();
    };
    change(&machine, Some(OTHER));
    machine.until("the address has changed", |machine| machine.handle.mac() == OTHER);
    machine.start(Features::empty());
    change(&machine, None);
    assert_eq!(machine.handle.mac(), OTHER, "under a driver it stays");
    machine.post(0, &[1600]);
    assert!(machine.passes(&frame_to(OTHER, 60)));
    assert!(!machine.passes(&frame_to(MAC, 60)));
    machine.guest.reset();
    assert_eq!(machine.handle.mac(), MAC);
}

#[test]
fn a_handle_may_outlive_its_card() {
    let machine = Machine::off(Script::new(Offloads::empty(), 1), Features::empty());
    let handle = machine.handle.clone();
    drop(machine);
    handle.set_link(false);
    assert!(handle.link(), "nobody is there to notice");
    assert!(format!("{handle:?}").contains("52:54:00:01:02:03"));
}
