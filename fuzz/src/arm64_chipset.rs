//! The small devices of an arm64 machine on one bus: the clock, and the pins with the power button.
//!
//! Time is what the input says. At any moment each interrupt line is up exactly if an enabled interrupt is pending. At
//! the end a guest sets the time and waits for an alarm, and sees a press of the button as one press.

use std::sync::Arc;

use hyperkit::arch::aarch64::layout;
use hyperkit::bus::{Bus, BusDevice, BusView};
use hyperkit::device::pl031::Pl031;
use hyperkit::device::pl061::Pl061;

use crate::host::{Clock, Level};
use crate::ops::{access, parse};
use crate::{fields, operations};

fields! {
    /// The start of an input.
    pub struct Head {
        /// The time at first, in seconds since 1970, signed.
        pub time: u64,
    }
}

operations! {
    /// What the guest, the user and time do.
    pub enum Op(6) {
        /// A load, from a device's first register on.
        0 => Read { device: u8, offset: u16, len: u8 },
        /// A store.
        1 => Write { device: u8, offset: u16, len: u8, value: u64 },
        /// Time goes on, or back: nanoseconds, signed.
        2 => Pass { nanos: u64 },
        /// The host's clock is set: seconds since 1970, signed.
        3 => SetHost { seconds: u64 },
        /// The power button.
        4 => Press {},
        /// A device's reset.
        5 => Reset { device: u8 },
    }
}

const BASES: [u64; 2] = [layout::RTC, layout::GPIO];
/// Masked interrupt status, of the clock and of the pins.
const STATUS: [u64; 2] = [layout::RTC + 0x18, layout::GPIO + 0x418];
/// GPIODATA at the address that means the button alone.
const BUTTON: u64 = layout::GPIO + (4 << layout::POWER_PIN);

struct Machine {
    clock: Arc<Clock>,
    lines: [Arc<Level>; 2],
    power: Arc<Pl061>,
    devices: [Arc<dyn BusDevice>; 2],
    bus: BusView,
}

impl Machine {
    fn new(head: Head) -> Self {
        let (clock, lines) =
            (Arc::new(Clock::default()), [(); 2].map(|()| Arc::<Level>::default()));
        clock.set(head.time);
        let time = clock.clone();
        let rtc = Arc::new(Pl031::with_clock(lines[0].clone(), move || time.time()));
        let power = Pl061::new(lines[1].clone());
        let devices: [Arc<dyn BusDevice>; 2] = [rtc, power.clone()];
        let mut bus = Bus::new();
        for (base, device) in BASES.into_iter().zip(&devices) {
            let len = layout::PERIPHERAL_LEN;
            bus.insert("device", base, len, device.clone()).expect("the places are different");
        }
        Self { clock, lines, power, devices, bus: BusView::new(Arc::new(bus)) }
    }

    fn step(&mut self, op: Op) {
        let at =
            |device: u8, offset: u16| BASES[usize::from(device % 2)] + u64::from(offset % 0x1000);
        match op {
            Op::Read { device, offset, len } => {
                self.bus.read(at(device, offset), access(&mut [0; 8], len));
            }
            Op::Write { device, offset, len, value } => {
                let value = &mut value.to_le_bytes();
                let flow = self.bus.write(at(device, offset), access(value, len));
                assert!(flow.is_continue(), "neither ends a run");
            }
            Op::Pass { nanos } => self.clock.pass(nanos),
            Op::SetHost { seconds } => self.clock.set(seconds),
            Op::Press {} => {
                self.power.press_power_button();
            }
            Op::Reset { device } => self.devices[usize::from(device % 2)].reset(),
        }
    }

    fn load(&mut self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.bus.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn store(&mut self, at: u64, value: u32) {
        assert!(self.bus.write(at, &value.to_le_bytes()).is_continue());
    }

    fn check_lines(&mut self) {
        for (n, at) in STATUS.into_iter().enumerate() {
            let status = self.load(at);
            assert_eq!(self.lines[n].is_high(), status != 0, "{at:#x} is {status:#x}");
        }
    }

    /// As `pl031_set_time` and `pl031_set_alarm` do it.
    fn check_clock(&mut self) {
        let [data, matching, load, mask, clear] =
            [0x0, 0x4, 0x8, 0x10, 0x1c].map(|offset| layout::RTC + offset);
        // Not at an end of what the host's clock shows.
        self.clock.set(1 << 31);
        self.store(load, 1000);
        self.store(matching, 1003);
        self.store(clear, 1);
        self.store(mask, 1);
        for second in 0..3 {
            assert_eq!(self.load(data), 1000 + second);
            assert!(!self.lines[0].is_high());
            self.clock.pass(1_000_000_000);
        }
        assert_eq!(self.load(data), 1003);
        assert!(self.lines[0].is_high());
    }

    /// As `gpio-keys` does it, after the device's reset.
    fn check_button(&mut self) {
        self.power.reset();
        for offset in [0x408, 0x410] {
            self.store(layout::GPIO + offset, 1 << layout::POWER_PIN);
        }
        assert!(self.power.press_power_button());
        for down in [true, false] {
            assert!(self.lines[1].is_high());
            self.store(layout::GPIO + 0x41c, 1 << layout::POWER_PIN);
            assert!(!self.lines[1].is_high());
            assert_eq!(self.load(BUTTON) != 0, down);
        }
        assert!(!self.lines[1].is_high());
    }
}

/// Carries out an input.
pub fn run(data: &[u8]) {
    let (head, ops) = parse(data);
    let mut machine = Machine::new(head);
    for op in ops {
        machine.step(op);
        machine.check_lines();
    }
    machine.check_clock();
    machine.check_button();
}
