//! Serial ports of an arm64 machine: ARM's PL011 (DDI 0183G, chapter 3; register names are those of there).
//!
//! It makes the promises that [`serial`](super::serial) makes, in a UART with other registers:
//!
//! * **Nothing typed early is lost.** A driver that starts up drains the receiver, and one that opens the port again
//!   does so too. So input stays on the host, and what is in the FIFO is not shown, until the guest listens: until
//!   it enables a receive interrupt, or polls UARTFR without doing anything else.
//! * **Nothing is lost by haste**, by the same breaks between fillings of the FIFO.
//! * **RTS is honoured**, once the guest has used it and leaves it to no hardware.
//!
//! The line that is not there has no speed: what is written is sent at once, so the transmitter is always empty, and
//! the receiver's timeout comes with the last byte. So RXRIS and RTRIS say what the FIFO holds, and clearing them while
//! it holds that changes nothing: no driver can clear an interrupt that it still waits for. TXRIS is set with
//! each byte that was sent, as the FIFO has then become empty. Errors of a line never happen; in loopback the FIFO
//! can run over.
//!
//! A guest need not set UARTEN: kernels that are entered without firmware write to the port before they set it up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::level::Level;
use super::pace::Pace;
use super::primecell;
use crate::accel::IrqLine;
use crate::bus::{BusDevice, Flow};
use crate::console::Port;

/// Register offsets, DDI 0183G table 3-1.
const DR: u64 = 0x00;
const RSR: u64 = 0x04;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const DMACR: u64 = 0x48;
/// Part 0x011 of designer 0x41, revision r1p5, whose FIFOs have 32 bytes.
const ID: u32 = 0x0034_1011;
const FIFO: usize = 32;

const RSR_OVERRUN: u32 = 1 << 3;
const FR_CTS: u32 = 1 << 0;
const FR_DSR: u32 = 1 << 1;
const FR_DCD: u32 = 1 << 2;
const FR_RXFE: u32 = 1 << 4;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;
const FR_RI: u32 = 1 << 8;
const LCR_H_FEN: u32 = 1 << 4;
const CR_LBE: u32 = 1 << 7;
const CR_RXE: u32 = 1 << 9;
/// What CR's modem outputs are connected to in loopback: 3.3.8, "LBE".
const CR_LOOPS: [(u32, u32); 4] =
    [(1 << 10, FR_DSR), (CR_RTS, FR_CTS), (1 << 12, FR_DCD), (1 << 13, FR_RI)];
const CR_RTS: u32 = 1 << 11;
const CR_RTSEN: u32 = 1 << 14;
/// The transmitter and the receiver are enabled, the UART is not.
const CR_RESET: u32 = 0x300;
/// Half full, half empty.
const IFLS_RESET: u32 = 0x12;

/// Interrupts, at the same bits in IMSC, RIS, MIS and ICR. Table 3-14.
const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
const INT_RT: u32 = 1 << 6;
const INT_OVERRUN: u32 = 1 << 10;
const INT_ALL: u32 = 0x7ff;

/// So many reads of FR without a write to any register are polling. A driver that starts up does a few.
const POLLING: u8 = 16;

/// One serial port.
pub struct Pl011 {
    uart: Mutex<Uart>,
}

struct Uart {
    port: Port,
    line: Level,
    registers: Registers,
    fifo: VecDeque<u8>,
    /// Reads of FR since the last write.
    polls: u8,
    /// The guest has raised RTS at least once.
    uses_rts: bool,
    pace: Pace,
}

struct Registers {
    rsr: u32,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    /// What RIS has beyond what the FIFO holds.
    latched: u32,
    dmacr: u32,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            rsr: 0,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: CR_RESET,
            ifls: IFLS_RESET,
            imsc: 0,
            latched: 0,
            dmacr: 0,
        }
    }
}

impl Pl011 {
    /// Bytes of registers that it has.
    pub const LEN: u64 = primecell::LEN;

