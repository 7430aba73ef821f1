//! What ARM's PrimeCell peripherals have in common: registers of 32 bits, and those that tell what one is.

use crate::arch::aarch64::layout;

/// Bytes of registers that a peripheral has.
pub(super) const LEN: u64 = layout::PERIPHERAL_LEN;
/// Registers that tell which peripheral it is, then that it is a PrimeCell: a byte in each, lowest first.
const PERIPHERAL_ID: u64 = 0xfe0;
const PRIMECELL_ID: u64 = 0xff0;
const PRIMECELL: u32 = 0xb105_f00d;

/// Reads register by register. An access of eight bytes is one to two registers; what does not begin where a register
/// does reads as zeros.
pub(super) fn read(offset: u64, data: &mut [u8], mut register: impl FnMut(u64) -> u32) {
    data.fill(0);
    for (at, data) in registers(offset).zip(data.chunks_mut(4)) {
        for (to, from) in data.iter_mut().zip(register(at).to_le_bytes()) {
            *to = from;
        }
    }
}

/// Writes register by register. A narrow access writes zeros to the rest of the register; what does not begin where
/// a register does goes nowhere.
pub(super) fn write(offset: u64, data: &[u8], mut register: impl FnMut(u64, u32)) {
    for (at, data) in registers(offset).zip(data.chunks(4)) {
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().zip(data) {
            *to = *from;
        }
        register(at, u32::from_le_bytes(value));
    }
}

/// The registers that an access at `offset` reaches, if it is a good one.
fn registers(offset: u64) -> impl Iterator<Item = u64> {
    let end = if offset.is_multiple_of(4) { LEN } else { 0 };
    (offset..end).step_by(4)
}

/// What register `offset` of the peripheral `id` reads as, if it is an identification register, and otherwise 0.
pub(super) fn identification(id: u32, offset: u64) -> u32 {
    let byte = |value: u32, at: u64| value.to_le_bytes().get((at / 4) as usize).copied();
    let byte = match offset {
        PRIMECELL_ID.. => byte(PRIMECELL, offset - PRIMECELL_ID),
        PERIPHERAL_ID.. => byte(id, offset - PERIPHERAL_ID),
        _ => None,
    };
    byte.unwrap_or(0).into()
}
