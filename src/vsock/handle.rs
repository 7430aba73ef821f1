//! What a Rust program has of the sockets of its machine.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Call, Counters, Kind, Tally};
use crate::sys::Notifier;

/// How long a guest has to accept, unless said otherwise.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A handle on the sockets between host and guest. Copies are handles on the same ones; it may outlive the machine.
#[derive(Clone)]
pub struct VsockHandle(pub(super) Arc<Shared>);

/// What handles, listeners and the device's thread share.
pub(super) struct Shared {
    pub cid: u64,
    pub tally: Arc<Tally>,
    /// Set when there is something for the device's thread in the state.
    pub wake: Notifier,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// Connections that were asked for.
    pub calls: Vec<Call>,
    /// Every connection is to end.
    pub reset: bool,
    /// The machine has ended.
    pub ended: bool,
    /// Ports of the host that this program listens on.
    pub listeners: HashMap<(Kind, u32), ()>,
}

impl Shared {
    pub fn new(cid: u64) -> io::Result<Self> {
        let wake = Notifier::new()?;
        Ok(Self { cid, tally: Arc::default(), wake, state: Mutex::default() })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VsockHandle {
    /// The guest's context ID.
    pub fn cid(&self) -> u32 {
        self.0.cid as u32
    }

    /// What was done so far. Counts that are read while packets pass need not belong to the same instant.
    pub fn counters(&self) -> Counters {
        self.0.tally.read()
    }

    /// Ends all connections, and tells the guest that the transport was reset (§5.10.6.7), as is due after its state
    /// was restored from elsewhere.
    pub fn reset_transport(&self) {
        self.0.state().reset = true;
        self.0.wake.notify();
    }
}

impl fmt::Debug for VsockHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockHandle")
            .field("cid", &self.cid())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
