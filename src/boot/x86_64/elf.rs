//! ELF kernels: Linux's vmlinux, and any kernel with a PVH entry point.
//!
//! An ELF file with the Xen note `XEN_ELFNOTE_PHYS32_ENTRY` says by it that it can be entered in 32-bit protected mode
//! as Xen's `docs/misc/pvh.pandoc` describes. That is an interface meant for other programs, and not
//! only Linux has it, so it is taken wherever it is there. Without the note the file is taken for a Linux
//! vmlinux, which is entered like a bzImage in 64-bit mode, with a zero page made from nothing.
//!
//! Headers: System V ABI, chapters "ELF header" and "Program header"; notes: the same, "Note section".

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::WANTED;
use crate::arch::x86_64::layout;
use crate::boot::Error;
use crate::boot::describe::elf_machine;
use crate::boot::file::{Image, Source};

pub(super) const MAGIC: &[u8] = b"\x7fELF";
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const BIG_ENDIAN: u8 = 2;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Linux's vmlinux has five program headers.
const MAX_SEGMENTS: u16 = 64;
/// Linux's notes have less than 1 KiB.
const MAX_NOTES: u64 = 64 << 10;
/// Where Linux on x86-64 wants its initrd to end, by the headers of its bzImages.
const INITRD_MAX: u64 = 0x7fff_ffff;
/// Bytes of command line that Linux on x86 keeps (`COMMAND_LINE_SIZE`), less the NUL.
pub(super) const CMDLINE_MAX: usize = 2047;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FileHeader {
    magic: [u8; 4],
    class: u8,
    data: u8,
    ident: [u8; 10],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    phoff: U64,
    shoff: U64,
    flags: U32,
    ehsize: U16,
    phentsize: U16,
    phnum: U16,
    shentsize: U16,
    shnum: U16,
    shstrndx: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Segment {
    kind: U32,
    flags: U32,
    offset: U64,
    vaddr: U64,
    paddr: U64,
    filesz: U64,
    memsz: U64,
    align: U64,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Note {
    namesz: U32,
    descsz: U32,
    kind: U32,
}

const FILE_HEADER_LEN: usize = size_of::<FileHeader>();
const SEGMENT_LEN: usize = size_of::<Segment>();

/// By which protocol an ELF kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// Linux's 64-bit protocol, at this address.
    Linux(u64),
    /// PVH, at this address.
    Pvh(u64),
}

/// An ELF kernel whose headers were checked.
#[derive(Debug)]
pub(super) struct Elf {
    pub(super) source: Source,
    /// Headers made anew from the checked ones: only what is loaded is left in them.
    head: Vec<u8>,
    /// Address of the first byte loaded.
    pub(super) start: u64,
    /// The address behind the last byte of the last segment.
    pub(super) end: u64,
    pub(super) entry: Entry,
    /// Highest address that an initrd may occupy.
    pub(super) initrd_max: u64,
    /// Bytes of command line, without its NUL.
    pub(super) cmdline_max: usize,
}

impl Elf {
    pub(super) fn open(source: Source) -> Result<Self, Error> {
        let (header, segments) = read_headers(&source)?;
        let (mut start, mut end) = (u64::MAX, 0);
        let mut loaded = Vec::new();
        let mut spans = Vec::new();
        let mut pvh = None;
        for segment in &segments {
            match segment.kind.get() {
                PT_LOAD if segment.memsz.get() > 0 => {
                    let span = check_segment(&source, segment)?;
                    start = start.min(span.0);
                    end = end.max(span.1);
                    spans.push(span);
                    if segment.filesz.get() > 0 {
                        loaded.push(*segment);
                    }
                }
                PT_NOTE if pvh.is_none() => pvh = find_pvh_entry(&source, segment)?,
                _ => {}
            }
        }
        if loaded.is_empty() {
            return Err(source.corrupt("no segment of it is to be loaded"));
        }
        let entry = pvh.map_or(Entry::Linux(header.entry.get()), Entry::Pvh);
        let (Entry::Linux(at) | Entry::Pvh(at)) = entry;
        if !spans.iter().any(|&(start, end)| (start..end).contains(&at)) {
            return Err(source.corrupt(format!("its entry point {at:#x} lies in no segment")));
        }
        Ok(Self {
            head: make_head(header, &loaded),
            source,
            start,
            end,
            entry,
            initrd_max: INITRD_MAX,
            cmdline_max: CMDLINE_MAX,
        })
    }

    /// The file for a loader that puts each segment at its physical address.
    pub(super) fn image(&self) -> Image<'_> {
        let Self { head, source, .. } = self;
        let len = source.len().saturating_add(head.len() as u64);
        Image { head, source, resume: 0, len, at: 0 }
    }
}

