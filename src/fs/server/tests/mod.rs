//! A guest that speaks the protocol byte by byte, and a folder with something outside it.

mod attributes;
mod escape;
mod fids;
mod files;
mod messages;
mod names;
#[cfg(target_os = "linux")]
mod now;
#[cfg(target_os = "linux")]
mod parallel;
mod random;
mod session;
mod xattr;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use tempfile::TempDir;
use vm_memory::VolatileSlice;

use super::{Scratch, Server};
use crate::fs::envelope::RLERROR;
use crate::fs::tree::{Owner, Qid, Tree, Wait};
use crate::fs::wire::testing::{encode, encode_names, names};
use crate::fs::wire::{Fields, HEADER, Header, Kind, Lock, NO_FID, Request};
use crate::memory::BufferList;

/// The fid of the share's root.
const ROOT: u32 = 0;

const MSIZE: u32 = 8192;

const ENOENT: u32 = 2;
const EBADF: u32 = 9;
const EBUSY: u32 = 16;
const EEXIST: u32 = 17;
const ENOTDIR: u32 = 20;
const EISDIR: u32 = 21;
const EINVAL: u32 = 22;
const ENFILE: u32 = 23;
const ENXIO: u32 = 6;
const EROFS: u32 = 30;
const ENAMETOOLONG: u32 = 36;
const ENOTEMPTY: u32 = 39;
const ELOOP: u32 = 40;
const EPROTO: u32 = 71;
const EMSGSIZE: u32 = 90;
const EOPNOTSUPP: u32 = 95;

const O_RDONLY: u32 = 0;
const O_WRONLY: u32 = 1;
const O_RDWR: u32 = 2;
const O_CREAT: u32 = 0o100;
const O_EXCL: u32 = 0o200;
const O_TRUNC: u32 = 0o1000;
const O_APPEND: u32 = 0o2000;
const O_DIRECTORY: u32 = 0o200_000;

/// What an R-message has behind its header, or what Rlerror says.
type Answer = Result<Vec<u8>, u32>;

struct Guest {
    server: Arc<Server>,
    /// Has the share, `share`, and beside it a file that the guest must not get at, `secret`.
    host: TempDir,
    tag: AtomicU16,
}

impl Guest {
    /// One that has attached itself, as [`ROOT`].
    fn new() -> Self {
        Self::with(false, 1000)
    }

    fn with(read_only: bool, fids: usize) -> Self {
        let host = TempDir::new().unwrap();
        fs::create_dir(host.path().join("share")).unwrap();
        fs::write(host.path().join("secret"), "not for the guest").unwrap();
        let guest = Self::of(host, read_only, fids);
        guest.begin();
        guest
    }

    fn of(host: TempDir, read_only: bool, fids: usize) -> Self {
        let share = host.path().join("share");
        let tree = Tree::open(&share, read_only, Owner::passthrough()).unwrap();
        let server = Arc::new(Server::new(&tree, fids).unwrap());
        Self { server, host, tag: AtomicU16::new(0) }
    }

    fn begin(&self) {
        self.version(MSIZE).unwrap();
        self.attach(ROOT, b"").unwrap();
    }

    /// A path on the host.
    fn path(&self, name: &str) -> PathBuf {
        self.host.path().join("share").join(name)
    }

