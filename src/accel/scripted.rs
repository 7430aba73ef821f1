//! An accelerator without a processor: its vCPUs make the register accesses that a script says.
//!
//! For tests of devices and of the life cycle where there is no hypervisor, and for measuring the way from an exit
//! to a device register without one. Doorbells and interrupt lines are recorded, not carried out.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::{
    AccelVcpu, AccelVm, Accelerator, Controller, Doorbells, Error, Exit, ExitHandler, Interrupts,
    IrqLine, Kicker, VcpuBinder, VmSpec,
};
use crate::arch::{CONTROLLER, CpuState};
use crate::bus::Flow;
use crate::memory::GuestRam;
use crate::sys::Notifier;

/// One thing that a scripted vCPU does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// `in` of so many bytes.
    PioRead(u16, usize),
    /// `out` of these bytes.
    PioWrite(u16, Vec<u8>),
    /// A load of so many bytes.
    MmioRead(u64, usize),
    /// A store of these bytes.
    MmioWrite(u64, Vec<u8>),
    /// Guest code that never leaves by itself: ends with the next kick.
    Spin,
    /// Leaves the run.
    Exit(Exit),
    /// The accelerator fails.
    Fail,
}

/// What happened, in the order it did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A vCPU read this.
    Read(u32, Vec<u8>),
    /// A vCPU was reset; whether it got a state to start in.
    Reset(u32, bool),
    /// The machine's own chips were reset.
    ChipsReset,
    /// An edge on this line.
    Pulse(u32),
    /// A level on this line.
    Level(u32, bool),
    /// Nothing is left of a machine: its vCPUs and lines are gone, which hold it as other accelerators' do.
    Gone,
}

/// An accelerator whose vCPUs follow scripts.
#[derive(Clone, Default)]
pub struct Scripted {
    scripts: Vec<Vec<Step>>,
    doorbells: bool,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log(Mutex<Vec<Event>>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Scripted {
    /// One script for each vCPU. After its last step a vCPU spins.
    pub fn new(scripts: impl Into<Vec<Vec<Step>>>) -> Self {
        Self { scripts: scripts.into(), doorbells: false, log: Arc::default() }
    }

    /// Its machines claim to have doorbells, as KVM does.
    pub fn with_doorbells(mut self) -> Self {
        self.doorbells = true;
        self
    }

    /// What has happened up to now on all machines of this accelerator and its copies.
    pub fn events(&self) -> Vec<Event> {
        self.log.lock().clone()
    }
}

impl Accelerator for Scripted {
    type Vm = ScriptedVm;

    fn create_vm(&self, _spec: &VmSpec) -> Result<ScriptedVm, Error> {
        let whole = Whole { ram: Mutex::default(), log: self.log.clone() };
        Ok(ScriptedVm { scripted: self.clone(), whole: Arc::new(whole) })
    }
}

/// A machine of [`Scripted`].
pub struct ScriptedVm {
    scripted: Scripted,
    whole: Arc<Whole>,
}

/// What every part of a machine holds.
struct Whole {
    ram: Mutex<Option<GuestRam>>,
    log: Arc<Log>,
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.log.lock().push(Event::Gone);
    }
}

impl AccelVm for ScriptedVm {
    type Vcpu = ScriptedVcpu;

    fn map(&self, ram: &GuestRam) -> Result<(), Error> {
        *self.whole.ram.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(ram.clone());
        Ok(())
    }

    fn vcpu(&self, id: u32) -> Result<VcpuBinder<ScriptedVcpu>, Error> {
        let script = self.scripted.scripts.get(id as usize).cloned().unwrap_or_default();
        let whole = self.whole.clone();
        Ok(VcpuBinder::new(move || {
            let kicked = Arc::default();
            Ok(ScriptedVcpu { id, script, at: 0, state: CpuState::default(), kicked, whole })
        }))
    }

    fn interrupts(&self) -> Option<&dyn Interrupts> {
        Some(self)
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        self.scripted.doorbells.then_some(self)
    }

    fn reset(&self) -> Result<(), Error> {
        self.whole.log.lock().push(Event::ChipsReset);
        Ok(())
    }
}

impl Interrupts for ScriptedVm {
    fn controller(&self) -> Controller {
        CONTROLLER
    }

    fn line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, Error> {
        Ok(Arc::new(Line { gsi, whole: self.whole.clone() }))
    }
}

impl Doorbells for ScriptedVm {
    fn attach(&self, _gpa: u64, _value: u32, _notifier: &Notifier) -> Result<(), Error> {
        Ok(())
    }
}

struct Line {
    gsi: u32,
    whole: Arc<Whole>,
}

impl IrqLine for Line {
    fn pulse(&self) {
        self.whole.log.lock().push(Event::Pulse(self.gsi));
    }

    fn set_level(&self, high: bool) {
        self.whole.log.lock().push(Event::Level(self.gsi, high));
    }
}

/// A vCPU of [`ScriptedVm`].
pub struct ScriptedVcpu {
    id: u32,
    script: Vec<Step>,
    at: usize,
    state: CpuState,
    kicked: Arc<(Mutex<bool>, Condvar)>,
    whole: Arc<Whole>,
}

impl ScriptedVcpu {
    fn spin(&self) {
        let (kicked, changed) = &*self.kicked;
        let mut kicked = kicked.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while !*kicked {
            kicked = changed.wait(kicked).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *kicked = false;
    }
}

impl AccelVcpu for ScriptedVcpu {
    fn run(&mut self, io: &mut impl ExitHandler) -> Result<Exit, Error> {
        while let Some(step) = self.script.get(self.at) {
            let mut data = [0xff; 8];
            self.at += 1;
            let flow = match step {
                Step::PioWrite(port, data) => io.pio_write(*port, data),
                Step::MmioWrite(gpa, data) => io.mmio_write(*gpa, data),
                Step::PioRead(port, len) => {
                    let data = &mut data[..(*len).min(8)];
                    io.pio_read(*port, data);
                    self.whole.log.lock().push(Event::Read(self.id, data.to_vec()));
                    Flow::Continue(())
                }
                Step::MmioRead(gpa, len) => {
                    let data = &mut data[..(*len).min(8)];
                    io.mmio_read(*gpa, data);
                    self.whole.log.lock().push(Event::Read(self.id, data.to_vec()));
                    Flow::Continue(())
                }
                Step::Spin => {
                    self.spin();
                    Flow::Break(Exit::Interrupted)
                }
                Step::Exit(exit) => Flow::Break(*exit),
                Step::Fail => {
                    return Err(Error::Unsupported("the script says to fail".into()));
                }
            };
            if let Flow::Break(exit) = flow {
                return Ok(exit);
            }
        }
        self.spin();
        Ok(Exit::Interrupted)
    }

    fn kicker(&self) -> Kicker {
        let kicked = self.kicked.clone();
        Kicker::new(move || {
            *kicked.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
            kicked.1.notify_all();
        })
    }

    fn reset(&mut self, state: Option<&CpuState>) -> Result<(), Error> {
        self.whole.log.lock().push(Event::Reset(self.id, state.is_some()));
        self.at = 0;
        self.state = state.copied().unwrap_or_default();
        Ok(())
    }

    fn state(&self) -> Result<CpuState, Error> {
        Ok(self.state)
    }
}
