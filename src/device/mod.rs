//! What a machine has before virtio: serial ports, a clock, and ways to turn itself off.
//!
//! Each device is a [`BusDevice`](crate::bus::BusDevice) that knows its registers, an interrupt line and its host
//! side, and nothing of the machine around it: it can be put on any bus and driven without an accelerator.
//!
//! Those of a PC:
//!
//! | device | where | what it is for |
//! |---|---|---|
//! | [`serial::Serial`] | 8 ports at 0x3f8, 0x2f8, 0x3e8, 0x2e8 | consoles |
//! | [`cmos::Cmos`] | ports 0x70, 0x71 | date and time, alarm, 114 bytes that keep |
//! | [`i8042::I8042`] | port 0x64 | reset |
//! | [`reset::ResetControl`] | port 0xcf9 | reset |
//! | [`acpi_pm::AcpiPm`] | 12 ports, which the FADT names | power-off, power button, timer |
//!
//! Those of an arm64 machine, where the device tree says:
//!
//! | device | what it is for |
//! |---|---|
//! | [`pl011::Pl011`] | consoles |
//! | [`pl031::Pl031`] | date and time, alarm |
//! | [`pl061::Pl061`] | power button |
//!
//! A register write that ends the run (power-off, reset) is returned as
//! [`Flow::Break`](std::ops::ControlFlow::Break); no device reaches for the machine.

pub mod acpi_pm;
mod alarm;
pub mod cmos;
pub mod i8042;
mod level;
mod pace;
pub mod pl011;
pub mod pl031;
pub mod pl061;
mod primecell;
pub mod reset;
pub mod serial;

#[cfg(test)]
mod testing;
