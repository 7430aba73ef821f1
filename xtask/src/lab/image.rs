//! What the lab's machine is booted from: a stock kernel, and an initramfs with xtask itself as the
//! first process.
//!
//! xtask is a dynamic executable on this machine, so the libraries it loads go along; for another
//! architecture it is static. The initramfs is made anew for
//! each run: that takes some hundredths of a second and leaves nothing that could be out of step.

use crate::guest::{Archive, Guest, Modules, needed_libraries};
use crate::host;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What the lab loads, in this order, of what its kernel does not have built in; what these depend on
/// comes along.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "crc32c_generic",
    "ext4",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm-amd",
    "tun",
    "vhost_net",
    "vhost_vsock",
];

/// Writes the initramfs, with the program `init` as the first process.
pub fn write(init: &Path, guest: &Guest, to: &Path) -> Result<()> {
    let mut archive = Archive::new();
    archive.character_device("dev/console", 5, 1)?;
    archive.file("init", 0o755, &stripped(init, to)?)?;
    for library in needed_libraries(init)? {
        archive.copy(&library.to_string_lossy(), 0o755, &library)?;
    }
    let tree = Modules::new(&guest.lab.modules)?;
    for (index, module) in tree.closure(MODULES)?.into_iter().enumerate() {
        let name = module.path.file_name().context("a module without a name")?;
        let name = format!("modules/{index:03}-{}", name.to_string_lossy());
        archive.file(&name, 0o644, &bare(module.bytes))?;
    }
    host::write_atomically(to, &archive.finish()?)
}

/// A module without the description of its types, which only BPF programs want and which takes the
/// kernel longer to read than all the rest; and so without its signature, which would no longer hold.
fn bare(mut module: Vec<u8>) -> Vec<u8> {
    // A section of another name is none of the kernel's business.
    if let Some(at) = module.windows(6).rposition(|name| name == b"\0.BTF\0") {
        module[at + 1..at + 5].copy_from_slice(b".btf");
    }
    // Before its mark stand twelve bytes, the last four of which are the signature's length.
    if let Some(rest) = module.strip_suffix(b"~Module signature appended~\n")
        && let Some((rest, length)) = rest.split_last_chunk()
    {
        let whole = rest.len().saturating_sub(8 + u32::from_be_bytes(*length) as usize);
        module.truncate(whole);
    }
    module
}

/// A program without its symbols, which are most of its size, where there is a `strip`: unpacking the
/// initramfs is a good part of the time the lab takes to start.
fn stripped(program: &Path, beside: &Path) -> Result<Vec<u8>> {
    let small = beside.with_extension("stripped");
    // The first knows the programs of its own architecture only.
    for strip in ["strip", "aarch64-linux-gnu-strip"].iter().filter_map(host::find_tool) {
        let done = Command::new(strip).arg("-o").arg(&small).arg(program).output()?;
        if done.status.success() {
            return Ok(fs::read(&small)?);
        }
    }
    fs::read(program).with_context(|| format!("cannot read {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::bare;

    #[test]
    fn modules_lose_their_types_name_and_their_signature() {
        let mark = b"~Module signature appended~\n";
        let signed = [&b"\0.text\0.BTF\0"[..], b"signature", &[2; 8], &[0, 0, 0, 9], mark].concat();
        assert_eq!(bare(signed), b"\0.text\0.btf\0");
        assert_eq!(bare(b"\x7fELF".to_vec()), b"\x7fELF");
        assert_eq!(bare(mark.to_vec()), mark);
    }
}
