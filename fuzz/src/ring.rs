//! Ring contents, written without any care: what does not lie in RAM is not written.

use hyperkit::virtio::Layout;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// One descriptor (§2.7.5).
#[derive(Debug, Clone, Copy, Default)]
pub struct Descriptor {
    /// Address of the buffer.
    pub address: u64,
    /// Its length.
    pub len: u32,
    /// NEXT 1, WRITE 2, INDIRECT 4.
    pub flags: u16,
    /// The descriptor that follows.
    pub next: u16,
}

/// A queue as the driver sees it.
#[derive(Clone, Copy)]
pub struct RawRing<'a> {
    /// Guest memory.
    pub memory: &'a GuestMemoryMmap,
    /// Where the queue is.
    pub layout: Layout,
}

impl RawRing<'_> {
    /// Writes entry `index` of the descriptor table at `table`.
    pub fn describe(&self, table: u64, index: u16, descriptor: Descriptor) {
        let Descriptor { address, len, flags, next } = descriptor;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(table.wrapping_add(16 * u64::from(index)), &bytes);
    }

    /// Makes the chain at `head` available, whatever the available index is now.
    pub fn offer(&self, head: u16) {
        let at = self.layout.driver;
        let mut index = [0; 2];
        if self.memory.read_slice(&mut index, GuestAddress(at + 2)).is_ok() {
            let index = u16::from_le_bytes(index);
            self.slot(index, head);
            self.index(index.wrapping_add(1));
        }
    }

    /// Writes the available ring's entry number `slot`, wrapping.
    pub fn slot(&self, slot: u16, head: u16) {
        let slot = u64::from(slot) % u64::from(self.layout.size.max(1));
        self.write(self.layout.driver + 4 + 2 * slot, &head.to_le_bytes());
    }

    /// Writes the available index.
    pub fn index(&self, index: u16) {
        self.write(self.layout.driver + 2, &index.to_le_bytes());
    }

    /// Writes the flags of the available ring, and the used index at which the driver wants an interrupt.
    pub fn notifications(&self, flags: u16, used_event: u16) {
        self.write(self.layout.driver, &flags.to_le_bytes());
        let at = self.layout.driver + 4 + 2 * u64::from(self.layout.size);
        self.write(at, &used_event.to_le_bytes());
    }

    /// Writes anything anywhere.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        // A store to where there is no RAM goes elsewhere, or nowhere.
        let _ = self.memory.write_slice(bytes, GuestAddress(at));
    }
}
