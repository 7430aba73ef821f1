//! A driver of the device, for its own tests and those of what is behind it.

use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use crate::fs::Header;
use crate::virtio::feature::INDIRECT_DESC;
use crate::virtio::p9::P9;
use crate::virtio::testing::{Buffer, Guest, Ring};

/// Room for a reply, and for a request, unless said otherwise.
pub(crate) const ROOM: usize = 0x800;
const PAGES: usize = 0x2000;
/// Requests at a time.
const SLOTS: usize = 120;

pub(crate) struct Driver {
    pub guest: Guest,
    pub ring: Ring,
    /// Two pages for each slot: the request and room for the reply, then a table of descriptors.
    pub pages: u64,
    sent: usize,
}

/// A request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    pub head: u16,
    pub at: u64,
}

impl Driver {
    /// The driver of a machine with nothing but `device`.
    pub fn new(device: P9) -> Self {
        let mut guest = Guest::new(device);
        let ring = guest.start(INDIRECT_DESC, 128).remove(0);
        let pages = guest.alloc(PAGES * SLOTS);
        Self { guest, ring, pages, sent: 0 }
    }

    /// Resets the device, and begins again.
    pub fn restart(&mut self) {
        self.guest.reset();
        self.ring = self.guest.start(INDIRECT_DESC, 128).remove(0);
        self.pages = self.guest.alloc(PAGES * SLOTS);
    }

    pub fn send(&mut self, kind: u8, tag: u16, body: &[u8]) -> Sent {
        self.send_bytes(&message(kind, tag, body), ROOM)
    }

    /// Sends any bytes as a request, with so much room for the reply.
    pub fn send_bytes(&mut self, bytes: &[u8], room: usize) -> Sent {
        let at = self.pages + (PAGES * (self.sent % SLOTS)) as u64;
        self.sent += 1;
        self.guest.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        self.guest.memory.write_slice(&[0xee; ROOM], GuestAddress(at + ROOM as u64)).unwrap();
        let mut buffers = vec![Buffer::Out(at, bytes.len() as u32)];
        // The room is in two pieces, as it may be.
        let (front, back) = (room.min(9) as u32, room.saturating_sub(9) as u32);
        for (skip, len) in [(0, front), (9, back)] {
            if len > 0 {
                buffers.push(Buffer::In(at + ROOM as u64 + skip, len));
            }
        }
        let head = self.ring.request_indirect(at + 0x1000, &buffers);
        self.kick();
        Sent { head, at }
    }

    pub fn kick(&mut self) {
        self.guest.kick(&mut self.ring);
    }

    /// Waits for the next request that is given back: its head and how much was written.
    pub fn wait(&mut self) -> (u16, u32) {
        self.guest.wait(&mut self.ring)
    }

    /// The reply to `sent`, which has to be the next.
    pub fn reply(&mut self, sent: Sent) -> Vec<u8> {
        let (head, written) = self.wait();
        assert_eq!(head, sent.head, "another request was answered");
        self.written(sent, written)
    }

    pub fn written(&self, sent: Sent, written: u32) -> Vec<u8> {
        let mut bytes = vec![0; written as usize];
        let at = GuestAddress(sent.at + ROOM as u64);
        self.guest.memory.read_slice(&mut bytes, at).unwrap();
        bytes
    }

    /// Nothing has been answered that was not taken back.
    pub fn quiet(&mut self) {
        self.guest.wait_doorbell();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(self.ring.used(), None);
    }
}

pub(crate) fn message(kind: u8, tag: u16, body: &[u8]) -> Vec<u8> {
    let size = (7 + body.len()) as u32;
    [&Header { size, kind, tag }.encode(), body].concat()
}
