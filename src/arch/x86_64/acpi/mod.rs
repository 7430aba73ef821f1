//! ACPI tables: how the guest learns of its processors, interrupt controllers, devices, power button and reset.
//!
//! The hardware model is the full one of ACPI 6.4, not the reduced one: the fixed power button and S5 by the PM1
//! registers need no code in the guest's interpreter, and every ACPI guest knows them. ACPI mode is always on (there is
//! no SMI command), PM1 and the PM timer are at [`layout::ACPI_PM_PORT`]. Apart from S5 and the list of devices
//! there is nothing in the DSDT, no method above all.

mod dsdt;
mod madt;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;
use crate::device::acpi_pm::AcpiPm;
use crate::device::cmos::Cmos;
use crate::device::reset::ResetControl;

pub use dsdt::VirtioMmio;

const OEM_ID: [u8; 6] = *b"HYPKIT";
const OEM_TABLE_ID: [u8; 8] = *b"HYPERKIT";
const OEM_REVISION: u32 = 1;
/// Every table starts at a multiple of this. Only the FACS has to.
const ALIGNMENT: usize = 64;

// FADT, table 5.10 ("IA-PC Boot Architecture Flags").
const BOOT_ARCH_LEGACY_DEVICES: u16 = 1 << 0;
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;

/// What a machine has that the tables speak of.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Number of processors; their APIC ids count from 0.
    pub cpus: u32,
    /// Which of COM1 to COM4 there are.
    pub com: [bool; 4],
    /// The virtio devices.
    pub virtio_mmio: Vec<VirtioMmio>,
}

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The tables are larger than their place.
    #[error(
        "the ACPI tables have {len} bytes, and there is room for {max}; use fewer processors or devices"
    )]
    TooLarge {
        /// How long they are.
        len: usize,
        /// How long they may be.
        max: usize,
    },
    /// There are no more names.
    #[error("the ACPI tables can describe {max} {what}, not {count}; use fewer")]
    TooMany {
        /// `processors` or `virtio devices`.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there can be.
        max: usize,
    },
    /// A device's registers are not below 4 GiB.
    #[error(
        "cannot describe a virtio device with {len:#x} bytes of registers at {base:#x}: they must lie below 4 GiB"
    )]
    Device {
        /// Their first address.
        base: u64,
        /// How many bytes.
        len: u64,
    },
    /// Guest memory lacks the place.
    #[error("cannot write ACPI tables to guest memory at {address:#x}: {source}")]
    Memory {
        /// Where.
        address: u64,
        /// What failed.
        source: GuestMemoryError,
    },
}

/// Writes all tables and returns the guest-physical address of the RSDP.
pub fn write(memory: &GuestMemoryMmap, config: &Config) -> Result<u64, Error> {
    let tables = build(config)?;
    put(memory, layout::ACPI, &tables)?;
    put(memory, layout::FACS, &facs())?;
    Ok(layout::ACPI)
}

fn put(memory: &GuestMemoryMmap, address: u64, bytes: &[u8]) -> Result<(), Error> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|source| Error::Memory { address, source })
}

/// What goes to [`layout::ACPI`]: the RSDP, and all tables but the FACS.
fn build(config: &Config) -> Result<Vec<u8>, Error> {
    // The RSDP comes first and is written last: it holds the address of the XSDT, and that all the others.
    let mut tables = vec![0; ALIGNMENT];
    let dsdt = append(&mut tables, &dsdt::build(config)?);
    let fadt = append(&mut tables, &fadt(dsdt));
    let madt = append(&mut tables, &madt::build(config.cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut tables, &xsdt);
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    tables[..rsdp.len()].copy_from_slice(&rsdp);

    let (len, max) = (tables.len(), layout::ACPI_LEN as usize);
    if len > max {
        return Err(Error::TooLarge { len, max });
    }
    Ok(tables)
}

/// Adds a table and returns its guest-physical address.
fn append(tables: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    let at = tables.len().next_multiple_of(ALIGNMENT);
    tables.resize(at, 0);
    table.to_aml_bytes(tables);
    layout::ACPI + at as u64
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with the standard header (section 5.2.6) and `body`.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(*signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table
}

/// Fixed ACPI Description Table, section 5.2.9. Addresses are given twice, in the 32-bit fields and the 64-bit ones:
/// old guests read the former, new ones the latter, and both must agree.
fn fadt(dsdt: u64) -> FADT {
    let io = |bits: u8, access, port: u32| {
        GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
    };
    let pm1_event = u32::from(layout::ACPI_PM_PORT);
    let pm1_control = pm1_event + u32::from(AcpiPm::CONTROL_OFFSET);
    let pm_timer = pm1_event + u32::from(AcpiPm::TIMER_OFFSET);

    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Unspecified)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // The sleep button is not a fixed one, nor any other. The power button is: its flag stays clear.
        .flag(Flags::SlpButton)
        // The RTC cannot wake the machine by a fixed register.
        .flag(Flags::FixRtc)
        // All 32 bits of the timer count.
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.fadt_minor_version = 4;
    // Below 4 GiB, as `layout` has them.
    (fadt.dsdt, fadt.x_dsdt) = ((dsdt as u32).into(), dsdt.into());
    // The FACS is the exception: a guest that is told of it twice takes it for two.
    fadt.firmware_ctrl = (layout::FACS as u32).into();
    fadt.sci_int = (layout::SCI_GSI as u16).into();

    fadt.pm1a_evt_blk = pm1_event.into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = io(32, AccessSize::WordAccess, pm1_event);
    fadt.pm1a_cnt_blk = pm1_control.into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = io(16, AccessSize::WordAccess, pm1_control);
    fadt.pm_tmr_blk = pm_timer.into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = io(32, AccessSize::DwordAccess, pm_timer);

    // Latencies above 100 and 1000 µs say that there is no C2 and no C3.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.iapc_boot_arch = (BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_NO_VGA).into();
    fadt.reset_reg = io(8, AccessSize::ByteAccess, layout::RESET_PORT.into());
    fadt.reset_value = ResetControl::RESET_VALUE;
    fadt.century = Cmos::CENTURY;
    fadt.finalize()
}

/// Firmware ACPI Control Structure, section 5.2.10: a global lock that nobody else takes.
fn facs() -> Vec<u8> {
    let mut facs = FACS::new();
    facs.version = 2;
    bytes(&facs)
}

#[cfg(test)]
mod tests;
