//! Room for frames to be received: chains that were taken from a receive queue, and are kept until they are filled.
//!
//! Nobody knows how long the next frame is. Where a frame may be spread over several buffers, there has to be room
//! for the largest before one is asked for: with large packets that is 40 chains of the usual size. They are kept from
//! one frame to the next and from one turn to the next, as is the list of the memory in them; a frame costs what its own
//! chains cost. A pause gives them all back.

use std::collections::VecDeque;

use super::super::{Chain, Error, Queue};
use super::header::BEFORE;
use crate::memory::{BufferList, Buffers};
use crate::net::Header;

/// Pieces of memory for one frame. System calls take 1024.
const PIECES: usize = 512;

/// Chains of one receive queue.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// In the order in which they were taken.
    chains: VecDeque<Chain>,
    /// All memory of `chains`, without what goes before a frame in the first one.
    list: BufferList<'static>,
    /// Bytes in `list`.
    room: usize,
    /// The most room that the driver has ever given.
    most: usize,
}

/// How much room there has to be for the next frame.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    /// One chain, whatever it has room for.
    Chain,
    /// The largest frame that may come, and the largest that is not a large packet.
    Bytes { largest: usize, usual: usize },
}

impl Space {
    /// Takes chains until there is room for the next frame, and tells whether there is. If not, the driver kicks when it
    /// has given more, or the queue gets another turn.
    ///
    /// A driver whose buffers together are smaller than the largest frame gets the frames that fit, and loses the
    /// others. It is recognised by never having given more.
    pub fn fill(&mut self, queue: &mut Queue, wanted: Wanted) -> Result<bool, Error> {
        match wanted {
            Wanted::Chain => {
                while self.chains.is_empty() {
                    let Some(chain) = queue.pop()? else { return Ok(false) };
                    self.add(chain)?;
                }
                Ok(true)
            }
            Wanted::Bytes { largest, usual } => {
                while self.room < largest && self.pieces() < PIECES {
                    let Some(chain) = queue.pop()? else { break };
                    self.add(chain)?;
                }
                self.most = self.most.max(self.room);
                Ok(self.room >= largest.min(self.most.max(usual)) || self.pieces() >= PIECES)
            }
        }
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

    /// The memory that the next frame goes to.
    pub fn frame(&self) -> Buffers<'_> {
        self.list.all()
    }

    /// Bytes of it.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Gives the driver the frame that is at the start of the memory, `len` bytes long, no more than there is room
    /// for.
    pub fn push(&mut self, queue: &mut Queue, header: &Header, len: usize) -> Result<(), Error> {
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
        self.most = 0;
    }

    fn forget_memory(&mut self) {
        self.list = std::mem::take(&mut self.list).recycle();
        self.room = 0;
    }
}
