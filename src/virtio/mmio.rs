//! Virtio over MMIO (§4.2), version 2: the registers of one device.
//!
//! vCPU threads come here; the device and its queues are elsewhere, on the device's thread. What is touched while the
//! device runs (kicks, interrupt status, the configuration space) goes without the lock that the set-up registers
//! share.
//!
//! The queues exist in here only as what the driver wrote about them. At DRIVER_OK they are made from that, checked,
//! and moved to the device; nothing that is written here later can change them. A reset, and a driver that gives a
//! single queue up, waits until the device has let go.

use std::fmt::Display;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::*;
use vm_memory::GuestMemoryMmap;

use super::config::ConfigSpace;
use super::device::VirtioDevice;
use super::feature;
use super::interrupt::Interrupt;
use super::queue::{self, Queue};
use super::setup::{DRIVER_OK, Setup, Step};
use super::worker::{Queues, Worker};
use crate::accel::IrqLine;
use crate::bus::{BusDevice, Flow};
use crate::sys::Notifier;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Subsystem vendor ID; nobody looks at it.
const VENDOR: u32 = u32::from_le_bytes(*b"HYPK");
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

/// The registers of a virtio device, and the device behind them.
pub struct MmioTransport {
    id: u32,
    config: Arc<ConfigSpace>,
    setup: Mutex<Setup>,
    memory: Arc<GuestMemoryMmap>,
    signals: Arc<Signals>,
    worker: Worker,
}

/// What the device's thread tells the driver.
struct Signals {
    /// InterruptStatus.
    pending: AtomicU32,
    needs_reset: AtomicBool,
    line: Arc<dyn IrqLine>,
    /// The device, for the log, and whether it is in there already.
    name: String,
    complained: AtomicBool,
}

impl Signals {
    fn raise(&self, bit: u32) {
        // Before the pulse, so that the driver's handler finds it; whatever the bit stands for is written already.
        self.pending.fetch_or(bit, Ordering::SeqCst);
        self.line.pulse();
    }
}

impl Interrupt for Signals {
    fn queue(&self, _index: u16) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn config(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn needs_reset(&self, why: &dyn Display) {
        // Once: a driver can do it again and again, and is not to fill the host's log.
        if !self.complained.swap(true, Ordering::Relaxed) {
            log::warn!("virtio-{} needs a reset: {why}", self.name);
        }
        self.needs_reset.store(true, Ordering::SeqCst);
        self.config();
    }
}

impl MmioTransport {
    /// How many addresses the registers take.
    pub const SIZE: u64 = 0x200;
    /// QueueNotify: where a driver writes a queue's number to kick it.
    pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

    /// Starts the thread of `device` and puts registers in front of it. `irq` is used as an edge.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        irq: Arc<dyn IrqLine>,
    ) -> io::Result<Arc<Self>> {
        let offered = device.features() & feature::DEVICE | feature::TRANSPORT;
        let signals = Arc::new(Signals {
            pending: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            line: irq,
            name: device.name().to_owned(),
            complained: AtomicBool::new(false),
        });
        let memory = Arc::new(memory);
        Ok(Arc::new(Self {
            id: device.id(),
            config: device.config(),
            setup: Mutex::new(Setup::new(offered, device.queue_sizes())),
            memory: memory.clone(),
            signals: signals.clone(),
            worker: Worker::spawn(device, memory, signals)?,
        }))
    }

    /// How many queues the device has.
    pub fn queue_count(&self) -> u16 {
        self.setup().queues().len() as u16
    }

    /// What a kick of queue `queue` notifies; `None` if there is no such queue. Where the accelerator can, a write
    /// of `queue` to [`QUEUE_NOTIFY`](Self::QUEUE_NOTIFY) is to do it directly; else the write comes here and does.
    pub fn doorbell(&self, queue: u16) -> Option<&Notifier> {
        self.worker.doorbell(queue.into())
    }

    /// Returns once the device is quiet: it touches no guest memory and sends no interrupt until it is resumed.
    pub fn pause(&self) {
        self.worker.pause();
    }

