//! Opening an image, and what it is a difference to.
//!
//! Nothing is opened because a header names it: whoever can write to an image could have any file of the host read.
//! The caller says what is under an image, and the header has to agree that there is something.

use std::io;
use std::path::Path;

use imago::FormatAccess;
use imago::qcow2::Qcow2;
use imago::raw::Raw;

use super::super::backend::BlockBackend;
use super::super::error::Error;
use super::super::raw::RawFile;
use super::super::spec::Image;
use super::header::{Header, Named, Refusal};
use super::store::Store;
use super::{guarded, tables};
use crate::sys::file::Flush;

/// An image that is open.
pub(super) struct Layer {
    pub image: FormatAccess<Store>,
    pub store: Store,
    pub header: Header,
    /// Bytes of what is under it.
    pub backing: Option<u64>,
}

/// Opens an image and everything under it.
pub(super) fn layer(
    path: &Path,
    backing: Option<&Image>,
    read_only: bool,
    flush: Flush,
) -> Result<Layer, Error> {
    let file = RawFile::open(path, read_only, flush)?;
    let refused = |refusal| match refusal {
        Refusal::Host(source) => Error::Host { what: "read", path: path.to_owned(), source },
        Refusal::Image(why) => unusable(path, why),
    };
    let len = file.size();
    let header = Header::read(file.file(), len).map_err(refused)?;
    check_backing(path, header.backing.as_ref(), backing)?;
    let blocks = tables::check(file.file(), &header, len, !read_only).map_err(refused)?;

    let backing = backing.map(under).transpose()?;
    let backing_size = backing.as_ref().map(FormatAccess::size);
    let store = match read_only {
        true => Store::read_only(file),
        false => Store::writable(file, &header, blocks),
    };
    let opening = Qcow2::<Store>::open_image(store.clone(), !read_only);
    let mut image = guarded(opening).map_err(|error| imagos(path, error))?;
    image.set_data_file(None);
    image.set_backing(backing);
    Ok(Layer { image: FormatAccess::new(image), store, header, backing: backing_size })
}

/// Opens what is under an image.
fn under(image: &Image) -> Result<FormatAccess<Store>, Error> {
    match image {
        Image::Raw(path) => {
            let store = Store::read_only(RawFile::open(path, true, Flush::None)?);
            let opening = Raw::open_image(store, false);
            let image = guarded(opening).map_err(|error| imagos(path, error))?;
            Ok(FormatAccess::new(image))
        }
        Image::Qcow2 { path, backing } => {
            Ok(layer(path, backing.as_deref(), true, Flush::None)?.image)
        }
    }
}

/// What the header names and what the caller names have to go together.
fn check_backing(path: &Path, named: Option<&Named>, given: Option<&Image>) -> Result<(), Error> {
    let why = match (named, given) {
        (None, None) => return Ok(()),
        (Some(Named { name, format }), None) => {
            let format = format.as_deref().unwrap_or("of a format that it does not tell");
            format!(
                "it is a difference to {name:?} ({format}), which is not opened because an image says so; \
                 say it with `.backing(…)`"
            )
        }
        (None, Some(_)) => "a backing file was given for it, but it has none".to_owned(),
        (Some(Named { name, format }), Some(given)) => {
            let given = match given {
                Image::Raw(_) => "raw",
                Image::Qcow2 { .. } => "qcow2",
            };
            match format.as_deref() {
                None => return Ok(()),
                // What QEMU calls a file's bytes.
                Some("file" | "host_device") if given == "raw" => return Ok(()),
                Some(format) if format == given => return Ok(()),
                Some(format) => format!(
                    "what it is a difference to, {name:?}, is {format} by its word, not {given}"
                ),
            }
        }
    };
    Err(unusable(path, why))
}

fn unusable(path: &Path, why: String) -> Error {
    Error::Image { path: path.to_owned(), format: "qcow2", why }
}

/// What imago does not like about an image, or about the host.
fn imagos(path: &Path, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(_) => Error::Host { what: "open", path: path.to_owned(), source },
        None => unusable(path, source.to_string()),
    }
}
