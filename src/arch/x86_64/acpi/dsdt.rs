//! Differentiated System Description Table, ACPI section 5.2.11.1: the devices that a guest cannot find by itself.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;

use super::super::layout;
use super::{Config, Error, table};
use crate::device::acpi_pm::AcpiPm;
use crate::device::cmos::Cmos;

/// A virtio device with memory-mapped registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Guest-physical address of its registers.
    pub base: u64,
    /// How many bytes they take.
    pub len: u64,
    /// Its interrupt line, edge-triggered.
    pub gsi: u32,
}

/// Names of processors and virtio devices are a letter and three hexadecimal digits.
const MAX_COUNT: usize = 0x1000;

pub(super) fn build(config: &Config) -> Result<Sdt, Error> {
    for (what, count) in
        [("processors", config.cpus as usize), ("virtio devices", config.virtio_mmio.len())]
    {
        if count > MAX_COUNT {
            return Err(Error::TooMany { what, count, max: MAX_COUNT });
        }
    }
    let mut devices = Vec::new();
    for id in 0..config.cpus {
        add(&mut devices, &format!("C{id:03X}"), &"ACPI0007", id, &[]);
    }
    let ports = layout::COM_PORTS.into_iter().zip(layout::COM_GSIS).zip(config.com);
    for (n, ((port, gsi), present)) in (1..).zip(ports) {
        if present {
            let resources = resources(&[&io(port, 8), &edge(gsi)]);
            add(&mut devices, &format!("COM{n}"), &EISAName::new("PNP0501"), n, &[&resources]);
        }
    }
    let clock = resources(&[&io(layout::CMOS_PORT, Cmos::PORTS as u8), &edge(layout::RTC_GSI)]);
    add(&mut devices, "RTC_", &EISAName::new("PNP0B00"), 0, &[&clock]);
    // Ports that the FADT names, so that no guest gives them to anything else.
    let fixed =
        resources(&[&io(layout::ACPI_PM_PORT, AcpiPm::PORTS as u8), &io(layout::RESET_PORT, 1)]);
    add(&mut devices, "MBRD", &EISAName::new("PNP0C02"), 0, &[&fixed]);
    for (n, device) in (0..).zip(&config.virtio_mmio) {
        add_virtio(&mut devices, n, device)?;
    }

    let mut body = Scope::raw("_SB_".into(), devices);
    let off = Package::new(vec![&AcpiPm::SLEEP_TYPE_S5, &0_u8, &0_u8, &0_u8]);
    Name::new("_S5_".into(), &off).to_aml_bytes(&mut body);
    Ok(table(b"DSDT", 2, &body))
}

/// `LNRO0005` is the name that Linux and QEMU have for virtio over MMIO.
fn add_virtio(devices: &mut Vec<u8>, n: u32, device: &VirtioMmio) -> Result<(), Error> {
    let VirtioMmio { base, len, gsi } = *device;
    let end = base.checked_add(len).filter(|&end| len > 0 && end <= 1 << 32);
    let (Ok(first), Ok(size), Some(_)) = (u32::try_from(base), u32::try_from(len), end) else {
        return Err(Error::Device { base, len });
    };
    let resources = resources(&[&Memory32Fixed::new(true, first, size), &edge(gsi)]);
    // What the device writes to memory, processors see.
    let coherent = Name::new("_CCA".into(), &1_u8);
    add(devices, &format!("V{n:03X}"), &"LNRO0005", n, &[&coherent, &resources]);
    Ok(())
}

/// Adds a device with these objects besides its names.
fn add(devices: &mut Vec<u8>, name: &str, hid: &dyn Aml, uid: u32, objects: &[&dyn Aml]) {
    let hid = Name::new("_HID".into(), hid);
    let uid = Name::new("_UID".into(), &uid);
    let mut children: Vec<&dyn Aml> = vec![&hid, &uid];
    children.extend_from_slice(objects);
    Device::new(name.into(), children).to_aml_bytes(devices);
}

fn resources(resources: &[&dyn Aml]) -> Name {
    Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec()))
}

fn io(port: u16, len: u8) -> IO {
    IO::new(port, port, 1, len)
}

/// An interrupt line that one device alone pulses.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
