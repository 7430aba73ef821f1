//! The arm64 Image, plain or packed.
//!
//! The header is that of `Documentation/arch/arm64/booting.rst`, "Call the kernel image", as it is since Linux 3.17:
//! older ones do not say how much memory they need.

use std::io::{self, Read};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::unpack::Packing;
use super::{pe, zboot};
use crate::arch::aarch64::layout;
use crate::boot::describe::{START, describe};
use crate::boot::file::{Image as Reader, Source};
use crate::boot::{Error, memory_error};

/// What to give instead of a file that is no kernel.
const WANTED: &str =
    "an Image for arm64, as it is, compressed by gzip or zstd, or in an EFI zboot image";
const MAGIC: &[u8] = b"ARM\x64";
const MAGIC_AT: usize = 0x38;
/// Unpacked bytes on their way to guest memory.
const CHUNK: usize = 128 << 10;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    code: [U32; 2],
    text_offset: U64,
    image_size: U64,
    flags: U64,
    reserved: [U64; 3],
    magic: U32,
    pe_header: U32,
}

const HEADER_LEN: usize = size_of::<Header>();

/// An Image whose header was checked.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) source: Source,
    /// The header, unpacked.
    head: Vec<u8>,
    /// What is to be unpacked; nothing if the file is the Image itself.
    packed: Option<Packed>,
    /// Where it is loaded and entered.
    pub(super) start: u64,
    /// The address behind the memory it needs.
    pub(super) end: u64,
}

/// A part of a file, and how it is compressed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed {
    pub(super) by: Packing,
    pub(super) at: u64,
    pub(super) len: u64,
}

impl Packed {
    fn reader<'a>(&self, source: &'a Source) -> Reader<'a> {
        Reader { head: &[], source, resume: self.at, len: self.len, at: 0 }
    }
}

impl Image {
    pub(super) fn open(source: Source) -> Result<Self, Error> {
        let mut head = source.start(START)?;
        let packed = if zboot::recognises(&head) {
            Some(zboot::open(&source)?)
        } else {
            Packing::recognise(&head).map(|by| Packed { by, at: 0, len: source.len() })
        };
        if let Some(packed) = &packed {
            let unpacked = packed.by.start(packed.reader(&source), START);
            head = unpacked.map_err(|error| does_not_unpack(&source, error))?;
        }
        if !head.get(MAGIC_AT..).is_some_and(|rest| rest.starts_with(MAGIC)) {
            let found = match packed {
                None => describe(&head),
                Some(_) => format!("compressed, and unpacked it is {}", describe(&head)),
            };
            return Err(source.not_a_kernel(found, WANTED));
        }
        let Ok((header, _)) = Header::read_from_prefix(&head) else {
            source.reaches("the header", HEADER_LEN as u64)?;
            return Err(source.corrupt(format!("it unpacks to {} bytes", head.len())));
        };
        if packed.is_none() && head.starts_with(b"MZ") {
            pe::check(&source, header.pe_header.get())?;
        }
        head.truncate(HEADER_LEN);
        Self::place(source, head, packed, &header)
    }

    fn place(
        source: Source,
        head: Vec<u8>,
        packed: Option<Packed>,
        header: &Header,
    ) -> Result<Self, Error> {
        let (offset, size) = (header.text_offset.get(), header.image_size.get());
        if size == 0 {
            return Err(source.unsupported(
                "its header tells no size; give a kernel of Linux 3.17 or later, which has one",
            ));
        }
        let start = layout::RAM_START.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(size));
        match (start, end) {
            (Some(start), Some(end)) if size >= HEADER_LEN as u64 => {
                Ok(Self { source, head, packed, start, end })
            }
            _ => Err(source.corrupt(format!(
                "it asks for {size:#x} bytes of memory, {offset:#x} behind the start of it"
            ))),
        }
    }

    /// Puts the kernel to its [`start`](Self::start). What it has beyond its [`end`](Self::end) is left out.
    pub(super) fn load(&self, memory: &GuestMemoryMmap) -> Result<(), Error> {
        let Self { source, head, packed, start, end } = self;
        let size = end.saturating_sub(*start);
        let Some(packed) = packed else {
            let len = size.min(source.len());
            let resume = head.len() as u64;
            return Reader { head, source, resume, len, at: 0 }.load(memory, *start, len);
        };
        let failed = |error| does_not_unpack(source, error);
        let mut unpacked = packed.by.open(packed.reader(source)).map_err(failed)?;
        // The header as it was checked stands for the one that the file has now.
        unpacked.read_exact(&mut [0; HEADER_LEN]).map_err(failed)?;
        let mut chunk = vec![0; CHUNK];
        let mut at = *start;
        let mut rest = head.chain(unpacked.by_ref()).take(size);
        loop {
            let read = match rest.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            memory
                .write_slice(&chunk[..read], GuestAddress(at))
                .map_err(|error| memory_error("kernel", error))?;
            at = at.saturating_add(read as u64);
        }
        // Checksums are compared once the end has been seen.
        unpacked.read(&mut [0]).map(|_| ()).map_err(failed)
    }
}

fn does_not_unpack(source: &Source, error: io::Error) -> Error {
    source.corrupt(format!("unpacking it fails: {error}"))
}
