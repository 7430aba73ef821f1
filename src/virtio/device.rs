//! What a virtio device is: the part that knows what requests mean, and nothing of transports or machines.
//!
//! A device lives on a thread of its own, which calls it back when there is something to do: a queue was kicked, a
//! host descriptor became ready, a deadline passed, the driver or the machine's owner wants something. No two calls
//! overlap, so a device needs no locks. It reaches its queues, guest memory and the driver through the [`Context`]
//! of each call; interrupts for what it answered are sent at the end of the call.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use vm_memory::GuestMemoryMmap;

use super::config::ConfigSpace;
use super::interrupt::Interrupt;
use super::queue::{self, Queue};

/// Feature bits that belong to transport and queues (§6), offered on behalf of every device.
pub mod feature {
    use virtio_bindings::{virtio_config, virtio_ring};

    /// VIRTIO_F_INDIRECT_DESC: a descriptor may point to a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// VIRTIO_F_EVENT_IDX: each side says at which index it wants to be notified.
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// VIRTIO_F_VERSION_1: the device is not a legacy one.
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;

    /// What is offered beside the features of the device.
    pub(crate) const TRANSPORT: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
    /// The bits that are a device's own: 0 to 23, and 50 and up.
    pub(crate) const DEVICE: u64 = 0xff_ffff | (u64::MAX << 50);
}

/// Why a device cannot go on until the driver resets it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver broke the rules of the queue.
    #[error("queue: {0}")]
    Queue(#[from] queue::Error),
    /// The driver broke the rules of the device.
    #[error("driver: {0}")]
    Driver(&'static str),
    /// Something on the host that the device cannot do without failed.
    #[error("host: {0}")]
    Host(#[from] io::Error),
}

/// A virtio device.
///
/// The life of a device: [`start`](Self::start) once; then [`activate`](Self::activate) when the driver sets
/// DRIVER_OK and [`reset`](Self::reset) when it resets the device, any number of times. Between the two the queues
/// are there, and the other calls come as they may.
///
/// An error from any call ends the activation: the device is reset, the driver sees DEVICE_NEEDS_RESET, and the
/// next call is the next activation. Calls must not block, but for [`pause`](Self::pause) and
/// [`reset`](Self::reset), which wait for what is in flight.
///
/// A device in full, which says hello to whoever asks:
///
/// ```
/// use hyperkit::virtio::{Context, Error, VirtioDevice};
///
/// struct Hello;
///
/// impl VirtioDevice for Hello {
///     fn id(&self) -> u32 {
///         63
///     }
///     fn name(&self) -> &str {
///         "hello"
///     }
///     fn queue_sizes(&self) -> &[u16] {
///         &[16]
///     }
///     fn queue_ready(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error> {
///         let Some(queue) = cx.queue(index) else { return Ok(()) };
///         while let Some(chain) = queue.pop()? {
///             let mut writer = chain.writer();
///             writer.write(b"hello");
///             let written = writer.written();
///             queue.push(chain, written)?;
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait VirtioDevice: Send {
    /// The device ID (§5).
    fn id(&self) -> u32;

    /// A word for messages and the name of the thread, such as `rng`.
    fn name(&self) -> &str;

    /// The features of this kind of device that this one offers: bits 0 to 23, 50 to 63.
    fn features(&self) -> u64 {
        0
    }

    /// The largest size of each queue, a power of two each; their number is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The configuration space; the device keeps another handle on it.
    fn config(&self) -> Arc<ConfigSpace> {
        Arc::default()
    }

    /// Registers host descriptors that are watched as long as the device exists. Called once, by whoever makes the
    /// transport.
    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        let _ = sources;
        Ok(())
    }

    /// The driver is ready, having accepted `features`. Each queue that it set up gets a call of
    /// [`queue_ready`](Self::queue_ready) right after.
    fn activate(&mut self, features: u64, cx: &mut Context<'_>) -> Result<(), Error> {
        let _ = (features, cx);
        Ok(())
    }

    /// Queue `index` was kicked, or has work left from its last turn. To be worked until
    /// [`Queue::pop`] returns `None` or the device cannot take more.
    fn queue_ready(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error>;

    /// A host descriptor may be ready. It is reported on a change only: to be worked until it would block. Calls
    /// without reason happen, and so do calls while no driver is there.
    fn host_ready(&mut self, event: HostEvent, cx: &mut Context<'_>) -> Result<(), Error> {
        let _ = (event, cx);
        Ok(())
    }

    /// The driver wrote to the configuration space, once or several times.
    fn config_written(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let _ = cx;
        Ok(())
    }

    /// When [`timer`](Self::timer) is to be called, if at all. Asked anew after every call.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed.
    fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let _ = cx;
        Ok(())
    }

    /// The machine stops for a while, or the driver gives a queue up. When this returns, nothing on the host reads or writes guest memory for this
    /// device any more: what is in flight was waited for, and pushed.
    fn pause(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let _ = cx;
        Ok(())
    }

    /// The machine goes on, maybe with fewer queues. Kicks and host events of the meantime follow.
    fn resume(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let _ = cx;
        Ok(())
    }

    /// The queues are taken away. When this returns, nothing on the host reads or writes guest memory for this device
    /// any more, and every [`Chain`](super::Chain) it kept is dropped.
    fn reset(&mut self) {}
}

/// A host descriptor that may be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostEvent {
    /// The name it was registered under.
    pub source: u32,
    /// Reading may give bytes, an end, or an error.
    pub readable: bool,
    /// Writing may take bytes, or give an error.
    pub writable: bool,
}

