//! The messages of 9P2000.L, as bytes.
//!
//! Every message is `size[4] type[1] tag[2]` and what its type has, in little-endian order. The types are those of
//! Plan 9's manual (section 5), of the 9P2000.u draft (Tattach), and of diod's protocol.md for what Linux has added;
//! 9P2000.L has no Topen, Tcreate, Tstat or Twstat.
//!
//! What is decoded is a copy that the guest cannot change, and what is encoded is one before the guest sees it. The
//! data of Tread and Twrite is not looked at here.

mod errno;
mod kind;
mod reply;
mod request;
#[cfg(test)]
pub(in crate::fs) mod testing;
#[cfg(test)]
mod tests;

pub(in crate::fs) use super::envelope::{HEADER, Header, WRITE_HEADER, rlerror};
pub(in crate::fs) use errno::Errno;
pub(in crate::fs) use kind::Kind;
pub(in crate::fs) use reply::Reply;
pub(in crate::fs) use request::{Lock, MOST_BYTES, Names, Request};

/// What a fid that stands for none is (P9_NOFID).
pub(in crate::fs) const NO_FID: u32 = u32::MAX;

/// The tag of Tversion, which comes before all others (P9_NOTAG).
pub(in crate::fs) const NO_TAG: u16 = u16::MAX;

/// Bytes in front of the data of Rread and Rreaddir: header and count.
pub(in crate::fs) const READ_HEADER: usize = HEADER + 4;

/// Bytes of Rlerror, the shortest answer there can be to everything.
pub(in crate::fs) const ERROR_LEN: usize = HEADER + 4;

/// Most names in a Twalk (P9_MAXWELEM).
pub(in crate::fs) const MOST_NAMES: usize = 16;

/// Fields of a message, from first to last. Whatever is missing is an error.
#[derive(Debug, Clone, Copy)]
pub(in crate::fs) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Errno::PROTO)?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, Errno> {
        self.take().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Result<u16, Errno> {
        self.take().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.take().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.take().map(u64::from_le_bytes)
    }

    pub fn string(&mut self) -> Result<&'a [u8], Errno> {
        let len = self.u16()?;
        let (head, rest) = self.0.split_at_checked(len.into()).ok_or(Errno::PROTO)?;
        self.0 = rest;
        Ok(head)
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// There must be no more.
    pub fn end(self) -> Result<(), Errno> {
        if self.0.is_empty() { Ok(()) } else { Err(Errno::PROTO) }
    }
}
