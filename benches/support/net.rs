//! A network card with nothing behind it, and a driver that gives it frames and takes them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyperkit::memory::Buffers;
use hyperkit::net::{Header, MacAddr, NetBackend, Offloads, Properties, Wake};
use hyperkit::sys::Notifier;
use hyperkit::virtio::net::{Card, Options};
use hyperkit::virtio::testing::{Buffer, Guest, Ring};
use hyperkit::virtio::{HostEvent, Interest, Sources, VirtioDevice, feature};
use vm_memory::{Bytes, GuestAddress};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
/// Descriptors of a queue.
const QUEUE: u16 = 256;
/// VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4 and what goes with them.
const LARGE: Header =
    Header { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1448, csum_start: 34, csum_offset: 16 };

/// A host side that does nothing with frames, and has as many as it is told to. Nothing is copied but an Ethernet
/// header.
struct Wire {
    frame: usize,
    credit: Arc<AtomicU64>,
    notifier: Arc<Notifier>,
}

impl NetBackend for Wire {
    fn name(&self) -> &str {
        "wire"
    }

    fn properties(&self) -> Properties {
        Properties { mac: None, mtu: 1500, offloads: Offloads::all(), queues: 1 }
    }

    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        sources.add(&*self.notifier, 0, Interest::READABLE)
    }

    fn send(
        &mut self,
        _queue: u16,
        _header: &Header,
        _frame: Buffers<'_>,
        _sources: Sources<'_>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn receive(
        &mut self,
        _queue: u16,
        header: &mut Header,
        space: Buffers<'_>,
        _sources: Sources<'_>,
    ) -> io::Result<usize> {
        let credit = self.credit.load(Ordering::Acquire);
        self.credit
            .store(credit.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?, Ordering::Release);
        *header = if self.frame > 1514 { LARGE } else { Header::default() };
        let mut start = [0; 14];
        start[..6].copy_from_slice(&MAC.0);
        if let Some(first) = space.slices().next() {
            first.copy_from(&start);
        }
        Ok(self.frame)
    }

    fn host_ready(&mut self, _event: HostEvent, _sources: Sources<'_>) -> Wake {
        self.notifier.clear();
        Wake { receive: true, ..Wake::default() }
    }
}

/// A driver of a card for frames of one size.
pub struct Driver {
    guest: Guest,
    receive: Ring,
    send: Ring,
    credit: Arc<AtomicU64>,
    notifier: Arc<Notifier>,
    /// Receive buffers, by descriptor, and how large they are.
    buffers: Vec<u64>,
    room: u32,
    /// The frame to be sent, and an indirect table.
    out: Vec<Buffer>,
    table: u64,
}

impl Driver {
    /// A driver of what `wrap` makes of the card, for frames of `frame` bytes.
    pub fn new<D: VirtioDevice + 'static>(frame: usize, wrap: impl FnOnce(Card) -> D) -> Self {
        let credit = Arc::new(AtomicU64::new(0));
        let notifier = Arc::new(Notifier::new().unwrap());
        let wire = Wire { frame, credit: credit.clone(), notifier: notifier.clone() };
        let card = Card::new(Box::new(wire), MAC, Options::default()).unwrap();
        let own = card.features();
        let mut guest = Guest::new(wrap(card));
        let mut rings = guest.start(own | feature::INDIRECT_DESC | feature::EVENT_IDX, QUEUE);
        rings.iter_mut().for_each(|ring| ring.event_idx = true);
        let [receive, send, _] = rings.try_into().ok().unwrap();
        // As Linux cuts them: a page where large packets come, otherwise a frame.
        let room = if frame > 1514 { 4096 } else { 1536 };
        let buffers = (0..QUEUE).map(|_| guest.alloc(room as usize)).collect();
        let at = guest.alloc(frame + 12);
        let header = if frame > 1514 { LARGE } else { Header::default() };
        guest.memory.write_slice(&header.to_bytes(), GuestAddress(at)).unwrap();
        // Small frames are in one piece, large ones in pages.
        let end = at + frame as u64 + 12;
        let starts = (at..end).step_by(if frame > 1514 { 4096 } else { frame + 12 });
        let starts: Vec<u64> = starts.collect();
        let ends = starts.iter().copied().skip(1).chain([end]);
        let out = starts.iter().zip(ends).map(|(&at, end)| Buffer::Out(at, (end - at) as u32));
        let out = out.collect();
        let table = guest.alloc(4096);
        let mut driver = Self { guest, receive, send, credit, notifier, buffers, room, out, table };
        for n in 0..usize::from(QUEUE) {
            driver.receive.request(&[Buffer::In(driver.buffers[n], room)]);
        }
        driver.guest.kick(&mut driver.receive);
        driver
    }

    /// Sends so many frames, all of them at once.
    pub fn send(&mut self, frames: u64) {
        for _ in 0..frames {
            match self.out[..] {
                [one] => self.send.request(&[one]),
                _ => self.send.request_indirect(self.table, &self.out),
            };
        }
        self.guest.kick(&mut self.send);
        for _ in 0..frames {
            self.guest.wait(&mut self.send);
        }
    }

    /// Receives so many frames, that come all at once.
    pub fn receive(&mut self, frames: u64) {
        self.credit.fetch_add(frames, Ordering::AcqRel);
        self.notifier.notify();
        for _ in 0..frames {
            let mut left = 1;
            let mut first = true;
            while left > 0 {
                let (head, _) = self.guest.wait(&mut self.receive);
                let at = self.buffers[usize::from(head)];
                if std::mem::take(&mut first) {
                    // `num_buffers`.
                    left = self.guest.memory.read_obj::<u16>(GuestAddress(at + 10)).unwrap();
                }
                self.receive.request(&[Buffer::In(at, self.room)]);
                left -= 1;
            }
        }
        self.guest.kick(&mut self.receive);
    }
}
