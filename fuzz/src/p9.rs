//! A shared folder: any bytes as messages, or sequences of messages most of which make sense.
//!
//! Beside the folder, and in another one next to it, lies a canary, and a file whose name is a secret, which is also
//! what is in the canary. The secret is another one each time, so that no guest can have it from an input: whatever it
//! does, no reply holds the secret, and when the guest has gone both canaries, and what lies beside them, are as they
//! were. Every reply is a message: as long as it says, with the tag of its request.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use hyperkit::fs::Share;
use hyperkit::virtio::feature::INDIRECT_DESC;
use hyperkit::virtio::p9::P9;
use hyperkit::virtio::testing::{Buffer, Guest, Ring};
use vm_memory::{Bytes, GuestAddress};

use crate::ops::parse;
use crate::{fields, operations};

/// Known to guests, who look for it and make files of that name.
pub const CANARY: &str = "canary-5d1c0e";
/// Bytes of a request and of a reply, at most.
const ROOM: usize = 16 << 10;
/// A message that may be longer than an input's operations make it.
const MSIZE: u32 = 8 << 10;

const TVERSION: u8 = 100;
const TATTACH: u8 = 104;
const RLERROR: u8 = 7;

fields! {
    /// The start of an input.
    pub struct Head {
        /// Bit 0: nothing may be changed. Bit 1: there is no session yet.
        pub how: u8,
    }
}

operations! {
    /// Messages. Fids are 0 to 7, and names are some of [`NAMES`].
    pub enum Op(14) {
        /// `count` names, up to two.
        0 => Walk { fid: u8, new_fid: u8, count: u8, name: u8, next: u8 },
        /// The lowest bits of `flags` say how, the others are O_CREAT, O_TRUNC and so on.
        1 => Open { fid: u8, flags: u8 },
        2 => Create { fid: u8, name: u8, flags: u8, mode: u16 },
        3 => Read { fid: u8, offset: u32, count: u16 },
        4 => Write { fid: u8, offset: u32, count: u16 },
        5 => Readdir { fid: u8, cookie: u16, count: u16 },
        6 => Getattr { fid: u8 },
        7 => Setattr { fid: u8, valid: u16, mode: u16, size: u32, time: u64 },
        /// 0 makes a folder, 1 a symbolic link, 2 a node, 3 a link to `other`.
        8 => Make { what: u8, fid: u8, other: u8, name: u8, target: u8, mode: u16 },
        /// 0 is Tunlinkat, 1 Tremove, 2 Tclunk, 3 Trename, 4 Trenameat.
        9 => Move { what: u8, fid: u8, other: u8, name: u8, next: u8, flags: u8 },
        /// 0 looks for an attribute, 1 makes one.
        10 => Attribute { what: u8, fid: u8, new_fid: u8, name: u8, size: u16, flags: u8 },
        /// 0 is Tlock, 1 is Tgetlock.
        11 => Lock { what: u8, fid: u8, kind: u8, start: u8, length: u8, process: u8 },
        /// 0 is Tstatfs, 1 Tfsync, 2 Treadlink, 3 Tattach, 4 Tversion, 5 Tflush.
        12 => Other { what: u8, fid: u8 },
        /// The driver comes again.
        13 => Restart {},
    }
}

/// Names that files get, or are looked for by. Some of them are there: see [`Folder::new`].
pub const NAMES: [&[u8]; 21] = [
    b"file",
    b"folder",
    b"inside",
    b"new",
    b"newer",
    b"way-out",
    b"absolute",
    b"..",
    b".",
    b"",
    b"/",
    b"../outside",
    b"folder/inside",
    b"nul\0nul",
    b"outside",
    b"share",
    b"user.name",
    b"\xff\xfe",
    b"/proc/self/root",
    &[b'n'; 256],
    CANARY.as_bytes(),
];

fn named(name: u8) -> &'static [u8] {
    NAMES[usize::from(name) % NAMES.len()]
}

/// Folders of the host: what is shared, and what is not.
struct Folder {
    path: PathBuf,
    /// What no guest is to be told.
    secret: String,
    /// Of both canaries: length, mode, owner, links and time.
    before: Vec<[u64; 6]>,
}

impl Folder {
    fn new() -> Self {
        let random = || RandomState::new().hash_one(0);
        let path = std::env::temp_dir().join(format!("fuzz-p9-{:016x}", random()));
        let secret = format!("secret-{:016x}", random());
        let make = || {
            fs::create_dir_all(path.join("share/folder"))?;
            fs::create_dir(path.join("outside"))?;
            for outside in [path.clone(), path.join("outside")] {
                fs::write(outside.join(CANARY), &secret)?;
                fs::write(outside.join(&secret), b"")?;
            }
            fs::write(path.join("share/file"), b"a file")?;
            fs::write(path.join("share/folder/inside"), b"another file")?;
            symlink("../outside", path.join("share/way-out"))?;
            symlink(path.join("outside"), path.join("share/absolute"))
        };
        make().expect("there is room for a few files");
        let before = canaries(&path, &secret);
        Self { path, secret, before }
    }

