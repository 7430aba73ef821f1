//! Tests of the socket device: packets written by hand on the one side, programs of the host on the other.

mod credit;
mod ends;
mod flow;
mod hostile;
mod life;
mod limits;
#[cfg(target_os = "linux")]
mod messages;
#[cfg(target_os = "linux")]
mod process_linux;
mod states;
mod support;
