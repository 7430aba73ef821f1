//! What a chain asks of a disk (§5.2.6): read once, checked, and turned into a request for the engine.
//!
//! The chain is 16 bytes of header and maybe data to be read, then maybe room for data and one byte for the status to be
//! written. The driver may cut these up as it likes. A chain that cannot hold header and status breaks the queue; all
//! else that is wrong with a request is answered in its status.

use virtio_bindings::virtio_blk::*;
use vm_memory::VolatileSlice;

use super::super::buffer::Reader;
use super::super::{Chain, Error};
use super::limits;
use crate::disk::{BufferList, Extent, Op, OpenDisk, Request, SECTOR};

/// The status of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    Failed,
    Unsupported,
}

impl Status {
    fn byte(self) -> u8 {
        match self {
            Self::Ok => VIRTIO_BLK_S_OK as u8,
            Self::Failed => VIRTIO_BLK_S_IOERR as u8,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
        }
    }
}

/// What a request has to keep to.
pub(super) struct Rules<'a> {
    /// Size of the disk.
    pub sectors: u64,
    pub read_only: bool,
    /// VIRTIO_BLK_F_DISCARD was negotiated.
    pub discard: bool,
    /// VIRTIO_BLK_F_WRITE_ZEROES was negotiated.
    pub write_zeroes: bool,
    pub serial: &'a str,
}

/// A chain that is being worked on.
#[derive(Debug)]
pub(super) struct Ticket {
    pub queue: u16,
    pub chain: Chain,
    /// Bytes that it counts as while it is under way.
    pub bytes: u64,
    /// How many bytes of its room are filled, from the start on, if all goes well.
    pub filled: u32,
}

impl Ticket {
    /// Writes the status, and returns the chain with how much of it counts as written: what was written without a
    /// gap (§2.7.8.2), so the status only if the room before it is full.
    pub fn close(self, status: Status) -> (Chain, u32) {
        let room = self.chain.writable_len();
        if let Some(last) = room.checked_sub(1)
            && let Some(mut place) = self.chain.writer().split_off(last as usize)
        {
            place.write(&[status.byte()]);
        }
        let filled = if status == Status::Ok { self.filled } else { 0 };
        let written = if filled + 1 >= room { room } else { filled };
        (self.chain, written)
    }
}

/// What there is to do for a chain.
pub(super) enum Parsed {
    /// Something for the engine.
    Request(Request<Ticket>),
    /// Nothing but to answer.
    Answer(Ticket, Status),
}

/// Finds out what a chain of queue `queue` asks for.
pub(super) fn parse(
    queue: u16,
    chain: Chain,
    rules: &Rules<'_>,
    room: BufferList<'static>,
) -> Result<Parsed, Error> {
    let mut header = [0; 16];
    let mut data = chain.reader();
    if data.read(&mut header) < header.len() {
        return Err(Error::Driver("a request is shorter than its header"));
    }
    let Some(space) = chain.writable_len().checked_sub(1) else {
        return Err(Error::Driver("a request has no room for its status"));
    };
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let mut filled = 0;
    let op = match u32::from_le_bytes([a, b, c, d]) {
        VIRTIO_BLK_T_IN => rules.range(sector, space.into()).map(|offset| Op::Read { offset }),
        VIRTIO_BLK_T_OUT if rules.read_only => Err(Status::Failed),
        VIRTIO_BLK_T_OUT => {
            let len = data.remaining() as u64;
            rules.range(sector, len).map(|offset| Op::Write { offset })
        }
        VIRTIO_BLK_T_FLUSH if rules.read_only => Err(Status::Ok),
        VIRTIO_BLK_T_FLUSH => Ok(Op::Flush),
        VIRTIO_BLK_T_GET_ID => {
            filled = identify(&chain, space as usize, rules.serial);
            Err(Status::Ok)
        }
        VIRTIO_BLK_T_DISCARD if rules.discard => {
            rules.extents(&mut data, limits::DISCARD, 0).map(Op::Discard)
        }
        VIRTIO_BLK_T_WRITE_ZEROES if rules.write_zeroes => {
            let flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            rules.extents(&mut data, limits::WRITE_ZEROES, flags).map(Op::WriteZeroes)
        }
        _ => Err(Status::Unsupported),
    };
    let ticket = |chain, bytes, filled| Ticket { queue, chain, bytes, filled };
    let op = match op {
        Ok(op) => op,
        Err(status) => return Ok(Parsed::Answer(ticket(chain, 0, filled), status)),
    };
    let mut buffers = room;
    match op {
        Op::Read { .. } => {
            filled = space;
            let mut writer = chain.writer();
            let mut left = space as usize;
            let next = || {
                let slice = writer.next_slice(left)?;
                left -= slice.len();
                Some(slice)
            };
            // SAFETY: the buffers are in the chain, which goes with them.
            unsafe { collect(&mut buffers, next) };
        }
        Op::Write { .. } => {
            // SAFETY: as above.
            unsafe { collect(&mut buffers, || data.next_slice(usize::MAX)) };
        }
        _ => {}
    }
    let bytes = buffers.all().total() as u64;
    match op {
        Op::Read { .. } | Op::Write { .. } if bytes == 0 => {
            Ok(Parsed::Answer(ticket(chain, 0, filled), Status::Ok))
        }
        _ => Ok(Parsed::Request(Request { op, buffers, token: ticket(chain, bytes, filled) })),
    }
}