impl From<&mio::event::Event> for HostEvent {
    /// An end or an error is there for whoever reads and whoever writes.
    fn from(event: &mio::event::Event) -> Self {
        Self {
            source: event.token().0 as u32,
            readable: event.is_readable() || event.is_read_closed() || event.is_error(),
            writable: event.is_writable() || event.is_write_closed() || event.is_error(),
        }
    }
}

/// The host descriptors that a device's thread watches.
#[derive(Clone, Copy)]
pub struct Sources<'a>(pub(super) &'a Registry);

impl<'a> Sources<'a> {
    /// Those of an event loop that is not a device's thread: for tests of host sides.
    #[doc(hidden)]
    pub fn new(registry: &'a Registry) -> Self {
        Self(registry)
    }

    /// Watches `fd` from now on, and reports it as `source`. It must be removed before it is closed.
    pub fn add(&self, fd: &impl AsFd, source: u32, interest: Interest) -> io::Result<()> {
        let fd = fd.as_fd().as_raw_fd();
        self.0.register(&mut SourceFd(&fd), Token(source as usize), interest)
    }

    /// Changes what is watched for; what is ready now is reported again.
    pub fn change(&self, fd: &impl AsFd, source: u32, interest: Interest) -> io::Result<()> {
        let fd = fd.as_fd().as_raw_fd();
        self.0.reregister(&mut SourceFd(&fd), Token(source as usize), interest)
    }

    /// Ends the watch.
    pub fn remove(&self, fd: &impl AsFd) -> io::Result<()> {
        let fd = fd.as_fd().as_raw_fd();
        self.0.deregister(&mut SourceFd(&fd))
    }
}

/// What a device can reach during a call.
pub struct Context<'a> {
    /// One entry per queue of the device; `None` where the driver set none up.
    pub(super) queues: &'a mut [Option<Queue>],
    pub(super) memory: &'a Arc<GuestMemoryMmap>,
    pub(super) interrupt: &'a dyn Interrupt,
    pub(super) registry: &'a Registry,
}

impl<'a> Context<'a> {
    /// Queue `index`; `None` if the driver did not set it up, has given it up, or is not there.
    pub fn queue(&mut self, index: u16) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(index))?.as_mut()
    }

    /// Guest memory.
    pub fn memory(&self) -> &'a Arc<GuestMemoryMmap> {
        self.memory
    }

    /// Tells the driver that the configuration space has changed, if it is there to hear it.
    pub fn config_changed(&self) {
        // Without a driver there are no queues, and it will read the space when it comes.
        if self.queues.iter().any(Option::is_some) {
            self.interrupt.config();
        }
    }

    /// The host descriptors that are watched.
    pub fn sources(&self) -> Sources<'a> {
        Sources(self.registry)
    }
}
