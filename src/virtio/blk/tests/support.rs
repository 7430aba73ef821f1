//! Storage under a test's control, and a device without a thread.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use crate::disk::{BlockBackend, BufferList, Buffers, Disk, MemoryDisk, Properties};
use crate::virtio::queue::{Layout, Queue};
use crate::virtio::testing::{Buffer, PATIENCE, RAM, Ring};
use crate::virtio::tests::Nobody;
use crate::virtio::{Context, Error, HostEvent, VirtioDevice};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Block, DONE};

/// What storage was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Read(u64, usize),
    Write(u64, usize),
    Flush,
    Discard(u64, u64),
    Zero(u64, u64, bool),
    Resize(u64),
}

impl Call {
    /// Bytes.
    pub fn len(&self) -> u64 {
        match *self {
            Self::Read(_, len) | Self::Write(_, len) => len as u64,
            Self::Discard(_, len) | Self::Zero(_, len, _) => len,
            Self::Flush | Self::Resize(_) => 0,
        }
    }
}

/// How storage fails.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// With an error number of the host.
    Errno(i32),
    Panic,
}

/// Storage that writes down what it is asked to do, and waits or fails if it is told to.
#[derive(Clone)]
pub struct Probe(Arc<Inner>);

struct Inner {
    disk: MemoryDisk,
    blocks: bool,
    properties: Properties,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    /// Calls that have begun and not ended.
    inside: usize,
    held: bool,
    /// So many may return nonetheless.
    passes: usize,
    fault: Option<Fault>,
}

/// What discarded bytes read as.
pub const DISCARDED: u8 = 0xdd;

impl Probe {
    /// Storage that may take long, of `sectors` sectors.
    pub fn new(sectors: u64) -> Self {
        Self::with(sectors, true, Properties { discard: true, ..Properties::default() })
    }

