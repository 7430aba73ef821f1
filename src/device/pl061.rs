//! The power button of an arm64 machine: a pin of ARM's PL061 (DDI 0190B, chapter 3; register names are those of there).
//!
//! A driver such as Linux's `gpio-keys` wants an interrupt at each edge of the pin, and reads the pin some time after
//! it, when it would have stopped bouncing. So a press has to last until the guest has seen it, and how long that is only
//! the guest knows: **the button goes up when the guest has acknowledged the edge and then read the pin as pressed.** That
//! takes no timer, and the guest sees both edges however slow it is. A guest that never reads the pin gets two edges
//! at the next press instead of one.
//!
//! A button that was pressed too early stays down: a driver that starts reads the pin.
//!
//! The other pins are connected to nothing, and low.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::level::Level;
use super::primecell;
use crate::accel::IrqLine;
use crate::arch::aarch64::layout;
use crate::bus::{BusDevice, Flow};

/// Register offsets, DDI 0190B table 3-1. GPIODATA is a register of 8 bits at 256 addresses, which say which of the bits
/// are meant.
const DATA_END: u64 = 0x400;
const DIR: u64 = 0x400;
const IS: u64 = 0x404;
const IBE: u64 = 0x408;
const IEV: u64 = 0x40c;
const IE: u64 = 0x410;
const RIS: u64 = 0x414;
const MIS: u64 = 0x418;
const IC: u64 = 0x41c;
const AFSEL: u64 = 0x420;
/// Part 0x061 of designer 0x41.
const ID: u32 = 0x0004_1061;

const BUTTON: u8 = 1 << layout::POWER_PIN;

/// Eight pins, one with the power button.
pub struct Pl061 {
    state: Mutex<State>,
}

struct State {
    registers: Registers,
    line: Level,
}

#[derive(Default)]
struct Registers {
    /// What the pins are held at from outside.
    pins: u8,
    /// What is put out on pins that are outputs.
    data: u8,
    dir: u8,
    is: u8,
    ibe: u8,
    iev: u8,
    ie: u8,
    afsel: u8,
    /// Edges that were detected and not cleared.
    edges: u8,
}

impl Pl061 {
    /// Bytes of registers that it has.
    pub const LEN: u64 = primecell::LEN;

    /// Pins whose events are signalled through `irq`, a level.
    pub fn new(irq: Arc<dyn IrqLine>) -> Arc<Self> {
        let state = State { registers: Registers::default(), line: Level::new(irq) };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Presses the power button, from any thread. What happens is the guest's to decide; `false` means that it has
    /// not enabled the button's interrupt, and will only notice when it looks.
    pub fn press_power_button(&self) -> bool {
        let mut state = self.state();
        // One that is still down would make no edge.
        state.registers.hold(false);
        state.registers.hold(true);
        state.update_line();
        state.registers.ie & BUTTON != 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn update_line(&mut self) {
        self.line.set(self.registers.pending() & self.registers.ie != 0);
    }
}

impl Registers {
    /// Holds the button down, or lets it up.
    fn hold(&mut self, down: bool) {
        let pins = if down { self.pins | BUTTON } else { self.pins & !BUTTON };
        let changed = pins ^ self.pins;
        self.pins = pins;
        let wanted = self.ibe | !(self.iev ^ pins);
        self.edges |= changed & wanted & !self.is;
    }

    /// GPIORIS: edges that were detected, and levels that are there.
    fn pending(&self) -> u8 {
        self.edges & !self.is | self.is & !(self.iev ^ self.pins)
    }

    fn read(&mut self, register: u64) -> u8 {
        match register {
            ..DATA_END => {
                let pins = self.pins & !self.dir | self.data & self.dir;
                let seen = pins & mask(register);
                if seen & BUTTON & !self.dir & !self.edges != 0 {
                    self.hold(false);
                }
                seen
            }
            DIR => self.dir,
            IS => self.is,
            IBE => self.ibe,
            IEV => self.iev,
            IE => self.ie,
            RIS => self.pending(),
            MIS => self.pending() & self.ie,
            AFSEL => self.afsel,
            _ => primecell::identification(ID, register) as u8,
        }
    }

    fn write(&mut self, register: u64, value: u8) {
        match register {
            ..DATA_END => {
                let mask = mask(register) & self.dir;
                self.data = self.data & !mask | value & mask;
            }
            DIR => self.dir = value,
            IS => self.is = value,
            IBE => self.ibe = value,
            IEV => self.iev = value,
            IE => self.ie = value,
            IC => self.edges &= !value,
            AFSEL => self.afsel = value,
            _ => {}
        }
    }
}

/// The bits of GPIODATA that are meant at an address: its bits 2 to 9.
fn mask(register: u64) -> u8 {
    (register >> 2) as u8
}

impl BusDevice for Pl061 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.state();
        primecell::read(offset, data, |register| state.registers.read(register).into());
        state.update_line();
    }

