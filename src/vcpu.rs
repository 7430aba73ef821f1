//! The exit loop: from a vCPU's exit to a device register and back.
//!
//! The accelerator's [`run`](AccelVcpu::run) is the inner half, this file the outer one. The two are compiled
//! together for each accelerator: between the exit and the device there is one search of the bus and one dynamic
//! call, no lock, no allocation, no shared counter. Only what ends or interrupts a run comes back to
//! [`run`], which asks the [`Gate`] what to do next.

use std::sync::Arc;

use crate::accel::{AccelVcpu, Error, Exit, ExitHandler};
use crate::arch::CpuState;
use crate::bus::{Bus, BusView, Flow};

/// What a vCPU does next, as its [`Gate`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Run guest code.
    Run,
    /// Go back to the power-on state, then into this one (`None`: wait to be started), and ask again.
    Reset(Option<Box<CpuState>>),
    /// End the thread.
    Quit,
}

/// Decides when a vCPU runs, and hears why it stopped. Called on the vCPU's thread; may block there, which is how a
/// machine is paused.
pub trait Gate {
    /// Waits until the vCPU has something to do.
    fn next(&self) -> Next;
    /// The vCPU left `run`.
    fn left(&self, why: Result<Exit, Error>);
}

/// One vCPU's access to the two address spaces.
pub struct VcpuBus {
    pio: BusView,
    mmio: BusView,
}

impl VcpuBus {
    /// Register accesses go to `pio` (port I/O) and `mmio`.
    pub fn new(pio: Arc<Bus>, mmio: Arc<Bus>) -> Self {
        Self { pio: BusView::new(pio), mmio: BusView::new(mmio) }
    }
}

impl ExitHandler for VcpuBus {
    #[inline]
    fn pio_read(&mut self, port: u16, data: &mut [u8]) {
        self.pio.read(port.into(), data);
    }

    #[inline]
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Flow {
        self.pio.write(port.into(), data)
    }

    #[inline]
    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) {
        self.mmio.read(gpa, data);
    }

    #[inline]
    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow {
        self.mmio.write(gpa, data)
    }
}

/// Runs `vcpu` until its gate says to quit.
pub fn run(vcpu: &mut impl AccelVcpu, bus: &mut VcpuBus, gate: &impl Gate) {
    loop {
        match gate.next() {
            Next::Run => gate.left(vcpu.run(bus)),
            Next::Reset(state) => {
                if let Err(error) = vcpu.reset(state.as_deref()) {
                    gate.left(Err(error));
                }
            }
            Next::Quit => return,
        }
    }
}
