//! What the fuzz targets do with their bytes.
//!
//! Bytes are a sequence of operations (see [`ops`]), carried out one after the other on a device, or a file and what is
//! done with it. A target fails by a panic, by not coming back, by memory that grows, or because
//! the device, once it is reset, does not do one good request: whatever a guest has done before, a reset mends it.
//!
//! All of this is apart from libFuzzer, so that an ordinary test can feed it the corpus (`tests/corpus.rs`), and the
//! seeds of the corpus are written as operations rather than bytes ([`seeds`]).

pub mod arm64_chipset;
pub mod arm64_exits;
pub mod arm64_kernel;
pub mod chipset;
pub mod device;
pub mod dns_dhcp;
pub mod file;
pub mod host;
pub mod kernel;
pub mod net_stream;
pub mod ops;
pub mod p9;
pub mod packet;
pub mod qcow2;
pub mod queue;
pub mod queue_net;
pub mod queue_vsock;
pub mod ring;
pub mod seeds;
pub mod serial;
pub mod user_frames;
pub mod user_tcp;
pub mod virtio_mmio;
