//! qcow2 images: any bytes, or a good image with changes, opened and used.
//!
//! What cannot be used is refused, or ends in an error while it is used. imago may not panic either, although that
//! would be caught. An image that nothing was changed in keeps what is written to it, and can be opened again.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use arbitrary::Unstructured;
use hyperkit::disk::{BlockBackend, BufferList, Flush, Qcow2};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::ops::rest;
use crate::{fields, operations};

fields! {
    /// The start of an input.
    pub struct Head {
        /// What the file is at first: the rest of the input, or an image of one of [`KINDS`].
        pub kind: u8,
        /// Whether the image is only read.
        pub read_only: u8,
    }
}

operations! {
    /// What is done with an image. While it is open, the file is not changed but through it.
    pub enum Op(9) {
        /// Changes a big-endian number of 1 to 8 bytes in the file.
        0 => Patch { at: u16, len: u8, value: u64 },
        /// Changes an entry of a table: of refcounts, of blocks, L1, L2.
        1 => Entry { table: u8, index: u8, value: u64 },
        /// The file ends here; or later, in zeros.
        2 => Cut { len: u16 },
        /// Sectors are read.
        3 => Read { sector: u16, count: u8 },
        /// Sectors are written.
        4 => Write { sector: u16, count: u8, value: u8 },
        /// Sectors are discarded, or made zeros.
        5 => Free { sector: u16, count: u8, how: u8 },
        /// What was written is kept.
        6 => Flush {},
        /// The image is closed, and opened again when it is needed.
        7 => Close {},
        /// The disk grows.
        8 => Grow { sectors: u16 },
    }
}

/// Version, bits of a cluster's size, and of a refcount's size.
pub const KINDS: [(u32, u32, u32); 5] = [(3, 9, 4), (2, 9, 4), (3, 9, 0), (3, 12, 6), (3, 10, 3)];
/// Sectors of a disk.
const SECTORS: u16 = 250;

/// Larger disks do not grow.
const LARGEST: u64 = 2 << 20;

/// A file that is made once, and has a name as long as the process lives.
static FILE: LazyLock<Mutex<File>> = LazyLock::new(|| {
    let file = memfd_create("fuzz-qcow2", MemfdFlags::CLOEXEC).expect("a memfd can be had");
    Mutex::new(file.into())
});

/// Carries out an input.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let head: Head = u.arbitrary().unwrap_or_default();
    // After an input that failed the process ends, so a poisoned lock is never met.
    let file = FILE.lock().expect("no input has failed");
    let (image, cluster, ops): (_, _, Vec<Op>) = match usize::from(head.kind) % (KINDS.len() + 1) {
        0 => {
            let ops = vec![
                Op::Read { sector: 0, count: 9 },
                Op::Write { sector: 1, count: 9, value: 1 },
                Op::Free { sector: 0, count: 255, how: 0 },
            ];
            (u.peek_bytes(u.len()).unwrap_or_default().to_vec(), 0, ops)
        }
        kind => (template(KINDS[kind - 1]), 1 << KINDS[kind - 1].1, rest(&mut u).collect()),
    };
    write_all(&file, &image);
    let mut session = Session {
        file: &file,
        read_only: head.read_only % 2 == 1,
        cluster,
        disk: None,
        // A model of an image that is as it should be.
        model: (cluster != 0).then(|| {
            let mut model = vec![0; usize::from(SECTORS) * 512];
            model[..cluster].fill(0x5a);
            model
        }),
    };
    for op in ops {
        if session.apply(op).is_none() {
            return;
        }
    }
    session.finish();
}

fn write_all(file: &File, bytes: &[u8]) {
    file.set_len(0).expect("a memfd can be emptied");
    file.write_all_at(bytes, 0).expect("a memfd takes what it is given");
}

/// A small image with a table of each sort and a cluster of data. The tables follow each other: refcount table,
/// block, L1, L2, data.
pub fn template((version, bits, order): (u32, u32, u32)) -> Vec<u8> {
    let cluster = 1usize << bits;
    let mut image = vec![0; 6 * cluster];
    let mut put = |at: usize, bytes: &[u8]| image[at..][..bytes.len()].copy_from_slice(bytes);
    let place = |number: usize| (number * cluster) as u64;
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &bits.to_be_bytes());
    put(24, &(u64::from(SECTORS) * 512).to_be_bytes());
    put(36, &4u32.to_be_bytes());
    put(40, &place(3).to_be_bytes());
    put(48, &place(1).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    if version > 2 {
        put(96, &order.to_be_bytes());
        put(100, &104u32.to_be_bytes());
    }
    put(cluster, &place(2).to_be_bytes());
    for number in 0..6 {
        match order {
            0 => put(2 * cluster, &[0x3f]),
            _ => {
                let bytes = (1 << order) / 8;
                put(2 * cluster + number * bytes, &1u64.to_be_bytes()[8 - bytes..]);
            }
        }
    }
    put(3 * cluster, &(1 << 63 | place(4)).to_be_bytes());
    put(4 * cluster, &(1 << 63 | place(5)).to_be_bytes());
    image[5 * cluster..].fill(0x5a);
    image
}