    /// Sends bytes, with room for `room` in return, both in pieces of `piece` bytes.
    fn raw(&self, message: &[u8], room: usize, piece: usize) -> Vec<u8> {
        let (mut message, mut room) = (message.to_vec(), vec![0xee; room]);
        let pieces = |bytes| -> BufferList<'_> {
            let bytes: &mut Vec<u8> = bytes;
            bytes.chunks_mut(piece).map(VolatileSlice::from).collect()
        };
        let (request, reply) = (pieces(&mut message), pieces(&mut room));
        let serve =
            |wait| self.server.serve(request.all(), reply.all(), &mut Scratch::default(), wait);
        // Every other message as a device does it: first in a way that may be given up.
        let patience = [Wait::No, Wait::Long, Wait::Brief, Wait::Long];
        let first = patience[usize::from(self.tag.load(Ordering::Relaxed)) / 4 % 4];
        let len = serve(first).or_else(|| serve(Wait::Long)).expect("it may wait");
        drop((request, reply));
        assert!(room[len..].iter().all(|byte| *byte == 0xee), "written behind the answer");
        room.truncate(len);
        room
    }

    /// Sends a whole message, and looks at what there always is of the answer.
    fn send(&self, message: &[u8]) -> Answer {
        // No more of them than a system call takes.
        let pieces = [message.len() + MSIZE as usize, 9, 4096, 13];
        let piece = pieces[usize::from(self.tag.load(Ordering::Relaxed)) % pieces.len()];
        let sent = Header::decode(message[..HEADER].try_into().unwrap());
        let answer = self.raw(message, MSIZE as usize, piece);
        let header = Header::decode(answer[..HEADER].try_into().unwrap());
        assert_eq!((header.size as usize, header.tag), (answer.len(), sent.tag));
        let body = answer[HEADER..].to_vec();
        match header.kind {
            RLERROR => Err(u32::from_le_bytes(body.try_into().unwrap())),
            kind => {
                assert_eq!(kind, sent.kind + 1);
                Ok(body)
            }
        }
    }

    fn tag(&self) -> u16 {
        self.tag.fetch_add(1, Ordering::Relaxed)
    }

    fn ask(&self, request: Request<'_>) -> Answer {
        self.send(&encode(&request).finish(self.tag()))
    }

    /// Asks for something of which the answer has nothing but its header.
    fn does(&self, request: Request<'_>) -> Result<(), u32> {
        self.ask(request).map(|body| assert!(body.is_empty(), "{body:?}"))
    }

    fn version(&self, msize: u32) -> Answer {
        self.ask(Request::Version { msize, version: b"9P2000.L" })
    }

    fn attach(&self, fid: u32, path: &[u8]) -> Result<Qid, u32> {
        let request = Request::Attach { fid, auth_fid: NO_FID, user: b"root", path, uid: 0 };
        self.ask(request).map(|body| one_qid(&body))
    }

    fn walk_bytes(&self, fid: u32, new_fid: u32, path: &[&[u8]]) -> Result<Vec<Qid>, u32> {
        let bytes = encode_names(path);
        let names = names(path.len(), &bytes);
        let body = self.ask(Request::Walk { fid, new_fid, names })?;
        let mut fields = Fields::new(&body);
        let qids = (0..fields.u16().unwrap()).map(|_| qid(&mut fields)).collect();
        fields.end().unwrap();
        Ok(qids)
    }

    /// Walks by a path, of which it must find all.
    fn walk(&self, fid: u32, new_fid: u32, path: &str) -> Result<(), u32> {
        let names: Vec<&[u8]> =
            path.split('/').filter(|n| !n.is_empty()).map(str::as_bytes).collect();
        let found = self.walk_bytes(fid, new_fid, &names)?.len();
        if found == names.len() { Ok(()) } else { Err(ENOENT) }
    }

    fn lopen(&self, fid: u32, flags: u32) -> Result<(Qid, u32), u32> {
        self.ask(Request::Lopen { fid, flags }).map(|body| qid_and_unit(&body))
    }

    /// Walks to a file, and opens it.
    fn open(&self, fid: u32, path: &str, flags: u32) -> Result<(), u32> {
        self.walk(ROOT, fid, path)?;
        self.lopen(fid, flags).map(drop)
    }

    /// Makes a file in the root.
    fn create(&self, fid: u32, name: &[u8], flags: u32) -> Result<(Qid, u32), u32> {
        self.walk(ROOT, fid, "")?;
        let request =
            Request::Lcreate { fid, name, flags: flags | O_CREAT, mode: 0o100_644, gid: gid() };
        self.ask(request).map(|body| qid_and_unit(&body))
    }

    fn read(&self, fid: u32, offset: u64, count: u32) -> Answer {
        let body = self.ask(Request::Read { fid, offset, count })?;
        let (len, data) = body.split_first_chunk().unwrap();
        assert_eq!(u32::from_le_bytes(*len) as usize, data.len());
        Ok(data.to_vec())
    }

    fn write(&self, fid: u32, offset: u64, data: &[u8]) -> Result<usize, u32> {
        let count = data.len().try_into().unwrap();
        let message = encode(&Request::Write { fid, offset, count }).raw(data);
        let body = self.send(&message.finish(self.tag()))?;
        Ok(u32::from_le_bytes(body.try_into().unwrap()) as usize)
    }

    /// A few entries: cookies and names.
    fn some_entries(&self, fid: u32, cookie: u64, count: u32) -> Result<Vec<Entry>, u32> {
        let body = self.ask(Request::Readdir { fid, cookie, count })?;
        let mut fields = Fields::new(&body);
        let len = fields.u32().unwrap();
        assert!(len <= count);
        assert_eq!(fields.rest().len(), len as usize);
        let mut entries = Vec::new();
        while !fields.rest().is_empty() {
            entries.push(Entry {
                qid: qid(&mut fields),
                cookie: fields.u64().unwrap(),
                kind: fields.u8().unwrap(),
                name: String::from_utf8(fields.string().unwrap().to_vec()).unwrap(),
            });
        }
        Ok(entries)
    }

    /// All entries of an open folder.
    fn entries(&self, fid: u32, count: u32) -> Vec<Entry> {
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let cookie = all.last().map_or(0, |entry| entry.cookie);
            let some = self.some_entries(fid, cookie, count).unwrap();
            if some.is_empty() {
                return all;
            }
            all.extend(some);
        }
    }

    fn getattr(&self, fid: u32) -> Result<Attributes, u32> {
        let body = self.ask(Request::Getattr { fid, mask: u64::MAX })?;
        let f = &mut Fields::new(&body);
        let long = |f: &mut Fields<'_>| f.u64().unwrap();
        assert_eq!(long(f), 0x7ff);
        let qid = qid(f);
        let (mode, uid, gid) = (f.u32().unwrap(), f.u32().unwrap(), f.u32().unwrap());
        let (links, device, size, _, blocks) = (long(f), long(f), long(f), long(f), long(f));
        let (accessed, modified) = ((long(f), long(f)), (long(f), long(f)));
        let mut rest = [0; 6];
        rest.fill_with(|| f.u64().unwrap());
        f.end().unwrap();
        Ok(Attributes { qid, mode, uid, gid, links, device, size, blocks, accessed, modified })
    }

    fn clunk(&self, fid: u32) -> Result<(), u32> {
        self.does(Request::Clunk { fid })
    }

    /// The status of Tlock, for bytes of an open file.
    fn lock(&self, fid: u32, kind: u8, start: u64, length: u64) -> Result<u8, u32> {
        let lock = Lock { kind, start, length, process: 1, client: b"guest" };
        self.ask(Request::Lock { fid, flags: 0, lock }).map(|body| {
            assert_eq!(body.len(), 1);
            body[0]
        })
    }
}

#[derive(Debug)]
struct Entry {
    qid: Qid,
    cookie: u64,
    kind: u8,
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attributes {
    qid: Qid,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u64,
    device: u64,
    size: u64,
    blocks: u64,
    accessed: (u64, u64),
    modified: (u64, u64),
}

fn qid(fields: &mut Fields<'_>) -> Qid {
    let (kind, version) = (fields.u8().unwrap(), fields.u32().unwrap());
    Qid { kind, version, path: fields.u64().unwrap() }
}

/// A body that is one qid.
fn one_qid(body: &[u8]) -> Qid {
    let mut fields = Fields::new(body);
    let qid = qid(&mut fields);
    fields.end().unwrap();
    qid
}

fn qid_and_unit(body: &[u8]) -> (Qid, u32) {
    let mut fields = Fields::new(body);
    let answer = (qid(&mut fields), fields.u32().unwrap());
    fields.end().unwrap();
    answer
}

/// A group that this process may give files to.
fn gid() -> u32 {
    rustix::process::getegid().as_raw()
}
