//! What an arm64 machine has before virtio, and what its device tree says.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::Error;
use super::parts::{Parts, Place};
use crate::accel::Controller;
use crate::arch::CpuState;
use crate::arch::aarch64::{fdt, layout};
use crate::boot::{LoadParams, Payload};
use crate::console::Port;
use crate::device::pl011::Pl011;
use crate::device::pl031::Pl031;
use crate::device::pl061::Pl061;
use crate::memory::GuestRam;
use crate::virtio::MmioTransport;

pub(super) use crate::arch::aarch64::layout::ram_regions;

/// The device that the power button is on.
pub(super) type PowerButton = Pl061;

/// Whether there is port I/O.
pub(super) const HAS_PORTS: bool = false;

/// Where a caller's device can have registers.
pub(super) const REGISTERS: Range<u64> = layout::MMIO_START..layout::RAM_START;

/// What a machine has before virtio.
pub(super) struct Board {
    power: Arc<Pl061>,
    cpus: u32,
    memory: u64,
    controller: Controller,
    serial: [bool; layout::SERIAL.len()],
}

impl Board {
    /// Adds its devices to `parts`. Linux finds no UUID in a device tree, so there is none.
    pub fn new(parts: &mut Parts<'_>, cpus: u32, memory: u64, _uuid: Uuid) -> Result<Self, Error> {
        if cpus > layout::MAX_CPUS {
            let max = layout::MAX_CPUS;
            return Err(Error::Config(format!("a machine has at most {max} vCPUs, not {cpus}")));
        }
        let Some(lines) = parts.lines else {
            let why = "an arm64 machine needs an accelerator with an interrupt controller";
            return Err(Error::Config(why.into()));
        };
        let controller = lines.controller();
        let power = Pl061::new(parts.line(layout::GPIO_LINE)?);
        let clock = Pl031::new(parts.line(layout::RTC_LINE)?);
        parts.mmio.insert("power button", layout::GPIO, Pl061::LEN, power.clone())?;
        parts.mmio.insert("clock", layout::RTC, Pl031::LEN, clock)?;
        Ok(Self { power, cpus, memory, controller, serial: Default::default() })
    }

    /// Adds serial port `number`, counted from 0.
    pub fn serial(
        &mut self,
        parts: &mut Parts<'_>,
        number: usize,
        port: Port,
    ) -> Result<(), Error> {
        let (Some(&base), Some(&line), Some(present)) = (
            layout::SERIAL.get(number),
            layout::SERIAL_LINES.get(number),
            self.serial.get_mut(number),
        ) else {
            let most = layout::SERIAL.len();
            let number = number + 1;
            return Err(Error::Config(format!(
                "a machine has at most {most} serial ports; this is number {number}"
            )));
        };
        *present = true;
        let serial = Pl011::new(port, parts.line(line)?);
        let name = format!("serial port {}", number + 1);
        Ok(parts.mmio.insert(name, base, Pl011::LEN, serial)?)
    }

    /// Where virtio device `number`, counted from 0, goes.
    pub fn virtio_place(number: usize) -> Option<Place> {
        let line = layout::VIRTIO_FIRST_LINE + u32::try_from(number).ok()?;
        let base = layout::VIRTIO_MMIO + number as u64 * layout::VIRTIO_MMIO_STRIDE;
        (number < layout::VIRTIO_MAX).then_some(Place { base, line })
    }

    pub fn power_button(&self) -> &Arc<PowerButton> {
        &self.power
    }

    /// Writes the kernel and the device tree into memory; where the boot processor starts.
    pub fn load(
        &self,
        ram: &GuestRam,
        payload: &Payload,
        cmdline: &str,
        places: &[Place],
    ) -> Result<CpuState, Error> {
        let make = |initrd| Ok(fdt::build(&self.device_tree(cmdline, initrd, places))?);
        Ok(payload.load(ram, &LoadParams::new(cmdline).device_tree(&make))?)
    }

    /// What the guest is told: at each boot with other random numbers.
    fn device_tree(
        &self,
        cmdline: &str,
        initrd: Option<(u64, u64)>,
        places: &[Place],
    ) -> fdt::Config {
        let random: Vec<u8> = (0..3).flat_map(|_| Uuid::new_v4().into_bytes()).collect();
        let (kaslr_seed, rng_seed) = random.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let len = MmioTransport::SIZE;
        let virtio_mmio =
            places.iter().map(|&Place { base, line }| fdt::VirtioMmio { base, len, line });
        fdt::Config {
            cpus: self.cpus,
            memory: ram_regions(self.memory),
            gic: if self.controller == Controller::GicV2 { fdt::Gic::V2 } else { fdt::Gic::V3 },
            serial: self.serial,
            virtio_mmio: virtio_mmio.collect(),
            cmdline: cmdline.to_owned(),
            initrd,
            rng_seed: rng_seed.to_vec(),
            kaslr_seed: u64::from_le_bytes(*kaslr_seed),
        }
    }
}