struct Session<'a> {
    file: &'a File,
    read_only: bool,
    cluster: usize,
    disk: Option<Qcow2>,
    model: Option<Vec<u8>>,
}

impl Session<'_> {
    /// `None` if there is no image to go on with.
    fn apply(&mut self, op: Op) -> Option<()> {
        match op {
            Op::Patch { .. } | Op::Entry { .. } | Op::Cut { .. } if self.disk.is_some() => {}
            Op::Patch { at, len, value } => self.patch(at.into(), len, value),
            Op::Entry { table, index, value } => {
                let table = [2, 1, 3, 4][usize::from(table % 4)];
                self.patch(table * self.cluster + 8 * usize::from(index), 7, value);
            }
            Op::Cut { len } => {
                self.model = None;
                self.file.set_len(len.into()).expect("a memfd can be cut");
            }
            Op::Close {} => self.disk = None,
            op => {
                if self.disk.is_none() {
                    self.disk = Some(self.open()?);
                }
                self.use_it(op);
            }
        }
        Some(())
    }

    fn patch(&mut self, at: usize, len: u8, value: u64) {
        self.model = None;
        let len = usize::from(len % 8) + 1;
        let bytes = &value.to_be_bytes()[8 - len..];
        self.file.write_all_at(bytes, at as u64).expect("a memfd takes what it is given");
    }

    fn open(&self) -> Option<Qcow2> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        match Qcow2::open_alone(&path, self.read_only, Flush::Fsync) {
            Ok(disk) => Some(disk),
            Err(error) => {
                let error = error.to_string();
                assert!(self.model.is_none() && !is_panic(&error), "{error}");
                None
            }
        }
    }

    fn use_it(&mut self, op: Op) {
        let Self { disk: Some(disk), model, read_only, .. } = self else { return };
        let extent = |sector: u16, count: u8| {
            let sectors = disk.size() / 512;
            let first = u64::from(sector).min(sectors);
            let count = u64::from(count % 64).min(sectors - first);
            (first * 512, (count * 512) as usize)
        };
        let part = |offset: u64, len: usize| offset as usize..offset as usize + len;
        let result = match op {
            Op::Read { sector, count } => {
                let (offset, len) = extent(sector, count);
                let mut bytes = vec![0xee; len];
                let result = disk.read(offset, BufferList::from(&mut bytes[..]).all());
                if let Some(model) = model {
                    assert!(bytes == model[part(offset, len)], "{len} bytes at {offset:#x}");
                }
                result
            }
            Op::Write { sector, count, value } => {
                let (offset, len) = extent(sector, count);
                let mut bytes = vec![value; len];
                let result = disk.write(offset, BufferList::from(&mut bytes[..]).all());
                if let (Some(model), false) = (model, *read_only) {
                    model[part(offset, len)].copy_from_slice(&bytes);
                }
                result
            }
            Op::Free { sector, count, how } => {
                let (offset, len) = extent(sector, count);
                match how % 3 {
                    0 => {
                        let result = disk.discard(offset, len as u64);
                        if let (Some(model), false) = (model, *read_only) {
                            let there = &mut model[part(offset, len)];
                            disk.read(offset, BufferList::from(there).all()).expect("it is read");
                        }
                        result
                    }
                    how => {
                        if let (Some(model), false) = (model, *read_only) {
                            model[part(offset, len)].fill(0);
                        }
                        disk.write_zeroes(offset, len as u64, how == 1)
                    }
                }
            }
            Op::Grow { .. } if disk.size() > LARGEST => Ok(()),
            Op::Grow { sectors } => {
                let size = disk.size() + u64::from(sectors % 1024) * 512;
                let result = disk.resize(size);
                if let (Some(model), false) = (model, *read_only) {
                    model.resize(size as usize, 0);
                }
                result
            }
            _ => disk.flush(),
        };
        self.judge(result);
    }

    /// Errors are for images that were changed, and for writing what is only read.
    fn judge(&self, result: io::Result<()>) {
        if let Err(error) = result {
            let text = error.to_string();
            assert!(!is_panic(&text), "{text}");
            let denied = self.read_only && error.kind() == io::ErrorKind::PermissionDenied;
            assert!(self.model.is_none() || denied, "{text}");
        }
    }

    /// What was written is there after the image was closed.
    fn finish(&mut self) {
        self.disk = None;
        let Some(model) = &self.model else { return };
        let Some(disk) = self.open() else { return };
        let mut bytes = vec![0; model.len()];
        disk.read(0, BufferList::from(&mut bytes[..]).all()).expect("it is read");
        assert!(bytes == *model, "after it was closed");
    }
}

/// Whether imago panicked. The end of an error is never an image's word; names in what comes before are.
fn is_panic(error: &str) -> bool {
    error.ends_with("imago panicked")
}
