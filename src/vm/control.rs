//! The machine's life cycle, as its threads share it.
//!
//! Three kinds of threads meet here: the handle's callers say what they want, vCPUs say why they left the guest, and
//! one supervisor thread brings the two together. There is one lock and one condition variable; none of it is
//! touched while the guest runs.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::{End, Error};
use crate::accel::{self, Exit, Kicker};
use crate::arch::CpuState;
use crate::vcpu::{Gate, Next};

/// What the supervisor has told the vCPUs to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Run,
    Park,
    Quit,
}

/// What the supervisor has to do next.
#[derive(Debug)]
pub(super) enum Order {
    Pause,
    Resume,
    Reset,
    Finish(Result<End, Error>),
}

/// What a vCPU reported.
enum Event {
    Reset,
    End(Result<End, Error>),
}

struct State {
    goal: Goal,
    /// Counts resets; a vCPU that has seen fewer resets itself before it runs on.
    epoch: u64,
    /// Where the boot processor starts in this epoch.
    entry: Option<Box<CpuState>>,
    /// vCPUs that have reset themselves in this epoch. None runs before all have: the first might start another, and
    /// that one forget it by its own reset.
    fresh: usize,
    /// vCPUs that wait at the gate.
    parked: usize,
    /// vCPUs that wait at the gate because they halted for good.
    halted: usize,
    /// The first thing a vCPU reported that the machine has to act on.
    event: Option<Event>,
    /// vCPU threads that are gone although nobody told them to quit.
    lost: usize,
    pause_wanted: bool,
    paused: bool,
    stop_wanted: bool,
    end: Option<Result<End, Error>>,
}

pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
    vcpus: usize,
    reboot: bool,
}

impl Control {
    /// For `vcpus` vCPUs, all parked until the first [`boot`](Self::boot). With `reboot` the guest's resets are
    /// carried out; without, they end the machine.
    pub fn new(vcpus: usize, reboot: bool) -> Self {
        let state = State {
            goal: Goal::Park,
            epoch: 0,
            entry: None,
            fresh: 0,
            parked: 0,
            halted: 0,
            event: None,
            lost: 0,
            pause_wanted: false,
            paused: false,
            stop_wanted: false,
            end: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), vcpus, reboot }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    // What the handle asks.

    pub fn stop(&self) {
        self.lock().stop_wanted = true;
        self.changed.notify_all();
    }

    /// Returns once the machine is paused.
    pub fn pause(&self) -> Result<(), Error> {
        self.want_paused(true)
    }

    /// Returns once the machine runs.
    pub fn resume(&self) -> Result<(), Error> {
        self.want_paused(false)
    }

    fn want_paused(&self, wanted: bool) -> Result<(), Error> {
        let mut state = self.lock();
        state.pause_wanted = wanted;
        self.changed.notify_all();
        loop {
            if state.end.is_some() || state.stop_wanted {
                return Err(Error::Ended);
            }
            // A later call that wants the opposite wins; this one has been carried out or overtaken.
            if state.paused == wanted || state.pause_wanted != wanted {
                return Ok(());
            }
            state = self.wait(state);
        }
    }

