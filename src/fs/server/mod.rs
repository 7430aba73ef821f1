//! The 9P server: one guest, one folder, 9P2000.L.
//!
//! A request is copied before it is looked at, and an answer is made before the guest sees any of it; only the data of
//! Tread and Twrite goes straight between guest memory and the file. What the guest holds, it holds by fids
//! ([`fids`]), and nothing is locked while the host's file system is at work: any number of requests are answered at a
//! time, whichever fids they are about.
//!
//! Where the guest can go and what it can change is the [tree](super::tree)'s to say. Here are bounded the number of
//! fids, the extended attributes that are held for the guest, and the length of messages.
//!
//! Users are the guest's affair: its kernel checks permissions, and the user that a fid was attached for is only who
//! owns what is made with it.

mod attributes;
mod fids;
mod file;
mod lock;
mod names;
mod now;
mod session;
#[cfg(test)]
mod tests;
mod xattr;

use std::io;
use std::sync::Arc;

use super::tree::{Node, Tree, Wait, linux_errno};
use super::wire::{
    ERROR_LEN, Errno, HEADER, Header, Kind, MOST_BYTES, NO_TAG, Reply, Request, WRITE_HEADER,
    rlerror,
};
use crate::memory::{BufferList, Buffers};
use fids::{Fid, Fids};
use now::LATER;
use xattr::Budget;

/// What is no user and no group: to chown it says that there is to be no change, and in Tattach, where it is P9_NONUNAME,
/// that only a name is known.
const NO_ID: u32 = u32::MAX;

/// Serves a folder to one guest.
#[derive(Debug)]
pub(crate) struct Server {
    root: Arc<Node>,
    fids: Fids,
    attributes: Budget,
}

/// Room that a thread needs to answer messages, used again for each.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    request: Vec<u8>,
    reply: Vec<u8>,
    list: BufferList<'static>,
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self(linux_errno(&error))
    }
}

impl Server {
    /// Serves what is in `tree` to a guest that may have `fids` fids.
    pub(in crate::fs) fn new(tree: &Tree, fids: usize) -> io::Result<Self> {
        let root = Arc::new(tree.root()?);
        Ok(Self { root, fids: Fids::new(fids), attributes: Budget::default() })
    }

    /// Answers one message, a whole T-message in `request`, with a whole R-message in `reply`, and returns how long
    /// that is. What cannot be understood, or whose answer finds no room, is answered with Rlerror; 0 if there is not
    /// even room for that.
    ///
    /// Takes as long as the host's file system does, so it is called by several threads at once. Who cannot wait so
    /// long says so by `wait`, and gets nothing where it would take longer; then nothing has been done.
    ///
    /// Tflush does not come here: whoever runs the threads answers it after the message that it names.
    pub fn serve(
        &self,
        request: Buffers<'_>,
        reply: Buffers<'_>,
        scratch: &mut Scratch,
        wait: Wait,
    ) -> Option<usize> {
        if reply.total() < ERROR_LEN {
            return Some(0);
        }
        // Up to the data of Twrite, if that is what it is.
        let mut start = [0; WRITE_HEADER];
        let len = request.copy_to(&mut start);
        let (tag, answer) = match start.first_chunk() {
            Some(header) if len >= HEADER => {
                let header = Header::decode(*header);
                let header = Header { size: header.length(&start, request.total()), ..header };
                let body = start.get(HEADER..len).unwrap_or_default();
                (header.tag, self.answer(header, body, (request, reply), scratch, wait))
            }
            _ => (NO_TAG, Err(Errno::PROTO)),
        };
        match answer {
            Ok(len) => Some(len),
            Err(LATER) => None,
            Err(errno) => Some(reply.fill_from(&rlerror(tag, errno.0))),
        }
    }

    /// `start`: what is behind the header, as far as it goes in front of Twrite's data.
    fn answer(
        &self,
        header: Header,
        start: &[u8],
        (request, reply): (Buffers<'_>, Buffers<'_>),
        Scratch { request: copy, reply: room, list }: &mut Scratch,
        wait: Wait,
    ) -> Result<usize, Errno> {
        let session = self.fids.session();
        let size = header.size as usize;
        if size < HEADER || size > request.total() {
            return Err(Errno::PROTO);
        }
        let mut most = reply.total();
        if header.kind != Kind::VERSION {
            let Some(message) = session.message else { return Err(Errno::PROTO) };
            if size > message {
                return Err(Errno::MSGSIZE);
            }
            most = most.min(message);
        }
        let body = if header.kind == Kind::WRITE {
            start.get(..size - HEADER).unwrap_or(start)
        } else if size > MOST_BYTES {
            return Err(Errno::NAMETOOLONG);
        } else {
            copy.clear();
            copy.resize(size - HEADER, 0);
            let mut rest = copy.as_mut_slice();
            for slice in request.part(HEADER, rest.len()) {
                let count = slice.copy_to(rest);
                rest = rest.get_mut(count..).unwrap_or_default();
            }
            copy.as_slice()
        };
        let message = Request::decode(header.kind, body)?;
        if wait < now::least(&message) {
            return Err(LATER);
        }
        if message.reply_len() > most {
            return Err(Errno::MSGSIZE);
        }
        let epoch = session.epoch;
        let mut call = Call { server: self, epoch, size, most, request, reply, list, wait };
        let mut answer = Reply::new(room, header);
        let data = call.answer(message, &mut answer)?;
        let answer = answer.finish(data, most).ok_or(Errno::MSGSIZE)?;
        reply.fill_from(answer);
        Ok(answer.len() + data)
    }

