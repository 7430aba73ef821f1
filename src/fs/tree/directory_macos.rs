//! Reading directories by `readdir`. Its positions mean nothing to other streams, and not much after a change, so a
//! cookie is the number of entries before: who goes on where the last call ended, as guests do, gets what the
//! system gives to a process that reads on; who goes back has the entries counted again.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::fs::Dir;

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
#[derive(Debug, Default)]
pub(super) struct Reader(Mutex<Option<Stream>>);

#[derive(Debug)]
struct Stream {
    dir: Dir,
    /// Entries that have been read and taken.
    taken: u64,
    /// One that has been read and not taken: name, inode, kind.
    left: Option<(CString, u64, u32)>,
}

impl Stream {
    fn next(&mut self) -> io::Result<Option<(CString, u64, u32)>> {
        if let Some(left) = self.left.take() {
            return Ok(Some(left));
        }
        let Some(entry) = self.dir.read().transpose()? else { return Ok(None) };
        let kind = u32::from(entry.file_type().as_raw_mode()) >> 12;
        Ok(Some((entry.file_name().to_owned(), entry.ino(), kind)))
    }
}

impl Reader {
    /// Calls `each` with what is behind `cookie`, until it returns false. There is no need to know the room: an entry that
    /// finds none is kept.
    pub fn read(
        &self,
        file: &File,
        cookie: u64,
        _room: usize,
        each: &mut dyn FnMut(Found<'_>) -> bool,
    ) -> io::Result<()> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = match &mut *stream {
            Some(stream) => stream,
            none => none.insert(Stream { dir: Dir::read_from(file)?, taken: 0, left: None }),
        };
        if stream.taken != cookie {
            stream.dir.rewind();
            (stream.taken, stream.left) = (0, None);
            while stream.taken < cookie && stream.next()?.is_some() {
                stream.taken += 1;
            }
        }
        while let Some((name, inode, kind)) = stream.next()? {
            let behind = stream.taken + 1;
            if !each(Found { name: name.to_bytes(), inode, kind, cookie: behind }) {
                stream.left = Some((name, inode, kind));
                break;
            }
            stream.taken = behind;
        }
        Ok(())
    }
}
