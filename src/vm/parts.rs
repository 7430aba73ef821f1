//! Devices on their way into a machine, and the addresses and interrupt lines that they take up.

use std::sync::Arc;

use super::board::Board;
use super::builder::Claim;
use super::{Error, board};
use crate::accel::{Doorbells, Interrupts, IrqLine};
use crate::bus::Bus;
use crate::memory::GuestRam;
use crate::virtio::{MmioTransport, VirtioDevice};

/// Collects devices.
pub(super) struct Parts<'a> {
    pub lines: Option<&'a dyn Interrupts>,
    pub doorbells: Option<&'a dyn Doorbells>,
    pub ram: &'a GuestRam,
    pub pio: Bus,
    pub mmio: Bus,
    pub virtio: Vec<Arc<MmioTransport>>,
    pub places: Vec<Place>,
}

/// Where a virtio device is: its page of registers, and its interrupt line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub base: u64,
    pub line: u32,
}

/// The line of a machine that has no interrupt controller: its guests poll.
struct Unwired;

impl IrqLine for Unwired {
    fn pulse(&self) {}
    fn set_level(&self, _high: bool) {}
}

impl Parts<'_> {
    pub fn line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, Error> {
        match self.lines {
            Some(lines) => Ok(lines.line(gsi)?),
            None => Ok(Arc::new(Unwired)),
        }
    }

    pub fn virtio(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), Error> {
        let Some(place) = Board::virtio_place(self.virtio.len()) else {
            return Err(Error::Config(format!(
                "a machine has interrupt lines for {} virtio devices at most",
                self.virtio.len()
            )));
        };
        let name = format!("virtio-{}", device.name());
        let line = self.line(place.line)?;
        let transport = MmioTransport::new(device, self.ram.memory().clone(), line)
            .map_err(Error::host(format!("start the thread of {name}")))?;
        self.mmio.insert(name, place.base, MmioTransport::SIZE, transport.clone())?;
        if let Some(doorbells) = self.doorbells {
            for queue in 0..transport.queue_count() {
                if let Some(notifier) = transport.doorbell(queue) {
                    let register = place.base + MmioTransport::QUEUE_NOTIFY;
                    doorbells.attach(register, queue.into(), notifier)?;
                }
            }
        }
        self.places.push(place);
        self.virtio.push(transport);
        Ok(())
    }

    pub fn port_device(&mut self, claim: Claim) -> Result<(), Error> {
        let Claim { name, start, len, device } = claim;
        if !board::HAS_PORTS {
            return Err(Error::Config(format!(
                "{name} cannot have ports: this machine's processor has no port I/O"
            )));
        }
        Ok(self.pio.insert(name, start, len, device)?)
    }

    /// Refuses a range that guest memory, or the interrupt controllers, could be at: accesses would never get out.
    pub fn mmio_device(&mut self, claim: Claim) -> Result<(), Error> {
        let Claim { name, start, len, device } = claim;
        let (end, hole) = (start.saturating_add(len), board::REGISTERS);
        if start < hole.start || end > hole.end {
            return Err(Error::Config(format!(
                "{name} cannot have {start:#x}..{end:#x}: registers go between {:#x} and {:#x}",
                hole.start, hole.end
            )));
        }
        Ok(self.mmio.insert(name, start, len, device)?)
    }
}

/// What a kernel that reads neither ACPI tables nor a device tree needs on its command line to find the virtio devices
/// (`virtio_mmio.device` in the kernel's admin-guide/kernel-parameters.txt).
pub(super) fn announce(cmdline: &str, places: &[Place]) -> String {
    let mut cmdline = cmdline.to_owned();
    for Place { base, line } in places {
        let space = if cmdline.is_empty() { "" } else { " " };
        let len = MmioTransport::SIZE;
        cmdline += &format!("{space}virtio_mmio.device={len:#x}@{base:#x}:{line}");
    }
    cmdline
}
