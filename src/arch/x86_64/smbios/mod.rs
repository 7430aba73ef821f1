//! SMBIOS tables: who made the machine, what it is called, and the words its owner has for the guest.
//!
//! The 64-bit entry point and the structures of SMBIOS 3.0 (DMTF DSP0134): those that its conformance annex asks
//! for and that mean something in a virtual machine, and the owner's strings.

use uuid::Uuid;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

/// Length of the 64-bit entry point (section 5.2.2); the structures follow, aligned to 16 bytes as it is.
const ENTRY_POINT_LEN: usize = 24;
const STRUCTURES: u64 = layout::SMBIOS + 32;
const MAX_LEN: usize = (layout::SMBIOS_LEN - 32) as usize;
/// Guests sort out firmware of the last century by its date.
const FIRMWARE_DATE: &str = "01/01/2026";
const NAME: &str = "HyperKit";
/// A handle that stands for "there is none" where errors of memory would be reported.
const NO_ERROR_INFORMATION: u16 = 0xfffe;
const MEMORY_ARRAY: u16 = 0x1000;

/// What the tables say.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The machine's UUID.
    pub uuid: Uuid,
    /// The machine's serial number.
    pub serial: Option<String>,
    /// Words for whoever runs in the guest (type 11), such as systemd's `io.systemd.credential:NAME=VALUE`.
    pub oem_strings: Vec<String>,
    /// Number of processors, which are the cores of one.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
}

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A string is empty or contains a NUL byte, which in these tables ends a string.
    #[error("the SMBIOS tables cannot hold the string {0:?}: it is empty or contains a NUL")]
    BadString(String),
    /// There are more strings than the tables have numbers for.
    #[error("the SMBIOS tables can hold 255 OEM strings, not {0}")]
    TooManyStrings(usize),
    /// The tables are larger than their place.
    #[error(
        "the SMBIOS tables have {len} bytes, and there is room for {max}; use fewer or shorter strings"
    )]
    TooLarge {
        /// How long they are.
        len: usize,
        /// How long they may be.
        max: usize,
    },
    /// Guest memory lacks the place.
    #[error("cannot write SMBIOS tables to guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Writes entry point and structures to their place in [`layout`].
pub fn write(memory: &GuestMemoryMmap, config: &Config) -> Result<(), Error> {
    let structures = structures(config)?;
    memory.write_slice(&entry_point(structures.len() as u32), GuestAddress(layout::SMBIOS))?;
    memory.write_slice(&structures, GuestAddress(STRUCTURES))?;
    Ok(())
}

/// SMBIOS 3.0 (64-bit) entry point, section 5.2.2.
fn entry_point(len: u32) -> Vec<u8> {
    let mut entry = b"_SM3_".to_vec();
    // Checksum, length, version 3.0, revision of the document, revision of the entry point, reserved.
    entry.extend_from_slice(&[0, ENTRY_POINT_LEN as u8, 3, 0, 0, 1, 0]);
    entry.extend_from_slice(&len.to_le_bytes());
    entry.extend_from_slice(&STRUCTURES.to_le_bytes());
    entry[5] = entry.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    entry
}

fn structures(config: &Config) -> Result<Vec<u8>, Error> {
    let mut table = Table::default();
    firmware(&mut table)?;
    system(&mut table, config)?;
    chassis(&mut table)?;
    processor(&mut table, config.cpus)?;
    if !config.oem_strings.is_empty() {
        oem_strings(&mut table, &config.oem_strings)?;
    }
    memory(&mut table, config.memory)?;
    // System boot information, section 7.33: six reserved bytes, no errors.
    Structure::new(32, 0x2000).bytes(&[0; 7]).end(&mut table);
    Structure::new(127, 0x7f00).end(&mut table);

    let len = table.0.len();
    if len > MAX_LEN {
        return Err(Error::TooLarge { len, max: MAX_LEN });
    }
    Ok(table.0)
}

