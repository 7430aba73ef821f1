//! EFI zboot images: a compressed Image inside a program for EFI that unpacks it.
//!
//! The header is that of Linux's `drivers/firmware/efi/libstub/zboot-header.S`.

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::image::Packed;
use super::unpack::Packing;
use crate::boot::Error;
use crate::boot::file::Source;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    mz: [u8; 2],
    padding: [u8; 2],
    magic: [u8; 4],
    payload_offset: U32,
    payload_size: U32,
    reserved: [U32; 2],
    /// Ends with a NUL.
    compression: [u8; 32],
}

/// Whether the first bytes of a file are those of a zboot image.
pub(super) fn recognises(start: &[u8]) -> bool {
    start.starts_with(b"MZ") && start.get(4..8) == Some(b"zimg")
}

/// Finds the compressed Image.
pub(super) fn open(source: &Source) -> Result<Packed, Error> {
    source.reaches("the zboot header", size_of::<Header>() as u64)?;
    let header = source.read(0, size_of::<Header>())?;
    let header = Header::read_from_bytes(&header)
        .map_err(|_| source.corrupt("its zboot header has no known form"))?;
    let (at, len) = (header.payload_offset.get().into(), header.payload_size.get().into());
    source.reaches("the compressed kernel", at + len)?;
    let name = header.compression.split(|&byte| byte == 0).next().unwrap_or_default();
    let by = match name {
        b"gzip" => Packing::Gzip,
        // Linux before 6.14 calls it by the level.
        b"zstd" | b"zstd22" => Packing::Zstd,
        other => {
            return Err(source.unsupported(format!(
                "it is compressed by {}; give one that is compressed by gzip or zstd, or not at all",
                other.escape_ascii()
            )));
        }
    };
    Ok(Packed { by, at, len })
}
