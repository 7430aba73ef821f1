//! What the unit tests of devices share.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::accel::IrqLine;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An interrupt line that remembers.
#[derive(Default)]
pub struct Line {
    state: Mutex<State>,
    raised: Condvar,
}

#[derive(Default)]
struct State {
    high: bool,
    pulses: u64,
    taken: u64,
}

impl Line {
    pub fn is_high(&self) -> bool {
        self.state.lock().unwrap().high
    }

    /// Waits until the line is held up.
    pub fn wait_high(&self, at_most: Duration) -> bool {
        let state = self.state.lock().unwrap();
        let wait = self.raised.wait_timeout_while(state, at_most, |state| !state.high);
        wait.unwrap().0.high
    }

    /// How many edges there were.
    pub fn pulses(&self) -> u64 {
        self.state.lock().unwrap().pulses
    }

    /// Waits for an edge that came since the last call; edges that come together count as one, as they do in an
    /// interrupt controller.
    pub fn wait_pulse(&self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        let mut state = self.state.lock().unwrap();
        while state.taken == state.pulses {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            state = self.raised.wait_timeout(state, left).unwrap().0;
        }
        state.taken = state.pulses;
        true
    }
}

impl IrqLine for Line {
    fn pulse(&self) {
        self.state.lock().unwrap().pulses += 1;
        self.raised.notify_all();
    }

    fn set_level(&self, high: bool) {
        self.state.lock().unwrap().high = high;
        self.raised.notify_all();
    }
}

/// Input that a test types piece by piece.
pub struct Typed(Receiver<Vec<u8>>);

impl Read for Typed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Ok(bytes) = self.0.recv() else { return Ok(0) };
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

impl Typed {
    /// The input, and what types.
    pub fn new() -> (Self, Sender<Vec<u8>>) {
        let (keys, typed) = channel();
        (Self(typed), keys)
    }
}
