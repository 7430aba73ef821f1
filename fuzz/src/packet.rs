//! Packets between a driver of sockets and the device (§5.10.6), and the connection that must work after everything.

use std::io::{Read, Write};

use hyperkit::virtio::testing::{Buffer, Guest, PATIENCE, Ring};
use hyperkit::vsock::VsockHandle;
use vm_memory::{Bytes, GuestAddress};

/// The CID of the guest.
pub const CID: u64 = 3;
/// The CID of the host.
pub const HOST: u64 = 2;

/// VIRTIO_VSOCK_OP_REQUEST.
pub const REQUEST: u16 = 1;
/// VIRTIO_VSOCK_OP_RESPONSE.
pub const RESPONSE: u16 = 2;
/// VIRTIO_VSOCK_OP_RST.
pub const RESET: u16 = 3;
/// VIRTIO_VSOCK_OP_SHUTDOWN.
pub const SHUTDOWN: u16 = 4;
/// VIRTIO_VSOCK_OP_RW.
pub const DATA: u16 = 5;
/// VIRTIO_VSOCK_OP_CREDIT_UPDATE.
pub const CREDIT_UPDATE: u16 = 6;

/// The header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// CIDs: from, to.
    pub cids: [u64; 2],
    /// Ports: from, to.
    pub ports: [u32; 2],
    /// Bytes of data.
    pub len: u32,
    /// 1 is a stream, 2 is for messages.
    pub kind: u16,
    /// What it is about.
    pub op: u16,
    /// What goes with that.
    pub flags: u32,
    /// buf_alloc and fwd_cnt.
    pub credit: [u32; 2],
}

impl Header {
    /// Bytes of a header.
    pub const LEN: usize = 44;

    /// One from a port of the guest to one of the host.
    pub fn new(guest: u32, host: u32, op: u16) -> Self {
        let (cids, ports) = ([CID, HOST], [guest, host]);
        Self { cids, ports, kind: 1, op, credit: [64 << 10, 0], ..Self::default() }
    }

    /// How it lies in a buffer.
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let [from, to] = self.cids;
        let [source, destination] = self.ports;
        let [buf_alloc, fwd_cnt] = self.credit;
        bytes[..8].copy_from_slice(&from.to_le_bytes());
        bytes[8..16].copy_from_slice(&to.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        let words = [(16, source), (20, destination), (24, self.len), (32, self.flags)];
        for (at, word) in words.into_iter().chain([(36, buf_alloc), (40, fwd_cnt)]) {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The header that lies in these bytes.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Self {
            cids: [long(0), long(8)],
            ports: [word(16), word(20)],
            len: word(24),
            kind: half(28),
            op: half(30),
            flags: word(32),
            credit: [word(36), word(40)],
        }
    }
}

/// Right after a reset: a connection of the guest carries bytes there and back.
pub fn recover(guest: &mut Guest, rings: &mut [Ring], handle: &VsockHandle) {
    const PORT: u32 = 7777;
    let listener = handle.listen(PORT).expect("nobody listens there");
    let [receive, send, ..] = rings else { unreachable!("a socket device has three queues") };
    let [room, out] = [4096, 4096].map(|len| guest.alloc(len));
    receive.request(&[Buffer::In(room, 4096)]);
    guest.kick(receive);
    let mut tell = |op: u16, data: &[u8]| {
        let header = Header { len: data.len() as u32, ..Header::new(PORT, PORT, op) };
        let bytes = [&header.bytes()[..], data].concat();
        guest.memory.write_slice(&bytes, GuestAddress(out)).expect("it is in RAM");
        send.request(&[Buffer::Out(out, bytes.len() as u32)]);
        guest.kick(send);
        assert_eq!(guest.wait(send).1, 0);
    };
    let mut hear = |op: u16, data: &[u8]| {
        let (_, len) = guest.wait(receive);
        let mut bytes = vec![0; len as usize];
        guest.memory.read_slice(&mut bytes, GuestAddress(room)).expect("it is in RAM");
        let (header, rest) = bytes.split_first_chunk().expect("a packet has a header");
        let header = Header::parse(header);
        assert_eq!((header.op, header.ports, rest), (op, [PORT, PORT], data));
        receive.request(&[Buffer::In(room, 4096)]);
        guest.kick(receive);
    };
    tell(REQUEST, b"");
    hear(RESPONSE, b"");
    tell(DATA, b"still here");
    let (mut stream, _) = listener.accept().expect("it waits");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket has time-outs");
    let mut bytes = [0; 10];
    stream.read_exact(&mut bytes).expect("the connection is there");
    assert_eq!(&bytes, b"still here");
    stream.write_all(b"and here").expect("the connection is there");
    hear(DATA, b"and here");
    tell(RESET, b"");
}