    pub fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// Why the machine ended; waits for that, until `deadline` if there is one.
    pub fn end(&self, deadline: Option<Instant>) -> Option<Result<End, Error>> {
        let mut state = self.lock();
        loop {
            if let Some(end) = &state.end {
                return Some(end.clone());
            }
            state = match deadline {
                None => self.wait(state),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return None;
                    }
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0
                }
            };
        }
    }

    // What the supervisor does.

    /// Waits until there is something to do.
    pub fn order(&self) -> Order {
        let mut state = self.lock();
        loop {
            if state.stop_wanted {
                return Order::Finish(Ok(End::Stopped));
            }
            // An event stays until the next boot, and keeps the vCPUs at the gate.
            match &state.event {
                // The guest asked for it while it was being paused: memory and devices stay as they are until it goes on.
                Some(Event::Reset) if self.reboot && state.paused => {}
                Some(Event::Reset) if self.reboot => return Order::Reset,
                Some(Event::Reset) => return Order::Finish(Ok(End::Reset)),
                Some(Event::End(end)) => return Order::Finish(end.clone()),
                None => {}
            }
            if state.pause_wanted != state.paused {
                return if state.pause_wanted { Order::Pause } else { Order::Resume };
            }
            state = self.wait(state);
        }
    }

    /// Brings every vCPU to the gate, and returns when all are there.
    pub fn park(&self, kickers: &[Kicker]) {
        let mut state = self.lock();
        state.goal = Goal::Park;
        drop(state);
        kickers.iter().for_each(Kicker::kick);
        state = self.lock();
        while state.parked + state.lost < self.vcpus {
            state = self.wait(state);
        }
    }

    /// Starts every vCPU anew: the boot processor at `entry`. All must be parked or on their way to the gate.
    pub fn boot(&self, entry: CpuState) {
        let mut state = self.lock();
        state.epoch += 1;
        state.entry = Some(Box::new(entry));
        state.event = None;
        state.fresh = 0;
        state.halted = 0;
        state.goal = Goal::Run;
        self.changed.notify_all();
    }

    pub fn set_paused(&self, paused: bool) {
        let mut state = self.lock();
        state.paused = paused;
        state.goal = if paused { Goal::Park } else { Goal::Run };
        self.changed.notify_all();
    }

    /// Sends every vCPU thread to its end.
    pub fn quit(&self, kickers: &[Kicker]) {
        self.lock().goal = Goal::Quit;
        self.changed.notify_all();
        kickers.iter().for_each(Kicker::kick);
    }

    pub fn finish(&self, end: Result<End, Error>) {
        self.lock().end = Some(end);
        self.changed.notify_all();
    }
}

/// One vCPU's place at the gate.
pub(super) struct VcpuGate<'a> {
    control: &'a Control,
    boot_processor: bool,
    /// The epoch it has reset itself for, and whether it has told.
    epoch: Cell<u64>,
    fresh: Cell<bool>,
    halted: Cell<bool>,
}

impl<'a> VcpuGate<'a> {
    pub fn new(control: &'a Control, id: u32) -> Self {
        Self {
            control,
            boot_processor: id == 0,
            epoch: Cell::new(0),
            fresh: Cell::new(true),
            halted: Cell::new(false),
        }
    }
}

impl VcpuGate<'_> {
    fn may_run(&self, state: &State) -> bool {
        state.fresh == self.control.vcpus && state.event.is_none() && !self.halted.get()
    }
}

impl Gate for VcpuGate<'_> {
    fn next(&self) -> Next {
        let mut state = self.control.lock();
        if !self.fresh.replace(true) && self.epoch.get() == state.epoch {
            state.fresh += 1;
            self.control.changed.notify_all();
        }
        let mut parked = false;
        let next = loop {
            match state.goal {
                Goal::Quit => break Next::Quit,
                Goal::Run if self.epoch.get() != state.epoch => {
                    self.epoch.set(state.epoch);
                    self.fresh.set(false);
                    self.halted.set(false);
                    let entry = state.entry.clone().filter(|_| self.boot_processor);
                    break Next::Reset(entry);
                }
                Goal::Run if self.may_run(&state) => break Next::Run,
                _ => {}
            }
            if !parked {
                parked = true;
                state.parked += 1;
                self.control.changed.notify_all();
            }
            state = self.control.wait(state);
        };
        if parked {
            state.parked -= 1;
        }
        next
    }

    fn left(&self, why: Result<Exit, accel::Error>) {
        let mut state = self.control.lock();
        let event = match why {
            Ok(Exit::Interrupted) => return,
            Ok(Exit::Halted) => {
                self.halted.set(true);
                state.halted += 1;
                if state.halted < self.control.vcpus {
                    return;
                }
                Event::End(Ok(End::Halted))
            }
            Ok(Exit::PowerOff) => Event::End(Ok(End::PowerOff)),
            Ok(Exit::Crashed) => Event::End(Ok(End::Crashed)),
            Ok(Exit::Reset) => Event::Reset,
            Err(error) => Event::End(Err(error.into())),
        };
        // The first event decides; what follows it comes from a machine that is already on its way down.
        state.event.get_or_insert(event);
        self.control.changed.notify_all();
    }
}

impl Drop for VcpuGate<'_> {
    fn drop(&mut self) {
        let mut state = self.control.lock();
        if state.goal != Goal::Quit {
            state.lost += 1;
            let error = Error::VcpuLost;
            state.event.get_or_insert(Event::End(Err(error)));
            self.control.changed.notify_all();
        }
    }
}
