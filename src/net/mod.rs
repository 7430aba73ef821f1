//! Networks: what is behind a virtio-net card.

mod backend;
mod datagram;
pub(crate) mod reconnect;
mod spec;
mod stream;
#[cfg(target_os = "linux")]
mod tap;
#[cfg(feature = "user-net")]
pub mod user;
#[cfg(target_os = "macos")]
mod vmnet;
mod vpnkit;

pub use backend::{Header, MacAddr, NetBackend, Offloads, Properties, Wake};
pub use datagram::{Datagram, DatagramOptions};
pub use spec::{Error, Net};
pub use stream::Stream;
#[cfg(target_os = "linux")]
pub use tap::{Tap, TapError};
#[cfg(target_os = "macos")]
pub use vmnet::{Vmnet, VmnetError};
pub use vpnkit::Vpnkit;
