//! ACPI's fixed hardware: power-off, the power button, the power management timer.
//!
//! Twelve ports (ACPI 6.5, 4.8.3): the PM1a event block (status and enable, 16 bits each), the PM1a control block
//! (16 bits), two unused, and the 32-bit timer. Block lengths in the FADT: 4, 2 and 4; `TMR_VAL_EXT` set, because
//! all 32 bits count; no SMI command port, because there is no legacy mode to leave: `SCI_EN` is stuck at one.
//!
//! A guest may access any part of a register, so everything is done byte by byte; a write takes effect when all
//! its bytes are in.
//!
//! Left out: the status bit for the timer's carry, which would need a timer of ours to run for ever.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::level::Level;
use crate::accel::{Exit, IrqLine};
use crate::bus::{BusDevice, Flow};

/// Offsets of the blocks.
const STATUS: usize = 0;
const ENABLE: usize = 2;
const CONTROL: usize = 4;
const TIMER: usize = 8;

/// Bits of the status and enable registers: the power button. ACPI 6.5, table 4.13.
const POWER_BUTTON: u16 = 1 << 8;
/// Those that a guest may enable: timer, global lock, power button, sleep button, RTC. Table 4.14.
const ENABLE_DEFINED: u16 = 1 << 0 | 1 << 5 | POWER_BUTTON | 1 << 9 | 1 << 10;

/// Bits of the control register, table 4.15. Power management events raise the SCI.
const SCI_EN: u16 = 1 << 0;
/// Bus master reload and sleep type: what can be read back.
const CONTROL_DEFINED: u16 = 1 << 1 | 0b111 << SLEEP_TYPE_SHIFT;
const SLEEP_TYPE_SHIFT: u32 = 10;
/// Enter the sleep state; reads as zero.
const SLEEP_ENABLE: u16 = 1 << 13;

/// Ticks of the timer in a second. ACPI 6.5, 4.8.3.3.
const TIMER_HZ: u128 = 3_579_545;

/// The PM1a blocks and the timer.
pub struct AcpiPm {
    state: Mutex<State>,
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
}

struct State {
    status: u16,
    enable: u16,
    control: u16,
    sci: Level,
}

impl AcpiPm {
    /// How many ports it has.
    pub const PORTS: u64 = 12;
    /// Offset of the PM1a control block.
    pub const CONTROL_OFFSET: u16 = CONTROL as u16;
    /// Offset of the timer.
    pub const TIMER_OFFSET: u16 = TIMER as u16;
    /// The sleep type that turns the machine off: what `\_S5` is to contain.
    pub const SLEEP_TYPE_S5: u8 = 5;

    /// Fixed hardware whose events are signalled through `sci`, a level-triggered line.
    pub fn new(sci: Arc<dyn IrqLine>) -> Self {
        let start = Instant::now();
        Self::with_clock(sci, move || start.elapsed())
    }