    /// Lets the device go on after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.worker.resume();
    }

    /// Ends the device's thread and waits for that. The registers still answer, for a device that does nothing.
    pub fn stop(&self) {
        self.worker.stop();
    }

    fn setup(&self) -> MutexGuard<'_, Setup> {
        self.setup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.id,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => self.setup().device_features(),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.setup().queue().map_or(0, |queue| queue.max.into()),
            VIRTIO_MMIO_QUEUE_READY => self.setup().queue().map_or(0, |queue| queue.ready.into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.signals.pending.load(Ordering::SeqCst),
            VIRTIO_MMIO_STATUS => self.status(&self.setup()),
            // No region of shared memory has any number (§4.2.2.1).
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.config.generation(),
            _ => 0,
        }
    }

    fn write_register(&self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(doorbell) = self.worker.doorbell(value as usize) {
                    doorbell.notify();
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.signals.pending.fetch_and(!value, Ordering::SeqCst);
            }
            VIRTIO_MMIO_STATUS => self.set_status(value),
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.setup().device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.setup().set_driver_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.setup().driver_features_select = value,
            VIRTIO_MMIO_QUEUE_SEL => self.setup().queue_select = value,
            VIRTIO_MMIO_QUEUE_READY => self.set_ready(value & 1 != 0),
            VIRTIO_MMIO_QUEUE_NUM => self.setup().lay_out(|queue| queue.size = value),
            _ => self.setup().lay_out(|queue| match register {
                VIRTIO_MMIO_QUEUE_DESC_LOW => low(&mut queue.descriptors, value),
                VIRTIO_MMIO_QUEUE_DESC_HIGH => high(&mut queue.descriptors, value),
                VIRTIO_MMIO_QUEUE_AVAIL_LOW => low(&mut queue.driver, value),
                VIRTIO_MMIO_QUEUE_AVAIL_HIGH => high(&mut queue.driver, value),
                VIRTIO_MMIO_QUEUE_USED_LOW => low(&mut queue.device, value),
                VIRTIO_MMIO_QUEUE_USED_HIGH => high(&mut queue.device, value),
                _ => {}
            }),
        }
    }

    fn status(&self, setup: &Setup) -> u32 {
        let needs_reset = self.signals.needs_reset.load(Ordering::SeqCst);
        setup.status() | if needs_reset { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 }
    }

    fn set_status(&self, value: u32) {
        let mut setup = self.setup();
        match setup.set_status(value) {
            Step::None => {}
            Step::Reset => self.reset_with(&mut setup),
            Step::Activate => match self.queues(&setup) {
                Ok(queues) => self.worker.activate(queues, setup.features()),
                Err(error) => self.signals.needs_reset(&error),
            },
        }
    }

    fn set_ready(&self, ready: bool) {
        let mut setup = self.setup();
        if let Some(index) = setup.set_ready(ready) {
            self.worker.take(index);
        }
    }

    /// The queues as the driver laid them out.
    fn queues(&self, setup: &Setup) -> Result<Queues, queue::Error> {
        let make = |queue: &super::setup::QueueSetup| {
            let memory = self.memory.clone();
            queue
                .ready
                .then(|| Queue::new(queue.layout, queue.max, setup.features(), memory))
                .transpose()
        };
        setup.queues().iter().map(make).collect()
    }

    fn reset_with(&self, setup: &mut Setup) {
        // With DRIVER_OK never set the device has no queues to give back, and drivers reset a lot while they probe.
        if setup.status() & DRIVER_OK != 0 {
            self.worker.reset();
        }
        setup.clear();
        self.signals.needs_reset.store(false, Ordering::SeqCst);
        self.signals.pending.store(0, Ordering::SeqCst);
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.config.read(usize::try_from(offset).unwrap_or(usize::MAX), data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset as u32).to_le_bytes());
        } else {
            // §4.2.2.2: drivers must not; there is nothing sensible to answer.
            data.fill(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Flow {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if self.config.write(usize::try_from(offset).unwrap_or(usize::MAX), data) {
                self.worker.config_written();
            }
        } else if let Ok(value) = data.try_into()
            && offset.is_multiple_of(4)
        {
            self.write_register(offset as u32, u32::from_le_bytes(value));
        }
        Flow::Continue(())
    }

    fn reset(&self) {
        let mut setup = self.setup();
        self.worker.reset();
        self.reset_with(&mut setup);
    }
}

fn low(addr: &mut u64, value: u32) {
    *addr = *addr & !0xffff_ffff | u64::from(value);
}

fn high(addr: &mut u64, value: u32) {
    *addr = *addr & 0xffff_ffff | u64::from(value) << 32;
}
