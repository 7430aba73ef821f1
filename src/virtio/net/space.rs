//! Room for frames to be received: chains that were taken from a receive queue, and are kept until they are filled.
//!
//! Nobody knows how long the next frame is. Where a frame may be spread over several buffers, there has to be room
//! for the largest before one is asked for: with large packets that is 40 chains of the usual size. They are kept from
//! one frame to the next and from one turn to the next, as is the list of the memory in them; a frame costs what its own
//! chains cost. A pause gives them all back.
//!
//! A driver that has given all its buffers may not have given that much, and may give no more until it gets a frame. Then
//! frames go through a buffer of our own, and one that is too large for the room that there is waits there: for more
//! room, and not for ever.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use super::super::{Chain, Error, Queue};
use super::header::{BEFORE, LONGEST};
use crate::memory::{BufferList, Buffers};
use crate::net::{Header, MacAddr};

/// Pieces of memory for one frame. System calls take 1024.
const PIECES: usize = 512;

/// How long a frame waits for room that the driver does not give.
const PATIENCE: Duration = Duration::from_millis(100);

/// Chains of one receive queue.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// In the order in which they were taken.
    chains: VecDeque<Chain>,
    /// All memory of `chains`, without what goes before a frame in the first one.
    list: BufferList<'static>,
    /// Bytes in `list`.
    room: usize,
    /// Where frames go when there may be too little room; empty until there is.
    bounce: Vec<u8>,
    /// A frame that is in there.
    waiting: Option<Waiting>,
}

/// A frame that there is no room for.
#[derive(Debug)]
struct Waiting {
    header: Header,
    len: usize,
    until: Instant,
}

/// How much room there has to be for the next frame.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    /// One chain, whatever it has room for.
    Chain,
    /// The largest frame that may come, and the largest that is not a large packet.
    Bytes { largest: usize, usual: usize },
}

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// For any frame that may come, or for one chain's worth where frames are not spread.
    Enough,
    /// For any but large packets.
    Little,
    /// Too little. The driver kicks when it has given more, or the queue gets another turn.
    None,
}

impl Space {
    /// Takes chains until there is room for the next frame, or no more of them.
    pub fn fill(&mut self, queue: &mut Queue, wanted: Wanted) -> Result<Room, Error> {
        let (largest, usual) = match wanted {
            Wanted::Chain => (1, 1),
            Wanted::Bytes { largest, usual } => (largest, usual),
        };
        if let Wanted::Chain = wanted
            && !self.chains.is_empty()
        {
            return Ok(Room::Enough);
        }
        while self.room < largest && self.pieces() < PIECES {
            let Some(chain) = queue.pop()? else { break };
            self.add(chain)?;
            if let Wanted::Chain = wanted {
                // Even if it has room for nothing but what goes before a frame.
                return Ok(Room::Enough);
            }
        }
        Ok(match self.room {
            room if room >= largest => Room::Enough,
            room if room >= usual || self.pieces() >= PIECES => Room::Little,
            _ => Room::None,
        })
    }

    fn pieces(&self) -> usize {
        self.list.all().iovecs().len()
    }

    fn add(&mut self, chain: Chain) -> Result<(), Error> {
        let mut writer = chain.writer();
        // Any chain may become the first of a frame.
        if writer.remaining() < BEFORE {
            return Err(Error::Driver("a receive buffer is shorter than a header"));
        }
        if self.chains.is_empty() {
            let Some(frame) = writer.split_off(BEFORE) else { return Ok(()) };
            writer = frame;
        }
        self.room += writer.remaining();
        while let Some(slice) = writer.next_slice(usize::MAX) {
            // SAFETY: the memory lives as long as the chain, and `list` has it as long as `chains` has the chain.
            let slice = unsafe {
                vm_memory::VolatileSlice::new(slice.ptr_guard_mut().as_ptr(), slice.len())
            };
            self.list.push(slice);
        }
        self.chains.push_back(chain);
        Ok(())
    }

