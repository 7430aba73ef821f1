//! gzip and zstd, unpacked as they are read.
//!
//! What comes out is bounded by whoever reads it. What is held meanwhile is a window: 32 KiB of gzip, up to 128 MiB
//! of zstd, which is what kernels are compressed with (`zstd -22 --ultra`), and never more than has come out.

use std::io::{self, BufReader, Read};

use flate2::bufread::GzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// Bytes of the file that are read at once.
const BUFFER: usize = 64 << 10;

/// Longest frame header of zstd, with its magic number, and of a block with its header. RFC 8878, 3.1.1.
const ZSTD_FRAME_HEADER_MAX: u64 = 18;
const ZSTD_BLOCK_MAX: u64 = 3 + (128 << 10);
/// Frame header descriptor: there is no window descriptor; a checksum follows the last block. 3.1.1.1.1.
const ZSTD_SINGLE_SEGMENT: u8 = 1 << 5;
const ZSTD_CHECKSUM: u8 = 1 << 2;
/// First byte of a block header: no block follows. 3.1.1.2.1.
const ZSTD_LAST_BLOCK: u8 = 1 << 0;

/// How something is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    /// How the file that starts so is compressed, if it is.
    pub(super) fn recognise(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    /// What `packed` unpacks to. At its end, checksums are compared.
    pub(super) fn open<'a>(self, packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let packed = BufReader::with_capacity(BUFFER, packed);
        Ok(match self {
            Self::Gzip => Box::new(GzDecoder::new(packed)),
            Self::Zstd => Box::new(Zstd(StreamingDecoder::new(packed).map_err(io::Error::other)?)),
        })
    }

    /// Up to `max` bytes of what `packed` unpacks to, without unpacking much more.
    pub(super) fn start(self, packed: impl Read, max: usize) -> io::Result<Vec<u8>> {
        let mut start = Vec::new();
        match self {
            Self::Gzip => {
                self.open(packed)?.take(max as u64).read_to_end(&mut start)?;
            }
            Self::Zstd => {
                let frame = first_block(packed)?;
                self.open(&*frame)?.take(max as u64).read_to_end(&mut start)?;
            }
        }
        Ok(start)
    }
}

/// The beginning of a frame, made into a frame of one block. The decoder gives nothing away before it holds more than
/// a window, and that may be a whole kernel, unless there is nothing to come.
fn first_block(packed: impl Read) -> io::Result<Vec<u8>> {
    let mut frame = Vec::new();
    packed.take(ZSTD_FRAME_HEADER_MAX + ZSTD_BLOCK_MAX).read_to_end(&mut frame)?;
    let descriptor = frame.get_mut(4).ok_or(io::ErrorKind::UnexpectedEof)?;
    let single_segment = *descriptor & ZSTD_SINGLE_SEGMENT != 0;
    let window = usize::from(!single_segment);
    let dictionary = match *descriptor & 0b11 {
        3 => 4,
        len => usize::from(len),
    };
    let content_size = match *descriptor >> 6 {
        0 => usize::from(single_segment),
        flag => 1 << flag,
    };
    *descriptor &= !ZSTD_CHECKSUM;
    let block = 5 + window + dictionary + content_size;
    *frame.get_mut(block).ok_or(io::ErrorKind::UnexpectedEof)? |= ZSTD_LAST_BLOCK;
    Ok(frame)
}

/// A decoder that looks at the checksum, which ruzstd leaves to its user.
struct Zstd<R: Read>(StreamingDecoder<R, FrameDecoder>);

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            let decoder = &self.0.decoder;
            let expected = decoder.get_checksum_from_data();
            if expected.is_some() && expected != decoder.get_calculated_checksum() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum is wrong"));
            }
        }
        Ok(read)
    }
}
