//! The thread that a device lives on.
//!
//! One event loop per device waits for kicks, for the device's own host descriptors and for orders of the transport.
//! Nothing is polled and no timer runs unless the device asks for one.
//!
//! The loop is edge-triggered: an event says that something changed, once. Nothing is lost, because a doorbell is
//! cleared before its queue is worked; what is left after a turn is remembered in here; and while the device is
//! paused the loop does not ask for events, so that they wait in the kernel.
//!
//! A device that panics is dropped, and takes nothing with it: its driver reads DEVICE_NEEDS_RESET, as does each one that
//! comes later, and the transport is answered as if the device were quiet.

use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use std::os::fd::AsRawFd;
use vm_memory::GuestMemoryMmap;

use super::device::{Context, Error, Sources, VirtioDevice};
use super::interrupt::Interrupt;
use super::queue::Queue;
use crate::sys::Notifier;

// The device's own descriptors have the tokens below these.
const DOORBELLS: usize = 1 << 32;
const ORDERS: usize = 2 << 32;

/// Events taken from the kernel at a time.
const EVENTS: usize = 64;

/// The queues of an active device, one entry for each that the device has.
pub(super) type Queues = Box<[Option<Queue>]>;

enum Order {
    Activate { queues: Queues, features: u64 },
    Take(usize, SyncSender<()>),
    Reset(SyncSender<()>),
    Pause(SyncSender<()>),
    Resume(SyncSender<()>),
    Stop,
}

