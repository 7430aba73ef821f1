//! The real-time clock, and the 114 bytes of memory beside it, at ports 0x70 and 0x71.
//!
//! It is the MC146818A of every PC. A guest asks it once, early, what time it is; and it is all that firmware and
//! small kernels know about memory and time.
//!
//! * The time is the host's `CLOCK_REALTIME` in UTC, to the nanosecond in phase with it. A guest that sets the time
//!   changes only its own: what is kept is the difference.
//! * BCD and binary numbers, 12 and 24 hours, the century in register 0x32 (let the FADT say so).
//! * Alarm and update-ended interrupts, as Linux's `rtc_cmos` needs them for wake-up times and `hwclock`. They need a
//!   thread, which is not there until a guest enables one of the two.
//! * Left out: the periodic interrupt, for which no system of today asks the chip, and the square wave.
//!
//! Firmware finds the amount of memory in registers 0x15 to 0x18, 0x30, 0x31, 0x34, 0x35 and 0x5b to 0x5d.

mod clock;
mod date;

use std::sync::Arc;
use std::time::SystemTime;

use self::clock::Chip;
use super::alarm::{Alarm, Clock};
use crate::accel::IrqLine;
use crate::arch::x86_64::layout;
use crate::bus::{BusDevice, Flow};

/// The clock chip: index port and data port.
pub struct Cmos(Alarm<Ports>);

struct Ports {
    chip: Chip,
    index: u8,
    irq: Arc<dyn IrqLine>,
}

impl Clock for Ports {
    fn update(&mut self, now: i128) {
        if self.chip.interrupt(now) {
            self.irq.pulse();
        }
    }

    fn until_interrupt(&self, now: i128) -> Option<i128> {
        self.chip.until_interrupt(now)
    }
}

impl Cmos {
    /// How many ports it has.
    pub const PORTS: u64 = 2;
    /// The register of the century, for the FADT.
    pub const CENTURY: u8 = clock::CENTURY;

    /// The clock of a machine with `ram` bytes of memory, as [`layout::ram_regions`] lays them out. `irq` is used
    /// as an edge.
    pub fn new(ram: u64, irq: Arc<dyn IrqLine>) -> Self {
        Self::with_clock(ram, irq, SystemTime::now)
    }

    /// The same, with another notion of what time it is.
    pub fn with_clock(
        ram: u64,
        irq: Arc<dyn IrqLine>,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Self {
        Self(Alarm::new(clock, |now| {
            let mut chip = Chip::new(now);
            describe_memory(&mut chip, ram);
            Ports { chip, index: 0, irq }
        }))
    }
}

impl BusDevice for Cmos {
    /// The index port cannot be read.
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (_, byte) in (offset..Self::PORTS).zip(data).filter(|(port, _)| *port == 1) {
            *byte = self.0.touch(|ports, now| ports.chip.read(ports.index, now));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Flow {
        for (port, &value) in (offset..Self::PORTS).zip(data) {
            self.0.touch(|ports, now| match port {
                // Bit 7 masks NMIs, of which there are none.
                0 => ports.index = value & 0x7f,
                _ => ports.chip.write(ports.index, value, now),
            });
        }
        Flow::Continue(())
    }

    /// Time and memory have a battery: they stay.
    fn reset(&self) {
        self.0.touch(|ports, _| {
            ports.index = 0;
            ports.chip.reset();
        });
    }
}

/// What BIOSes leave behind: conventional memory and memory above 1 MiB in KiB, above 16 MiB and above 4 GiB in units
/// of 64 KiB; each as much as its register holds.
fn describe_memory(chip: &mut Chip, ram: u64) {
    let regions = layout::ram_regions(ram);
    let low = regions.first().map_or(0, |&(_, len)| len);
    let high: u64 = regions.iter().skip(1).map(|&(_, len)| len).sum();
    let word = |value: u64| (value.min(0xffff) as u16).to_le_bytes();
    let extended = word(low.saturating_sub(1 << 20) >> 10);
    chip.preset(0x15, &word(640));
    chip.preset(0x17, &extended);
    chip.preset(0x30, &extended);
    chip.preset(0x34, &word(low.saturating_sub(16 << 20) >> 16));
    chip.preset(0x5b, &(high >> 16).min(0xff_ffff).to_le_bytes()[..3]);
}

#[cfg(test)]
mod tests;