    fn write(&self, offset: u64, data: &[u8]) -> Flow {
        let mut state = self.state();
        primecell::write(offset, data, |register, value| {
            state.registers.write(register, value as u8);
        });
        state.update_line();
        Flow::Continue(())
    }

    fn reset(&self) {
        let mut state = self.state();
        state.registers = Registers::default();
        state.update_line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::testing::Line;

    const PIN: u64 = 1 << layout::POWER_PIN;
    /// GPIODATA at the address that means the button's pin alone.
    const DATA: u64 = PIN << 2;

    /// As `drivers/gpio/gpio-pl061.c` and `drivers/input/keyboard/gpio_keys.c` use it.
    struct Guest {
        gpio: Arc<Pl061>,
        irq: Arc<Line>,
    }

    impl Guest {
        fn new() -> Self {
            let irq = Arc::new(Line::default());
            Self { gpio: Pl061::new(irq.clone()), irq }
        }

        fn read(&self, register: u64) -> u8 {
            let mut data = [0xff];
            self.gpio.read(register, &mut data);
            data[0]
        }

        fn write(&self, register: u64, value: u8) {
            assert!(self.gpio.write(register, &[value]).is_continue());
        }

        fn modify(&self, register: u64, change: impl FnOnce(u8) -> u8) {
            self.write(register, change(self.read(register)));
        }

        /// `pl061_probe`; then `gpio_keys_setup_key`, which makes the pin an input, and asks for both edges.
        fn probe(&self) {
            self.write(IE, 0);
            self.modify(DIR, |dir| dir & !BUTTON);
            self.modify(IEV, |iev| iev);
            self.modify(IS, |is| is & !BUTTON);
            self.modify(IBE, |ibe| ibe | BUTTON);
            self.modify(IE, |ie| ie | BUTTON);
        }

        /// `pl061_irq_handler` and `handle_edge_irq`: whether the button's handler is called.
        fn interrupt(&self) -> bool {
            let pending = self.read(MIS);
            if pending & BUTTON != 0 {
                self.write(IC, BUTTON);
            }
            pending & BUTTON != 0
        }

        /// `gpio_keys_gpio_report_event`, some milliseconds after the interrupt.
        fn is_down(&self) -> bool {
            self.read(DATA) != 0
        }
    }

    #[test]
    fn a_press_is_seen_as_a_press_and_a_release() {
        let guest = Guest::new();
        guest.probe();
        assert!(!guest.is_down(), "`gpio_keys_report_state`");
        for _ in 0..3 {
            assert!(!guest.irq.is_high());
            assert!(guest.gpio.press_power_button());
            assert!(guest.irq.is_high());
            assert!(guest.interrupt());
            assert!(!guest.irq.is_high(), "until the button is up");
            assert!(guest.is_down());
            assert!(guest.irq.is_high(), "it has been seen");
            assert!(guest.interrupt());
            assert!(!guest.is_down());
            assert!(!guest.interrupt() && !guest.irq.is_high());
        }
    }

    #[test]
    fn a_press_lasts_until_its_edge_is_acknowledged() {
        let guest = Guest::new();
        guest.probe();
        assert!(guest.gpio.press_power_button());
        for _ in 0..10 {
            assert!(guest.is_down(), "read before the interrupt was served");
        }
        assert!(guest.interrupt());
        // Other pins are not this one.
        assert_eq!(guest.read(0xff << 2 & !DATA), 0);
        assert!(guest.is_down());
        assert!(!guest.is_down());
    }

    #[test]
    fn a_button_pressed_early_is_found_down() {
        let guest = Guest::new();
        assert!(!guest.gpio.press_power_button());
        assert!(!guest.irq.is_high());
        guest.probe();
        assert!(guest.is_down());
        assert!(guest.interrupt(), "let go");
        assert!(!guest.is_down());
    }

    #[test]
    fn presses_that_come_together_are_one_and_none_is_lost_on_a_guest_that_does_not_look() {
        let guest = Guest::new();
        guest.probe();
        guest.gpio.press_power_button();
        guest.gpio.press_power_button();
        assert!(guest.interrupt());
        assert!(!guest.interrupt());
        // It counts interrupts and never reads the pin.
        for _ in 0..3 {
            assert!(guest.gpio.press_power_button());
            assert!(guest.irq.is_high());
            assert!(guest.interrupt());
        }
        assert!(guest.is_down() && !guest.is_down());
    }

    #[test]
    fn edges_are_detected_as_asked() {
        // Both edges, rising ones, falling ones.
        for (ibe, iev, press, release) in [(BUTTON, 0, 1, 1), (0, BUTTON, 1, 0), (0, 0, 0, 1)] {
            let guest = Guest::new();
            guest.write(IBE, ibe);
            guest.write(IEV, iev);
            guest.write(IE, BUTTON);
            guest.gpio.press_power_button();
            assert_eq!(guest.interrupt(), press == 1, "{ibe:#x} {iev:#x}");
            assert!(guest.is_down());
            assert_eq!(guest.interrupt(), release == 1, "{ibe:#x} {iev:#x}");
        }
    }

    #[test]
    fn levels_are_pending_as_long_as_they_last() {
        let guest = Guest::new();
        guest.write(IS, BUTTON);
        guest.write(IEV, BUTTON);
        guest.write(IE, BUTTON);
        assert!(!guest.irq.is_high());
        guest.gpio.press_power_button();
        guest.write(IC, BUTTON);
        assert!(guest.irq.is_high());
        assert_eq!((guest.read(RIS), guest.read(MIS)), (BUTTON, BUTTON));
        assert!(guest.is_down());
        assert!(!guest.irq.is_high());
        // Low ones: all pins are that.
        guest.write(IS, 0xff);
        guest.write(IEV, 0);
        assert_eq!((guest.read(RIS), guest.read(MIS)), (0xff, BUTTON));
        assert!(guest.irq.is_high());
    }

    #[test]
    fn a_masked_interrupt_shows_in_ris_alone() {
        let guest = Guest::new();
        guest.probe();
        guest.write(IE, 0);
        assert!(!guest.gpio.press_power_button());
        assert_eq!((guest.read(RIS), guest.read(MIS), guest.irq.is_high()), (BUTTON, 0, false));
        guest.write(IE, BUTTON);
        assert!(guest.irq.is_high());
    }

    #[test]
    fn outputs_keep_what_is_written_to_them_through_the_mask() {
        let guest = Guest::new();
        guest.write(0x3fc, 0xff);
        assert_eq!(guest.read(0x3fc), 0, "inputs");
        guest.write(DIR, 0xf0);
        guest.write(0x3fc, 0xff);
        assert_eq!(guest.read(0x3fc), 0xf0);
        guest.write(0x10 << 2, 0);
        assert_eq!(guest.read(0x3fc), 0xe0);
        assert_eq!(guest.read(0x30 << 2), 0x20);
        // A pin that is put out by the guest is no button.
        guest.write(DIR, BUTTON);
        guest.gpio.press_power_button();
        assert_eq!(guest.read(DATA), 0);
        guest.write(DIR, 0);
        assert!(guest.is_down());
    }

    #[test]
    fn is_found_as_a_pl061() {
        let guest = Guest::new();
        let id = |first: u64| (0..4).map(|n| guest.read(first + 4 * n)).collect::<Vec<_>>();
        assert_eq!(id(0xfe0), [0x61, 0x10, 0x04, 0x00]);
        assert_eq!(id(0xff0), [0x0d, 0xf0, 0x05, 0xb1]);
    }

    #[test]
    fn reset_is_power_on() {
        let guest = Guest::new();
        guest.probe();
        guest.write(AFSEL, 1);
        guest.gpio.press_power_button();
        assert!(guest.irq.is_high());
        guest.gpio.reset();
        assert!(!guest.irq.is_high());
        for register in [0x3fc, DIR, IS, IBE, IEV, IE, RIS, MIS, IC, AFSEL] {
            assert_eq!(guest.read(register), 0, "{register:#x}");
        }
    }

    #[test]
    fn every_access_is_answered() {
        let guest = Guest::new();
        for value in [0, 0x55, 0xaa, 0xff] {
            for offset in (0..0x1010).chain([u64::MAX - 3, u64::MAX]) {
                for len in 0..=8 {
                    guest.gpio.press_power_button();
                    let _ = guest.gpio.write(offset, &[value; 8][..len]);
                    guest.gpio.read(offset, &mut [0xff; 8][..len]);
                }
            }
            assert_eq!(guest.irq.is_high(), guest.read(MIS) != 0);
        }
    }
}
