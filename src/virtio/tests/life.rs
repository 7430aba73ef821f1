//! The life of a device on its thread: activation, pause, reset, stop, and nothing in between.

use super::*;
use crate::bus::BusDevice;
use crate::virtio::setup::{DRIVER_OK, FEATURES_OK};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET;
use virtio_bindings::virtio_mmio::*;

/// How long a test goes on that does the same thing again and again: a machine that is busy does it less often.
const ENOUGH: Duration = Duration::from_secs(3);

/// No wake-up is lost: the driver kicks only when it is asked to, and waits for an interrupt only when it has asked
/// for one.
#[test]
fn every_request_is_answered_and_every_answer_announced() {
    for features in [0, feature::EVENT_IDX, feature::EVENT_IDX | feature::INDIRECT_DESC] {
        let mut machine = Machine::new();
        machine.start(features);
        let end = Instant::now() + ENOUGH;
        for n in (0..3000_u32).take_while(|_| Instant::now() < end) {
            machine.check(n as usize % 2, &n.to_le_bytes());
        }
        // Bursts of every length up to the whole ring, so that device and driver meet at every step.
        let end = Instant::now() + ENOUGH;
        for n in (0..3000).take_while(|_| Instant::now() < end) {
            let burst = n % 8 + 1;
            for _ in 0..burst {
                machine.send(0, b"x");
            }
            for _ in 0..burst {
                machine.guest.wait(&mut machine.rings[0]);
            }
        }
    }
}