    /// A serial port wired to `port`, the device's end of a console. `irq` is used as a level.
    pub fn new(port: Port, irq: Arc<dyn IrqLine>) -> Arc<Self> {
        let uart = Mutex::new(Uart {
            port: port.clone(),
            line: Level::new(irq),
            registers: Registers::default(),
            fifo: VecDeque::with_capacity(FIFO),
            polls: 0,
            uses_rts: false,
            pace: Pace::default(),
        });
        let serial = Arc::new(Self { uart });
        let receiver = Arc::downgrade(&serial);
        port.on_input(move || {
            if let Some(serial) = receiver.upgrade() {
                serial.uart().update();
            }
        });
        serial
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Uart {
    fn loopback(&self) -> bool {
        self.registers.cr & CR_LBE != 0
    }

    /// The guest takes input as it comes, or looks for it.
    fn listening(&self) -> bool {
        let Registers { cr, imsc, .. } = self.registers;
        cr & CR_RXE != 0 && (imsc & (INT_RX | INT_RT) != 0 || self.polls >= POLLING)
    }

    fn fifo_len(&self) -> usize {
        if self.registers.lcr_h & LCR_H_FEN != 0 { FIFO } else { 1 }
    }

    /// How much of the FIFO the guest is shown.
    fn received(&self) -> usize {
        if self.listening() || self.loopback() { self.fifo.len() } else { 0 }
    }

    /// Looks for input, and brings the interrupt line up to date.
    fn update(&mut self) {
        self.receive();
        self.update_line();
    }

    fn update_line(&mut self) {
        self.line.set(self.pending() & self.registers.imsc != 0);
    }

    /// Moves input from the host into the FIFO, if the guest is ready for it and has nothing to read.
    fn receive(&mut self) {
        let held_up = self.uses_rts && self.registers.cr & (CR_RTS | CR_RTSEN) == 0;
        if !self.listening() || held_up || self.loopback() || !self.fifo.is_empty() {
            return;
        }
        let now = Instant::now();
        if let Some(left) = self.pace.rest(now) {
            self.port.call_again(left);
            return;
        }
        let mut bytes = [0; FIFO];
        let (bytes, _) = bytes.split_at_mut(self.fifo_len());
        let count = self.port.read(bytes);
        if count > 0 {
            self.pace.filled(now);
            self.fifo.extend(bytes.iter().take(count));
        }
    }

    /// RIS.
    fn pending(&self) -> u32 {
        // One eighth, a quarter, half, three quarters, seven eighths; the rest is reserved. Table 3-13.
        let level = match self.registers.ifls >> 3 & 0b111 {
            _ if self.fifo_len() == 1 => 1,
            0 => FIFO / 8,
            1 => FIFO / 4,
            3 => FIFO * 3 / 4,
            4 => FIFO * 7 / 8,
            _ => FIFO / 2,
        };
        let received = self.received();
        let shown = |is: bool, interrupt| if is { interrupt } else { 0 };
        self.registers.latched | shown(received >= level, INT_RX) | shown(received > 0, INT_RT)
    }

    fn flags(&self) -> u32 {
        let received = self.received();
        let modem = match self.loopback() {
            // Somebody is always there, and ready.
            false => FR_CTS | FR_DSR | FR_DCD,
            true => CR_LOOPS
                .iter()
                .filter(|(output, _)| self.registers.cr & output != 0)
                .fold(0, |inputs, (_, input)| inputs | input),
        };
        let empty = if received == 0 { FR_RXFE } else { 0 };
        let full = if received >= self.fifo_len() { FR_RXFF } else { 0 };
        FR_TXFE | modem | empty | full
    }

    /// Takes the oldest byte out of the FIFO, if it is shown to the guest.
    fn take(&mut self) -> u8 {
        if self.received() == 0 {
            return 0;
        }
        let byte = self.fifo.pop_front().unwrap_or(0);
        if self.fifo.is_empty() {
            self.port.call_again(self.pace.drained());
        }
        byte
    }

    fn send(&mut self, byte: u8) {
        self.registers.latched |= INT_TX;
        if !self.loopback() {
            self.port.write(&[byte]);
        } else if self.fifo.len() < self.fifo_len() {
            self.fifo.push_back(byte);
        } else {
            self.registers.rsr |= RSR_OVERRUN;
            self.registers.latched |= INT_OVERRUN;
        }
    }

    fn read(&mut self, register: u64) -> u32 {
        match register {
            DR => {
                let byte = self.take().into();
                self.update_line();
                byte
            }
            RSR => self.registers.rsr,
            FR => {
                self.polls = self.polls.saturating_add(1);
                if self.polls >= POLLING {
                    self.update();
                }
                self.flags()
            }
            ILPR => self.registers.ilpr,
            IBRD => self.registers.ibrd,
            FBRD => self.registers.fbrd,
            LCR_H => self.registers.lcr_h,
            CR => self.registers.cr,
            IFLS => self.registers.ifls,
            IMSC => self.registers.imsc,
            RIS => self.pending(),
            MIS => self.pending() & self.registers.imsc,
            DMACR => self.registers.dmacr,
            _ => primecell::identification(ID, register),
        }
    }

    fn write(&mut self, register: u64, value: u32) {
        self.polls = 0;
        let registers = &mut self.registers;
        match register {
            DR => self.send(value as u8),
            // Any value clears.
            RSR => registers.rsr = 0,
            ILPR => registers.ilpr = value & 0xff,
            IBRD => registers.ibrd = value & 0xffff,
            FBRD => registers.fbrd = value & 0x3f,
            LCR_H => registers.lcr_h = value & 0xff,
            CR => {
                registers.cr = value & 0xffff;
                self.uses_rts |= value & CR_RTS != 0 && value & CR_LBE == 0;
            }
            IFLS => registers.ifls = value & 0x3f,
            IMSC => registers.imsc = value & INT_ALL,
            ICR => registers.latched &= !value,
            DMACR => registers.dmacr = value & 0b111,
            _ => return,
        }
        self.update();
    }
}

impl BusDevice for Pl011 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = self.uart();
        primecell::read(offset, data, |register| uart.read(register));
    }

    fn write(&self, offset: u64, data: &[u8]) -> Flow {
        let mut uart = self.uart();
        primecell::write(offset, data, |register, value| uart.write(register, value));
        Flow::Continue(())
    }

    fn reset(&self) {
        let mut uart = self.uart();
        uart.registers = Registers::default();
        uart.fifo.clear();
        uart.polls = 0;
        uart.uses_rts = false;
        uart.pace = Pace::default();
        uart.update();
    }
}

#[cfg(test)]
mod tests;
