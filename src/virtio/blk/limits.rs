//! How much a request may ask for, as the configuration space tells the driver (§5.2.4).

/// What a request to discard or zero may list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents {
    /// How many extents.
    pub count: usize,
    /// How many sectors each.
    pub sectors: u32,
}

/// VIRTIO_BLK_T_DISCARD: 2 GiB each, which any file system does in no time.
pub(super) const DISCARD: Extents = Extents { count: 64, sectors: 4 << 20 };

/// VIRTIO_BLK_T_WRITE_ZEROES: 256 MiB each, in case they have to be written.
pub(super) const WRITE_ZEROES: Extents = Extents { count: 8, sectors: 512 << 10 };

/// Descriptors of a queue.
pub(super) const QUEUE: u16 = 256;

/// seg_max: a queue full of descriptors, less one for the header and one for the status.
pub(super) const SEGMENTS: u32 = QUEUE as u32 - 2;

/// size_max: the largest segment.
pub(super) const SEGMENT: u32 = 1 << 20;

/// Bytes that may be on their way at a time. One request more is taken if they are fewer, however large it is.
pub(super) const IN_FLIGHT: u64 = 64 << 20;

/// Bytes that are moved or zeroed at once before the driver hears of what is done.
pub(super) const TURN: u64 = 512 << 10;
