//! The small devices of a PC on one bus: clock, keyboard controller, reset register, ACPI's fixed hardware.
//!
//! Time is what the input says. At any moment ACPI's interrupt is up exactly if an enabled event is pending. At the
//! end the clock shows a possible date once it is allowed to run, and each way out of the machine works.

use std::sync::Arc;

use hyperkit::accel::Exit;
use hyperkit::arch::x86_64::layout;
use hyperkit::bus::{Bus, BusDevice, BusView, Flow};
use hyperkit::device::acpi_pm::AcpiPm;
use hyperkit::device::cmos::Cmos;
use hyperkit::device::i8042::I8042;
use hyperkit::device::reset::ResetControl;

use crate::host::{Clock, Level};
use crate::ops::{access, parse};
use crate::{fields, operations};

fields! {
    /// The start of an input.
    pub struct Head {
        /// Memory of the machine, in MiB.
        pub memory: u16,
        /// The time at first, in seconds since 1970, signed.
        pub time: u64,
    }
}

operations! {
    /// What the guest, the user and time do.
    pub enum Op(8) {
        /// `in`, from a device's first port on.
        0 => Read { device: u8, offset: u8, len: u8 },
        /// `out`.
        1 => Write { device: u8, offset: u8, len: u8, value: u64 },
        /// A register of the clock chip, read.
        2 => ReadClock { index: u8 },
        /// A register of the clock chip, written.
        3 => WriteClock { index: u8, value: u8 },
        /// Time goes on, or back: nanoseconds, signed.
        4 => Pass { nanos: u64 },
        /// The host's clock is set: seconds since 1970, signed.
        5 => SetHost { seconds: u64 },
        /// The power button.
        6 => Press {},
        /// A device's reset.
        7 => Reset { device: u8 },
    }
}

const CMOS: u64 = layout::CMOS_PORT as u64;
const PM: u64 = layout::ACPI_PM_PORT as u64;
const PORTS: [u64; 4] = [CMOS, layout::I8042_COMMAND_PORT as u64, layout::RESET_PORT as u64, PM];

struct Machine {
    clock: Arc<Clock>,
    sci: Arc<Level>,
    power: Arc<AcpiPm>,
    devices: [Arc<dyn BusDevice>; 4],
    bus: BusView,
}

impl Machine {
    fn new(head: Head) -> Self {
        let (clock, sci) = (Arc::new(Clock::default()), Arc::new(Level::default()));
        clock.set(head.time);
        let [time, uptime] = [clock.clone(), clock.clone()];
        let power = Arc::new(AcpiPm::with_clock(sci.clone(), move || uptime.uptime()));
        let line = Arc::new(Level::default());
        let cmos = Cmos::with_clock(u64::from(head.memory) << 20, line, move || time.time());
        let devices: [Arc<dyn BusDevice>; 4] =
            [Arc::new(cmos), Arc::new(I8042::new()), Arc::new(ResetControl::new()), power.clone()];
        let mut bus = Bus::new();
        for ((first, len), device) in
            PORTS.into_iter().zip([Cmos::PORTS, 1, 1, AcpiPm::PORTS]).zip(&devices)
        {
            bus.insert("device", first, len, device.clone()).expect("the ports are different");
        }
        Self { clock, sci, power, devices, bus: BusView::new(Arc::new(bus)) }
    }

    fn step(&mut self, op: Op) {
        let port = |device: u8, offset: u8| PORTS[usize::from(device % 4)] + u64::from(offset % 16);
        match op {
            Op::Read { device, offset, len } => {
                self.bus.read(port(device, offset), access(&mut [0; 8], len));
            }
            Op::Write { device, offset, len, value } => {
                // An end of the run is the machine's business.
                let _ = self.bus.write(port(device, offset), access(&mut value.to_le_bytes(), len));
            }
            Op::ReadClock { index } => {
                self.cmos(index);
            }
            Op::WriteClock { index, value } => self.set_cmos(index, value),
            Op::Pass { nanos } => {
                self.clock.pass(nanos);
            }
            Op::SetHost { seconds } => self.clock.set(seconds),
            Op::Press {} => {
                self.power.press_power_button();
            }
            Op::Reset { device } => self.devices[usize::from(device % 4)].reset(),
        }
    }

    fn cmos(&mut self, index: u8) -> u8 {
        let mut data = [0];
        assert!(self.bus.write(CMOS, &[index]).is_continue());
        self.bus.read(CMOS + 1, &mut data);
        data[0]
    }

    fn set_cmos(&mut self, index: u8, value: u8) {
        for (port, byte) in [(CMOS, index), (CMOS + 1, value)] {
            assert!(self.bus.write(port, &[byte]).is_continue(), "a clock ends no run");
        }
    }

    fn check_sci(&mut self) {
        let mut data = [0; 4];
        self.bus.read(PM, &mut data);
        let [status, enable] = [[data[0], data[1]], [data[2], data[3]]].map(u16::from_le_bytes);
        let high = self.sci.is_high();
        assert_eq!(high, status & enable != 0, "status {status:#x}, enable {enable:#x}");
    }

    /// The clock runs, counts in binary and from 0 to 23.
    fn check_date(&mut self) {
        self.set_cmos(0x0a, 0x26);
        self.set_cmos(0x0b, 0x06);
        for (index, possible) in [
            (0x00, 0..=59),
            (0x02, 0..=59),
            (0x04, 0..=23),
            (0x06, 1..=7),
            (0x07, 1..=31),
            (0x08, 1..=12),
            (0x09, 0..=99),
            (Cmos::CENTURY, 0..=99),
        ] {
            let value = self.cmos(index);
            assert!(possible.contains(&value), "register {index:#x} is {value}");
        }
    }

    fn check_exits(&mut self) {
        let [_, keyboard, reset, power] = PORTS;
        assert_eq!(self.bus.write(keyboard, &[0xfe]), Flow::Break(Exit::Reset));
        let write = self.bus.write(reset, &[ResetControl::RESET_VALUE]);
        assert_eq!(write, Flow::Break(Exit::Reset));
        let sleep = u16::from(AcpiPm::SLEEP_TYPE_S5) << 10 | 1 << 13;
        let control = power + u64::from(AcpiPm::CONTROL_OFFSET);
        assert_eq!(self.bus.write(control, &sleep.to_le_bytes()), Flow::Break(Exit::PowerOff));
    }
}

/// Carries out an input.
pub fn run(data: &[u8]) {
    let (head, ops) = parse(data);
    let mut machine = Machine::new(head);
    for op in ops {
        machine.step(op);
        machine.check_sci();
    }
    machine.check_date();
    machine.check_exits();
}
