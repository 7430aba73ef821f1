//! A split virtqueue (§2.7), as the device that owns it sees it.
//!
//! The rings lie in guest memory and the guest may write anything there at any time. So the places are checked as a
//! whole before the queue exists, every index and descriptor is read once and the copy is checked, walks have a
//! bound, and a head cannot be in flight twice. The first thing that is wrong ends the queue with an [`Error`]; the
//! device then waits for a reset.
//!
//! The bookkeeping of notifications is done in here, so that no device can get it wrong: an empty queue asks to be
//! kicked before [`pop`](Queue::pop) says so; a queue with more work than one turn allows says it through
//! [`settle`](Queue::settle), and gets another turn.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as RingError, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::chain::{Chain, Segment, Table};
use super::feature;

/// Chains longer than this are rare; their room is given back rather than kept.
const KEEP_SEGMENTS: usize = 64;

/// What the driver did wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The queue size is no power of two, zero, or too large.
    #[error("queue size {size} is no power of two up to {max}")]
    Size {
        /// What the driver chose.
        size: u32,
        /// What the device allows.
        max: u16,
    },
    /// A part of the queue was never given an address.
    #[error("the {part} has no address")]
    NoAddress {
        /// Which part.
        part: &'static str,
    },
    /// A part of the queue is not aligned as §2.7 demands.
    #[error("the {part} at {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which part.
        part: &'static str,
        /// Where it is.
        addr: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// A part of the queue does not lie in one piece of RAM.
    #[error("the {part} at {addr:#x}, {len} bytes, is not in RAM")]
    RingOutsideRam {
        /// Which part.
        part: &'static str,
        /// Where it is.
        addr: u64,
        /// How long it is.
        len: usize,
    },
    /// The available index went further than the queue is long.
    #[error("the available index is more than {size} ahead")]
    AvailableIndex {
        /// The size of the queue.
        size: u16,
    },
    /// A descriptor index is not in its table.
    #[error("descriptor {index} is not in its table of {size}")]
    Index {
        /// The index.
        index: u16,
        /// The size of the table.
        size: u16,
    },
    /// A chain was made available again before it was used.
    #[error("chain {head} is in flight already")]
    InFlight {
        /// The first descriptor of the chain.
        head: u16,
    },
    /// A chain loops, or is longer than the queue may be.
    #[error("chain {head} has more than {max} descriptors")]
    TooManyDescriptors {
        /// The first descriptor of the chain.
        head: u16,
        /// The largest number allowed.
        max: u16,
    },
    /// A chain has more than 2³² bytes (§2.7.4.2).
    #[error("chain {head} has more than 4 GiB")]
    TooManyBytes {
        /// The first descriptor of the chain.
        head: u16,
    },
    /// An indirect table where there can be none (§2.7.5.3.1).
    #[error("chain {head} has an indirect descriptor {why}")]
    Indirect {
        /// The first descriptor of the chain.
        head: u16,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A buffer does not lie in RAM.
    #[error("chain {head} has a buffer at {addr:#x}, {len} bytes, which is not in RAM")]
    BufferOutsideRam {
        /// The first descriptor of the chain.
        head: u16,
        /// Where the buffer is.
        addr: u64,
        /// How long it is.
        len: u32,
    },
    /// A buffer for the device to read comes after one for it to write (§2.7.4.2).
    #[error("chain {head} has a readable buffer behind a writable one")]
    Order {
        /// The first descriptor of the chain.
        head: u16,
    },
    /// The device returned a chain that is not in flight.
    #[error("chain {head} was returned but is not in flight")]
    NotInFlight {
        /// The first descriptor of the chain.
        head: u16,
    },
    /// The rings could not be read or written although they were checked.
    #[error("{0}")]
    Ring(RingError),
}

