//! Multiple APIC Description Table, ACPI section 5.2.12: processors and interrupt controllers.

use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::super::layout;
use super::table;

/// There are two 8259 controllers besides.
const PCAT_COMPAT: u32 = 1 << 0;
/// Of a local APIC: the processor can be used.
const ENABLED: u32 = 1 << 0;
/// Interrupt flags (table 5.26): active high, level-triggered.
const ACTIVE_HIGH_LEVEL: u16 = 0b11 << 2 | 0b01;
/// xAPIC ids end here; the last is for broadcasts.
const FIRST_X2APIC: u32 = 255;

pub(super) fn build(cpus: u32) -> Sdt {
    let mut body = Vec::new();
    body.dword(layout::LOCAL_APIC);
    body.dword(PCAT_COMPAT);
    for id in 0..cpus {
        match u8::try_from(id) {
            Ok(id) if u32::from(id) < FIRST_X2APIC => {
                ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut body);
            }
            _ => x2apic(&mut body, id),
        }
    }
    IoApic::new(0, layout::IO_APIC, 0).to_aml_bytes(&mut body);
    // Lines of the 8259s are the I/O APIC's of the same number, edges as on the ISA bus; this one is a level.
    interrupt_override(&mut body, layout::SCI_GSI, ACTIVE_HIGH_LEVEL);
    local_nmi(&mut body, cpus > FIRST_X2APIC);
    table(b"APIC", 5, &body)
}

/// Processor local x2APIC structure, section 5.2.12.12.
fn x2apic(body: &mut Vec<u8>, id: u32) {
    body.vec(&[9, 16, 0, 0]);
    body.dword(id);
    body.dword(ENABLED);
    body.dword(id);
}

/// Interrupt source override structure, section 5.2.12.5, for an ISA line that is the GSI of the same number.
fn interrupt_override(body: &mut Vec<u8>, line: u32, flags: u16) {
    body.vec(&[2, 10, 0, line as u8]);
    body.dword(line);
    body.word(flags);
}

/// Local APIC NMI structure, section 5.2.12.7, and its x2APIC sibling, section 5.2.12.13: LINT1 of every processor.
fn local_nmi(body: &mut Vec<u8>, x2apic: bool) {
    body.vec(&[4, 6, 0xff]);
    body.word(0);
    body.byte(1);
    if x2apic {
        body.vec(&[10, 12]);
        body.word(0);
        body.dword(u32::MAX);
        body.vec(&[1, 0, 0, 0]);
    }
}
