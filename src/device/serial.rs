//! Serial ports: the 16550A that every PC kernel can talk to before it can talk to anything else.
//!
//! The registers are vm-superio's. What it leaves to its user, and what a stock driver needs beyond it, is here
//! (register names as in the PC16550D datasheet, section 8):
//!
//! * **Nothing typed early is lost.** A driver that starts up clears the receiver, which is right on a line where
//!   nobody waits, and wrong for input that was piped in before the guest booted. So input stays on the host until
//!   the guest listens: until it enables the receive interrupt, or polls LSR without doing anything else.
//! * **Nothing is lost by haste.** The next bytes come when the guest has drained the last ones, after a break that is
//!   waited for on the console's thread, and only while there is input.
//! * **RTS is honoured**, once the guest has used it, for guests that do flow control (`stty crtscts`).
//! * **IIR tells the truth.** vm-superio forgets received data as soon as IIR or the first byte was read. A handler
//!   that leaves data behind, as Linux's does after 256 bytes, would never come back for it.
//! * The interrupt is an edge, sent when a condition becomes pending. An edge too many is harmless: IIR says so.
//!
//! The FIFO control register is ignored: the FIFOs are always on, and clearing the receiver would lose input.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Registers};

use super::pace::Pace;
use crate::accel::IrqLine;
use crate::bus::{BusDevice, Flow};
use crate::console::Port;

/// Register offsets.
const RBR: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTED: u8 = 1 << 1;
const IIR_NONE: u8 = 1 << 0;
const IIR_TRANSMITTED: u8 = 1 << 1;
const IIR_RECEIVED: u8 = 1 << 2;
const IIR_FIFOS: u8 = 0b11 << 6;
const LCR_DLAB: u8 = 1 << 7;
const MCR_RTS: u8 = 1 << 1;
const MCR_LOOP: u8 = 1 << 4;
const LSR_READY: u8 = 1 << 0;

/// So many reads of LSR without a write to any register are polling. A driver that starts up does a few.
const POLLING: u8 = 16;
/// What the receiver holds in vm-superio.
const RECEIVER: usize = 64;

/// One serial port, with eight registers.
pub struct Serial {
    uart: Mutex<Uart>,
    port: Port,
    irq: Arc<dyn IrqLine>,
}

struct Uart {
    registers: Registers<Edge, NoEvents, Port>,
    port: Port,
    ier: u8,
    lcr: u8,
    mcr: u8,
    /// Reads of LSR since the last write.
    polls: u8,
    /// The guest has raised RTS at least once.
    uses_rts: bool,
    pace: Pace,
}

struct Edge(Arc<dyn IrqLine>);

impl Trigger for Edge {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

impl Serial {
    /// How many ports it has.
    pub const PORTS: u64 = 8;

    /// A serial port wired to `port`, the device's end of a console. `irq` is used as an edge.
    pub fn new(port: Port, irq: Arc<dyn IrqLine>) -> Arc<Self> {
        let uart = Mutex::new(Uart::new(port.clone(), irq.clone()));
        let serial = Arc::new(Self { uart, port: port.clone(), irq });
        let receiver = Arc::downgrade(&serial);
        port.on_input(move || {
            if let Some(serial) = receiver.upgrade() {
                serial.uart().receive();
            }
        });
        serial
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Uart {
    fn new(port: Port, irq: Arc<dyn IrqLine>) -> Self {
        let mut registers = Registers::new(Edge(irq), port.clone());
        let [ier, lcr, mcr] = [IER, LCR, MCR].map(|register| registers.read(register));
        Self { registers, port, ier, lcr, mcr, polls: 0, uses_rts: false, pace: Pace::default() }
    }

    /// The guest takes input as it comes, or looks for it.
    fn listening(&self) -> bool {
        self.ier & IER_RECEIVED != 0 || self.polls >= POLLING
    }

    fn loopback(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    /// Moves input from the host into the receiver, if the guest is ready for it and has nothing to read.
    fn receive(&mut self) {
        let held_up = self.uses_rts && self.mcr & MCR_RTS == 0;
        if !self.listening() || held_up || self.loopback() || self.ready() {
            return;
        }
        let now = Instant::now();
        if let Some(left) = self.pace.rest(now) {
            self.port.call_again(left);
            return;
        }
        let mut bytes = [0; RECEIVER];
        let count = self.port.read(&mut bytes);
        if count > 0 {
            self.pace.filled(now);
            // The receiver is empty and not in loopback mode: everything fits.
            let _ = self.registers.enqueue_raw_bytes(&bytes[..count]);
        }
    }

    /// There is data in the receiver.
    fn ready(&mut self) -> bool {
        self.registers.read(LSR) & LSR_READY != 0
    }

    fn read(&mut self, register: u8) -> u8 {
        match register {
            RBR if self.lcr & LCR_DLAB == 0 => {
                if !self.ready() || !(self.listening() || self.loopback()) {
                    return 0;
                }
                let byte = self.registers.read(RBR);
                if !self.ready() {
                    self.port.call_again(self.pace.drained());
                }
                byte
            }
            IIR => self.pending(),
            LSR => {
                self.polls = self.polls.saturating_add(1);
                if self.polls >= POLLING {
                    self.receive();
                }
                let status = self.registers.read(LSR);
                if self.listening() || self.loopback() { status } else { status & !LSR_READY }
            }
            _ => self.registers.read(register),
        }
    }

    /// The interrupt condition to be served first. Reading it acknowledges the transmitter's only.
    fn pending(&mut self) -> u8 {
        if self.ier & IER_RECEIVED != 0 && self.ready() {
            return IIR_FIFOS | IIR_RECEIVED;
        }
        let iir = self.registers.read(IIR);
        let transmitted = iir & IIR_TRANSMITTED != 0 && self.ier & IER_TRANSMITTED != 0;
        IIR_FIFOS | if transmitted { IIR_TRANSMITTED } else { IIR_NONE }
    }

    fn write(&mut self, register: u8, value: u8) {
        self.polls = 0;
        // Neither a port nor an edge can fail.
        let _ = self.registers.write(register, value);
        match register {
            IER if self.lcr & LCR_DLAB == 0 => self.ier = value,
            LCR => self.lcr = value,
            MCR => {
                self.mcr = value;
                self.uses_rts |= value & MCR_RTS != 0 && !self.loopback();
            }
            _ => return,
        }
        self.receive();
    }
}

impl BusDevice for Serial {
    /// Accesses of several bytes are as many accesses to registers that follow each other, as on an 8-bit bus.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = self.uart();
        for (register, byte) in (offset..Self::PORTS).zip(data) {
            *byte = uart.read(register as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Flow {
        let mut uart = self.uart();
        for (register, &byte) in (offset..Self::PORTS).zip(data) {
            uart.write(register as u8, byte);
        }
        Flow::Continue(())
    }

    fn reset(&self) {
        *self.uart() = Uart::new(self.port.clone(), self.irq.clone());
    }
}

#[cfg(test)]
mod tests;