/// The transport's end of a device's thread.
pub(super) struct Worker {
    orders: Sender<Order>,
    waker: Waker,
    doorbells: Arc<[Notifier]>,
    config_written: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// Starts `device` and its thread.
    pub fn spawn(
        mut device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemoryMmap>,
        interrupt: Arc<dyn Interrupt>,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), Token(ORDERS))?;
        let count = device.queue_sizes().len();
        let doorbells: Arc<[Notifier]> =
            (0..count).map(|_| Notifier::new()).collect::<io::Result<_>>()?;
        for (index, doorbell) in doorbells.iter().enumerate() {
            let fd = doorbell.as_raw_fd();
            let token = Token(DOORBELLS + index);
            poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        }
        device.start(Sources(poll.registry()))?;

        let device_name = device.name().to_owned();
        let name = format!("hk-virtio-{device_name}");
        let (orders, inbox) = channel();
        let config_written = Arc::new(AtomicBool::new(false));
        let mut event_loop = Loop {
            poll,
            device,
            memory,
            interrupt,
            doorbells: doorbells.clone(),
            config_written: config_written.clone(),
            inbox,
            queues: (0..count).map(|_| None).collect(),
            active: false,
            waiting: None,
            paused: false,
            answering: None,
            stopping: false,
            ready: vec![false; count].into(),
        };
        let thread = crate::sys::spawn(&name, move || {
            if catch_unwind(AssertUnwindSafe(|| event_loop.run())).is_err() {
                log::error!("virtio {device_name}: the device has panicked, and is no more");
                event_loop.outlive_device();
            }
        })?;
        let thread = Mutex::new(Some(thread));
        Ok(Self { orders, waker, doorbells, config_written, thread })
    }

    /// What a kick of queue `index` notifies.
    pub fn doorbell(&self, index: usize) -> Option<&Notifier> {
        self.doorbells.get(index)
    }

    /// Hands the queues over.
    pub fn activate(&self, queues: Queues, features: u64) {
        self.send(Order::Activate { queues, features });
    }

    /// Takes the queues away; returns once nothing touches guest memory for the device any more.
    pub fn reset(&self) {
        self.call(Order::Reset);
    }

    /// Takes one queue away; returns once nothing touches guest memory for it any more.
    pub fn take(&self, index: usize) {
        self.call(|done| Order::Take(index, done));
    }

    /// Returns once the device is quiet.
    pub fn pause(&self) {
        self.call(Order::Pause);
    }

    /// Lets the device go on.
    pub fn resume(&self) {
        self.call(Order::Resume);
    }

    /// Tells the device that the driver wrote to the configuration space.
    pub fn config_written(&self) {
        // A flag rather than an order: a driver that writes without end must not fill the channel.
        if !self.config_written.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Ends the thread, and waits until it has ended.
    pub fn stop(&self) {
        self.send(Order::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            log::error!("the thread of a virtio device panicked");
        }
    }

    fn call(&self, order: impl FnOnce(SyncSender<()>) -> Order) {
        let (done, wait) = sync_channel(1);
        self.send(order(done));
        // A thread that is gone drops its end; then the device is as quiet as can be.
        let _ = wait.recv();
    }

    fn send(&self, order: Order) {
        if self.orders.send(order).is_ok() {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            log::error!("cannot wake the thread of a virtio device: {error}");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Loop {
    poll: Poll,
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemoryMmap>,
    interrupt: Arc<dyn Interrupt>,
    doorbells: Arc<[Notifier]>,
    config_written: Arc<AtomicBool>,
    inbox: Receiver<Order>,
    queues: Queues,
    /// The device has been activated and not reset.
    active: bool,
    /// An activation that has to wait until the device is no longer paused: queues and features.
    waiting: Option<(Queues, u64)>,
    paused: bool,
    /// Who waits for the order that is being carried out: if the device panics, until that is gone.
    answering: Option<SyncSender<()>>,
    /// The thread is to end.
    stopping: bool,
    /// Queues that are to get a turn.
    ready: Box<[bool]>,
}

impl Loop {
    fn run(&mut self) {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let wait = self.wait();
            if let Err(error) = self.poll.poll(&mut events, wait)
                && error.kind() != io::ErrorKind::Interrupted
            {
                log::error!("virtio {}: cannot wait for events: {error}", self.device.name());
                return;
            }
            for event in &events {
                match event.token().0 {
                    ORDERS => {
                        if self.orders().is_break() {
                            return;
                        }
                    }
                    token if token >= DOORBELLS => self.kicked(token - DOORBELLS),
                    _ => self.call(|device, cx| device.host_ready(event.into(), cx)),
                }
            }
            if self.device.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                self.call(|device, cx| device.timer(cx));
            }
            self.turns();
        }
    }

    /// How long there is nothing to do.
    fn wait(&self) -> Option<Duration> {
        if self.ready.contains(&true) {
            return Some(Duration::ZERO);
        }
        self.device.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn kicked(&mut self, index: usize) {
        if let (Some(doorbell), Some(ready)) =
            (self.doorbells.get(index), self.ready.get_mut(index))
        {
            doorbell.clear();
            *ready = true;
        }
    }

    /// Gives every queue that waits for it one turn.
    fn turns(&mut self) {
        for index in 0..self.ready.len() {
            let waits = self.ready.get_mut(index).is_some_and(std::mem::take);
            if waits && self.queues.get(index).is_some_and(Option::is_some) {
                self.call(|device, cx| device.queue_ready(index as u16, cx));
            }
        }
    }

    /// Carries out what the transport wants; while paused, waits for it.
    fn orders(&mut self) -> ControlFlow<()> {
        loop {
            let order = if self.paused {
                self.inbox.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.inbox.try_recv()
            };
            match order {
                Ok(Order::Activate { queues, features }) => {
                    self.waiting = Some((queues, features));
                    self.activate();
                }
                Ok(Order::Take(index, done)) => {
                    self.answering = Some(done);
                    self.take(index);
                }
                Ok(Order::Reset(done)) => {
                    self.answering = Some(done);
                    self.reset();
                }
                Ok(Order::Pause(done)) => {
                    self.answering = Some(done);
                    if !self.paused {
                        self.call(|device, cx| device.pause(cx));
                        self.paused = true;
                    }
                }
                Ok(Order::Resume(done)) => {
                    self.answering = Some(done);
                    if self.paused {
                        self.paused = false;
                        self.call(|device, cx| device.resume(cx));
                        self.activate();
                    }
                }
                Err(TryRecvError::Empty) => break,
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => {
                    self.stopping = true;
                    self.reset();
                    return ControlFlow::Break(());
                }
            }
            if let Some(done) = self.answering.take() {
                let _ = done.send(());
            }
        }
        if self.config_written.swap(false, Ordering::AcqRel) {
            self.call(|device, cx| device.config_written(cx));
        }
        ControlFlow::Continue(())
    }

    /// Gives the device the queues that wait for it, unless it is paused.
    fn activate(&mut self) {
        if self.paused {
            return;
        }
        if let Some((queues, features)) = self.waiting.take() {
            self.queues = queues;
            self.active = true;
            // Chains may be waiting whose kick went to nobody.
            self.ready.fill(true);
            self.call(|device, cx| device.activate(features, cx));
        }
    }

    fn take(&mut self, index: usize) {
        if let Some(queue) = self.waiting.as_mut().and_then(|(queues, _)| queues.get_mut(index)) {
            *queue = None;
            return;
        }
        // A device that is paused already has nothing in flight.
        let running = self.active && !self.paused;
        if running {
            self.call(|device, cx| device.pause(cx));
        }
        if let Some(queue) = self.queues.get_mut(index) {
            *queue = None;
        }
        if running && self.active {
            self.call(|device, cx| device.resume(cx));
        }
    }

    fn reset(&mut self) {
        self.waiting = None;
        if std::mem::take(&mut self.active) {
            self.device.reset();
        }
        self.queues.fill_with(|| None);
        self.ready.fill(false);
    }

    /// Calls the device, then does what its queues want. After an error the driver has to reset the device.
    fn call(
        &mut self,
        call: impl FnOnce(&mut dyn VirtioDevice, &mut Context<'_>) -> Result<(), Error>,
    ) {
        let mut cx = Context {
            queues: &mut self.queues,
            memory: &self.memory,
            interrupt: &*self.interrupt,
            registry: self.poll.registry(),
        };
        match call(&mut *self.device, &mut cx) {
            Ok(()) => self.settle(),
            Err(error) => self.fail(&error),
        }
    }

    fn settle(&mut self) {
        for (index, (queue, ready)) in self.queues.iter_mut().zip(&mut self.ready).enumerate() {
            let Some(queue) = queue else { continue };
            let settled = queue.settle();
            *ready |= settled.again;
            if settled.interrupt {
                self.interrupt.queue(index as u16);
            }
        }
    }

    fn fail(&mut self, error: &Error) {
        if self.active {
            self.reset();
            self.interrupt.needs_reset(error);
        }
    }

    /// Answers the transport for a device that has panicked, until the thread is to end.
    fn outlive_device(self) {
        const WHY: &str = "the device has panicked";
        let Self { device, queues, waiting, active, answering, stopping, inbox, interrupt, .. } =
            self;
        let has_driver = active || waiting.is_some();
        // Whatever state it is in: what it does when it is dropped may go wrong as well.
        if catch_unwind(AssertUnwindSafe(|| drop((device, queues, waiting)))).is_err() {
            log::error!("virtio: a device that has panicked did so again as it was dropped");
        }
        drop(answering);
        if stopping {
            return;
        }
        if has_driver {
            interrupt.needs_reset(&WHY);
        }
        for order in inbox {
            match order {
                Order::Activate { .. } => interrupt.needs_reset(&WHY),
                Order::Take(_, done)
                | Order::Reset(done)
                | Order::Pause(done)
                | Order::Resume(done) => {
                    let _ = done.send(());
                }
                Order::Stop => return,
            }
        }
    }
}
