//! The host side of a device, at work.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Interest;

use super::bound::{Bound, cannot};
use super::handle::{PATIENCE, Shared};
use super::handshake::{Convention, Handshake, Handshakes, Heard};
use super::spec::check_path;
use super::{Answer, Call, Dial, Error, Kind, SOURCES, Settings, Tally, Vsock, VsockHandle, Want};
use crate::sys::{Descriptors, Link, unix};
use crate::virtio::{HostEvent, Sources};

/// Connections that are accepted before others have a turn.
const TURN: usize = 64;

/// How long a listener is left alone for which the host has no descriptor, or no memory, left.
const AGAIN: Duration = Duration::from_millis(100);

/// The host's own CID (VMADDR_CID_HOST).
const HOST: u32 = 2;

/// The host side of a device, opened: what a virtio-vsock device is made of. Dropping it removes its sockets.
pub struct OpenVsock {
    settings: Settings,
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
    handshakes: Handshakes,
    routes: Routes,
    /// What the guest takes by connecting.
    descriptors: Descriptors,
    /// How long a program may take to say where to, and the guest to accept.
    pub(super) patience: Duration,
    deadline: Option<Instant>,
    _links: Vec<Link>,
}

/// A unix socket that programs of the host connect to.
struct Listener {
    bound: Bound,
    role: Role,
    pace: Pace,
}

/// Where connections to it go.
#[derive(Debug, Clone, Copy)]
enum Role {
    /// Wherever they say.
    Said(Convention),
    /// To this port of the guest.
    Port(u32),
}

/// When it accepts the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// When there is one.
    Open,
    /// When a handshake has ended.
    Full,
    /// A little later: something is short.
    Short(Instant),
}

/// Where connections of the guest go.
struct Routes {
    ports: HashMap<u32, PathBuf>,
    hybrid: Option<PathBuf>,
    hyperkit: Option<PathBuf>,
}

impl Routes {
    /// The sockets that may have `port` of the host.
    fn paths(&self, port: u32) -> impl Iterator<Item = PathBuf> {
        let hybrid = self.hybrid.as_deref().map(|path| hybrid_path(path, port));
        let hyperkit = self.hyperkit.as_deref().map(|dir| dir.join(hyperkit_name(HOST, port)));
        self.ports.get(&port).cloned().into_iter().chain(hybrid).chain(hyperkit)
    }
}

fn hybrid_path(path: &Path, port: u32) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(format!("_{port}"));
    path.into()
}

fn hyperkit_name(cid: u32, port: u32) -> String {
    format!("{cid:08x}.{port:08x}")
}

impl OpenVsock {
    pub(super) fn new(spec: Vsock, settings: Settings, shared: Arc<Shared>) -> Result<Self, Error> {
        let (mut listeners, mut links) = (Vec::new(), Vec::new());
        let mut listen = |path: &Path, role| -> Result<(), Error> {
            listeners.push(Listener { bound: Bound::new(path)?, role, pace: Pace::Open });
            Ok(())
        };
        for (_, path) in &spec.host_ports {
            check_path(path)?;
        }
        if let Some(dir) = &spec.hyperkit {
            check_path(&dir.join(hyperkit_name(HOST, u32::MAX)))?;
            listen(&dir.join("connect"), Role::Said(Convention::HyperKit))?;
            for &port in &spec.forwards {
                let (name, link) = (hyperkit_name(spec.cid, port), format!("guest.{port:08x}"));
                listen(&dir.join(&name), Role::Port(port))?;
                let link = dir.join(link);
                let made = Link::make(&link, Path::new(&name));
                links.push(made.map_err(|source| cannot("make the link", &link, source))?);
            }
        }
        if let Some(path) = &spec.hybrid {
            check_path(&hybrid_path(path, u32::MAX))?;
            listen(path, Role::Said(Convention::Hybrid))?;
        }
        for (port, path) in &spec.guest_ports {
            listen(path, Role::Port(*port))?;
        }
        let ports = spec.host_ports.into_iter().collect();
        Ok(Self {
            settings,
            shared,
            listeners,
            handshakes: Handshakes::default(),
            routes: Routes { ports, hybrid: spec.hybrid, hyperkit: spec.hyperkit },
            descriptors: Descriptors::of_process(),
            patience: PATIENCE,
            deadline: None,
            _links: links,
        })
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
        sources.add(&self.shared.wake, SOURCES, Interest::READABLE)?;
        for (index, listener) in self.listeners.iter().enumerate() {
            sources.add(&listener.bound, listener_source(index), Interest::READABLE)?;
        }
        Ok(())
    }

