//! Reading directories by `getdents64`, whose cookies hold while the directory changes, and as long as it is there.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{RawDir, SeekFrom, seek};

/// Most bytes that are read at once.
const ROOM: usize = 16 << 10;
/// The least that is read at once, whatever there is room for: more than any entry takes, on file systems too whose
/// names of 255 characters have more bytes.
const LEAST: usize = 1 << 10;
/// What an entry takes in Rreaddir besides its name: qid, offset, kind, length of the name.
const REPLY: usize = 13 + 8 + 1 + 2;

/// An entry, as the host has it.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub name: &'a [u8],
    pub inode: u64,
    /// DT_DIR and so on.
    pub kind: u32,
    pub cookie: u64,
}

/// Where an open directory is read.
#[derive(Debug)]
pub(super) struct Reader {
    /// The cookie of what is read next without seeking, if that is known.
    next: Mutex<Option<u64>>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { next: Mutex::new(Some(0)) }
    }
}

impl Reader {
    /// Calls `each` with what is behind `cookie`, until it returns false, or so much has been read that a reply of
    /// `room` bytes is full or nearly so.
    pub fn read(
        &self,
        file: &File,
        mut cookie: u64,
        mut room: usize,
        each: &mut dyn FnMut(Found<'_>) -> bool,
    ) -> io::Result<()> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if *next != Some(cookie) {
            seek(file, SeekFrom::Start(cookie))?;
        }
        // Until all that was read has been taken.
        *next = None;
        let mut buffer = [MaybeUninit::uninit(); ROOM];
        loop {
            // An entry takes at least 6/7 in the buffer of what it takes in the reply, so that what is read finds room
            // there, and need not be read again.
            let len = (room / 7 * 6).clamp(LEAST, ROOM);
            let mut entries = RawDir::new(file, buffer.get_mut(..len).unwrap_or_default());
            loop {
                let Some(entry) = entries.next() else {
                    *next = Some(cookie);
                    return Ok(());
                };
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                let behind = entry.next_entry_cookie();
                let found = Found {
                    name,
                    inode: entry.ino(),
                    kind: entry.file_type().as_raw_mode() >> 12,
                    cookie: behind,
                };
                room = room.saturating_sub(REPLY + name.len());
                if !each(found) {
                    return Ok(());
                }
                cookie = behind;
                if entries.is_buffer_empty() {
                    break;
                }
            }
            if room < REPLY + super::LONGEST_NAME {
                *next = Some(cookie);
                return Ok(());
            }
        }
    }
}
