//! The host side of a device, at work.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::handle::Shared;
use super::{Dial, Error, Kind, SOURCES, Settings, Tally, Vsock, VsockHandle, Want};
use crate::virtio::{HostEvent, Sources};
use mio::Interest;

/// The host side of a device, opened. The device has it, and calls it on its own thread.
pub struct OpenVsock {
    settings: Settings,
    shared: Arc<Shared>,
}

impl OpenVsock {
    pub(super) fn new(
        _spec: Vsock,
        settings: Settings,
        shared: Arc<Shared>,
    ) -> Result<Self, Error> {
        Ok(Self { settings, shared })
    }

    /// A handle for programs.
    pub fn handle(&self) -> VsockHandle {
        VsockHandle(self.shared.clone())
    }

    /// What the device is to keep to.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the device counts in.
    pub(crate) fn tally(&self) -> &Arc<Tally> {
        &self.shared.tally
    }

    /// Has its descriptors watched, under [`SOURCES`] and up. Once.
    pub(crate) fn start(&mut self, sources: &Sources<'_>) -> io::Result<()> {
        sources.add(&self.shared.wake, SOURCES, Interest::READABLE)
    }

    /// One of its descriptors may be ready. What is wanted of the guest because of that goes to `wants`.
    pub(crate) fn ready(
        &mut self,
        _event: HostEvent,
        _sources: &Sources<'_>,
        wants: &mut Vec<Want>,
    ) {
        self.shared.wake.clear();
        let mut state = self.shared.state();
        if std::mem::take(&mut state.reset) {
            wants.push(Want::TransportReset);
        }
        wants.extend(state.calls.drain(..).map(Want::Connect));
    }

    /// When [`timer`](Self::timer) is to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed.
    pub(crate) fn timer(&mut self, _sources: &Sources<'_>, _wants: &mut Vec<Want>) {}

    /// The guest connects from its port `from` to `port` of the host. Never blocks.
    pub(crate) fn dial(&self, _kind: Kind, _port: u32, _from: u32) -> Dial {
        Dial::Refused
    }
}

impl Drop for OpenVsock {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.ended = true;
        state.calls.clear();
    }
}

impl fmt::Debug for OpenVsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenVsock").field("settings", &self.settings).finish_non_exhaustive()
    }
}