/// Where the driver put a queue, and how long it made it: what it wrote, unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layout {
    /// Number of descriptors.
    pub size: u32,
    /// Descriptor table.
    pub descriptors: u64,
    /// Driver area: the available ring.
    pub driver: u64,
    /// Device area: the used ring.
    pub device: u64,
}

/// What a queue wants after its device has worked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Settled {
    /// The driver waits for an interrupt.
    pub interrupt: bool,
    /// The turn ended with work left.
    pub again: bool,
}

/// A split virtqueue.
pub struct Queue {
    ring: virtio_queue::Queue,
    memory: Arc<GuestMemoryMmap>,
    /// The longest chain allowed: the size that the device offered, because Linux makes indirect chains for that
    /// even where it chose a shorter ring.
    longest: u16,
    indirect: bool,
    /// One bit per descriptor: the head of a chain that was popped and not pushed.
    in_flight: Box<[u64]>,
    spare: Vec<Vec<Segment>>,
    /// Chains left in this turn.
    budget: u16,
    /// `pop` found the turn over.
    again: bool,
    /// Something was pushed since the last `settle`.
    pushed: bool,
    /// VIRTQ_USED_F_NO_NOTIFY is set.
    kicks_off: bool,
}

impl Queue {
    /// The queue that the driver laid out, if it can be one. `features` are those negotiated, `max` is the size the
    /// device offered.
    pub fn new(
        layout: Layout,
        max: u16,
        features: u64,
        memory: Arc<GuestMemoryMmap>,
    ) -> Result<Self, Error> {
        let Layout { size, descriptors, driver, device } = layout;
        let size = match u16::try_from(size) {
            Ok(small) if small.is_power_of_two() && small <= max => small,
            _ => return Err(Error::Size { size, max }),
        };
        let n = usize::from(size);
        let check = |part: &'static str, addr: u64, align: u64, len: usize| {
            if addr == 0 {
                return Err(Error::NoAddress { part });
            }
            if !addr.is_multiple_of(align) {
                return Err(Error::Misaligned { part, addr, align });
            }
            match memory.get_slice(GuestAddress(addr), len) {
                Ok(_) => Ok(GuestAddress(addr)),
                Err(_) => Err(Error::RingOutsideRam { part, addr, len }),
            }
        };
        let descriptors = check("descriptor table", descriptors, 16, 16 * n)?;
        let driver = check("available ring", driver, 2, 6 + 2 * n)?;
        let device = check("used ring", device, 4, 6 + 8 * n)?;

        let mut ring = virtio_queue::Queue::new(size).map_err(Error::Ring)?;
        ring.try_set_desc_table_address(descriptors).map_err(Error::Ring)?;
        ring.try_set_avail_ring_address(driver).map_err(Error::Ring)?;
        ring.try_set_used_ring_address(device).map_err(Error::Ring)?;
        ring.set_event_idx(features & feature::EVENT_IDX != 0);
        ring.set_ready(true);
        Ok(Self {
            ring,
            memory,
            longest: max.max(size),
            indirect: features & feature::INDIRECT_DESC != 0,
            in_flight: vec![0; n.div_ceil(64)].into(),
            spare: Vec::new(),
            budget: size,
            again: false,
            pushed: false,
            kicks_off: false,
        })
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Takes the next chain the driver made available. It is in flight until it is given to [`push`](Self::push) or
    /// [`put_back`](Self::put_back).
    ///
    /// `None` means that there is nothing to do: either the queue is empty, and the driver will kick; or this turn is
    /// over, and the device's `queue_ready` will be called again.
    pub fn pop(&mut self) -> Result<Option<Chain>, Error> {
        if self.budget == 0 {
            self.again = true;
            return Ok(None);
        }
        let Some(head) = self.next_head()? else {
            return Ok(None);
        };
        self.budget -= 1;
        let size = self.size();
        let (word, bit) = self.bit(head).ok_or(Error::Index { index: head, size })?;
        if *word & bit != 0 {
            return Err(Error::InFlight { head });
        }
        *word |= bit;

        let mut chain = Chain::new(head, self.spare.pop().unwrap_or_default());
        let table = self
            .memory
            .get_slice(GuestAddress(self.ring.desc_table()), 16 * usize::from(size))
            .map_err(|_| Error::Index { index: head, size })?;
        let table = Table { entries: table, size };
        chain.walk(table, &self.memory, self.longest, self.indirect)?;
        Ok(Some(chain))
    }

