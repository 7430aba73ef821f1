//! Apple's vmnet: a network of the host's own, shared with it, kept from the outside, or bridged.
//!
//! The framework starts an interface on a queue of its own and says when it is done. That is waited for: only then
//! is the card's address known, and an embedder without the right to use vmnet is told so at once.

mod spec;
mod sys;

use std::io;
use std::time::{Duration, Instant};

use uuid::Uuid;

use self::sys::{BATCH, Interface};
use super::{Header, MacAddr, NetBackend, Offloads, Properties, Wake};
use crate::memory::Buffers;
use crate::sys::Notifier;
use crate::virtio::{HostEvent, Interest, Sources};

/// The name of the only descriptor there is.
const AVAILABLE: u32 = 0;

/// Bytes that the framework gives at a time.
const MOST_AT_ONCE: usize = 256 << 10;

/// The wait for room that nothing tells of.
const STALL: Duration = Duration::from_millis(1);

const VMNET_FAILURE: u32 = 1001;
const VMNET_INVALID_ACCESS: u32 = 1005;
const VMNET_NOT_AUTHORIZED: u32 = 1010;

/// Why vmnet does not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmnetError {
    /// This process may not use it.
    #[error("vmnet refuses ({status}): it needs root or the com.apple.vm.networking entitlement")]
    NotAuthorized {
        /// What the framework returned.
        status: u32,
    },
    /// It failed in another way.
    #[error("vmnet fails at {what} ({status})")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// What the framework returned.
        status: u32,
    },
    /// It did not say whether it started.
    #[error("vmnet does not answer")]
    NoAnswer,
    /// It started, and says nothing sensible of the interface.
    #[error("vmnet gives an interface with the address {mac:?} and an MTU of {mtu} bytes")]
    Parameters {
        /// The Ethernet address.
        mac: String,
        /// The MTU.
        mtu: u64,
    },
    /// No interface of the host can have the name that is to be bridged.
    #[error("no interface can have the name {0:?}")]
    NoSuchName(String),
}

impl VmnetError {
    /// What `status` means at the start. Systems differ in how they say that somebody has no right to it.
    fn start(status: u32) -> Self {
        match status {
            VMNET_NOT_AUTHORIZED | VMNET_INVALID_ACCESS => Self::NotAuthorized { status },
            VMNET_FAILURE if !rustix::process::geteuid().is_root() => {
                Self::NotAuthorized { status }
            }
            status => Self::Failed { what: "starting an interface", status },
        }
    }
}

impl From<VmnetError> for io::Error {
    fn from(error: VmnetError) -> Self {
        let kind = match error {
            VmnetError::NotAuthorized { .. } => io::ErrorKind::PermissionDenied,
            VmnetError::NoSuchName(_) => io::ErrorKind::InvalidInput,
            VmnetError::NoAnswer => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[derive(Debug)]
enum Mode {
    Host,
    Shared,
    Bridged(String),
}

/// The host side of a card on one of vmnet's networks.
pub struct Vmnet {
    mode: Mode,
    id: Option<Uuid>,
    available: Option<Notifier>,
    running: Option<Running>,
    /// Waiting until the framework takes more, which it does not tell.
    stalled: Option<Instant>,
}

/// An interface, and what was read from it.
struct Running {
    interface: Interface,
    properties: Properties,
    /// The size of a packet's place in `packets`.
    size: usize,
    packets: Box<[u8]>,
    lengths: [usize; BATCH],
    next: usize,
    count: usize,
}

impl Vmnet {
    /// A network that the host translates to those it is on itself.
    pub fn shared() -> Self {
        Self::new(Mode::Shared)
    }

    /// A network of the host and its guests only.
    pub fn host() -> Self {
        Self::new(Mode::Host)
    }

    /// The network that this interface of the host is on, such as `en0`.
    pub fn bridged(interface: impl Into<String>) -> Self {
        Self::new(Mode::Bridged(interface.into()))
    }

    /// What the framework is to know the interface by: with the same one the card gets the same address again.
    pub fn id(mut self, id: Uuid) -> Self {
        self.id = Some(id);
        self
    }

    fn new(mode: Mode) -> Self {
        Self { mode, id: None, available: None, running: None, stalled: None }
    }
}

impl NetBackend for Vmnet {
    fn name(&self) -> &str {
        "vmnet"
    }

    fn properties(&self) -> Properties {
        let unknown = Properties { mac: None, mtu: 1500, offloads: Offloads::empty(), queues: 1 };
        self.running.as_ref().map_or(unknown, |running| running.properties)
    }

    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        let available = Notifier::new()?;
        sources.add(&available, AVAILABLE, Interest::READABLE)?;
        let (interface, parameters) =
            Interface::start(&self.mode, self.id, available.try_clone()?)?;
        let (mac, mtu) = (parameters.mac.parse::<MacAddr>(), u16::try_from(parameters.mtu));
        let size = usize::try_from(parameters.max_packet_size).unwrap_or(usize::MAX);
        let (Ok(mac), Ok(mtu @ 68..), 14..=MOST_AT_ONCE) = (mac, mtu, size) else {
            let (mac, mtu) = (parameters.mac, parameters.mtu);
            return Err(VmnetError::Parameters { mac, mtu }.into());
        };
        log::info!("net vmnet: the card is {mac}, the MTU {mtu}");
        let batch = BATCH.min(MOST_AT_ONCE / size);
        self.running = Some(Running {
            interface,
            properties: Properties { mac: Some(mac), mtu, offloads: Offloads::empty(), queues: 1 },
            size,
            packets: vec![0; batch * size].into(),
            lengths: [0; BATCH],
            next: 0,
            count: 0,
        });
        self.available = Some(available);
        Ok(())
    }

    fn send(
        &mut self,
        _queue: u16,
        _header: &Header,
        frame: Buffers<'_>,
        _sources: Sources<'_>,
    ) -> io::Result<()> {
        let Some(running) = &mut self.running else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if self.stalled.is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if !(14..=running.size).contains(&frame.total()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if running.interface.write(frame)? {
            return Ok(());
        }
        self.stalled = Some(Instant::now() + STALL);
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn receive(
        &mut self,
        _queue: u16,
        header: &mut Header,
        space: Buffers<'_>,
        _sources: Sources<'_>,
    ) -> io::Result<usize> {
        let Some(running) = &mut self.running else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        *header = Header::default();
        if running.next == running.count {
            let Running { interface, packets, size, lengths, .. } = running;
            // Whatever is wrong is not mended by trying again at once.
            running.count = interface.read(packets, *size, lengths).unwrap_or_else(|error| {
                log::debug!("net vmnet: {error}");
                0
            });
            running.next = 0;
        }
        if running.next == running.count {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = running.lengths.get(running.next).copied().unwrap_or(0);
        let place = running.packets.chunks_exact(running.size).nth(running.next);
        running.next += 1;
        let frame = place.and_then(|place| place.get(..length)).unwrap_or_default();
        if length >= 14 && space.fill_from(frame) == length {
            Ok(length)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    fn host_ready(&mut self, _event: HostEvent, _sources: Sources<'_>) -> Wake {
        let receive = self.available.as_ref().is_some_and(Notifier::clear);
        Wake { receive, ..Wake::default() }
    }

    fn deadline(&self) -> Option<Instant> {
        self.stalled
    }

    fn timer(&mut self, _sources: Sources<'_>) -> Wake {
        let send = self.stalled.take_if(|until| *until <= Instant::now()).is_some();
        Wake { send, ..Wake::default() }
    }

    fn link(&self) -> bool {
        self.running.is_some()
    }
}