    /// Storage that answers at once, or not, with these properties.
    pub fn with(sectors: u64, blocks: bool, properties: Properties) -> Self {
        Self(Arc::new(Inner {
            disk: MemoryDisk::new(sectors as usize * 512),
            blocks,
            properties,
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// A disk on it, with one queue.
    pub fn disk(&self) -> Disk {
        Disk::backend(self.clone()).queues(1)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// Keeps calls from returning, or lets them.
    pub fn hold(&self, held: bool) {
        self.lock().held = held;
        self.0.changed.notify_all();
    }

    /// What calls end with from now on.
    pub fn fail(&self, fault: Option<Fault>) {
        self.lock().fault = fault;
    }

    /// Waits until as many calls have begun and not ended.
    pub fn wait_inside(&self, count: usize) {
        let changed = &self.0.changed;
        let wait = changed.wait_timeout_while(self.lock(), PATIENCE, |state| state.inside != count);
        assert_eq!(wait.unwrap().0.inside, count, "calls that have begun and not ended");
    }

    /// Waits until as many calls have begun since [`calls`](Self::calls) was asked.
    pub fn wait_calls(&self, count: usize) {
        let changed = &self.0.changed;
        let wait =
            changed.wait_timeout_while(self.lock(), PATIENCE, |state| state.calls.len() < count);
        assert_eq!(wait.unwrap().0.calls.len(), count, "calls that have begun");
    }

    /// Lets as many calls return although they are held.
    pub fn let_pass(&self, count: usize) {
        self.lock().passes += count;
        self.0.changed.notify_all();
    }

    /// The calls since the last time.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.lock().calls)
    }

    /// How many have this storage.
    pub fn owners(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Writes a call down.
    pub fn note(&self, call: Call) {
        self.lock().calls.push(call);
    }

    pub fn contents(&self) -> Vec<u8> {
        self.0.disk.contents()
    }

    fn enter(&self, call: Call) -> io::Result<()> {
        let mut state = self.lock();
        state.calls.push(call);
        state.inside += 1;
        self.0.changed.notify_all();
        let waits = |state: &mut State| state.held && state.passes == 0;
        let mut state = self.0.changed.wait_while(state, waits).unwrap();
        state.passes = state.passes.saturating_sub(1);
        state.inside -= 1;
        self.0.changed.notify_all();
        let fault = state.fault;
        drop(state);
        match fault {
            None => Ok(()),
            Some(Fault::Errno(number)) => Err(io::Error::from_raw_os_error(number)),
            // Without a message: the test wants it.
            Some(Fault::Panic) => std::panic::resume_unwind(Box::new("a fault")),
        }
    }
}

impl BlockBackend for Probe {
    fn size(&self) -> u64 {
        self.0.disk.size()
    }

    fn read(&self, offset: u64, into: Buffers<'_>) -> io::Result<()> {
        self.enter(Call::Read(offset, into.total()))?;
        self.0.disk.read(offset, into)
    }

    fn write(&self, offset: u64, from: Buffers<'_>) -> io::Result<()> {
        self.enter(Call::Write(offset, from.total()))?;
        self.0.disk.write(offset, from)
    }

    fn flush(&self) -> io::Result<()> {
        self.enter(Call::Flush)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.enter(Call::Discard(offset, len))?;
        let mut bytes = vec![DISCARDED; len as usize];
        self.0.disk.write(offset, BufferList::from(&mut bytes[..]).all())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.enter(Call::Zero(offset, len, unmap))?;
        self.0.disk.write_zeroes(offset, len, unmap)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.enter(Call::Resize(size))?;
        self.0.disk.resize(size)
    }

    fn properties(&self) -> Properties {
        self.0.properties.clone()
    }

    fn blocks(&self) -> bool {
        self.0.blocks
    }
}

/// A device without a thread: its calls are made by the test.
pub struct Bare {
    pub block: Block,
    pub ring: Ring,
    queues: [Option<Queue>; 1],
    memory: Arc<GuestMemoryMmap>,
    poll: mio::Poll,
}

impl Bare {
    /// A device with `features`, and one queue at the start of memory.
    pub fn new(disk: Disk, features: u64) -> Self {
        let ranges = RAM.map(|(start, len)| (GuestAddress(start), len));
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let layout = Layout { size: 256, descriptors: 0x1000, driver: 0x2000, device: 0x3000 };
        let ring = Ring::new(memory.clone(), 0, layout);
        let memory = Arc::new(memory);
        let queue = Queue::new(layout, 256, features, memory.clone()).unwrap();
        let block = Block::new(disk.queues(1).open().unwrap(), 1).unwrap();
        let poll = mio::Poll::new().unwrap();
        let mut bare = Self { block, ring, queues: [Some(queue)], memory, poll };
        bare.call(|block, cx| block.activate(features, cx)).unwrap();
        bare
    }

    /// Calls the device, and ends the turn of its queue; tells whether that wants another one.
    pub fn call(
        &mut self,
        call: impl FnOnce(&mut Block, &mut Context<'_>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let mut cx = Context {
            queues: &mut self.queues,
            memory: &self.memory,
            interrupt: &Nobody,
            registry: self.poll.registry(),
        };
        call(&mut self.block, &mut cx)?;
        Ok(self.queues[0].as_mut().is_some_and(|queue| queue.settle().again))
    }

    /// Gives the queue turns until it wants none.
    pub fn turns(&mut self) {
        while self.call(|block, cx| block.queue_ready(0, cx)).unwrap() {}
    }

    /// Makes a request of `out` and `room` bytes available, each from the start of a region of RAM on.
    pub fn offer(&mut self, out: &[u8], room: u32) -> u16 {
        let [at, back] = [0x1_0000, RAM[1].0];
        self.memory.write_slice(out, GuestAddress(at)).unwrap();
        self.ring.request(&[Buffer::Out(at, out.len() as u32), Buffer::In(back, room)])
    }

    /// Writes `bytes` to memory at `at`, and returns that.
    pub fn put(&self, at: u64, bytes: &[u8]) -> u64 {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        at
    }

    /// How many chains come back while the device is called about its host descriptors, until `count` have.
    pub fn collect(&mut self, count: usize) {
        let end = Instant::now() + PATIENCE;
        let mut got = 0;
        while got < count {
            assert!(Instant::now() < end, "{got} of {count} answers");
            let call = self.call(|block, cx| {
                block.collect(cx)?;
                block.work_stalled(cx)
            });
            if call.unwrap() {
                self.turns();
            }
            while self.ring.used().is_some() {
                got += 1;
            }
            std::thread::yield_now();
        }
    }

    /// Kicks the queue, and calls the device when its thread would, until `count` chains have come back.
    pub fn serve(&mut self, count: usize) {
        let end = Instant::now() + PATIENCE;
        let (mut again, mut got) = (true, 0);
        while got < count {
            assert!(Instant::now() < end, "{got} of {count} answers");
            again = if again {
                self.call(|block, cx| block.queue_ready(0, cx)).unwrap()
            } else if self.block.done.clear() {
                let event = HostEvent { source: DONE, readable: true, writable: false };
                self.call(|block, cx| block.host_ready(event, cx)).unwrap()
            } else {
                std::thread::yield_now();
                false
            };
            while self.ring.used().is_some() {
                got += 1;
            }
        }
    }
}