fn read_headers(source: &Source) -> Result<(FileHeader, Vec<Segment>), Error> {
    let start = source.start(FILE_HEADER_LEN)?;
    // The identification tells what file it is, even if it is too short for the rest.
    match (start.get(4), start.get(5)) {
        (Some(&CLASS_32), _) => return Err(source.not_a_kernel("a 32-bit ELF file", WANTED)),
        (Some(_), Some(&BIG_ENDIAN)) => {
            return Err(source.not_a_kernel("a big-endian ELF file", WANTED));
        }
        _ => {}
    }
    source.reaches("the ELF header", FILE_HEADER_LEN as u64)?;
    let header = FileHeader::read_from_bytes(&start)
        .map_err(|_| source.corrupt("its ELF header has no known form"))?;
    if (header.class, header.data) != (CLASS_64, LITTLE_ENDIAN) {
        let (class, data) = (header.class, header.data);
        return Err(source.corrupt(format!("it is of ELF class {class} with data encoding {data}")));
    }
    match header.machine.get() {
        EM_X86_64 => {}
        machine => {
            return Err(
                source.not_a_kernel(format!("an ELF file for {}", elf_machine(machine)), WANTED)
            );
        }
    }
    match header.kind.get() {
        ET_EXEC | ET_DYN => {}
        kind => {
            return Err(
                source.not_a_kernel(format!("an ELF file of type {kind}, not a program"), WANTED)
            );
        }
    }

    let (count, offset) = (header.phnum.get(), header.phoff.get());
    if count == 0 || count > MAX_SEGMENTS || usize::from(header.phentsize.get()) != SEGMENT_LEN {
        return Err(source.corrupt(format!(
            "it has {count} program headers of {} bytes",
            header.phentsize.get()
        )));
    }
    let len = usize::from(count) * SEGMENT_LEN;
    source.reaches("the program header table", offset.saturating_add(len as u64))?;
    let table = source.read(offset, len)?;
    let segments = <[Segment]>::ref_from_bytes(&table)
        .map_err(|_| source.corrupt("its program headers have no known form"))?;
    Ok((header, segments.to_vec()))
}

/// The physical addresses a segment occupies, the end excluded.
fn check_segment(source: &Source, segment: &Segment) -> Result<(u64, u64), Error> {
    let (offset, start) = (segment.offset.get(), segment.paddr.get());
    let (in_file, in_memory) = (segment.filesz.get(), segment.memsz.get());
    source.reaches("a segment", offset.saturating_add(in_file))?;
    if in_file > in_memory {
        return Err(source.corrupt(format!(
            "a segment has {in_file} bytes in the file and {in_memory} in memory"
        )));
    }
    match start.checked_add(in_memory) {
        Some(end) if start >= layout::HIGH_RAM => Ok((start, end)),
        _ => {
            Err(source
                .corrupt(format!("a segment of {in_memory} bytes is to be loaded at {start:#x}")))
        }
    }
}

/// The PVH entry point, if this segment of notes has it.
fn find_pvh_entry(source: &Source, segment: &Segment) -> Result<Option<u64>, Error> {
    let (offset, len) = (segment.offset.get(), segment.filesz.get());
    source.reaches("the notes", offset.saturating_add(len))?;
    if len > MAX_NOTES {
        return Err(source.corrupt(format!("it has {len} bytes of notes")));
    }
    // Names and descriptors are padded to 4 bytes; where a segment is aligned to 8, to 8.
    let alignment = if segment.align.get() == 8 { 8 } else { 4 };
    let notes = source.read(offset, len as usize)?;
    let mut rest = notes.as_slice();
    while let Ok((note, behind)) = Note::ref_from_prefix(rest) {
        let parts =
            split_padded(behind, note.namesz.get(), alignment).and_then(|(name, behind)| {
                split_padded(behind, note.descsz.get(), alignment)
                    .map(|(descriptor, behind)| (name, descriptor, behind))
            });
        let Some((name, descriptor, behind)) = parts else {
            return Err(source.corrupt("a note of it is longer than all its notes"));
        };
        if note.kind.get() == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
            // Four bytes by the protocol; linkers of 64-bit kernels make it eight.
            return match U32::read_from_prefix(descriptor) {
                Ok((entry, _)) => Ok(Some(entry.get().into())),
                Err(_) => Err(source.corrupt("its PVH note holds no address")),
            };
        }
        rest = behind;
    }
    Ok(None)
}

/// The first `len` bytes, and what follows their padding. The last note needs none.
fn split_padded(bytes: &[u8], len: u32, alignment: usize) -> Option<(&[u8], &[u8])> {
    let len = usize::try_from(len).ok()?;
    let padded = len.checked_next_multiple_of(alignment)?;
    let part = bytes.get(..len)?;
    Some((part, bytes.get(padded..).unwrap_or_default()))
}

/// An ELF header with `segments` behind it, whose offsets count from the start of the new header.
fn make_head(mut header: FileHeader, segments: &[Segment]) -> Vec<u8> {
    let len = FILE_HEADER_LEN + segments.len() * SEGMENT_LEN;
    header.phoff = U64::new(FILE_HEADER_LEN as u64);
    header.phnum = U16::new(segments.len() as u16);
    let mut head = header.as_bytes().to_vec();
    for segment in segments {
        let mut segment = *segment;
        segment.offset = U64::new(segment.offset.get().saturating_add(len as u64));
        head.extend_from_slice(segment.as_bytes());
    }
    head
}
