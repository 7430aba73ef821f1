//! The PE header, by which EFI starts an Image (Microsoft's "PE Format"): it tells how long the file has to be.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::boot::Error;
use crate::boot::file::Source;

const SIGNATURE: [u8; 4] = *b"PE\0\0";
/// Linux has two or three sections.
const MAX_SECTIONS: u16 = 64;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    signature: [u8; 4],
    machine: U16,
    sections: U16,
    timestamp: U32,
    symbols: [U32; 2],
    optional_header_len: U16,
    characteristics: U16,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Section {
    name: [u8; 8],
    memory: [U32; 2],
    raw_len: U32,
    raw_offset: U32,
    rest: [U32; 4],
}

/// Fails if the file ends before a section that the PE header at `at` announces.
pub(super) fn check(source: &Source, at: u32) -> Result<(), Error> {
    let at = u64::from(at);
    source.reaches("the PE header", at + size_of::<Header>() as u64)?;
    let header = source.read(at, size_of::<Header>())?;
    let header = Header::read_from_bytes(&header)
        .ok()
        .filter(|header| header.signature == SIGNATURE && header.sections.get() <= MAX_SECTIONS)
        .ok_or_else(|| source.corrupt(format!("it has no PE header at {at:#x}")))?;
    let at = at + (size_of::<Header>() as u64) + u64::from(header.optional_header_len.get());
    let len = usize::from(header.sections.get()) * size_of::<Section>();
    source.reaches("the PE section table", at + len as u64)?;
    let table = source.read(at, len)?;
    let sections = <[Section]>::ref_from_bytes(&table)
        .map_err(|_| source.corrupt("its PE section table has no known form"))?;
    sections.iter().try_for_each(|section| {
        let end = u64::from(section.raw_offset.get()) + u64::from(section.raw_len.get());
        source.reaches("a section", end)
    })
}
