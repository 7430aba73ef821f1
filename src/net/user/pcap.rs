//! Frames, written to a file as they pass: the classic format of libpcap, with nanoseconds.
//!
//! Each frame is written at once, so that the file can be watched and nothing is lost with the process. The file is the
//! caller's; a capture that can no longer be written ends, and the network goes on without it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use crate::memory::Buffers;

/// Says that time stamps are in nanoseconds, and which byte comes first.
const MAGIC: u32 = 0xa1b2_3c4d;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;
/// Bytes before each frame.
const RECORD: usize = 16;

/// A capture.
#[derive(Debug)]
pub(super) struct Capture {
    file: File,
    snap: usize,
    buffer: Vec<u8>,
}

impl Capture {
    /// A capture of the first `snap` bytes of every frame.
    pub fn create(path: &Path, snap: u32) -> io::Result<Self> {
        let mut file = File::create(path)?;
        let mut head = Vec::with_capacity(24);
        head.extend(MAGIC.to_ne_bytes());
        head.extend(2u16.to_ne_bytes());
        head.extend(4u16.to_ne_bytes());
        head.extend([0; 8]);
        head.extend(snap.to_ne_bytes());
        head.extend(ETHERNET.to_ne_bytes());
        file.write_all(&head)?;
        let snap = usize::try_from(snap).unwrap_or(usize::MAX).min(LARGEST);
        Ok(Self { file, snap, buffer: vec![0; RECORD + snap] })
    }

    /// Writes the first `length` bytes of `frame`.
    pub fn frame(&mut self, frame: Buffers<'_>, length: usize) -> io::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let room = self.buffer.get_mut(RECORD..).unwrap_or_default();
        let room = room.get_mut(..length.min(self.snap)).unwrap_or_default();
        let kept = frame.copy_to(room);
        let words = [now.as_secs() as u32, now.subsec_nanos(), kept as u32, length as u32];
        let head = self.buffer.chunks_exact_mut(4);
        head.zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
        self.file.write_all(self.buffer.get(..RECORD + kept).unwrap_or_default())
    }
}

/// Frames are not larger.
const LARGEST: usize = 1 << 18;
