//! What is done to an image's file, one thing after the other: to keep a part of it only, or to have it fail.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Mutex;

use super::Buffers;

/// Something that is done to a file.
#[derive(Debug, Clone)]
pub enum Event {
    Write(u64, Vec<u8>),
    /// Zeros, or a hole; behind the end, the file grows.
    Zeros(Range<u64>),
    /// Everything before is on the drive.
    Sync,
}

impl Event {
    pub fn write(offset: u64, from: Buffers<'_>) -> Self {
        let mut bytes = vec![0; from.total()];
        from.copy_to(&mut bytes);
        Self::Write(offset, bytes)
    }

    /// Does the same to a copy of the file.
    pub fn apply(&self, file: &mut Vec<u8>) {
        let (start, end) = match self {
            Self::Write(offset, bytes) => (*offset as usize, *offset as usize + bytes.len()),
            Self::Zeros(range) => (range.start as usize, range.end as usize),
            Self::Sync => return,
        };
        file.resize(file.len().max(end), 0);
        match self {
            Self::Write(_, bytes) => file[start..end].copy_from_slice(bytes),
            _ => file[start..end].fill(0),
        }
    }
}

type Watch = Box<dyn FnMut(Event) -> io::Result<()> + Send>;

/// Is asked before anything is done, and may have it fail.
#[derive(Default)]
pub struct Probe(Mutex<Option<Watch>>);

impl Probe {
    pub fn set(&self, watch: impl FnMut(Event) -> io::Result<()> + Send + 'static) {
        *self.0.lock().unwrap() = Some(Box::new(watch));
    }

    pub fn clear(&self) {
        *self.0.lock().unwrap() = None;
    }

    pub fn see(&self, event: Event) -> io::Result<()> {
        self.0.lock().unwrap().as_mut().map_or(Ok(()), |watch| watch(event))
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}
