//! Folders of the host in the guest: what is behind a virtio-9p device.
//!
//! The guest mounts a share by its tag, `mount -t 9p -o trans=virtio,version=9p2000.L TAG DIR`, and the messages of
//! the 9P protocol that its kernel sends are answered here, by one of two:
//!
//! * the server of this crate, which serves a folder of the host, and nothing outside it ([`Share::new`]);
//! * a server in another process, to which the messages go as they are ([`Share::relay`]).
//!
//! The dialect of the crate's own server is 9P2000.L, the one that Linux uses.
//!
//! ```no_run
//! use hyperkit::fs::{RelayTo, Share};
//!
//! # fn main() -> Result<(), hyperkit::fs::Error> {
//! let source = Share::new("src", "/home/me/src").read_only().open()?;
//! let control = Share::relay("db", RelayTo::unix("/run/datakit.sock")).open()?;
//! # Ok(()) }
//! ```

mod envelope;
mod error;
mod open;
mod relay;
mod server;
mod spec;
#[cfg(test)]
mod tests;
mod tree;
mod wire;

pub(crate) use envelope::{Answer, EIO, HEADER, Header, TFLUSH, flushed_tag, rlerror};
pub use error::Error;
pub(crate) use open::Export;
pub use open::OpenShare;
pub(crate) use relay::Relay;
pub(crate) use server::{Scratch, Server};
pub use spec::{RelayTo, Share};
pub use tree::Owner;
pub(crate) use tree::Wait;
#[cfg(all(test, target_os = "linux"))]
pub(crate) use tree::testing;