    /// Nothing outside of the share has changed.
    fn check(&self) {
        let now = canaries(&self.path, &self.secret);
        assert_eq!(now, self.before, "a canary is not what it was");
        assert_eq!(list(&self.path), [CANARY, "outside", &self.secret, "share"]);
        assert_eq!(list(&self.path.join("outside")), [CANARY, &self.secret]);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn canaries(path: &Path, secret: &str) -> Vec<[u64; 6]> {
    let places = [path.join(CANARY), path.join("outside").join(CANARY)];
    let look = |place: PathBuf| {
        assert_eq!(fs::read(&place).expect("a canary is there"), secret.as_bytes());
        let data = fs::symlink_metadata(place).expect("a canary is there");
        let owner = u64::from(data.uid()) << 32 | u64::from(data.gid());
        let [time, change] = [data.mtime_nsec(), data.ctime_nsec()].map(|time| time as u64);
        [data.len(), data.mode().into(), owner, data.nlink(), time, change]
    };
    places.into_iter().map(look).collect()
}

fn list(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("it is a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.expect("it can be read").file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort();
    names
}

/// A guest with the share.
struct Client {
    guest: Guest,
    ring: Ring,
    /// Where the request, the room for the reply and the table of descriptors are.
    at: [u64; 3],
    folder: Folder,
}

impl Client {
    fn new(read_only: bool) -> Self {
        let folder = Folder::new();
        let share = Share::new("fuzz", folder.path.join("share"));
        let share = if read_only { share.read_only() } else { share };
        let device = P9::new(share.open().expect("it is a folder")).expect("there are descriptors");
        let mut guest = Guest::new(device);
        let ring = guest.start(INDIRECT_DESC, 16).remove(0);
        let at = [ROOM, ROOM, 4096].map(|len| guest.alloc(len));
        Self { guest, ring, at, folder }
    }

    fn restart(&mut self) {
        self.guest.reset();
        self.ring = self.guest.start(INDIRECT_DESC, 16).remove(0);
        self.at = [ROOM, ROOM, 4096].map(|len| self.guest.alloc(len));
    }

    /// Sends a message of at least a header, and returns the reply.
    fn ask(&mut self, message: &[u8]) -> Vec<u8> {
        let [request, reply, table] = self.at;
        let memory = &self.guest.memory;
        memory.write_slice(message, GuestAddress(request)).expect("it is in RAM");
        let buffers = [Buffer::Out(request, message.len() as u32), Buffer::In(reply, ROOM as u32)];
        let head = self.ring.request_indirect(table, &buffers);
        self.guest.kick(&mut self.ring);
        let (used, len) = self.guest.wait(&mut self.ring);
        assert_eq!(used, head);
        let mut bytes = vec![0; len as usize];
        self.guest.memory.read_slice(&mut bytes, GuestAddress(reply)).expect("it is in RAM");
        let [a, b, c, d, kind, tag @ ..] = *bytes.first_chunk::<7>().expect("a reply has a header");
        assert_eq!(u32::from_le_bytes([a, b, c, d]), len, "not as long as it says");
        assert_eq!(tag, message[5..7], "another tag");
        assert!(kind == RLERROR || kind == message[4].wrapping_add(1), "a reply of type {kind}");
        let secret = self.folder.secret.as_bytes();
        let told = bytes.windows(secret.len()).any(|window| window == secret);
        assert!(!told, "the guest was told of what lies outside");
        bytes
    }

    /// A session, with fid 0 for the folder.
    fn mount(&mut self) {
        assert_ne!(self.ask(&version())[4], RLERROR);
        assert_ne!(self.ask(&attach(0))[4], RLERROR);
    }

    /// After everything: the driver comes again, and mounts. Then it goes.
    fn finish(mut self) {
        self.restart();
        self.mount();
        drop(self.guest);
        self.folder.check();
    }
}

/// A message from its fields.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn number<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn word(self, value: impl Into<u32>) -> Self {
        self.number(value.into().to_le_bytes())
    }

    fn long(self, value: impl Into<u64>) -> Self {
        self.number(value.into().to_le_bytes())
    }

    fn fid(self, fid: u8) -> Self {
        self.word(fid % 8)
    }

    fn text(mut self, text: &[u8]) -> Self {
        self.0.extend((text.len() as u16).to_le_bytes());
        self.0.extend(text);
        self
    }

    fn message(self, kind: u8) -> Vec<u8> {
        let size = 7 + self.0.len() as u32;
        [&size.to_le_bytes()[..], &[kind, 1, 0], &self.0].concat()
    }
}

/// Tversion.
pub fn version() -> Vec<u8> {
    Body::default().word(MSIZE).text(b"9P2000.L").message(TVERSION)
}

/// Tattach of this fid.
pub fn attach(fid: u8) -> Vec<u8> {
    Body::default().fid(fid).word(u32::MAX).text(b"").text(b"").word(0_u32).message(TATTACH)
}

/// Linux's O_ flags.
fn flags(bits: u8) -> u32 {
    const FLAGS: [u32; 6] = [0o100, 0o1000, 0o2000, 0o200_000, 0o400_000, 0o200];
    let set = |&(bit, _): &(usize, u32)| bits >> (bit + 2) & 1 == 1;
    let flags = FLAGS.into_iter().enumerate().filter(set).fold(0, |all, (_, flag)| all | flag);
    flags | u32::from(bits & 3)
}

/// The message that an operation is.
pub fn encode(op: Op) -> Vec<u8> {
    let new = Body::default;
    match op {
        Op::Walk { fid, new_fid, count, name, next } => {
            let body = new().fid(fid).fid(new_fid);
            let body = body.number(u16::from(count % 3).to_le_bytes());
            let names = [named(name), named(next)].into_iter().take(usize::from(count % 3));
            names.fold(body, Body::text).message(110)
        }
        Op::Open { fid, flags: bits } => new().fid(fid).word(flags(bits)).message(12),
        Op::Create { fid, name, flags: bits, mode } => {
            let body = new().fid(fid).text(named(name)).word(flags(bits));
            body.word(mode).word(0_u32).message(14)
        }
        Op::Read { fid, offset, count } => new().fid(fid).long(offset).word(count).message(116),
        Op::Write { fid, offset, count } => {
            let data = vec![b'w'; usize::from(count % 2048)];
            let mut body = new().fid(fid).long(offset).word(data.len() as u32);
            body.0.extend(data);
            body.message(118)
        }
        Op::Readdir { fid, cookie, count } => new().fid(fid).long(cookie).word(count).message(40),
        Op::Getattr { fid } => new().fid(fid).long(u64::MAX).message(24),
        Op::Setattr { fid, valid, mode, size, time } => {
            let body = new().fid(fid).word(valid).word(mode).word(0_u32).word(0_u32).long(size);
            body.long(time).long(0_u64).long(time).long(time).message(26)
        }
        Op::Make { what, fid, other, name, target, mode } => {
            let name = named(name);
            match what % 4 {
                0 => new().fid(fid).text(name).word(mode).word(0_u32).message(72),
                1 => new().fid(fid).text(name).text(named(target)).word(0_u32).message(16),
                2 => {
                    let body = new().fid(fid).text(name).word(mode).word(1_u32);
                    body.word(3_u32).word(0_u32).message(18)
                }
                _ => new().fid(fid).fid(other).text(name).message(70),
            }
        }
        Op::Move { what, fid, other, name, next, flags } => {
            let (name, next) = (named(name), named(next));
            match what % 5 {
                0 => new().fid(fid).text(name).word(u32::from(flags & 1) << 9).message(76),
                1 => new().fid(fid).message(122),
                2 => new().fid(fid).message(120),
                3 => new().fid(fid).fid(other).text(name).message(20),
                _ => new().fid(fid).text(name).fid(other).text(next).message(74),
            }
        }
        Op::Attribute { what, fid, new_fid, name, size, flags } => match what % 2 {
            0 => new().fid(fid).fid(new_fid).text(named(name)).message(30),
            _ => new().fid(fid).text(named(name)).long(size).word(flags % 4).message(32),
        },
        Op::Lock { what, fid, kind, start, length, process } => {
            let body = new().fid(fid).number([kind % 4]);
            let body = if what % 2 == 0 { body.word(process & 1) } else { body };
            let body = body.long(start).long(length).word(process).text(b"fuzz");
            body.message(if what % 2 == 0 { 52 } else { 54 })
        }
        Op::Other { what, fid } => match what % 6 {
            0 => new().fid(fid).message(8),
            1 => new().fid(fid).word(0_u32).message(50),
            2 => new().fid(fid).message(22),
            3 => attach(fid),
            4 => version(),
            _ => new().number(u16::from(fid).to_le_bytes()).message(108),
        },
        Op::Restart {} => version(),
    }
}

/// Carries out an input that is operations.
pub fn sequences(data: &[u8]) {
    replies(data);
}

/// The same, and tells what types the replies had.
pub fn replies(data: &[u8]) -> Vec<u8> {
    let (head, ops): (Head, Vec<Op>) = parse(data);
    let mut client = Client::new(head.how & 1 != 0);
    if head.how & 2 == 0 {
        client.mount();
    }
    let mut replies = Vec::new();
    for op in ops {
        if let Op::Restart {} = op {
            client.restart();
        }
        replies.push(client.ask(&encode(op))[4]);
    }
    client.finish();
    replies
}

/// Carries out an input that is messages, each as long as it says, as far as there are bytes. The highest bit of a size
/// is no part of it, but makes it a lie.
pub fn messages(data: &[u8]) {
    let mut client = Client::new(false);
    client.mount();
    let mut rest = data;
    // No input takes long.
    for _ in 0..256 {
        let Some(size) = rest.first_chunk() else { break };
        let size = u32::from_le_bytes(*size) as usize;
        let len = (size & 0xffff).clamp(7, ROOM).min(rest.len());
        let (message, behind) = rest.split_at(len);
        rest = behind;
        if len < 7 {
            break;
        }
        client.ask(message);
    }
    client.finish();
}
