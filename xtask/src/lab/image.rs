//! What the lab's machine is booted from: a stock kernel, and an initramfs with xtask itself as the
//! first process.
//!
//! xtask is a dynamic executable, so the libraries it loads go along. The initramfs is made anew for
//! each run: that takes some hundredths of a second and leaves nothing that could be out of step.

use crate::guest::{Archive, Guest, Modules, needed_libraries};
use crate::host;
use anyhow::{Context, Result};
use std::path::Path;

/// What the lab loads, in this order; what these depend on comes along.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm-amd",
    "tun",
    "vhost_net",
    "vhost_vsock",
    "vsock_loopback",
    "vsock_diag",
    "loop",
    "fuse",
    "ext4",
];

/// Writes the initramfs.
pub fn write(guest: &Guest, to: &Path) -> Result<()> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let mut archive = Archive::new();
    archive.character_device("dev/console", 5, 1)?;
    archive.copy("init", 0o755, &own)?;
    for library in needed_libraries(&own)? {
        archive.copy(&library.to_string_lossy(), 0o755, &library)?;
    }
    let tree = Modules::new(&guest.generic.modules)?;
    for (index, module) in tree.closure(MODULES)?.iter().enumerate() {
        let name = module.path.file_name().context("a module without a name")?;
        let name = format!("modules/{index:03}-{}", name.to_string_lossy());
        archive.file(&name, 0o644, &tree.read(module)?)?;
    }
    host::write_atomically(to, &archive.finish()?)
}