/// Adds what `next` gives to `buffers`.
///
/// # Safety
///
/// The memory lives as long as `buffers` are used.
unsafe fn collect<'a>(
    buffers: &mut BufferList<'static>,
    mut next: impl FnMut() -> Option<VolatileSlice<'a>>,
) {
    while let Some(slice) = next() {
        // SAFETY: the caller answers for the longer life.
        let slice = unsafe { VolatileSlice::new(slice.ptr_guard_mut().as_ptr(), slice.len()) };
        buffers.push(slice);
    }
}

/// VIRTIO_BLK_T_GET_ID: the serial number, with zeros behind it. Returns how many bytes there was room for.
fn identify(chain: &Chain, space: usize, serial: &str) -> u32 {
    let mut id = [0; OpenDisk::SERIAL];
    for (to, from) in id.iter_mut().zip(serial.bytes()) {
        *to = from;
    }
    let mut writer = chain.writer();
    let _status = writer.split_off(space);
    writer.write(&id);
    writer.written()
}

impl Rules<'_> {
    /// Where `len` bytes from `sector` on begin, if they are whole sectors of the disk.
    fn range(&self, sector: u64, len: u64) -> Result<u64, Status> {
        let end = sector.checked_add(len / SECTOR);
        if !len.is_multiple_of(SECTOR) || end.is_none_or(|end| end > self.sectors) {
            return Err(Status::Failed);
        }
        // No overflow: the size of the disk in bytes is a 64-bit number.
        Ok(sector * SECTOR)
    }

    /// The extents that a request to discard or zero lists (struct virtio_blk_discard_write_zeroes): no more than the
    /// limits allow, no flags but `flags`.
    fn extents(
        &self,
        data: &mut Reader<'_>,
        limit: limits::Extents,
        flags: u32,
    ) -> Result<Vec<Extent>, Status> {
        const ENTRY: usize = 16;
        let count = data.remaining() / ENTRY;
        if count == 0 || count > limit.count || !data.remaining().is_multiple_of(ENTRY) {
            return Err(Status::Failed);
        }
        let mut extents = Vec::with_capacity(count);
        let mut entry = [0; ENTRY];
        while data.read(&mut entry) == ENTRY {
            let [sector @ .., _, _, _, _, _, _, _, _] = entry;
            let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h] = entry;
            let set = u32::from_le_bytes([e, f, g, h]);
            if set & !flags != 0 {
                return Err(Status::Unsupported);
            }
            let sectors = u32::from_le_bytes([a, b, c, d]);
            if sectors > limit.sectors {
                return Err(Status::Failed);
            }
            let len = u64::from(sectors) * SECTOR;
            let offset = self.range(u64::from_le_bytes(sector), len)?;
            let unmap = set & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
            extents.push(Extent { offset, len, unmap });
        }
        if self.read_only { Err(Status::Failed) } else { Ok(extents) }
    }
}