    /// One of its descriptors may be ready. What is wanted of the guest because of that goes to `wants`.
    pub(crate) fn ready(&mut self, event: HostEvent, sources: &Sources<'_>, wants: &mut Vec<Want>) {
        let listeners = self.listeners.len();
        match event.source.wrapping_sub(SOURCES) as usize {
            0 => return self.shared.take(wants),
            index if index <= listeners => self.accept(index - 1, sources, wants),
            index => self.hear(index - 1 - listeners, sources, wants),
        }
        self.settle(sources, wants);
    }

    /// When [`timer`](Self::timer) is to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The deadline has passed.
    pub(crate) fn timer(&mut self, sources: &Sources<'_>, wants: &mut Vec<Want>) {
        let now = Instant::now();
        while let Some(slot) = self.handshakes.expired(now) {
            self.forget(slot, sources);
            log::debug!("vsock: a program did not say in time where to connect it to");
        }
        for index in 0..self.listeners.len() {
            let pace = self.listeners.get(index).map(|listener| listener.pace);
            if matches!(pace, Some(Pace::Short(until)) if until <= now) {
                self.accept(index, sources, wants);
            }
        }
        self.settle(sources, wants);
    }

    /// The guest connects from its port `from` to `port` of the host. Never blocks.
    pub(crate) fn dial(&self, kind: Kind, port: u32, from: u32) -> Dial {
        if let Err(error) = self.descriptors.check(&self.shared.wake) {
            log::debug!("vsock: a connection from port {from} of the guest: {error}");
            return Dial::Refused;
        }
        let dial = self.find(kind, port, from);
        if let Dial::Connected(socket) = &dial {
            self.descriptors.given(socket.as_raw_fd());
        }
        dial
    }