    /// Returns a chain into which `written` bytes were written from its start on.
    ///
    /// The driver hears of it at the end of the turn, together with whatever else was pushed in it.
    pub fn push(&mut self, chain: Chain, written: u32) -> Result<(), Error> {
        let head = chain.head();
        let written = written.min(chain.writable_len());
        self.land(chain)?;
        self.pushed = true;
        self.ring.add_used(&*self.memory, head, written).map_err(Error::Ring)
    }

    /// Undoes the last [`pop`](Self::pop): the next one returns the chain again. Several chains are put back in the
    /// reverse of the order in which they were popped.
    pub fn put_back(&mut self, chain: Chain) -> Result<(), Error> {
        self.land(chain)?;
        self.ring.go_to_previous_position();
        self.budget = self.budget.saturating_add(1);
        Ok(())
    }

    /// Ends a turn: allows the next one as many chains as the queue has, and tells what has to be done now.
    pub(crate) fn settle(&mut self) -> Result<Settled, Error> {
        self.budget = self.size();
        let again = std::mem::take(&mut self.again);
        let interrupt = std::mem::take(&mut self.pushed) && self.wants_interrupt()?;
        Ok(Settled { interrupt, again })
    }

    fn wants_interrupt(&mut self) -> Result<bool, Error> {
        // The fence in here orders what was pushed before what is read.
        if !self.ring.needs_notification(&*self.memory).map_err(Error::Ring)? {
            return Ok(false);
        }
        if self.ring.event_idx_enabled() {
            return Ok(true);
        }
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.ring.avail_ring()), Ordering::Relaxed)
            .map_err(|error| Error::Ring(RingError::GuestMemory(error)))?;
        Ok(u16::from_le(flags) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }

    /// The head of the next available chain. Where there is none, the driver is asked to kick.
    fn next_head(&mut self) -> Result<Option<u16>, Error> {
        if let Some(head) = self.available()? {
            if !self.kicks_off && !self.ring.event_idx_enabled() {
                self.ring.disable_notification(&*self.memory).map_err(Error::Ring)?;
                self.kicks_off = true;
            }
            return Ok(Some(head));
        }
        self.kicks_off = false;
        if self.ring.enable_notification(&*self.memory).map_err(Error::Ring)? {
            // A chain came between the look and the request to be kicked.
            return self.available();
        }
        Ok(None)
    }

    fn available(&mut self) -> Result<Option<u16>, Error> {
        let size = self.ring.size();
        match self.ring.iter(&*self.memory) {
            Ok(mut chains) => Ok(chains.next().map(|chain| chain.head_index())),
            Err(RingError::InvalidAvailRingIndex) => Err(Error::AvailableIndex { size }),
            Err(error) => Err(Error::Ring(error)),
        }
    }

    /// Ends the flight of a chain.
    fn land(&mut self, chain: Chain) -> Result<(), Error> {
        let head = chain.head();
        match self.bit(head) {
            Some((word, bit)) if *word & bit != 0 => *word &= !bit,
            _ => return Err(Error::NotInFlight { head }),
        }
        let segments = chain.into_segments();
        if segments.capacity() <= KEEP_SEGMENTS {
            self.spare.push(segments);
        }
        Ok(())
    }

    fn bit(&mut self, head: u16) -> Option<(&mut u64, u64)> {
        let word = (head < self.ring.size()).then(|| usize::from(head / 64))?;
        self.in_flight.get_mut(word).map(|word| (word, 1 << (head % 64)))
    }
}