    /// The same with a timer that counts what `clock` returns, the time since some moment.
    pub fn with_clock(
        sci: Arc<dyn IrqLine>,
        clock: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Self {
        let state = State { status: 0, enable: 0, control: 0, sci: Level::new(sci) };
        Self { state: Mutex::new(state), clock: Box::new(clock) }
    }

    /// Presses the power button, from any thread. What happens is the guest's to decide; `false` means that it has
    /// not enabled the button, and will only notice when it does.
    pub fn press_power_button(&self) -> bool {
        let mut state = self.state();
        state.status |= POWER_BUTTON;
        state.update_sci();
        state.enable & POWER_BUTTON != 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn timer(&self) -> u32 {
        ((self.clock)().as_nanos() * TIMER_HZ / 1_000_000_000) as u32
    }

    /// All ports as they read now.
    fn image(&self) -> [u8; Self::PORTS as usize] {
        let mut image = [0; Self::PORTS as usize];
        let state = self.state();
        image[STATUS..ENABLE].copy_from_slice(&state.status.to_le_bytes());
        image[ENABLE..CONTROL].copy_from_slice(&state.enable.to_le_bytes());
        image[CONTROL..CONTROL + 2].copy_from_slice(&(state.control | SCI_EN).to_le_bytes());
        image[TIMER..].copy_from_slice(&self.timer().to_le_bytes());
        image
    }
}

impl State {
    fn update_sci(&mut self) {
        self.sci.set(self.status & self.enable != 0);
    }
}

impl BusDevice for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(image.iter().skip(offset)) {
            *byte = *value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Flow {
        if offset >= Self::PORTS {
            return Flow::Continue(());
        }
        let mut state = self.state();
        let mut sleep = false;
        for (at, &byte) in (offset as usize..).zip(data) {
            // The byte where it lies in its register, and the bits of the register it covers.
            let shift = 8 * (at % 2);
            let (value, mask) = (u16::from(byte) << shift, 0xff_u16 << shift);
            match at - at % 2 {
                STATUS => state.status &= !value,
                ENABLE => state.enable = state.enable & !mask | value & ENABLE_DEFINED,
                CONTROL => {
                    state.control = state.control & !mask | value & CONTROL_DEFINED;
                    sleep |= value & SLEEP_ENABLE != 0;
                }
                _ => {}
            }
        }
        state.update_sci();
        let sleep_type = state.control >> SLEEP_TYPE_SHIFT & 0b111;
        if sleep && sleep_type == u16::from(Self::SLEEP_TYPE_S5) {
            return Flow::Break(Exit::PowerOff);
        }
        Flow::Continue(())
    }

    fn reset(&self) {
        let mut state = self.state();
        (state.status, state.enable, state.control) = (0, 0, 0);
        state.update_sci();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::testing::Line;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Guest {
        pm: AcpiPm,
        sci: Arc<Line>,
        nanos: Arc<AtomicU64>,
    }

    impl Guest {
        fn new() -> Self {
            let (sci, nanos) = (Arc::new(Line::default()), Arc::new(AtomicU64::new(0)));
            let clock = nanos.clone();
            let pm = AcpiPm::with_clock(sci.clone(), move || {
                Duration::from_nanos(clock.load(Ordering::Relaxed))
            });
            Self { pm, sci, nanos }
        }

        fn inw(&self, offset: u64) -> u16 {
            let mut data = [0xff; 2];
            self.pm.read(offset, &mut data);
            u16::from_le_bytes(data)
        }

        fn inl(&self, offset: u64) -> u32 {
            let mut data = [0xff; 4];
            self.pm.read(offset, &mut data);
            u32::from_le_bytes(data)
        }

        fn outw(&self, offset: u64, value: u16) -> Flow {
            self.pm.write(offset, &value.to_le_bytes())
        }
    }

    const OFF: u16 = 5 << 10 | 1 << 13;

    /// As ACPICA does: read PM1a control, write the sleep type, then the sleep type with SLP_EN.
    #[test]
    fn powers_off_as_acpica_asks() {
        let guest = Guest::new();
        let control = guest.inw(4);
        assert_eq!(control, SCI_EN);
        assert!(guest.outw(4, control | 5 << 10).is_continue());
        assert_eq!(guest.outw(4, control | OFF), Flow::Break(Exit::PowerOff));
        assert_eq!(guest.inw(4) & SLEEP_ENABLE, 0, "SLP_EN reads as zero");
    }

    #[test]
    fn powers_off_by_byte_and_by_double_word() {
        let guest = Guest::new();
        assert_eq!(guest.pm.write(5, &[(OFF >> 8) as u8]), Flow::Break(Exit::PowerOff));
        let guest = Guest::new();
        let write = guest.pm.write(4, &u32::from(OFF).to_le_bytes());
        assert_eq!(write, Flow::Break(Exit::PowerOff));
        let guest = Guest::new();
        let write = guest.pm.write(2, &(u32::from(OFF) << 16).to_le_bytes());
        assert_eq!(write, Flow::Break(Exit::PowerOff), "together with the enable register");
    }

    #[test]
    fn other_sleep_types_do_nothing() {
        let guest = Guest::new();
        for sleep_type in (0..8).filter(|&sleep_type| sleep_type != 5) {
            assert!(guest.outw(4, sleep_type << 10 | SLEEP_ENABLE).is_continue());
            assert_eq!(guest.inw(4), sleep_type << 10 | SCI_EN);
        }
    }

    #[test]
    fn the_button_raises_the_sci_until_its_status_is_cleared() {
        let guest = Guest::new();
        assert!(guest.outw(2, POWER_BUTTON).is_continue());
        assert_eq!(guest.inw(2), POWER_BUTTON);
        assert!(!guest.sci.is_high());
        assert!(guest.pm.press_power_button());
        assert!(guest.sci.is_high());
        assert_eq!(guest.inw(0), POWER_BUTTON);
        assert!(guest.outw(0, !POWER_BUTTON).is_continue());
        assert!(guest.sci.is_high(), "cleared by writing a zero");
        // Status bits are in the high byte: byte accesses must reach them.
        assert!(guest.pm.write(1, &[(POWER_BUTTON >> 8) as u8]).is_continue());
        assert!(!guest.sci.is_high());
        assert_eq!(guest.inw(0), 0);
    }

    #[test]
    fn a_button_pressed_early_waits_for_the_guest() {
        let guest = Guest::new();
        assert!(!guest.pm.press_power_button());
        assert!(!guest.sci.is_high());
        assert!(guest.outw(2, POWER_BUTTON).is_continue());
        assert!(guest.sci.is_high());
        assert!(guest.outw(2, 0).is_continue());
        assert!(!guest.sci.is_high());
    }

    #[test]
    fn the_timer_counts_3579545_ticks_a_second_and_wraps_at_32_bits() {
        let guest = Guest::new();
        assert_eq!(guest.inl(8), 0);
        guest.nanos.store(1_000_000_000, Ordering::Relaxed);
        assert_eq!(guest.inl(8), 3_579_545);
        assert_eq!(guest.inw(10), (3_579_545_u32 >> 16) as u16);
        guest.nanos.store(1_200_000_000_000, Ordering::Relaxed);
        assert_eq!(guest.inl(8), (3_579_545_u64 * 1200) as u32);
        assert!(guest.pm.write(8, &[0; 4]).is_continue());
        assert_eq!(guest.inl(8), (3_579_545_u64 * 1200) as u32, "read-only");
    }

    #[test]
    fn reset_is_power_on() {
        let guest = Guest::new();
        assert!(guest.outw(2, POWER_BUTTON).is_continue());
        guest.pm.press_power_button();
        assert!(guest.outw(4, 3 << 10).is_continue());
        guest.pm.reset();
        assert!(!guest.sci.is_high());
        assert_eq!((guest.inw(0), guest.inw(2), guest.inw(4)), (0, 0, SCI_EN));
    }

    #[test]
    fn every_access_is_answered() {
        let guest = Guest::new();
        for offset in (0..AcpiPm::PORTS).chain([u64::MAX]) {
            for len in 0..=8 {
                guest.pm.read(offset, &mut [0; 8][..len]);
                let _ = guest.pm.write(offset, &[0xff; 8][..len]);
            }
        }
        assert_eq!(guest.inw(0), 0);
        assert_eq!(guest.inw(2), ENABLE_DEFINED);
    }
}