    /// Whoever has `port`, if there is anybody.
    fn find(&self, kind: Kind, port: u32, from: u32) -> Dial {
        if let Some(dial) = self.shared.dial(kind, port, from) {
            return dial;
        }
        for path in self.routes.paths(port) {
            match unix::connect(&path, kind.socket_type()) {
                Ok(socket) => return Dial::Connected(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Dial::Busy,
                Err(error) => log::debug!("vsock: no connection to {}: {error}", path.display()),
            }
        }
        Dial::Refused
    }

    /// Takes connections in, for a while.
    fn accept(&mut self, index: usize, sources: &Sources<'_>, wants: &mut Vec<Want>) {
        for _ in 0..TURN {
            let Some(listener) = self.listeners.get_mut(index) else { return };
            if matches!(listener.role, Role::Said(_)) && self.handshakes.is_full() {
                listener.pace = Pace::Full;
                return;
            }
            match unix::accept(&listener.bound) {
                Ok(socket) => {
                    listener.pace = Pace::Open;
                    match listener.role {
                        Role::Port(port) => self.want(socket, port, Answer::Silent, wants),
                        Role::Said(convention) => self.greet(socket, convention, sources, wants),
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return listener.pace = Pace::Open,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => return listener.fall_short(&error),
                },
            }
        }
        // There may be more, which would not be reported by themselves.
        let Some(listener) = self.listeners.get_mut(index) else { return };
        let again = sources.change(&listener.bound, listener_source(index), Interest::READABLE);
        if let Err(error) = again {
            listener.fall_short(&error);
        }
    }

    /// Hears where a connection wants to go, as far as that has been said.
    fn greet(
        &mut self,
        socket: OwnedFd,
        convention: Convention,
        sources: &Sources<'_>,
        wants: &mut Vec<Want>,
    ) {
        let until = Instant::now() + self.patience;
        let mut handshake = Handshake::new(socket, convention, until);
        match handshake.hear(self.settings.cid) {
            Heard::Part => {
                let number = self.handshake_source(self.handshakes.next());
                match sources.add(&handshake.socket, number, Interest::READABLE) {
                    Ok(()) => self.handshakes.insert(handshake),
                    Err(error) => log::warn!("vsock: a connection cannot be watched: {error}"),
                }
            }
            heard => self.heard(handshake, heard, wants),
        }
    }

    /// Hears more of it.
    fn hear(&mut self, slot: usize, sources: &Sources<'_>, wants: &mut Vec<Want>) {
        let Some(handshake) = self.handshakes.get_mut(slot) else { return };
        let heard = handshake.hear(self.settings.cid);
        if heard != Heard::Part
            && let Some(handshake) = self.forget(slot, sources)
        {
            self.heard(handshake, heard, wants);
        }
    }

    /// Ends a handshake.
    fn forget(&mut self, slot: usize, sources: &Sources<'_>) -> Option<Handshake> {
        let handshake = self.handshakes.remove(slot)?;
        if let Err(error) = sources.remove(&handshake.socket) {
            log::warn!("vsock: a connection is still watched: {error}");
        }
        Some(handshake)
    }

    fn heard(&self, handshake: Handshake, heard: Heard, wants: &mut Vec<Want>) {
        match (heard, handshake.convention()) {
            (Heard::Port(port), Convention::HyperKit) => {
                self.want(handshake.socket, port, Answer::Silent, wants);
            }
            (Heard::Port(port), Convention::Hybrid) => {
                self.want(handshake.socket, port, Answer::Line, wants);
            }
            (Heard::Wrong(why), _) => log::debug!("vsock: a connection leads nowhere: {why}"),
            (Heard::Part, _) => {}
        }
    }

    fn want(&self, socket: OwnedFd, port: u32, answer: Answer, wants: &mut Vec<Want>) {
        let until = Instant::now() + self.patience;
        wants.push(Want::Connect(Call { socket, kind: Kind::Stream, port, until, answer }));
    }

    /// Goes on with listeners that waited for a handshake to end, and looks at the clock.
    fn settle(&mut self, sources: &Sources<'_>, wants: &mut Vec<Want>) {
        for index in 0..self.listeners.len() {
            let pace = self.listeners.get(index).map(|listener| listener.pace);
            if pace == Some(Pace::Full) && !self.handshakes.is_full() {
                self.accept(index, sources, wants);
            }
        }
        let later = self.listeners.iter().filter_map(|listener| match listener.pace {
            Pace::Short(until) => Some(until),
            Pace::Open | Pace::Full => None,
        });
        self.deadline = later.chain(self.handshakes.deadline()).min();
    }

    fn handshake_source(&self, slot: usize) -> u32 {
        listener_source(self.listeners.len() + slot)
    }
}

/// Listeners are watched under the numbers after the notifier's, handshakes under those after theirs.
fn listener_source(index: usize) -> u32 {
    SOURCES + 1 + index as u32
}

impl Listener {
    /// Something is short that may not be so a little later.
    fn fall_short(&mut self, error: &io::Error) {
        if !matches!(self.pace, Pace::Short(_)) {
            log::warn!("vsock: cannot accept at {}: {error}", self.bound.path().display());
        }
        self.pace = Pace::Short(Instant::now() + AGAIN);
    }
}

impl Drop for OpenVsock {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl fmt::Debug for OpenVsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenVsock").field("settings", &self.settings).finish_non_exhaustive()
    }
}
