//! The header of a qcow2 file, and whether it can be believed.
//!
//! imago trusts much of what it reads. So the header is read here first, and what is absurd, or would make imago
//! panic or take memory without measure, is refused with a word on what it is. A file is only as large as its owner
//! made it, so everything is held against that: no table lies behind the end.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// "QFI" and 0xfb.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Length of the header of version 2, and the least of version 3.
const LENGTH: [usize; 2] = [72, 104];
/// Limits that QEMU has as well.
pub(super) const MOST_L1_BYTES: u64 = 32 << 20;
pub(super) const MOST_REFCOUNT_BYTES: u64 = 8 << 20;
const MOST_SNAPSHOTS: u32 = 65536;
const MOST_NAME: u32 = 1023;
/// Ordinary images have three.
const MOST_EXTENSIONS: usize = 64;

/// Header extensions: the end of them, the backing file's format, names of feature bits.
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const FEATURE_NAME_LENGTH: usize = 48;

/// Why a file is not used.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It cannot be read.
    Host(io::Error),
    /// It is not a sound image, or one of a kind that is not supported.
    Image(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// Ends a check.
pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Image(why.into()))
}

/// What is known about an image whose header has passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// Where the table of level 1 is.
    pub l1: Range<u64>,
    /// Where the refcount table is.
    pub refcounts: Range<u64>,
    /// Two to the power of it is the bits of a refcount.
    pub refcount_order: u32,
    /// There are snapshots within the image.
    pub has_snapshots: bool,
    /// What the image is a difference to.
    pub backing: Option<Named>,
}

/// A backing file, as a header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub name: String,
    /// Missing in old images.
    pub format: Option<String>,
}

impl Header {
    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Reads and checks the header of a file of `len` bytes.
    pub fn read(file: &File, len: u64) -> Result<Self, Refusal> {
        let mut start = [0; LENGTH[1]];
        let there = read_up_to(file, 0, &mut start)?;
        let start = start.get(..there).unwrap_or_default();
        if start.get(..MAGIC.len()) != Some(&MAGIC) {
            return refuse("it does not begin as one; if it is a raw image, say so");
        }
        let (version, cluster_bits) = (u32_at(start, 4), u32_at(start, 20));
        let least = match version {
            2 => LENGTH[0],
            3 => LENGTH[1],
            _ => return refuse(format!("it has version {version}, only 2 and 3 are known")),
        };
        if there < least {
            return refuse(format!("its header is cut off after {there} bytes"));
        }
        if !(9..=21).contains(&cluster_bits) {
            return refuse(format!("it has clusters of 2^{cluster_bits} bytes, not 2^9 to 2^21"));
        }
        let cluster = 1 << cluster_bits;
        match u32_at(start, 32) {
            0 => {}
            1 | 2 => return refuse("it is encrypted, which is not supported"),
            method => return refuse(format!("its encryption method {method} is unknown")),
        }
        let (refcount_order, header_length) = match version {
            2 => (4, LENGTH[0] as u64),
            _ => (u32_at(start, 96), u32_at(start, 100).into()),
        };
        if version == 3 {
            check_features(u64_at(start, 72))?;
            let fits = (LENGTH[1] as u64..=cluster).contains(&header_length);
            if !fits || !header_length.is_multiple_of(8) {
                return refuse(format!("its header claims a length of {header_length} bytes"));
            }
        }
        if refcount_order > 6 {
            return refuse(format!("its refcounts have 2^{refcount_order} bits, more than 64"));
        }

        let size = u64_at(start, 24);
        let l1 = table_of_l1(start, cluster_bits, size)?;
        let refcounts = table_of_refcounts(start, cluster)?;
        let snapshots = snapshots(start)?;
        let has_snapshots = snapshots.is_some();
        let mut places = vec![
            ("header", 0..cluster),
            ("L1 table", l1.clone()),
            ("refcount table", refcounts.clone()),
        ];
        places.extend(snapshots.map(|place| ("snapshot table", place)));
        check_places(&places, cluster, len)?;

        let mut first = vec![0; cluster as usize];
        let there = read_up_to(file, 0, &mut first)?;
        first.truncate(there);
        let backing = backing(&first, version, header_length, cluster)?;
        Ok(Self {
            version,
            cluster_bits,
            size,
            l1,
            refcounts,
            refcount_order,
            has_snapshots,
            backing,
        })
    }
}

/// Incompatible features: whoever does not know one must not touch the image.
fn check_features(bits: u64) -> Result<(), Refusal> {
    let why = match bits.trailing_zeros() {
        0 => {
            "it was not closed properly and its refcounts are stale (the dirty bit is set); \
             `qemu-img check -r all` repairs it"
        }
        1 => "it is marked as corrupt; `qemu-img check -r all` may repair it",
        2 => "its data is in another file (an external data file), which is not supported",
        3 => "its clusters are compressed in another way than deflate, which is not supported",
        4 => "it has extended L2 entries (subclusters), which are not supported",
        64 => return Ok(()),
        bit => return refuse(format!("it needs a feature that is unknown here (bit {bit})")),
    };
    refuse(why)
}

/// Where the L1 table is: large enough for the disk.
fn table_of_l1(start: &[u8], cluster_bits: u32, size: u64) -> Result<Range<u64>, Refusal> {
    let (entries, offset) = (u64::from(u32_at(start, 36)), u64_at(start, 40));
    let bytes = entries * 8;
    if bytes > MOST_L1_BYTES {
        return refuse(format!("its L1 table of {bytes} bytes is larger than 32 MiB"));
    }
    // An L2 table is a cluster of 8-byte entries, each for a cluster.
    let needed = size.div_ceil(1 << (2 * cluster_bits - 3));
    if needed > entries {
        return refuse(format!(
            "its L1 table has {entries} entries, but a disk of {size} bytes needs {needed}"
        ));
    }
    range("L1 table", offset, bytes)
}

