//! What every message of every dialect of 9P begins with: its size, its type and its tag (intro(5) of Plan 9's manual).
//!
//! It is all that a device has to know to bring requests and replies together. What is in the messages is known to the
//! [server](super::server), and to nobody where another process answers.

use crate::virtio::Chain;

/// Bytes of size, type and tag.
pub(crate) const HEADER: usize = 7;
/// Bytes in front of the data of a write: `size[4] Twrite tag[2] fid[4] offset[8] count[4]`.
pub(crate) const WRITE_HEADER: usize = HEADER + 16;

/// Rlerror, which 9P2000.L has in place of [`RERROR`].
pub(crate) const RLERROR: u8 = 7;
pub(crate) const TVERSION: u8 = 100;
pub(crate) const RVERSION: u8 = 101;
pub(crate) const RERROR: u8 = 107;
pub(crate) const TFLUSH: u8 = 108;
pub(crate) const RFLUSH: u8 = 109;
pub(crate) const TWRITE: u8 = 118;

/// Linux's number of "Input/output error".
pub(crate) const EIO: u32 = 5;

/// The beginning of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of the message, these included; what its sender says.
    pub size: u32,
    pub kind: u8,
    pub tag: u16,
}

impl Header {
    pub fn decode(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, d, kind, e, f] = bytes;
        Self { size: u32::from_le_bytes([a, b, c, d]), kind, tag: u16::from_le_bytes([e, f]) }
    }

    pub fn encode(self) -> [u8; HEADER] {
        let [a, b, c, d] = self.size.to_le_bytes();
        let [e, f] = self.tag.to_le_bytes();
        [a, b, c, d, self.kind, e, f]
    }

    /// How long a message is that begins with `start`, of which there are `sent` bytes. Linux before 5.1 does not count
    /// the data of a write that is in buffers of its own.
    pub fn length(self, start: &[u8; WRITE_HEADER], sent: usize) -> u32 {
        let [.., a, b, c, d] = *start;
        if self.kind != TWRITE || self.size as usize != WRITE_HEADER {
            return self.size;
        }
        match self.size.checked_add(u32::from_le_bytes([a, b, c, d])) {
            Some(size) if size as usize == sent => size,
            _ => self.size,
        }
    }

    /// The header of the request in a chain, if there are as many bytes; its size is the message's
    /// [`length`](Self::length).
    pub fn read(chain: &Chain) -> Option<Self> {
        let mut start = [0; WRITE_HEADER];
        let count = chain.reader().read(&mut start);
        let header = Self::decode(*start.first_chunk().filter(|_| count >= HEADER)?);
        Some(Self { size: header.length(&start, chain.readable_len() as usize), ..header })
    }
}

/// The tag that a Tflush in `chain` names (flush(5)).
pub(crate) fn flushed_tag(chain: &Chain, header: Header) -> Option<u16> {
    let mut bytes = [0; HEADER + 2];
    let [.., low, high] = match chain.reader().read(&mut bytes) {
        count if count == bytes.len() && header.size as usize >= bytes.len() => bytes,
        _ => return None,
    };
    Some(u16::from_le_bytes([low, high]))
}

/// A request that has ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub chain: Chain,
    /// Bytes of the reply; none for a request that was withdrawn.
    pub written: u32,
}

impl Answer {
    /// `message` as the reply; none if there is no room for it.
    pub fn new(chain: Chain, message: &[u8]) -> Self {
        let mut writer = chain.writer();
        if writer.remaining() >= message.len() {
            writer.write(message);
        }
        let written = writer.written();
        Self { chain, written }
    }

    /// The reply to a Tflush.
    pub fn flushed(chain: Chain, tag: u16) -> Self {
        Self::new(chain, &Header { size: HEADER as u32, kind: RFLUSH, tag }.encode())
    }

    /// No reply, because the driver does not want one any more.
    pub fn none(chain: Chain) -> Self {
        Self { chain, written: 0 }
    }

    /// The reply of 9P2000.L that says what is wrong with a number of Linux's.
    pub fn error(chain: Chain, tag: u16, errno: u32) -> Self {
        Self::new(chain, &rlerror(tag, errno))
    }
}

/// Rlerror: `size[4] Rlerror tag[2] ecode[4]`.
pub(crate) fn rlerror(tag: u16, errno: u32) -> [u8; HEADER + 4] {
    let mut message = [0; HEADER + 4];
    let (header, code) = message.split_at_mut(HEADER);
    header.copy_from_slice(&Header { size: 11, kind: RLERROR, tag }.encode());
    code.copy_from_slice(&errno.to_le_bytes());
    message
}
