//! Which file is which: numbers that hold on several devices.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{PoisonError, RwLock};

use super::{Time, kind};

/// Which file of the host it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    pub device: u64,
    pub inode: u64,
}

/// What the host says of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub id: FileId,
    /// The kind of file and the permissions.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u64,
    /// The device that it stands for, as Linux encodes it.
    pub device: u64,
    pub size: u64,
    pub block_size: u64,
    pub blocks: u64,
    pub accessed: Time,
    pub modified: Time,
    pub changed: Time,
}

impl Facts {
    /// The kind of file.
    pub fn kind(&self) -> u32 {
        self.mode & kind::MASK
    }
}

/// Bits of a number that are the host's own inode number.
const INODE_BITS: u32 = 48;

/// Makes one 64-bit number of a device and an inode.
///
/// On the device that the share's root is on, the numbers are the host's. For others the upper 16 bits, which inode numbers
/// hardly ever use, are one for each pair of a device and the upper 16 bits there, given out as they are met and never
/// taken back. A share that needs more than 65,535 of those, which takes a file system that makes its numbers up of
/// hashes, gets hashes for the rest.
#[derive(Debug)]
pub(super) struct Numbers {
    /// The upper bits of the root's device with zeros above the inode number: 0. The others: from 1 on.
    root: u64,
    prefixes: RwLock<HashMap<(u64, u64), u16>>,
}

impl Numbers {
    /// `root`: the device of the share's root.
    pub fn new(root: u64) -> Self {
        Self { root, prefixes: RwLock::default() }
    }

    /// The number of a file.
    pub fn of(&self, id: FileId) -> u64 {
        let (upper, lower) = (id.inode >> INODE_BITS, id.inode & ((1 << INODE_BITS) - 1));
        if id.device == self.root && upper == 0 {
            return id.inode;
        }
        match self.prefix((id.device, upper)) {
            Some(prefix) => u64::from(prefix) << INODE_BITS | lower,
            None => {
                let mut hasher = DefaultHasher::new();
                id.hash(&mut hasher);
                hasher.finish()
            }
        }
    }

    fn prefix(&self, of: (u64, u64)) -> Option<u16> {
        let known = self.prefixes.read().unwrap_or_else(PoisonError::into_inner).get(&of).copied();
        if known.is_some() {
            return known;
        }
        let mut prefixes = self.prefixes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(&known) = prefixes.get(&of) {
            return Some(known);
        }
        let next = u16::try_from(prefixes.len() + 1).ok()?;
        prefixes.insert(of, next);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn files_of_several_devices_never_share_a_number() {
        let numbers = Numbers::new(7);
        let mut seen = HashSet::new();
        for device in 0..20 {
            for inode in (0..50).chain((0..50).map(|n| n << INODE_BITS | 5)).chain([u64::MAX]) {
                let number = numbers.of(FileId { device, inode });
                seen.insert((number, device, inode));
                assert_eq!(numbers.of(FileId { device, inode }), number);
            }
        }
        let distinct: HashSet<_> = seen.iter().map(|&(number, ..)| number).collect();
        assert_eq!(distinct.len(), seen.len());
        assert_eq!(numbers.of(FileId { device: 7, inode: 12345 }), 12345);
    }

    #[test]
    fn the_table_of_devices_is_bounded() {
        let numbers = Numbers::new(0);
        let of = |n: u64| numbers.of(FileId { device: 1, inode: n << INODE_BITS | 1 });
        // There are no more than 65,536 upper halves on a device; a second device makes more.
        let first: Vec<_> = (0..65_536).map(of).collect();
        let more: Vec<_> =
            (0..100).map(|n| numbers.of(FileId { device: 2, inode: n << INODE_BITS })).collect();
        assert_eq!(numbers.prefixes.read().unwrap().len(), 65_535);
        let all: HashSet<_> = first.iter().chain(&more).collect();
        assert_eq!(all.len(), first.len() + more.len());
        assert_eq!(of(65_535), first[65_535]);
    }
}
