//! Networks: what is behind a virtio-net card.

mod backend;

pub use backend::{Header, MacAddr, NetBackend, Offloads, Properties, Wake};
