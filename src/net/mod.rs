//! Networks: what is behind a virtio-net card.

mod backend;
#[cfg(feature = "user-net")]
pub mod user;

pub use backend::{Header, MacAddr, NetBackend, Offloads, Properties, Wake};
