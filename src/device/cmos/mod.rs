//! The real-time clock, and the 114 bytes of memory beside it, at ports 0x70 and 0x71.
//!
//! It is the MC146818A of every PC. A guest asks it once, early, what time it is; and it is all that firmware and
//! small kernels know about memory and time.
//!
//! * The time is the host's `CLOCK_REALTIME` in UTC, to the nanosecond in phase with it. A guest that sets the time
//!   changes only its own: what is kept is the difference.
//! * BCD and binary numbers, 12 and 24 hours, the century in register 0x32 (let the FADT say so).
//! * Alarm and update-ended interrupts, as Linux's `rtc_cmos` needs them for wake-up times and `hwclock`. They need a
//!   thread, which is not there until a guest enables one of the two.
//! * Left out: the periodic interrupt, for which no system of today asks the chip, and the square wave.
//!
//! Firmware finds the amount of memory in registers 0x15 to 0x18, 0x30, 0x31, 0x34, 0x35 and 0x5b to 0x5d.

mod clock;
mod date;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::clock::{B, B_ALARM, B_UPDATED, Chip};
use crate::accel::IrqLine;
use crate::arch::x86_64::layout;
use crate::bus::{BusDevice, Flow};
use crate::sys;

/// An armed alarm looks at the host's clock so often, which may have been set meanwhile.
const LOOK: Duration = Duration::from_secs(60);

/// The clock chip: index port and data port.
pub struct Cmos {
    shared: Arc<Shared>,
    /// Sends interrupts at their time, once the guest has asked for any.
    timer: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    /// The timer has to look again.
    changed: Condvar,
    irq: Arc<dyn IrqLine>,
    clock: Box<dyn Fn() -> SystemTime + Send + Sync>,
}

struct State {
    chip: Chip,
    index: u8,
    closing: bool,
}

impl Cmos {
    /// How many ports it has.
    pub const PORTS: u64 = 2;
    /// The register of the century, for the FADT.
    pub const CENTURY: u8 = clock::CENTURY;

    /// The clock of a machine with `ram` bytes of memory, as [`layout::ram_regions`] lays them out. `irq` is used
    /// as an edge.
    pub fn new(ram: u64, irq: Arc<dyn IrqLine>) -> Self {
        Self::with_clock(ram, irq, SystemTime::now)
    }

    /// The same, with another notion of what time it is.
    pub fn with_clock(
        ram: u64,
        irq: Arc<dyn IrqLine>,
        clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Self {
        let mut chip = Chip::new(nanos(clock()));
        describe_memory(&mut chip, ram);
        let state = Mutex::new(State { chip, index: 0, closing: false });
        let shared = Shared { state, changed: Condvar::new(), irq, clock: Box::new(clock) };
        Self { shared: Arc::new(shared), timer: Mutex::default() }
    }

    fn start_timer(&self) {
        let mut timer = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        if timer.is_none() {
            let shared = self.shared.clone();
            // Without a thread there are no alarms, until the guest asks again.
            *timer = sys::spawn("rtc", move || shared.run_timer()).ok();
        }
    }
}

impl Drop for Cmos {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.changed.notify_one();
        let timer = self.timer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(timer) = timer {
            // It cannot panic, and there would be nobody to tell.
            let _ = timer.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> i128 {
        nanos((self.clock)())
    }

    fn update(&self, state: &mut State, now: i128) {
        if state.chip.interrupt(now) {
            self.irq.pulse();
        }
    }

    fn run_timer(&self) {
        let mut state = self.state();
        while !state.closing {
            let now = self.now();
            self.update(&mut state, now);
            let wait = state.chip.until_interrupt(now);
            state = match wait.map(|nanos| u64::try_from(nanos).unwrap_or(u64::MAX)) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(nanos) => {
                    let wait = Duration::from_nanos(nanos).min(LOOK);
                    let woken = self.changed.wait_timeout(state, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl BusDevice for Cmos {
    /// The index port cannot be read.
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (_, byte) in (offset..Self::PORTS).zip(data).filter(|(port, _)| *port == 1) {
            let mut state = self.shared.state();
            let now = self.shared.now();
            self.shared.update(&mut state, now);
            let index = state.index;
            *byte = state.chip.read(index, now);
            // Register C, when read, lets the next interrupt come.
            self.shared.changed.notify_one();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Flow {
        for (port, &value) in (offset..Self::PORTS).zip(data) {
            let mut state = self.shared.state();
            if port == 0 {
                // Bit 7 masks NMIs, of which there are none.
                state.index = value & 0x7f;
                continue;
            }
            let now = self.shared.now();
            self.shared.update(&mut state, now);
            let index = state.index;
            state.chip.write(index, value, now);
            self.shared.update(&mut state, now);
            drop(state);
            if index == B && value & (B_ALARM | B_UPDATED) != 0 {
                self.start_timer();
            }
            self.shared.changed.notify_one();
        }
        Flow::Continue(())
    }

    /// Time and memory have a battery: they stay.
    fn reset(&self) {
        let mut state = self.shared.state();
        state.index = 0;
        state.chip.reset();
    }
}

fn nanos(time: SystemTime) -> i128 {
    let signed = |duration: Duration| i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => signed(since),
        Err(before) => -signed(before.duration()),
    }
}

/// What BIOSes leave behind: conventional memory and memory above 1 MiB in KiB, above 16 MiB and above 4 GiB in units
/// of 64 KiB; each as much as its register holds.
fn describe_memory(chip: &mut Chip, ram: u64) {
    let regions = layout::ram_regions(ram);
    let low = regions.first().map_or(0, |&(_, len)| len);
    let high: u64 = regions.iter().skip(1).map(|&(_, len)| len).sum();
    let word = |value: u64| (value.min(0xffff) as u16).to_le_bytes();
    let extended = word(low.saturating_sub(1 << 20) >> 10);
    chip.preset(0x15, &word(640));
    chip.preset(0x17, &extended);
    chip.preset(0x30, &extended);
    chip.preset(0x34, &word(low.saturating_sub(16 << 20) >> 16));
    chip.preset(0x5b, &(high >> 16).min(0xff_ffff).to_le_bytes()[..3]);
}

#[cfg(test)]
mod tests;