    /// The driver is gone, and with it all that it held. Messages that are being answered end as they would.
    pub fn reset(&self) {
        self.fids.reset(None);
    }
}

/// A request that is being answered.
struct Call<'s, 'b> {
    server: &'s Server,
    /// Which session it belongs to.
    epoch: u64,
    /// Bytes of the request …
    size: usize,
    /// … and that the answer may have.
    most: usize,
    request: Buffers<'b>,
    reply: Buffers<'b>,
    list: &'s mut BufferList<'static>,
    /// How long the answer may take.
    wait: Wait,
}

impl Call<'_, '_> {
    /// Does what is asked, and puts the answer into `out`, but for so many bytes of data, which are in their place in
    /// the guest's memory.
    fn answer(&mut self, request: Request<'_>, out: &mut Reply<'_>) -> Result<usize, Errno> {
        use Request as R;
        match request {
            R::Read { fid, offset, count } => return self.read(fid, offset, count, out),
            R::Version { msize, version } => self.version(msize, version, out),
            R::Attach { fid, auth_fid, user, path, uid } => {
                self.attach(fid, auth_fid, (user, uid), path, out)
            }
            R::Walk { fid, new_fid, names } => self.walk(fid, new_fid, names, out),
            R::Lopen { fid, flags } => self.lopen(fid, flags, out),
            R::Lcreate { fid, name, flags, mode, gid } => {
                self.lcreate(fid, name, flags, (mode, gid), out)
            }
            R::Write { fid, offset, count } => self.write(fid, offset, count, out),
            R::Readdir { fid, cookie, count } => self.readdir(fid, cookie, count, out),
            R::Getattr { fid, .. } => self.getattr(fid, out),
            R::Setattr { fid, valid, mode, uid, gid, size, accessed, modified } => {
                self.setattr(fid, valid, mode, (uid, gid), size, (accessed, modified))
            }
            R::Fsync { fid, data_only } => self.fsync(fid, data_only),
            R::Clunk { fid } => self.clunk(fid),
            R::Remove { fid } => self.remove(fid),
            R::Rename { fid, dir, name } => self.rename(fid, dir, name),
            R::Renameat { dir, name, new_dir, new_name } => {
                self.renameat(dir, name, new_dir, new_name)
            }
            R::Unlinkat { dir, name, flags } => self.unlinkat(dir, name, flags),
            R::Link { dir, fid, name } => self.link(dir, fid, name),
            R::Symlink { dir, name, target, gid } => self.symlink(dir, name, target, gid, out),
            R::Readlink { fid } => self.readlink(fid, out),
            R::Mknod { dir, name, mode, major, minor, gid } => {
                self.mknod(dir, name, mode, (major, minor), gid, out)
            }
            R::Mkdir { dir, name, mode, gid } => self.mkdir(dir, name, mode, gid, out),
            R::Statfs { fid } => self.statfs(fid, out),
            R::Xattrwalk { fid, new_fid, name } => self.xattrwalk(fid, new_fid, name, out),
            R::Xattrcreate { fid, name, size, flags } => self.xattrcreate(fid, name, size, flags),
            R::Lock { fid, flags, lock } => self.lock(fid, flags, lock, out),
            R::Getlock { fid, lock } => self.getlock(fid, lock, out),
        }?;
        Ok(0)
    }

    /// What `fid` stands for.
    fn fid(&self, fid: u32) -> Result<Arc<Fid>, Errno> {
        let fid = self.server.fids.get(self.epoch, fid)?;
        self.check_brief(&fid.node)?;
        Ok(fid)
    }

    /// What `fid` stands for, unless that is an extended attribute.
    fn file(&self, fid: u32) -> Result<Arc<Fid>, Errno> {
        self.fid(fid).and_then(|fid| if fid.is_attribute() { Err(Errno::BADF) } else { Ok(fid) })
    }
}

/// Puts what identifies `node` into an answer.
fn put_qid(out: &mut Reply<'_>, node: &Node) {
    let qid = node.qid();
    out.qid(qid.kind, qid.version, qid.path);
}

/// A user or a group that a file can belong to.
fn owner(id: u32) -> Result<u32, Errno> {
    if id == NO_ID { Err(Errno::INVAL) } else { Ok(id) }
}
