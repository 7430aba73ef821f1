//! A network in user space: whatever the guest sends becomes traffic of ordinary sockets of this process.

mod tcp;
