//! A share in a temporary folder, and a driver in this process that knows a few messages.

use std::path::Path;

use hyperkit::fs::Share;
use hyperkit::virtio::p9::P9;
use hyperkit::virtio::testing::{Buffer, Guest, RAM, Ring};
use hyperkit::virtio::{VirtioDevice, feature};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

/// The size of the queue, and the most requests at a time.
pub const QUEUE: u16 = 64;
/// Bytes of the file.
const FILE: usize = 1 << 20;
/// The longest that a read or a write can be.
pub const MOST: u32 = 128 << 10;

/// A message, and the room that its data needs.
#[derive(Clone, Copy)]
pub enum Kind {
    Getattr,
    /// Two names, to a fid that is in use for nothing else.
    Walk,
    Read(u32),
    Write(u32),
}

/// A machine with nothing but a share that is mounted, and a file in it that is open.
pub struct Driver {
    guest: Guest,
    ring: Ring,
    /// A page for each request: the message, room for the reply, a table of descriptors.
    pages: u64,
    _folder: TempDir,
}

impl Driver {
    /// A share of a folder made in `place`, whose device `wrap` has the last word about.
    pub fn new<D: VirtioDevice + 'static>(place: &Path, wrap: impl FnOnce(P9) -> D) -> Self {
        let folder = TempDir::new_in(place).expect("a folder can be made");
        std::fs::create_dir(folder.path().join("folder")).expect("a folder can be made");
        std::fs::write(folder.path().join("folder/file"), vec![0x5a; FILE]).expect("there is room");
        let share = Share::new("bench", folder.path()).open().expect("it is a folder");
        let mut guest = Guest::new(wrap(P9::new(share).expect("there are descriptors")));
        let features = feature::INDIRECT_DESC | feature::EVENT_IDX;
        let mut ring = guest.start(features, QUEUE).remove(0);
        ring.event_idx = true;
        let pages = guest.alloc(4096 * usize::from(QUEUE));
        let mut driver = Self { guest, ring, pages, _folder: folder };
        let number = |value: u32| value.to_le_bytes();
        let version = [&number(1 << 20)[..], &text("9P2000.L")].concat();
        driver.setup(100, &version);
        let [zero, none] = [number(0).to_vec(), number(u32::MAX).to_vec()];
        let attach = [zero.clone(), none, text(""), text(""), zero];
        driver.setup(104, &attach.concat());
        driver.setup(110, &walk(1));
        driver.setup(12, &[number(1), number(2)].concat());
        driver
    }

    fn setup(&mut self, kind: u8, body: &[u8]) {
        self.offer(0, kind, body, None);
        self.wait(&[kind + 1]);
    }

    /// Makes a message available.
    fn offer(&mut self, n: u16, kind: u8, body: &[u8], data: Option<Buffer>) {
        let page = self.pages + 4096 * u64::from(n);
        let counted = match data {
            Some(Buffer::Out(_, len)) => len,
            _ => 0,
        };
        let size = 7 + body.len() as u32 + counted;
        let message = [&size.to_le_bytes()[..], &[kind], &n.to_le_bytes(), body].concat();
        self.guest.memory.write_slice(&message, GuestAddress(page)).expect("it is in RAM");
        let (request, reply) = (Buffer::Out(page, message.len() as u32), page + 0x800);
        let table = page + 0xc00;
        match data {
            None => self.ring.request_indirect(table, &[request, Buffer::In(reply, 0x400)]),
            // Linux has both the data of a read and its header in the reply, in buffers of their own.
            Some(data @ Buffer::In(..)) => {
                self.ring.request_indirect(table, &[request, Buffer::In(reply, 11), data])
            }
            Some(data) => {
                self.ring.request_indirect(table, &[request, data, Buffer::In(reply, 0x400)])
            }
        };
    }

    /// Kicks, and waits for as many replies as there are types that they have.
    fn wait(&mut self, kinds: &[u8]) {
        self.guest.kick(&mut self.ring);
        for _ in kinds {
            self.guest.wait(&mut self.ring);
        }
        for (n, kind) in (0_u64..).zip(kinds) {
            let at = GuestAddress(self.pages + 4096 * n + 0x800 + 4);
            let replied: u8 = self.guest.memory.read_obj(at).expect("it is in RAM");
            assert_eq!(replied, *kind, "a message was refused");
        }
    }

    /// Sends `count` messages at once, and waits for all replies.
    pub fn burst(&mut self, count: u16, kind: Kind) {
        let number = |value: u32| value.to_le_bytes();
        for n in 0..count {
            let data = RAM[1].0 + u64::from(n) % 8 * u64::from(MOST);
            let offset = |len: u32| u64::from(n) * u64::from(len) % FILE as u64;
            let at = |len: u32| [&number(1)[..], &offset(len).to_le_bytes(), &number(len)].concat();
            match kind {
                Kind::Getattr => {
                    let body = [&number(1)[..], &0x7ff_u64.to_le_bytes()].concat();
                    self.offer(n, 24, &body, None);
                }
                Kind::Walk => self.offer(n, 110, &walk(100 + u32::from(n)), None),
                Kind::Read(len) => self.offer(n, 116, &at(len), Some(Buffer::In(data, len))),
                Kind::Write(len) => self.offer(n, 118, &at(len), Some(Buffer::Out(data, len))),
            }
        }
        let reply = match kind {
            Kind::Getattr => 25,
            Kind::Walk => 111,
            Kind::Read(_) => 117,
            Kind::Write(_) => 119,
        };
        self.wait(&vec![reply; count.into()]);
    }

    /// Gives up what `count` walks have got, so that they can be done again.
    pub fn clunk(&mut self, count: u16, kind: Kind) {
        if let Kind::Walk = kind {
            for n in 0..count {
                self.offer(n, 120, &(100 + u32::from(n)).to_le_bytes(), None);
            }
            self.wait(&vec![121; count.into()]);
        }
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The body of a Twalk from the folder to the file.
fn walk(new_fid: u32) -> Vec<u8> {
    let names = [text("folder"), text("file")].concat();
    [&0_u32.to_le_bytes()[..], &new_fid.to_le_bytes(), &2_u16.to_le_bytes(), &names].concat()
}
