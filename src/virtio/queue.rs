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

use vm_memory::GuestMemoryMmap;

use super::chain::{Chain, Limits};
use super::feature;
use super::ram::Piece;
use super::ring::Rings;

/// Chains with more pieces than this are rare; their room is given back rather than kept.
const KEEP: usize = 64;

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
        size: usize,
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
    /// An indirect table where there can be none, or that can be none (§2.7.5.3.1).
    #[error("chain {head} has an indirect table {why}")]
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
pub struct Settled {
    /// The driver waits for an interrupt.
    pub interrupt: bool,
    /// The turn ended with work left.
    pub again: bool,
}

/// A split virtqueue.
pub struct Queue {
    rings: Rings,
    limits: Limits,
    /// One bit per descriptor: the head of a chain that was popped and not pushed.
    in_flight: Box<[u64]>,
    /// Room for chains to come.
    spare: Vec<Vec<Piece>>,
    /// Chains left in this turn.
    budget: u16,
    /// `pop` found the turn over.
    again: bool,
    /// Something was pushed since the last `settle`.
    pushed: bool,
    /// The driver was asked not to kick.
    busy: bool,
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
        let event_idx = features & feature::EVENT_IDX != 0;
        let rings = Rings::new(layout, max, event_idx, memory)?;
        let size = rings.size();
        Ok(Self {
            rings,
            limits: Limits {
                // Not the size the driver chose: where that is less, Linux still makes indirect chains as long as it
                // was offered.
                longest: max,
                indirect: features & feature::INDIRECT_DESC != 0,
            },
            in_flight: vec![0; usize::from(size).div_ceil(64)].into(),
            spare: Vec::new(),
            budget: size,
            again: false,
            pushed: false,
            busy: false,
        })
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.rings.size()
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
        let Some(head) = self.take()? else {
            return Ok(None);
        };
        self.budget -= 1;
        let size = self.size();
        let (word, bit) = self.bit(head).ok_or(Error::Index { index: head, size: size.into() })?;
        if *word & bit != 0 {
            return Err(Error::InFlight { head });
        }
        *word |= bit;
        let room = self.spare.pop().unwrap_or_default();
        let rings = &self.rings;
        Chain::walk(head, rings.descriptors(), self.limits, rings.ram(), room).map(Some)
    }

    /// Returns a chain into which `written` bytes were written from its start on.
    ///
    /// The driver hears of it at the end of the turn, together with whatever else was pushed in it.
    pub fn push(&mut self, chain: Chain, written: u32) -> Result<(), Error> {
        let head = chain.head();
        let written = written.min(chain.writable_len());
        self.land(chain)?;
        self.rings.put_used(head, written);
        self.pushed = true;
        Ok(())
    }

    /// As [`push`](Self::push), but the driver does not see the chain before the next one is pushed: for what is spread
    /// over several chains and must not be seen in part.
    pub fn push_ahead(&mut self, chain: Chain, written: u32) -> Result<(), Error> {
        let head = chain.head();
        let written = written.min(chain.writable_len());
        self.land(chain)?;
        self.rings.fill_used(head, written);
        Ok(())
    }

    /// Undoes the last [`pop`](Self::pop): the next one returns the chain again. Several chains are put back in the
    /// reverse of the order in which they were popped.
    pub fn put_back(&mut self, chain: Chain) -> Result<(), Error> {
        self.land(chain)?;
        self.rings.untake();
        self.budget = self.budget.saturating_add(1);
        Ok(())
    }

    /// Ends this turn early: what is pushed is told to the driver now, and the device's `queue_ready` is called again.
    pub fn end_turn(&mut self) {
        self.again = true;
    }

    /// Ends a turn: allows the next one as many chains as the queue has, and tells what has to be done now. A device on
    /// its thread has this done for it after every call.
    pub fn settle(&mut self) -> Settled {
        self.budget = self.size();
        Settled {
            interrupt: std::mem::take(&mut self.pushed) && self.rings.wants_interrupt(),
            again: std::mem::take(&mut self.again),
        }
    }

    /// The head of the next available chain. Where there is none, the driver is asked to kick.
    fn take(&mut self) -> Result<Option<u16>, Error> {
        let head = self.rings.take()?;
        if head.is_some() {
            if !self.busy {
                self.rings.disable_kicks();
                self.busy = true;
            }
            return Ok(head);
        }
        self.busy = false;
        match self.rings.enable_kicks()? {
            true => self.rings.take(),
            false => Ok(None),
        }
    }

    /// Ends the flight of a chain.
    fn land(&mut self, chain: Chain) -> Result<(), Error> {
        let head = chain.head();
        match self.bit(head) {
            Some((word, bit)) if *word & bit != 0 => *word &= !bit,
            _ => return Err(Error::NotInFlight { head }),
        }
        let room = chain.into_room();
        if room.capacity() <= KEEP {
            self.spare.push(room);
        }
        Ok(())
    }

    fn bit(&mut self, head: u16) -> Option<(&mut u64, u64)> {
        let word = (head < self.size()).then_some(usize::from(head / 64))?;
        self.in_flight.get_mut(word).map(|word| (word, 1 << (head % 64)))
    }
}