/// BIOS information, section 7.1.
fn firmware(table: &mut Table) -> Result<(), Error> {
    const NO_CHARACTERISTICS: u64 = 1 << 3;
    const ACPI: u8 = 1 << 0;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    let mut bios = Structure::new(0, 0);
    bios.string(NAME)?;
    bios.string(env!("CARGO_PKG_VERSION"))?;
    // Segment where it starts.
    bios = bios.word((layout::SMBIOS >> 4) as u16);
    bios.string(FIRMWARE_DATE)?;
    // 64 KiB of ROM; no versions of firmware or embedded controller.
    bios.byte(0)
        .bytes(&NO_CHARACTERISTICS.to_le_bytes())
        .bytes(&[ACPI, VIRTUAL_MACHINE])
        .bytes(&[0xff; 4])
        .end(table);
    Ok(())
}

/// System information, section 7.2.
fn system(table: &mut Table, config: &Config) -> Result<(), Error> {
    const POWER_SWITCH: u8 = 6;
    let mut system = Structure::new(1, 0x0100);
    system.string(NAME)?;
    system.string(NAME)?;
    system.string(env!("CARGO_PKG_VERSION"))?;
    system.optional(config.serial.as_deref())?;
    // Its first three fields are little-endian, unlike the UUID as it is written.
    system.bytes(&config.uuid.to_bytes_le()).byte(POWER_SWITCH).bytes(&[0, 0]).end(table);
    Ok(())
}

/// System enclosure, section 7.4.
fn chassis(table: &mut Table) -> Result<(), Error> {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const NO_SECURITY: u8 = 3;
    let mut chassis = Structure::new(3, 0x0300);
    chassis.string(NAME)?;
    // Type; version, serial number and asset tag are not given; states of boot-up, power and heat; security.
    chassis
        .bytes(&[OTHER, 0, 0, 0, SAFE, SAFE, SAFE, NO_SECURITY])
        // OEM defined, height and power cords unknown, no elements, no SKU number.
        .bytes(&[0; 9])
        .end(table);
    Ok(())
}

/// Processor information, section 7.5: one socket with all processors for its cores.
fn processor(table: &mut Table, cpus: u32) -> Result<(), Error> {
    const CENTRAL: u8 = 3;
    const OTHER: u8 = 1;
    const POPULATED_ENABLED: u8 = 0x41;
    const NO_CACHE: u16 = 0xffff;
    const CAPABLE_64_BIT: u16 = 1 << 2;
    let (count, long) = (u8::try_from(cpus).unwrap_or(0xff), u16::try_from(cpus).unwrap_or(0xfffe));
    let mut processor = Structure::new(4, 0x0400);
    processor.string("CPU 0")?;
    processor = processor.bytes(&[CENTRAL, OTHER]);
    processor.string(NAME)?;
    processor
        // Identification, version, voltage, clock and speeds: the guest asks the processor itself.
        .bytes(&[0; 8])
        .bytes(&[0; 2])
        .bytes(&[0; 6])
        .bytes(&[POPULATED_ENABLED, OTHER])
        .word(NO_CACHE)
        .word(NO_CACHE)
        .word(NO_CACHE)
        // No serial number, asset tag or part number; cores, cores that are on, threads.
        .bytes(&[0, 0, 0, count, count, count])
        .word(CAPABLE_64_BIT)
        // The family again, and the three counts, each in a word.
        .word(OTHER.into())
        .word(long)
        .word(long)
        .word(long)
        .end(table);
    Ok(())
}

/// OEM strings, section 7.12.
fn oem_strings(table: &mut Table, strings: &[String]) -> Result<(), Error> {
    let count = u8::try_from(strings.len()).map_err(|_| Error::TooManyStrings(strings.len()))?;
    let mut oem = Structure::new(11, 0x0b00).byte(count);
    for string in strings {
        oem.text(string)?;
    }
    oem.end(table);
    Ok(())
}

