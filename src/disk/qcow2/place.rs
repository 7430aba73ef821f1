//! Where data is, found out without waiting.
//!
//! Most requests are for data that is in one piece, in tables that are in memory. They need nobody who waits: whoever is
//! told the place can have the host read or write there, as in a raw file, and nothing moves it meanwhile.

use std::io;

use imago::{Mapping, ShallowMapping};

use super::super::raw::RawFile;
use super::gate::Use;
use super::store::Store;
use super::{Qcow2, at_once, is_panic};

/// What a part of a disk is.
#[derive(Debug)]
pub(crate) enum Found {
    /// So many bytes that are zeros.
    Zeros(u64),
    /// Data in a file.
    Data(Place),
}

/// Where data is. It stays there as long as this is kept.
#[derive(Debug)]
pub(crate) struct Place {
    store: Store,
    /// Where it is in the file.
    pub offset: u64,
    /// How many bytes are there.
    pub len: u64,
    _use: Use,
}

impl Place {
    /// The file that it is in.
    pub fn file(&self) -> &RawFile {
        self.store.file()
    }
}

impl Found {
    /// How many bytes it is.
    pub fn len(&self) -> u64 {
        match self {
            Self::Zeros(len) | Self::Data(Place { len, .. }) => *len,
        }
    }
}

impl Qcow2 {
    /// What is to be read or written at `offset`, at most `most` bytes, if that can be told without waiting, and
    /// the host can do it there as in any file.
    pub(crate) fn find_now(&self, offset: u64, most: u64, writing: bool) -> Option<Found> {
        let used = self.gate.try_enter()?;
        let (store, at, len) = if writing {
            if self.properties.read_only || self.store.is_broken() {
                return None;
            }
            match self.now(self.image.get_shallow_mapping(offset, most))? {
                (ShallowMapping::Raw { storage, offset, writable: true, .. }, len)
                    if self.store.is_data_now(offset, len.min(most)) =>
                {
                    (storage, offset, len)
                }
                _ => return None,
            }
        } else {
            match self.now(self.image.get_mapping(offset, most))? {
                (Mapping::Raw { storage, offset, .. }, len)
                    if storage.reaches(offset, len.min(most)) =>
                {
                    (storage, offset, len)
                }
                (Mapping::Zero { .. }, len) => return Some(Found::Zeros(len.min(most))),
                _ => return None,
            }
        };
        let len = len.min(most);
        let place = Place { store: store.clone(), offset: at, len, _use: used };
        (len > 0).then_some(Found::Data(place))
    }

    /// What imago says at once, if it does. Errors are for whoever waits.
    fn now<R>(&self, what: impl Future<Output = io::Result<R>>) -> Option<R> {
        let result = at_once(what)?;
        if result.as_ref().is_err_and(is_panic) {
            self.store.break_off();
        }
        result.ok()
    }
}
