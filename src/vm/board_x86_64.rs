//! The PC that an x86-64 machine is: what it has before virtio, and what its tables say.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::Error;
use super::parts::{Parts, Place};
use crate::arch::CpuState;
use crate::arch::x86_64::{acpi, layout, smbios};
use crate::boot::{LoadParams, Payload};
use crate::bus::BusDevice;
use crate::console::Port;
use crate::device::acpi_pm::AcpiPm;
use crate::device::cmos::Cmos;
use crate::device::i8042::I8042;
use crate::device::reset::ResetControl;
use crate::device::serial::Serial;
use crate::memory::GuestRam;
use crate::virtio::MmioTransport;

pub(super) use crate::arch::x86_64::layout::ram_regions;

/// The device that the power button is on.
pub(super) type PowerButton = AcpiPm;

/// Whether there is port I/O.
pub(super) const HAS_PORTS: bool = true;

/// Where a caller's device can have registers.
pub(super) const REGISTERS: Range<u64> = layout::HOLE_START..layout::IO_APIC as u64;

/// What a machine has before virtio.
pub(super) struct Board {
    power: Arc<AcpiPm>,
    acpi: acpi::Config,
    smbios: smbios::Config,
}

impl Board {
    /// Adds its devices to `parts`.
    pub fn new(parts: &mut Parts<'_>, cpus: u32, memory: u64, uuid: Uuid) -> Result<Self, Error> {
        let power = Arc::new(AcpiPm::new(parts.line(layout::SCI_GSI)?));
        ports(parts, "ACPI", layout::ACPI_PM_PORT, AcpiPm::PORTS, power.clone())?;
        let keyboard_controller = Arc::new(I8042::new());
        ports(parts, "keyboard controller", layout::I8042_COMMAND_PORT, 1, keyboard_controller)?;
        ports(parts, "reset control", layout::RESET_PORT, 1, Arc::new(ResetControl::new()))?;
        let clock = Arc::new(Cmos::new(memory, parts.line(layout::RTC_GSI)?));
        ports(parts, "CMOS", layout::CMOS_PORT, Cmos::PORTS, clock)?;
        Ok(Self {
            power,
            acpi: acpi::Config { cpus, ..Default::default() },
            smbios: smbios::Config { uuid, cpus, memory, ..Default::default() },
        })
    }

    /// Adds serial port `number`, counted from 0.
    pub fn serial(
        &mut self,
        parts: &mut Parts<'_>,
        number: usize,
        port: Port,
    ) -> Result<(), Error> {
        let (Some(&first), Some(&gsi), Some(present)) = (
            layout::COM_PORTS.get(number),
            layout::COM_GSIS.get(number),
            self.acpi.com.get_mut(number),
        ) else {
            let most = layout::COM_PORTS.len();
            let number = number + 1;
            return Err(Error::Config(format!(
                "a machine has at most {most} serial ports; this is number {number}"
            )));
        };
        *present = true;
        let serial = Serial::new(port, parts.line(gsi)?);
        ports(parts, &format!("COM{}", number + 1), first, Serial::PORTS, serial)
    }

    /// Where virtio device `number`, counted from 0, goes.
    pub fn virtio_place(number: usize) -> Option<Place> {
        let line = *layout::VIRTIO_GSIS.get(number)?;
        let base = layout::VIRTIO_MMIO + number as u64 * layout::VIRTIO_MMIO_STRIDE;
        Some(Place { base, line })
    }

    pub fn power_button(&self) -> &Arc<PowerButton> {
        &self.power
    }

    /// Writes the kernel and the tables into memory; where the boot processor starts.
    pub fn load(
        &self,
        ram: &GuestRam,
        payload: &Payload,
        cmdline: &str,
        places: &[Place],
    ) -> Result<CpuState, Error> {
        let len = MmioTransport::SIZE;
        let virtio_mmio =
            places.iter().map(|&Place { base, line }| acpi::VirtioMmio { base, len, gsi: line });
        let acpi = acpi::Config { virtio_mmio: virtio_mmio.collect(), ..self.acpi.clone() };
        let rsdp = acpi::write(ram.memory(), &acpi).map_err(tables)?;
        smbios::write(ram.memory(), &self.smbios).map_err(tables)?;
        Ok(payload.load(ram, &LoadParams::new(cmdline).rsdp(rsdp))?)
    }
}

/// Gives `len` ports from `first` to a device.
fn ports(
    parts: &mut Parts<'_>,
    name: &str,
    first: u16,
    len: u64,
    device: Arc<dyn BusDevice>,
) -> Result<(), Error> {
    Ok(parts.pio.insert(name, first.into(), len, device)?)
}

fn tables(error: impl std::fmt::Display) -> Error {
    Error::Config(error.to_string())
}
