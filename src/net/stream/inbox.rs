//! Bytes that have come from a peer and have not been taken: many frames for one system call.

use std::io;
use std::os::fd::OwnedFd;

/// Bytes of it: some large frames, or a burst of small ones.
const CAPACITY: usize = 256 << 10;

pub(super) struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// An empty one. Pages of it that are never used cost nothing.
    pub fn new() -> Self {
        Self { bytes: vec![0; CAPACITY].into(), start: 0, end: 0 }
    }

    /// What is there.
    pub fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The first `count` bytes were taken.
    pub fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Reads what the socket has, once. `whole` is the size of what the data is the beginning of: there will be room
    /// for all of it. Zero bytes are the end of the stream.
    pub fn fill(&mut self, socket: &OwnedFd, whole: usize) -> io::Result<usize> {
        if self.is_empty() {
            self.clear();
        } else if CAPACITY - self.start < whole {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        if room.is_empty() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let count = rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut *room))?;
        self.end += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn room_is_made_for_the_rest_of_what_has_begun() {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        let socket = socket.into();
        let mut inbox = Inbox::new();
        while inbox.end < CAPACITY - 10 {
            let count = (CAPACITY - 10 - inbox.end).min(50_000);
            peer.write_all(&vec![1; count]).unwrap();
            inbox.fill(&socket, 1).unwrap();
        }
        inbox.consume(CAPACITY - 13);
        peer.write_all(&[2; 100]).unwrap();
        assert_eq!(inbox.fill(&socket, 103).unwrap(), 100);
        assert_eq!(inbox.data(), [[1; 3].as_slice(), &[2; 100]].concat());
        inbox.consume(usize::MAX);
        assert!(inbox.is_empty());
        drop(peer);
        assert_eq!(inbox.fill(&socket, 4).unwrap(), 0);
    }

    #[test]
    fn a_full_one_is_not_taken_for_the_end_of_the_stream() {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        let socket = socket.into();
        let mut inbox = Inbox::new();
        while inbox.end < CAPACITY {
            peer.write_all(&[1; 4096]).unwrap();
            inbox.fill(&socket, 1).unwrap();
        }
        assert!(inbox.fill(&socket, CAPACITY + 1).is_err());
        assert_eq!(inbox.data().len(), CAPACITY);
    }
}
