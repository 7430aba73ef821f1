//! Host sides of a console: where a serial port's or a virtio console's bytes come from and go to.

mod port;
pub use port::Port;