/// Physical memory array, memory device, and where it is mapped: sections 7.17, 7.18 and 7.20.
fn memory(table: &mut Table, size: u64) -> Result<(), Error> {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_ECC: u8 = 3;
    const IN_EXTENDED_FIELD: u32 = 0x8000_0000;
    Structure::new(16, MEMORY_ARRAY)
        .bytes(&[SYSTEM_BOARD, SYSTEM_MEMORY, NO_ECC])
        .dword(IN_EXTENDED_FIELD)
        .word(NO_ERROR_INFORMATION)
        .word(1)
        .qword(size)
        .end(table);

    const WIDTH_UNKNOWN: u16 = 0xffff;
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const DETAIL_OTHER: u16 = 1 << 1;
    // A word holds mebibytes, or kibibytes with its highest bit set; what is larger has a field of its own.
    const SIZE_EXTENDED: u16 = 0x7fff;
    let (kib, mib) = (size >> 10, size >> 20);
    let short = match (u16::try_from(mib), u16::try_from(kib)) {
        (Ok(0), Ok(kib)) => kib | 1 << 15,
        (Ok(mib), _) if mib < SIZE_EXTENDED => mib,
        _ => SIZE_EXTENDED,
    };
    let extended =
        if short == SIZE_EXTENDED { u32::try_from(mib).unwrap_or(u32::MAX >> 1) } else { 0 };
    let mut device = Structure::new(17, 0x1100)
        .word(MEMORY_ARRAY)
        .word(NO_ERROR_INFORMATION)
        .word(WIDTH_UNKNOWN)
        .word(WIDTH_UNKNOWN)
        .word(short)
        .bytes(&[DIMM, 0]);
    device.string("DIMM 0")?;
    device
        // No bank locator.
        .bytes(&[0, RAM])
        .word(DETAIL_OTHER)
        // Speed, manufacturer, serial number, asset tag, part number, attributes: unknown.
        .bytes(&[0; 7])
        .dword(extended)
        // Speed as configured and voltages: unknown.
        .bytes(&[0; 8])
        .end(table);

    for (handle, (start, len)) in (0x1300..).zip(layout::ram_regions(size)) {
        const IN_EXTENDED_FIELD: u32 = u32::MAX;
        Structure::new(19, handle)
            .dword(IN_EXTENDED_FIELD)
            .dword(IN_EXTENDED_FIELD)
            .word(MEMORY_ARRAY)
            .byte(1)
            .qword(start)
            .qword(start.saturating_add(len.saturating_sub(1)))
            .end(table);
    }
    Ok(())
}

/// All structures so far.
#[derive(Default)]
struct Table(Vec<u8>);

/// A structure in the making (section 6.1): a formatted area, then strings, to which the area refers by number.
struct Structure {
    area: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self { area: vec![kind, 0, low, high], strings: Vec::new(), count: 0 }
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.area.extend_from_slice(bytes);
        self
    }

    fn byte(self, byte: u8) -> Self {
        self.bytes(&[byte])
    }

    fn word(self, word: u16) -> Self {
        self.bytes(&word.to_le_bytes())
    }

    fn dword(self, dword: u32) -> Self {
        self.bytes(&dword.to_le_bytes())
    }

    fn qword(self, qword: u64) -> Self {
        self.bytes(&qword.to_le_bytes())
    }

    /// Adds a string that the area refers to by its place among the strings only.
    fn text(&mut self, text: &str) -> Result<(), Error> {
        if text.is_empty() || text.contains('\0') {
            return Err(Error::BadString(text.into()));
        }
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        self.count += 1;
        Ok(())
    }

    /// Adds a string, and its number to the area.
    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.text(text)?;
        self.area.push(self.count);
        Ok(())
    }

    /// Adds a string if there is one, and otherwise the number that stands for none.
    fn optional(&mut self, text: Option<&str>) -> Result<(), Error> {
        match text {
            Some(text) => self.string(text),
            None => {
                self.area.push(0);
                Ok(())
            }
        }
    }

    fn end(mut self, table: &mut Table) {
        self.area[1] = self.area.len() as u8;
        table.0.append(&mut self.area);
        table.0.append(&mut self.strings);
        // An empty string ends the strings; where there are none at all, it has a second NUL.
        table.0.push(0);
        if self.count == 0 {
            table.0.push(0);
        }
    }
}

#[cfg(test)]
mod tests;
