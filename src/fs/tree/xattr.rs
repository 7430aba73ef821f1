//! Extended attributes, as far as they are the guest's to see.

use std::io;

use rustix::io::Errno;

use super::handle;
use super::owner::Rule;
use super::{LONGEST_NAME, Node, record};

/// Most bytes of a value, and of all names together, as on Linux.
const LONGEST: usize = 64 << 10;
/// Room that does for most values.
const USUAL: usize = 256;
/// What may be seen of any file system but that of a share with the host's own owners.
const USER: &[u8] = b"user.";

impl Node {
    /// An extended attribute's value. ENODATA if there is none.
    pub fn xattr_get(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        self.check_xattr(name)?;
        if name.starts_with(record::HIDDEN) {
            return Err(Errno::NODATA.into());
        }
        let mut usual = [0; USUAL];
        match self.handle.xattr(name, &mut usual) {
            Ok(len) => Ok(usual.get(..len).unwrap_or_default().to_vec()),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::RANGE) => {
                let mut value = vec![0; LONGEST];
                let len = self.handle.xattr(name, &mut value)?;
                // It may be kept for long: no more of it than there is.
                Ok(value.get(..len).unwrap_or_default().to_vec())
            }
            Err(error) => Err(error),
        }
    }

    /// The names, each with a NUL behind it.
    pub fn xattr_list(&self) -> io::Result<Vec<u8>> {
        let mut names = vec![0; LONGEST];
        let len = self.handle.xattrs(&mut names)?;
        names.truncate(len);
        let is_shown = |name: &&[u8]| !name.starts_with(record::HIDDEN) && self.is_served(name);
        let shown = names.split_inclusive(|&byte| byte == 0).filter(is_shown);
        Ok(shown.collect::<Vec<_>>().concat())
    }

    /// Sets one. `flags`: 1 if it must be new (XATTR_CREATE), 2 if it must be there (XATTR_REPLACE).
    pub fn xattr_set(&self, name: &[u8], value: &[u8], flags: u32) -> io::Result<()> {
        self.tree.writable()?;
        self.check_xattr(name)?;
        match flags {
            _ if name.starts_with(record::HIDDEN) => Err(Errno::PERM.into()),
            _ if value.len() > LONGEST => Err(Errno::TOOBIG.into()),
            0..=2 => self.handle.set_xattr(name, value, flags),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Removes one. ENODATA if there is none.
    pub fn xattr_remove(&self, name: &[u8]) -> io::Result<()> {
        self.tree.writable()?;
        self.check_xattr(name)?;
        if name.starts_with(record::HIDDEN) {
            return Err(Errno::NODATA.into());
        }
        self.handle.remove_xattr(name)
    }

    fn check_xattr(&self, name: &[u8]) -> io::Result<()> {
        match name.len() {
            0 => Err(Errno::INVAL.into()),
            _ if name.contains(&0) => Err(Errno::INVAL.into()),
            len if len > LONGEST_NAME => Err(Errno::RANGE.into()),
            _ if !self.is_served(name) => Err(Errno::OPNOTSUPP.into()),
            _ => Ok(()),
        }
    }

    /// Whether the share has attributes like this one. Those of other kinds give rights on the host, or name its
    /// users.
    fn is_served(&self, name: &[u8]) -> bool {
        name.starts_with(USER) || self.tree.rule == Rule::Passthrough && handle::HAS_KINDS
    }
}