fn table_of_refcounts(start: &[u8], cluster: u64) -> Result<Range<u64>, Refusal> {
    let bytes = u64::from(u32_at(start, 56)) * cluster;
    if bytes == 0 || bytes > MOST_REFCOUNT_BYTES {
        return refuse(format!("its refcount table has {bytes} bytes"));
    }
    range("refcount table", u64_at(start, 48), bytes)
}

/// Where the snapshot table begins. What is in it is left alone.
fn snapshots(start: &[u8]) -> Result<Option<Range<u64>>, Refusal> {
    match u32_at(start, 60) {
        0 => Ok(None),
        count if count > MOST_SNAPSHOTS => refuse(format!("it claims to have {count} snapshots")),
        _ => range("snapshot table", u64_at(start, 64), 1).map(Some),
    }
}

fn range(what: &str, offset: u64, bytes: u64) -> Result<Range<u64>, Refusal> {
    match offset.checked_add(bytes) {
        Some(end) => Ok(offset..end),
        None => refuse(format!("its {what} is at {offset:#x}, where no file ends")),
    }
}

/// Makes sure that what is in the file is within it, aligned, and apart from each other.
fn check_places(
    places: &[(&'static str, Range<u64>)],
    cluster: u64,
    len: u64,
) -> Result<(), Refusal> {
    // The last cluster may be cut short.
    let end = len.next_multiple_of(cluster);
    for (index, (name, place)) in places.iter().enumerate() {
        if !place.start.is_multiple_of(cluster) {
            return refuse(format!("its {name} is at {:#x}, within a cluster", place.start));
        }
        if place.is_empty() {
            continue;
        }
        if place.start >= len || place.end > end {
            return refuse(format!(
                "its {name} is at {:#x} to {:#x}, but the file ends at {len:#x}",
                place.start, place.end
            ));
        }
        let mut before = places.get(..index).unwrap_or_default().iter();
        if let Some((other, _)) = before.find(|(_, other)| overlap(place, other)) {
            return refuse(format!("its {name} at {:#x} lies over the {other}", place.start));
        }
    }
    Ok(())
}

/// Whether two ranges have something in common.
pub(super) fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// The backing file's name, and its format, from the first cluster.
fn backing(
    first: &[u8],
    version: u32,
    header_length: u64,
    cluster: u64,
) -> Result<Option<Named>, Refusal> {
    let (offset, length) = (u64_at(first, 8), u32_at(first, 16));
    // Old images have the name in the place of extensions.
    let end = match offset {
        0 => first.len(),
        offset => usize::try_from(offset).map_or(first.len(), |offset| offset.min(first.len())),
    };
    let extensions = first.get(header_length as usize..end).unwrap_or_default();
    let (format, ended) = backing_format(extensions)?;
    if version == 3 && !ended {
        return refuse("its header extensions have no end");
    }
    if offset == 0 {
        return Ok(None);
    }
    if length == 0 || length > MOST_NAME {
        return refuse(format!("the name of its backing file has {length} bytes, not 1 to 1023"));
    }
    let name = usize::try_from(offset).ok().and_then(|at| first.get(at..)?.get(..length as usize));
    // imago wants a byte after it.
    let Some(name) = name.filter(|name| offset + (name.len() as u64) < cluster) else {
        return refuse("the name of its backing file lies outside its first cluster");
    };
    match str::from_utf8(name) {
        Ok(name) => Ok(Some(Named { name: name.to_owned(), format })),
        Err(_) => refuse("the name of its backing file is no text"),
    }
}

/// Walks the header's extensions, for the backing file's format; tells also whether they have come to an end.
fn backing_format(mut bytes: &[u8]) -> Result<(Option<String>, bool), Refusal> {
    let mut format = None;
    for _ in 0..MOST_EXTENSIONS {
        let Some((head, rest)) = bytes.split_at_checked(8) else { return Ok((format, false)) };
        let (kind, length) = (u32_at(head, 0), u32_at(head, 4) as usize);
        let Some(data) = rest.get(..length) else {
            return refuse(format!("its header extension {kind:#x} does not fit"));
        };
        match kind {
            EXTENSION_END => return Ok((format, true)),
            EXTENSION_BACKING_FORMAT => match str::from_utf8(data) {
                Ok(name) => format = Some(name.to_owned()),
                Err(_) => return refuse("the format of its backing file is no text"),
            },
            EXTENSION_FEATURE_NAMES if !length.is_multiple_of(FEATURE_NAME_LENGTH) => {
                return refuse("its table of feature names ends within a name");
            }
            _ => {}
        }
        bytes = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
    refuse(format!("it has more than {MOST_EXTENSIONS} header extensions"))
}

/// A number of the header; 0 where there is none.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let number = bytes.get(at..).and_then(<[u8]>::first_chunk);
    number.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// A number of the header; 0 where there is none.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let number = bytes.get(at..).and_then(<[u8]>::first_chunk);
    number.map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Reads as much as there is.
pub(super) fn read_up_to(file: &File, offset: u64, mut into: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while !into.is_empty() {
        match file.read_at(into, offset + done as u64) {
            Ok(0) => break,
            Ok(count) => {
                done += count;
                into = into.get_mut(count..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
