//! A socket device with one connection, whose program on the host reads and writes on the same thread as the driver does.

use std::io::{Read, Write};

use hyperkit::virtio::testing::{Buffer, Guest, Ring};
use hyperkit::virtio::vsock::{F_STREAM, SocketDevice};
use hyperkit::virtio::{VirtioDevice, feature};
use hyperkit::vsock::{Vsock, VsockStream};
use vm_memory::{Bytes, GuestAddress};

const CID: u64 = 3;
const HOST: u64 = 2;
const PORT: u32 = 1024;
/// Descriptors of a queue.
const QUEUE: u16 = 256;
/// Bytes of all receive buffers, and those of a header.
const RECEIVE: usize = 2 << 20;
const HEADER: usize = 44;
/// The guest's buffer for the connection.
const ROOM: u32 = 1 << 20;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

/// A packet of a connection of the guest, as far as its header.
fn header(op: u16, len: usize, forwarded: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(&CID.to_le_bytes());
    bytes[8..16].copy_from_slice(&HOST.to_le_bytes());
    bytes[28..30].copy_from_slice(&1_u16.to_le_bytes());
    bytes[30..32].copy_from_slice(&op.to_le_bytes());
    for (at, word) in [(16, PORT), (20, PORT), (24, len as u32), (36, ROOM), (40, forwarded)] {
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// A driver of a device with one connection, for packets of one size.
pub struct Driver {
    guest: Guest,
    receive: Ring,
    send: Ring,
    stream: VsockStream,
    /// What the program writes, or where it reads to.
    bytes: Vec<u8>,
    packet: usize,
    /// Receive buffers, by descriptor.
    buffers: Vec<u64>,
    /// Where the buffers of the packet that is sent are, and an indirect table.
    out: Vec<Buffer>,
    table: u64,
    control: u64,
    /// Bytes that came, and of how many the device was told.
    received: u32,
    told: u32,
}

impl Driver {
    /// A driver of what `wrap` makes of the device, for packets of `packet` bytes.
    pub fn new<D: VirtioDevice + 'static>(
        packet: usize,
        wrap: impl FnOnce(SocketDevice) -> D,
    ) -> Self {
        let host = Vsock::new().open().unwrap();
        let listener = host.handle().listen(PORT).unwrap();
        let mut guest = Guest::new(wrap(SocketDevice::new(host)));
        let transport = feature::INDIRECT_DESC | feature::EVENT_IDX;
        let mut rings = guest.start(F_STREAM | transport, QUEUE);
        rings.iter_mut().for_each(|ring| ring.event_idx = true);
        let [mut receive, mut send, _] = rings.try_into().ok().unwrap();

        // As large as packets are to be.
        let room = HEADER + packet;
        let count = (RECEIVE / room.next_multiple_of(4096)).min(usize::from(QUEUE));
        let places: Vec<u64> = (0..count).map(|_| guest.alloc(room)).collect();
        let mut buffers = vec![0; usize::from(QUEUE)];
        for &at in &places {
            let head = receive.request(&[Buffer::In(at, room as u32)]);
            buffers[usize::from(head)] = at;
        }
        guest.kick(&mut receive);

        let [control, table] = [HEADER, 4096].map(|len| guest.alloc(len));
        guest.memory.write_slice(&header(REQUEST, 0, 0), GuestAddress(control)).unwrap();
        send.request(&[Buffer::Out(control, HEADER as u32)]);
        guest.kick(&mut send);
        guest.wait(&mut send);
        let (stream, _) = listener.accept().unwrap();

        // Header and data in one piece, as Linux has them where that is less than a page; then in pages.
        let at = guest.alloc(HEADER + packet);
        guest.memory.write_slice(&header(DATA, packet, 0), GuestAddress(at)).unwrap();
        let end = at + (HEADER + packet) as u64;
        let piece = if packet < 4096 { HEADER + packet } else { 4096 };
        let starts: Vec<u64> = (at..end).step_by(piece).collect();
        let ends = starts.iter().copied().skip(1).chain([end]);
        let out = starts.iter().zip(ends).map(|(&at, end)| Buffer::Out(at, (end - at) as u32));
        let out = out.collect();
        let bytes = vec![0x5a; 64 * packet];
        let (received, told) = (0, 0);
        let mut driver = Self {
            guest,
            receive,
            send,
            stream,
            bytes,
            packet,
            buffers,
            out,
            table,
            control,
            received,
            told,
        };
        assert_eq!(driver.take().0, RESPONSE);
        driver
    }

    /// Sends so many packets, all of them at once, and has the program read them.
    pub fn send(&mut self, packets: u64) {
        for _ in 0..packets {
            match self.out[..] {
                [one] => self.send.request(&[one]),
                _ => self.send.request_indirect(self.table, &self.out),
            };
        }
        self.guest.kick(&mut self.send);
        for _ in 0..packets {
            self.guest.wait(&mut self.send);
        }
        let all = packets as usize * self.packet;
        self.stream.read_exact(&mut self.bytes[..all]).unwrap();
        // What the device said of its credit meanwhile.
        while let Some((head, _)) = self.receive.used() {
            self.give_back(head);
        }
        self.guest.kick(&mut self.receive);
    }

    /// Has the program write as much as so many packets hold, and receives it.
    pub fn receive(&mut self, packets: u64) {
        let all = packets as usize * self.packet;
        self.stream.write_all(&self.bytes[..all]).unwrap();
        let mut left = all;
        while left > 0 {
            let (op, len) = self.take();
            assert_eq!(op, DATA);
            left -= len;
        }
        self.guest.kick(&mut self.receive);
        if self.received.wrapping_sub(self.told) > ROOM / 2 {
            self.told = self.received;
            let update = header(CREDIT_UPDATE, 0, self.told);
            self.guest.memory.write_slice(&update, GuestAddress(self.control)).unwrap();
            self.send.request(&[Buffer::Out(self.control, HEADER as u32)]);
            self.guest.kick(&mut self.send);
            self.guest.wait(&mut self.send);
        }
    }

    /// Waits for a packet, and tells what it is and how much data it has.
    fn take(&mut self) -> (u16, usize) {
        let (head, len) = self.guest.wait(&mut self.receive);
        let op = GuestAddress(self.buffers[usize::from(head)] + 30);
        let op = self.guest.memory.read_obj(op).unwrap();
        self.give_back(head);
        let len = len as usize - HEADER;
        self.received = self.received.wrapping_add(len as u32);
        (op, len)
    }

    fn give_back(&mut self, head: u16) {
        let at = self.buffers[usize::from(head)];
        let next = self.receive.request(&[Buffer::In(at, (HEADER + self.packet) as u32)]);
        self.buffers[usize::from(next)] = at;
    }
}
