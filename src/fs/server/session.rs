//! Beginning a session (version(5), attach(5)), and finding files (walk(5), clunk(5)).

use std::sync::{Arc, Mutex};

use super::fids::{Fid, Place, State, lock};
use super::now::LATER;
use super::{Call, NO_ID, put_qid};
use crate::fs::tree::{Node, Qid};
use crate::fs::wire::{Errno, HEADER, NO_FID, Names, Reply};

/// Most bytes of a message, and the least that this is negotiated down to: Linux has it so, and a path in Rreadlink
/// needs that much.
const MOST_MESSAGE: usize = 1 << 20;
const LEAST_MESSAGE: usize = 4096;

impl Call<'_, '_> {
    pub fn version(&self, msize: u32, version: &[u8], out: &mut Reply<'_>) -> Result<(), Errno> {
        // Whatever becomes of it, there was a session before, and that has ended.
        self.server.fids.reset(None);
        let message = usize::try_from(msize).unwrap_or(MOST_MESSAGE).min(MOST_MESSAGE);
        if message < LEAST_MESSAGE {
            return Err(Errno::MSGSIZE);
        }
        out.u32(message as u32);
        if version == b"9P2000.L" {
            self.server.fids.reset(Some(message));
            out.string(version);
        } else {
            out.string(b"unknown");
        }
        Ok(())
    }

    /// `path` is a folder in the share, the whole share if it is empty.
    pub fn attach(
        &self,
        fid: u32,
        auth_fid: u32,
        (user, uid): (&[u8], u32),
        path: &[u8],
        out: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        // Nobody has one, because there is no Tauth.
        if auth_fid != NO_FID {
            return Err(Errno::BADF);
        }
        self.server.fids.check_free(self.epoch, fid)?;
        let (mut node, mut place) = (self.server.root.clone(), None);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            (node, place) = self.step(&node, place, name)?;
        }
        put_qid(out, &node);
        // Whoever is not known is root: Linux attaches itself like that to ask what everybody may.
        let uid = if uid == NO_ID { number(user).unwrap_or(0) } else { uid };
        self.server.fids.insert(self.epoch, fid, Fid { node, uid, place, state: State::Found })
    }

    pub fn walk(
        &self,
        fid: u32,
        new_fid: u32,
        names: Names<'_>,
        out: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let from = self.file(fid)?;
        if new_fid != fid {
            self.server.fids.check_free(self.epoch, new_fid)?;
        } else if !matches!(from.state, State::Found) {
            return Err(Errno::BUSY);
        }
        let (mut node, mut place) = (from.node.clone(), from.place.clone());
        let mut found = 0_u16;
        out.u16(found);
        for name in names.iter() {
            match self.step(&node, place, name) {
                Ok(next) => (node, place) = next,
                // Where the first name leads nowhere, so does the walk; later it is told how far it went.
                Err(errno) if found == 0 || errno == LATER => return Err(errno),
                Err(_) => return Ok(()),
            }
            put_qid(out, &node);
            found += 1;
            out.put(HEADER, &found.to_le_bytes());
        }
        let new = Fid { node, uid: from.uid, place, state: State::Found };
        if new_fid == fid {
            self.server.fids.replace(self.epoch, fid, &from, new)
        } else {
            self.server.fids.insert(self.epoch, new_fid, new)
        }
    }

    /// Goes from `node` at `place` to what it has by the name.
    fn step(
        &self,
        node: &Arc<Node>,
        place: Option<Arc<Mutex<Place>>>,
        name: &[u8],
    ) -> Result<Found, Errno> {
        if name == b"." && node.qid().kind == Qid::DIRECTORY {
            return Ok((node.clone(), place));
        }
        self.check_brief(node)?;
        self.check_known(node)?;
        let found = Arc::new(self.in_time(node.find(name, self.wait))?);
        Ok((found, if name == b".." { None } else { Place::new(node, name) }))
    }

    /// The number is free afterwards, whatever else goes wrong.
    pub fn clunk(&self, fid: u32) -> Result<(), Errno> {
        self.check_end(fid)?;
        let fid = self.server.fids.remove(self.epoch, fid)?;
        match &fid.state {
            State::NewValue(value) => lock(value).store(&fid.node),
            _ => Ok(()),
        }
    }
}

/// A file, and where it was found.
type Found = (Arc<Node>, Option<Arc<Mutex<Place>>>);

/// A user's name that is a number.
fn number(name: &[u8]) -> Option<u32> {
    std::str::from_utf8(name).ok()?.parse().ok().filter(|uid| *uid != NO_ID)
}
