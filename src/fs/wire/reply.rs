//! Answers, encoded.

use super::{HEADER, Header};

/// An R-message in the making.
#[derive(Debug)]
pub(in crate::fs) struct Reply<'a> {
    bytes: &'a mut Vec<u8>,
    header: Header,
}

impl<'a> Reply<'a> {
    /// Begins with the answer to the message that had `request` at its beginning, in the room that `bytes` have.
    pub fn new(bytes: &'a mut Vec<u8>, request: Header) -> Self {
        bytes.clear();
        bytes.extend_from_slice(&[0; HEADER]);
        let kind = request.kind.wrapping_add(1);
        Self { bytes, header: Header { size: 0, kind, tag: request.tag } }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// A string, of which there can be 65,535 bytes.
    pub fn string(&mut self, value: &[u8]) -> &mut Self {
        let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.u16(len).raw(value.get(..len.into()).unwrap_or(value))
    }

    /// `qid[13]`.
    pub fn qid(&mut self, kind: u8, version: u32, path: u64) -> &mut Self {
        self.u8(kind).u32(version).u64(path)
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Writes `bytes` where there are some already, `at` bytes from the start of the message.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
            place.copy_from_slice(bytes);
        }
    }

    /// The message up to the `data` bytes that come behind it from elsewhere, if all of it has no more than `most`
    /// bytes.
    pub fn finish(self, data: usize, most: usize) -> Option<&'a [u8]> {
        let size = self.bytes.len().checked_add(data).filter(|size| *size <= most)?;
        let header = Header { size: u32::try_from(size).ok()?, ..self.header };
        *self.bytes.first_chunk_mut()? = header.encode();
        Some(self.bytes)
    }
}