    /// Has `receive` put the next frame where there is room for it. Returns how long it is, and whom it is for.
    pub fn receive(
        &mut self,
        room: Room,
        receive: impl FnOnce(Buffers<'_>) -> io::Result<usize>,
    ) -> io::Result<(usize, MacAddr)> {
        let bounce;
        let (frame, most) = match room {
            Room::Enough => (self.list.all(), self.room),
            Room::Little => {
                self.bounce.resize(LONGEST, 0);
                bounce = BufferList::from(&mut self.bounce[..]);
                (bounce.all(), LONGEST)
            }
            Room::None => return Err(io::ErrorKind::WouldBlock.into()),
        };
        let len = receive(frame)?;
        if len > most {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((len, destination(frame)))
    }

    /// Gives the driver the frame that was received, or keeps it until there is room. Tells whether there is.
    pub fn give(
        &mut self,
        queue: &mut Queue,
        room: Room,
        header: Header,
        len: usize,
    ) -> Result<bool, Error> {
        if room == Room::Little {
            self.waiting = Some(Waiting { header, len, until: Instant::now() + PATIENCE });
            return Ok(self.give_waiting(queue)?.is_some());
        }
        self.push(queue, &header, len)?;
        Ok(true)
    }

    /// Whether a frame waits for room.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Gives the driver the frame that waits, if there is room for it by now; tells how long it is.
    pub fn give_waiting(&mut self, queue: &mut Queue) -> Result<Option<usize>, Error> {
        let Some(Waiting { header, len, .. }) =
            self.waiting.take_if(|waiting| waiting.len <= self.room)
        else {
            return Ok(None);
        };
        self.list.all().fill_from(self.bounce.get(..len).unwrap_or_default());
        self.push(queue, &header, len)?;
        Ok(Some(len))
    }

    /// Until when a frame waits.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|waiting| waiting.until)
    }

    /// Loses a frame that has waited long enough, and tells whether there was one.
    pub fn give_up(&mut self, now: Instant) -> bool {
        self.waiting.take_if(|waiting| waiting.until <= now).is_some()
    }

    /// Gives the driver the frame that is at the start of the memory, `len` bytes long, no more than there is room
    /// for.
    fn push(&mut self, queue: &mut Queue, header: &Header, len: usize) -> Result<(), Error> {
        let (mut chains, mut covered) = (0_u16, 0);
        for chain in &self.chains {
            chains += 1;
            covered += chain.writable_len() as usize;
            if covered >= len + BEFORE {
                break;
            }
        }
        self.advance(covered.saturating_sub(BEFORE));
        if let Some(first) = self.chains.front() {
            let mut before = [0; BEFORE];
            let (fields, count) = before.split_at_mut(Header::LEN);
            fields.copy_from_slice(&header.to_bytes());
            count.copy_from_slice(&chains.to_le_bytes());
            first.writer().write(&before);
        }
        let mut left = len + BEFORE;
        for n in 1..=chains {
            let Some(chain) = self.chains.pop_front() else { break };
            let written = left.min(chain.writable_len() as usize);
            left -= written;
            // The driver must not see the first chains of a frame without the last.
            match n == chains {
                true => queue.push(chain, written as u32)?,
                false => queue.push_ahead(chain, written as u32)?,
            }
        }
        if !self.chains.is_empty() {
            self.advance(BEFORE);
        }
        Ok(())
    }

    fn advance(&mut self, count: usize) {
        self.list.advance(count);
        self.room -= count;
    }

    /// Gives everything back to the queue that it came from, if that is still there.
    pub fn put_back(&mut self, queue: Option<&mut Queue>) -> Result<(), Error> {
        self.forget_memory();
        if let Some(queue) = queue {
            while let Some(chain) = self.chains.pop_back() {
                queue.put_back(chain)?;
            }
        }
        self.chains.clear();
        Ok(())
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.forget_memory();
        self.chains.clear();
        self.waiting = None;
    }

    fn forget_memory(&mut self) {
        self.list = std::mem::take(&mut self.list).recycle();
        self.room = 0;
    }
}

/// Whom a frame is for.
fn destination(frame: Buffers<'_>) -> MacAddr {
    let mut address = [0; 6];
    let mut rest = &mut address[..];
    for slice in frame.slices() {
        let count = slice.copy_to(rest);
        rest = rest.get_mut(count..).unwrap_or_default();
        if rest.is_empty() {
            break;
        }
    }
    MacAddr(address)
}
