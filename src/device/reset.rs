//! The reset control register at port 0xCF9.
//!
//! Chipsets since the PIIX have it, ACPI points to it as the reset register, and Linux and UEFI firmware use it
//! when asked to. Bit 1 chooses a hard reset, bit 2 resets the processors when it is set, bit 3 asks for a power
//! cycle (Intel PCH datasheet, "RST_CNT"); to a virtual machine all three kinds are the same.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::accel::Exit;
use crate::bus::{BusDevice, Flow};

/// RST_CPU: the reset happens when this bit is written.
const RESET_CPU: u8 = 1 << 2;
/// SYS_RST, RST_CPU and FULL_RST; the others are reserved and read as zero.
const DEFINED: u8 = 0b1110;

/// The reset control register. One port.
#[derive(Debug, Default)]
pub struct ResetControl(AtomicU8);

impl ResetControl {
    /// What ACPI's `RESET_VALUE` is for this register: a hard reset.
    pub const RESET_VALUE: u8 = 0x06;

    /// A register as it is at power-on.
    pub fn new() -> Self {
        Self::default()
    }
}

impl BusDevice for ResetControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        if let Some(byte) = data.first_mut() {
            *byte = self.0.load(Ordering::Relaxed);
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Flow {
        let Some(&value) = data.first() else { return Flow::Continue(()) };
        self.0.store(value & DEFINED, Ordering::Relaxed);
        if value & RESET_CPU != 0 { Flow::Break(Exit::Reset) } else { Flow::Continue(()) }
    }

    fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(register: &ResetControl) -> u8 {
        let mut data = [0xff];
        register.read(0, &mut data);
        data[0]
    }

    /// `native_machine_emergency_restart` with `reboot=p`: the type of the reset first, then the reset.
    #[test]
    fn resets_as_linux_asks() {
        let register = ResetControl::new();
        let before = read(&register) & !0x0e;
        assert!(register.write(0, &[before | 2]).is_continue());
        assert_eq!(read(&register), 2);
        assert_eq!(register.write(0, &[before | 0x0e]), Flow::Break(Exit::Reset));
        register.reset();
        assert_eq!(read(&register), 0);
    }

    #[test]
    fn resets_as_acpi_asks() {
        let register = ResetControl::new();
        assert_eq!(register.write(0, &[ResetControl::RESET_VALUE]), Flow::Break(Exit::Reset));
    }

    #[test]
    fn any_other_write_is_only_kept() {
        let register = ResetControl::new();
        for value in (0..=0xff).filter(|value| value & RESET_CPU == 0) {
            assert!(register.write(0, &[value]).is_continue(), "{value:#x}");
            assert_eq!(read(&register), value & DEFINED);
        }
    }
}
