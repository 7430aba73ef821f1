//! Giving files names, and taking names away.

use std::sync::Arc;

use super::fids::Place;
use super::{Call, owner, put_qid};
use crate::fs::tree::{Node, Qid, Wait};
use crate::fs::wire::{Errno, Reply};

/// Tunlinkat's flag for a folder (AT_REMOVEDIR).
const REMOVE_DIR: u32 = 0x200;

impl Call<'_, '_> {
    pub fn mkdir(
        &self,
        dir: u32,
        name: &[u8],
        mode: u32,
        gid: u32,
        out: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let dir = self.file(dir)?;
        put_qid(out, &dir.node.mkdir(name, mode, dir.uid, owner(gid)?)?);
        Ok(())
    }

    pub fn symlink(
        &self,
        dir: u32,
        name: &[u8],
        target: &[u8],
        gid: u32,
        out: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let dir = self.file(dir)?;
        put_qid(out, &dir.node.symlink(name, target, dir.uid, owner(gid)?)?);
        Ok(())
    }

    pub fn mknod(
        &self,
        dir: u32,
        name: &[u8],
        mode: u32,
        device: (u32, u32),
        gid: u32,
        out: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let dir = self.file(dir)?;
        put_qid(out, &dir.node.mknod(name, mode, device, dir.uid, owner(gid)?)?);
        Ok(())
    }

    pub fn link(&self, dir: u32, fid: u32, name: &[u8]) -> Result<(), Errno> {
        let target = self.file(fid)?;
        Ok(self.file(dir)?.node.link(&target.node, name)?)
    }

    pub fn readlink(&self, fid: u32, out: &mut Reply<'_>) -> Result<(), Errno> {
        let fid = self.file(fid)?;
        // Where a link is kept in a file, that has to be opened.
        self.check(!fid.node.can_have_record())?;
        out.string(&fid.node.readlink()?);
        Ok(())
    }

    pub fn unlinkat(&self, dir: u32, name: &[u8], flags: u32) -> Result<(), Errno> {
        if flags & !REMOVE_DIR != 0 {
            return Err(Errno::INVAL);
        }
        Ok(self.file(dir)?.node.unlink(name, flags == REMOVE_DIR)?)
    }

    /// Takes the name away that the file was found by. The fid is gone, even if the name is not.
    pub fn remove(&self, fid: u32) -> Result<(), Errno> {
        let fid = self.server.fids.remove(self.epoch, fid)?;
        if fid.is_attribute() {
            return Err(Errno::BADF);
        }
        // The share's root has no name.
        let Place { dir, name } = fid.place().ok_or(Errno::BUSY)?;
        check_is_at(&fid.node, &dir, &name)?;
        Ok(dir.unlink(&name, fid.node.qid().kind == Qid::DIRECTORY)?)
    }

    pub fn rename(&self, fid: u32, dir: u32, name: &[u8]) -> Result<(), Errno> {
        let fid = self.file(fid)?;
        let old = fid.place().ok_or(Errno::BUSY)?;
        check_is_at(&fid.node, &old.dir, &old.name)?;
        self.move_name(&old.dir, &old.name, &self.file(dir)?.node, name)
    }

    pub fn renameat(
        &self,
        dir: u32,
        name: &[u8],
        new_dir: u32,
        new_name: &[u8],
    ) -> Result<(), Errno> {
        self.move_name(&self.file(dir)?.node, name, &self.file(new_dir)?.node, new_name)
    }

    fn move_name(
        &self,
        dir: &Node,
        name: &[u8],
        new_dir: &Arc<Node>,
        new_name: &[u8],
    ) -> Result<(), Errno> {
        dir.rename(name, new_dir, new_name)?;
        let to = Place { dir: new_dir.clone(), name: new_name.into() };
        self.server.fids.moved(self.epoch, dir, name, &to);
        Ok(())
    }
}

/// The name may have become another file's, on the host or by another guest: that is not the one which is meant.
fn check_is_at(node: &Node, dir: &Node, name: &[u8]) -> Result<(), Errno> {
    if dir.find(name, Wait::Long)?.qid().path == node.qid().path {
        Ok(())
    } else {
        Err(Errno::NOENT)
    }
}
