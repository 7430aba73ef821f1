//! The few things Linux and macOS do differently.
//!
//! One shared file, and one per system beside it: `cfg` chooses files, not lines.

mod descriptors;
pub(crate) use descriptors::Descriptors;

pub(crate) mod file;
#[cfg(target_os = "linux")]
mod file_linux;
#[cfg(target_os = "macos")]
mod file_macos;

mod link;
pub(crate) use link::Link;

mod notifier;
pub use notifier::Notifier;

#[cfg(target_os = "linux")]
mod notifier_linux;
#[cfg(target_os = "macos")]
mod notifier_macos;

#[cfg(target_os = "linux")]
#[path = "silent_linux.rs"]
mod silent;
#[cfg(target_os = "macos")]
#[path = "silent_macos.rs"]
mod silent;
pub(crate) use silent::Silent;

pub(crate) mod socket;
#[cfg(target_os = "linux")]
mod socket_linux;
#[cfg(target_os = "macos")]
mod socket_macos;

mod thread;
pub use thread::spawn;
pub(crate) use thread::without_signals;

pub(crate) mod terminal;
#[cfg(target_os = "linux")]
mod terminal_linux;
#[cfg(target_os = "macos")]
mod terminal_macos;

pub(crate) mod unix;

#[cfg(target_os = "linux")]
#[path = "waits_linux.rs"]
mod waits;
#[cfg(target_os = "macos")]
#[path = "waits_macos.rs"]
mod waits;
pub(crate) use waits::waits;
