//! Packets (§5.10.6): 44 bytes of header, and data behind it.

use vm_memory::{ByteValued, Le16, Le32, Le64};

use crate::vsock::Kind;

/// The header of a packet (struct virtio_vsock_hdr), as it lies in a buffer.
#[repr(C, packed)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Header {
    pub src_cid: Le64,
    pub dst_cid: Le64,
    pub src_port: Le32,
    pub dst_port: Le32,
    pub len: Le32,
    pub kind: Le16,
    pub op: Le16,
    pub flags: Le32,
    pub buf_alloc: Le32,
    pub fwd_cnt: Le32,
}

// SAFETY: made of integers without padding; any bytes are a value.
unsafe impl ByteValued for Header {}

/// Bytes of a header.
pub(super) const HEADER: usize = size_of::<Header>();

/// What a packet is about (§5.10.6: enum virtio_vsock_op).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Op {
    /// The operation that is written as `number`.
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    /// How it is written.
    pub fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: whoever says it will receive nothing more.
pub(super) const NO_RECEIVE: u32 = 1 << 0;
/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: whoever says it will send nothing more.
pub(super) const NO_SEND: u32 = 1 << 1;

/// VIRTIO_VSOCK_SEQ_EOM: the last packet of a message.
pub(super) const END_OF_MESSAGE: u32 = 1 << 0;

/// The kind of connection that is written as `number` (§5.10.6: enum virtio_vsock_type).
pub(super) fn kind_from_number(number: u16) -> Option<Kind> {
    match number {
        1 => Some(Kind::Stream),
        2 => Some(Kind::SeqPacket),
        _ => None,
    }
}

/// How a kind of connection is written.
pub(super) fn kind_number(kind: Kind) -> u16 {
    match kind {
        Kind::Stream => 1,
        Kind::SeqPacket => 2,
    }
}

/// What a connection is known by: there is one for each pair of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub host: u32,
    pub guest: u32,
}