/// The same with a driver that looks all the time and offers again at once: it meets the device at the very moment it
/// finds the queue empty, and keeps it so busy that turns are cut.
#[test]
fn a_driver_that_is_as_fast_as_the_device_is_served() {
    for features in [0, feature::EVENT_IDX] {
        let mut machine = Machine::new();
        machine.start(features);
        let (out, back) = (machine.buffer, machine.buffer + 0x800);
        let ring = &mut machine.rings[0];
        let (mut offered, mut returned) = (0_u32, 0_u32);
        let (mut last, mut looks) = (Instant::now(), 0_u32);
        let end = Instant::now() + ENOUGH;
        let mut count = 60_000;
        while returned < count {
            // Two descriptors each: eight requests fill the ring, and cut the turn. A single one is lost for good if its
            // wake-up is; it comes a little later each time, so as to meet the device at every step.
            let most = if returned < 40_000 { 1 } else { 8 };
            if offered < count && offered - returned < most {
                for _ in 0..returned % 50 {
                    std::hint::spin_loop();
                }
                ring.request(&[Buffer::Out(out, 8), Buffer::In(back, 8)]);
                machine.guest.kick(ring);
                offered += 1;
            }
            if ring.used().is_some() {
                returned += 1;
                last = Instant::now();
            }
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(1024) {
                if Instant::now() > end {
                    count = offered;
                }
                assert!(last.elapsed() < PATIENCE, "stuck after {returned} requests");
            }
            // The other side may want this processor.
            if offered - returned == 8 {
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn what_was_made_available_before_driver_ok_is_served() {
    let mut machine = Machine::new();
    assert!(machine.guest.negotiate(feature::VERSION_1));
    machine.rings = vec![machine.guest.queue(0, 16)];
    machine.buffer = machine.guest.alloc(0x1000);
    machine.send(0, b"early");
    // §2.1.2: nothing is used before DRIVER_OK, kick or no kick.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.rings[0].used(), None);
    machine.guest.driver_ok();
    machine.guest.wait(&mut machine.rings[0]);
}

#[test]
fn a_paused_device_is_quiet_and_goes_on_where_it_was() {
    let mut machine = Machine::started();
    machine.controls.hold(true);
    machine.send(0, b"in flight");
    eventually("not taken", || machine.controls.held.load(Ordering::SeqCst) == 1);
    machine.guest.transport.pause();
    machine.guest.transport.pause();
    // What was in flight is finished, not dropped.
    assert!(machine.rings[0].used().is_some());
    assert_eq!(machine.controls.noted("pause"), 1);
    machine.controls.hold(false);

    let (edges, turns) =
        (machine.guest.line.edges(), machine.controls.turns.load(Ordering::SeqCst));
    machine.send(0, b"later");
    machine.controls.release.notify();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(machine.rings[0].used(), None);
    assert_eq!(machine.guest.line.edges(), edges);
    assert_eq!(machine.controls.turns.load(Ordering::SeqCst), turns);
    assert_eq!(machine.controls.noted("host"), 0);

    machine.guest.transport.resume();
    machine.guest.transport.resume();
    machine.guest.wait(&mut machine.rings[0]);
    eventually("the host event was lost", || machine.controls.noted("host") == 1);
    assert_eq!(machine.controls.noted("resume"), 1);
}

#[test]
fn a_paused_device_is_activated_when_it_goes_on() {
    let mut machine = Machine::new();
    machine.guest.transport.pause();
    machine.start(0);
    machine.send(0, b"wait");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.controls.noted("activate"), 0);
    machine.guest.transport.resume();
    machine.guest.wait(&mut machine.rings[0]);

    machine.guest.transport.pause();
    machine.start(0);
    machine.guest.reset();
    machine.guest.transport.resume();
    assert_eq!(machine.controls.noted("activate"), 1);
    machine.check_after_reset();
}

#[test]
fn a_reset_takes_everything_back() {
    let mut machine = Machine::started();
    machine.controls.hold(true);
    for message in [b"one", b"two"] {
        machine.send(0, message);
    }
    eventually("not taken", || machine.controls.held.load(Ordering::SeqCst) == 2);
    machine.guest.reset();
    assert_eq!(machine.controls.noted("reset"), 1);
    assert_eq!(machine.rings[0].used(), None);
    machine.controls.hold(false);
    machine.controls.release.notify();
    eventually("no host event", || machine.controls.noted("host") == 1);
    assert_eq!(machine.rings[0].used(), None, "an old chain came back");
    // A reset of a device that is not active does not reach it.
    machine.guest.reset();
    assert_eq!(machine.controls.noted("reset"), 1);
    machine.check_after_reset();
}

#[test]
fn a_machine_reset_is_a_reset_paused_or_not() {
    let mut machine = Machine::started();
    machine.guest.transport.reset();
    assert_eq!(machine.guest.status(), 0);
    machine.check_after_reset();
    machine.guest.transport.pause();
    machine.guest.transport.reset();
    assert_eq!(machine.guest.status(), 0);
    machine.guest.transport.resume();
    machine.check_after_reset();
    assert_eq!(machine.controls.noted("reset"), 2);
}

#[test]
fn resets_during_activity() {
    let mut machine = Machine::new();
    for round in 0..1000_u32 {
        machine.start([0, feature::EVENT_IDX][round as usize % 2]);
        machine.controls.hold(round % 3 == 0);
        for n in 0..round % 8 {
            machine.send(n as usize % 2, &[0x55; 100]);
        }
        if round % 3 == 0 {
            machine.controls.release.notify();
        }
        if round % 5 == 0 {
            machine.guest.transport.pause();
            machine.guest.transport.resume();
        }
    }
    machine.controls.hold(false);
    machine.check_after_reset();
}

#[test]
fn an_error_of_the_device_needs_a_reset() {
    let mut machine = Machine::started();
    machine.controls.hold(true);
    machine.send(0, b"never answered");
    let _ = machine.guest.transport.write(0x104, &[0xee]);
    machine.guest.wait_status(NEEDS_RESET | DRIVER_OK | FEATURES_OK);
    eventually("no interrupt", || {
        machine.guest.read(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG != 0
    });
    machine.controls.hold(false);
    machine.controls.release.notify();
    eventually("no host event", || machine.controls.noted("host") == 1);
    assert_eq!(machine.rings[0].used(), None);
    assert_eq!(machine.controls.noted("reset"), 1);
    let _ = machine.guest.transport.write(0x104, &[1]);
    machine.check_after_reset();
}

/// A device that panics as soon as it has something to do. What it holds tells whether it is still there.
struct Panics {
    _held: Arc<()>,
    /// When it is reset, rather than at once.
    at_reset: bool,
}

impl VirtioDevice for Panics {
    fn id(&self) -> u32 {
        42
    }
    fn name(&self) -> &str {
        "panics"
    }
    fn queue_sizes(&self) -> &[u16] {
        &LOOPBACK_SIZES
    }
    fn queue_ready(&mut self, _index: u16, _cx: &mut Context<'_>) -> Result<(), Error> {
        if !self.at_reset {
            std::panic::resume_unwind(Box::new("on purpose"))
        }
        Ok(())
    }
    fn reset(&mut self) {
        if self.at_reset {
            std::panic::resume_unwind(Box::new("on purpose"))
        }
    }
}

#[test]
fn a_device_that_panics_as_it_is_reset_is_gone_when_whoever_asked_is_answered() {
    for stop in [false, true] {
        let held = Arc::new(());
        let mut guest = Guest::new(Panics { _held: held.clone(), at_reset: true });
        guest.start(0, 16);
        guest.wait_status(DRIVER_OK | FEATURES_OK);
        let (done, ends) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            if stop {
                guest.transport.stop()
            } else {
                guest.transport.reset()
            }
            done.send(()).unwrap();
            // Where it waits for ever, the test has failed by then.
            drop(guest);
        });
        ends.recv_timeout(PATIENCE).expect("nobody is answered");
        assert_eq!(Arc::strong_count(&held), 1, "the device is still there");
    }
}

#[test]
fn a_device_that_panics_is_gone_and_every_driver_is_told() {
    let held = Arc::new(());
    let mut guest = Guest::new(Panics { _held: held.clone(), at_reset: false });
    guest.start(0, 16);
    guest.wait_status(NEEDS_RESET | DRIVER_OK | FEATURES_OK);
    eventually("no interrupt", || {
        guest.read(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG != 0
    });
    assert_eq!(Arc::strong_count(&held), 1, "the device is still there");
    guest.transport.pause();
    guest.transport.resume();
    for _ in 0..3 {
        guest.reset();
        guest.start(0, 16);
        guest.wait_status(NEEDS_RESET | DRIVER_OK | FEATURES_OK);
    }
    guest.transport.reset();
    assert_eq!(guest.status(), 0);
    guest.transport.stop();
}

#[test]
fn a_deadline_is_met_and_only_once() {
    let Machine { controls, guest, .. } = Machine::started();
    *controls.deadline.lock().unwrap() = Some(Instant::now() + Duration::from_millis(20));
    // It is asked for after any call.
    controls.release.notify();
    eventually("no timer", || controls.noted("timer") == 1);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(controls.noted("timer"), 1);
    drop(guest);
}

#[test]
fn writing_to_the_configuration_space_without_end_costs_nothing() {
    let mut machine = Machine::started();
    machine.guest.transport.pause();
    for n in 0..100_000_u32 {
        let _ = machine.guest.transport.write(0x104, &[n as u8]);
    }
    machine.guest.transport.resume();
    eventually("not told", || machine.controls.noted("config") >= 1);
    std::thread::sleep(Duration::from_millis(20));
    assert!(machine.controls.noted("config") <= 2, "every write was told");
    let mut last = [0; 8];
    machine.controls.config.read(0, &mut last);
    assert_eq!(last[4], 99_999_u32 as u8);
    machine.check(0, b"fine");
}
