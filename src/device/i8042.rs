//! The keyboard controller at port 0x64, as far as it resets a PC.
//!
//! There is no keyboard. Yet the controller's output port drives the processor's reset line, and pulsing it is what
//! Linux does without ACPI, and what many small kernels do always. So this device knows the pulse commands (IBM
//! PC AT Technical Reference, "Keyboard Controller Commands", F0 to FF) and answers everything else so that a driver
//! gives up soon and quietly:
//!
//! * The input buffer is always free (status bit 1 clear): whoever waits to send a command never waits. Linux's
//!   reboot polls this bit 65536 times, ten times over.
//! * The output buffer is always full (status bit 0 set), and nobody has the data port. A driver's first act is to
//!   drain the buffer; Linux's tries 16 times, says "No controller found" and leaves. Were the buffer empty, it
//!   would find a controller, wait half a second for an answer and report an error.

use crate::accel::Exit;
use crate::bus::{BusDevice, Flow};

/// Output buffer full.
const STATUS_OBF: u8 = 1 << 0;
/// `F0` to `FF` pulse those lines of the output port low whose bit is zero.
const PULSE: u8 = 0xf0;
/// Bit 0 of the output port is the processor's reset line.
const RESET_LINE: u8 = 1 << 0;

/// The status and command port of a keyboard controller. One port, 0x64; port 0x60 stays unclaimed.
#[derive(Debug, Default)]
pub struct I8042(());

impl I8042 {
    /// A controller; it has no state.
    pub fn new() -> Self {
        Self::default()
    }
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        if let Some(byte) = data.first_mut() {
            *byte = STATUS_OBF;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Flow {
        match data.first() {
            Some(&command) if command & (PULSE | RESET_LINE) == PULSE => Flow::Break(Exit::Reset),
            _ => Flow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(controller: &I8042) -> u8 {
        let mut data = [0xff];
        controller.read(0, &mut data);
        data[0]
    }

    #[test]
    fn resets_when_the_reset_line_is_pulsed() {
        let controller = I8042::new();
        for command in 0..=0xff_u8 {
            let resets = matches!(command, 0xf0 | 0xf2 | 0xf4 | 0xf6 | 0xf8 | 0xfa | 0xfc | 0xfe);
            let expected = if resets { Flow::Break(Exit::Reset) } else { Flow::Continue(()) };
            assert_eq!(controller.write(0, &[command]), expected, "{command:#x}");
        }
    }

    /// `kb_wait` and `i8042_flush` of Linux.
    #[test]
    fn never_makes_a_driver_wait_and_never_looks_drained() {
        let controller = I8042::new();
        assert_eq!(status(&controller) & 2, 0, "input buffer full");
        assert!((0..17).all(|_| status(&controller) & 1 != 0), "output buffer empty");
    }
}
