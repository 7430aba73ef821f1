//! The handle on a running machine.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::board::PowerButton;
use super::control::Control;
use super::{End, Error};
use crate::virtio::blk::DiskHandle;
use crate::virtio::net::CardHandle;
use crate::vsock::VsockHandle;

/// The power button, until the machine goes: its interrupt line holds the accelerator's machine, and so the guest's
/// memory.
pub(super) type Power = Arc<Mutex<Option<Arc<PowerButton>>>>;

/// A running machine. Every method may be called from any thread; dropping the handle stops the machine. When a
/// machine has ended its memory and its devices are gone, also while the handle lives.
///
/// The machine's own threads are the exception: `pause`, `resume`, `wait`, `stop` and dropping the handle wait for them,
/// and so for ever if a device, a backend or a policy of yours calls one of these (it may tell another thread to); a
/// console's callbacks may, and `stop` works from [`Console::on_escape`](crate::console::Console::on_escape).
pub struct Running {
    control: Arc<Control>,
    power: Power,
    disks: Vec<DiskHandle>,
    cards: Vec<CardHandle>,
    vsock: VsockHandle,
    supervisor: Option<JoinHandle<()>>,
}

impl Running {
    pub(super) fn new(
        control: Arc<Control>,
        power: Power,
        disks: Vec<DiskHandle>,
        cards: Vec<CardHandle>,
        vsock: VsockHandle,
        supervisor: JoinHandle<()>,
    ) -> Self {
        Self { control, power, disks, cards, vsock, supervisor: Some(supervisor) }
    }

    /// Stops vCPUs and devices where they are. When it returns, no guest instruction runs and no device touches
    /// guest memory; requests that were under way are finished.
    ///
    /// [`Error::Ended`] if the machine ends first.
    pub fn pause(&self) -> Result<(), Error> {
        self.control.pause()
    }

    /// Goes on after [`pause`](Self::pause). [`Error::Ended`] if the machine ends first.
    pub fn resume(&self) -> Result<(), Error> {
        self.control.resume()
    }

    /// Tells whether the machine is paused.
    pub fn is_paused(&self) -> bool {
        self.control.is_paused()
    }

    /// Presses the power button, which asks the guest to shut down; it may take its time, or ignore it. Does nothing once
    /// the machine has ended.
    pub fn power_button(&self) {
        // The lock is held: a press that outlived the machine would keep the guest's memory.
        if let Some(power) = &*self.power.lock().unwrap_or_else(PoisonError::into_inner) {
            power.press_power_button();
        }
    }

    /// The machine's disks, in the order in which the builder got them.
    pub fn disks(&self) -> &[DiskHandle] {
        &self.disks
    }

    /// The machine's network cards, in the order in which the builder got them.
    pub fn cards(&self) -> &[CardHandle] {
        &self.cards
    }

    /// The machine's sockets: connections to its programs, and from them. Without
    /// [`VmBuilder::vsock`](super::VmBuilder::vsock), every connection is refused with an error that says so.
    pub fn vsock(&self) -> &VsockHandle {
        &self.vsock
    }

    /// Ends the machine, without asking the guest. Returns when it has ended, in well under five seconds whatever the
    /// guest does; a host file, storage or callback of yours that does not return holds it up.
    pub fn stop(&self) {
        self.control.stop();
        self.control.end(None);
    }

    /// Waits for the machine's end and tells why it came. Any number of threads may wait, as often as they like.
    pub fn wait(&self) -> Result<End, Error> {
        match self.control.end(None) {
            Some(end) => end,
            None => unreachable!("waiting without a deadline returns with an end"),
        }
    }

    /// As [`wait`](Self::wait), for `timeout` at most; `None` if the machine still runs then.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Result<End, Error>> {
        self.control.end(Instant::now().checked_add(timeout))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(supervisor) = self.supervisor.take() {
            // It publishes the end before it returns, and does not panic over it.
            let _ = supervisor.join();
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("paused", &self.is_paused()).finish_non_exhaustive()
    }
}
