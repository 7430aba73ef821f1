//! What differs from one processor architecture to the next. The modules are plain logic, compiled and tested on
//! every host; only the re-exports follow the target.

pub mod aarch64;
pub mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::{CONTROLLER, SERIAL_CONSOLE, state::CpuState};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{CONTROLLER, SERIAL_CONSOLE, state::CpuState};
