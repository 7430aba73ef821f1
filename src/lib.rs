//! Virtual machines inside a program.
//!
//! hyperkit is a library that boots Linux: a program links it, describes a machine, and gets a handle. The
//! processor comes from the host's accelerator; memory, boot, interrupt routing, devices and the host side of each
//! device are the crate's own.
//!
//! ```
//! use hyperkit::{Console, Kernel, RingBuffer, Vm};
//!
//! # fn boot() -> Result<(), hyperkit::Error> {
//! let log = RingBuffer::new();
//! let machine = Vm::builder()
//!     .cpus(2)
//!     .memory(1 << 30)
//!     .kernel(Kernel::linux("vmlinuz").initrd("initrd.img").cmdline("console=ttyS0"))
//!     .serial(Console::ring(log.clone()))
//!     .build()?;                    // everything is checked and open, nothing runs
//! let running = machine.start()?;   // a handle: pause, resume, power_button, stop
//! println!("{}", running.wait()?);  // "the guest powered off"
//! println!("{}", String::from_utf8_lossy(&log.contents()));
//! # Ok(()) }
//! # let error = boot().unwrap_err().to_string();
//! # assert!(error.contains("vmlinuz"), "{error}");
//! ```
//!
//! # The way through the crate
//!
//! * [`vm`]: the builder, the handle, and the threads between them.
//! * [`vcpu`]: the exit loop. [`bus`]: from an address to a device.
//! * [`accel`]: what the crate asks of a hypervisor, and the hypervisors.
//! * [`boot`], [`arch`], [`memory`]: kernels, the tables they read, and the memory they are in.
//! * [`device`]: what a machine has before virtio. [`console`]: where a console's bytes come from and go to.
//! * [`disk`]: images, and how they are read and written.
//! * [`fs`]: folders of the host in the guest.
//! * [`net`]: what is behind a network card.
//! * [`vsock`]: sockets between host and guest.
//! * [`virtio`]: the transport, the queues, and a folder for each device.
//!
//! Each of these is usable alone: a device needs guest memory and an interrupt line, not a machine.
//!
//! # What holds everywhere
//!
//! * The guest is hostile. Nothing it writes makes this crate panic, hang, or take memory without bound.
//! * The process is yours. No signal handler is installed, no terminal changed, nothing printed and nothing exited,
//!   unless you ask for it; messages go to the [`log`] facade.
//! * A guest that sleeps costs next to nothing: nothing is polled. What wakes up by itself does so seldom: a peer that
//!   is gone is looked for every five seconds, an alarm that the guest has set looks at the host's clock once a minute,
//!   and the user-mode network tells the guest of its router every six hours.
//!
//! # Features
//!
//! Both are on by default:
//!
//! * `qcow2`: disks in QEMU's format, [`Disk::qcow2`].
//! * `user-net`: the user-mode network, [`Net::user`].

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!("hyperkit runs on Linux and macOS only");

pub mod accel;
pub mod arch;
pub mod boot;
pub mod bus;
pub mod console;
mod count;
pub mod device;
pub mod disk;
pub mod fs;
pub mod memory;
pub mod net;
mod pace;
#[cfg(test)]
mod random;
pub mod sys;
pub mod vcpu;
pub mod virtio;
pub mod vm;
pub mod vsock;

pub use boot::Kernel;
pub use console::{Console, RingBuffer};
pub use disk::Disk;
pub use fs::Share;
pub use net::Net;
pub use uuid::Uuid;
pub use vm::{End, Error, OnReset, Running, Vm, VmBuilder};
pub use vm_memory;
pub use vsock::Vsock;
