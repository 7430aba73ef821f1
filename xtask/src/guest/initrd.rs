//! The initrd: a static busybox, the virtio modules, and a script that becomes the first process.
//!
//! It is a plain cpio archive, not compressed: the kernel unpacks that fastest, and a test may append
//! another archive of its own to add or replace files.

use super::Arch;
use super::archive::Archive;
use super::elf::needed_libraries;
use super::fetched::Fetched;
use super::modules::Tree;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

const INIT: &str = include_str!("init.sh");
const IN_TOOLS: &str = include_str!("in-tools.sh");

/// Loaded by the init script, in this order; then that of the architecture's power button.
const LOADED: &[&str] = &[
    "virtio_mmio",
    "virtio_pci",
    "virtio_console",
    "virtio-rng",
    "virtio_blk",
    "virtio_net",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "9pnet_virtio",
    "9p",
    "virtiofs",
    "crc32c_generic",
    "ext4",
    "evdev",
];

/// Carried for a `modprobe` by hand.
const CARRIED: &[&str] = &["loop", "overlay", "squashfs", "isofs", "vfat", "vsock_diag", "tun"];

/// Small files, by name, mode and content.
const FILES: &[(&str, u32, &str)] = &[
    ("init", 0o755, INIT),
    ("bin/in-tools", 0o755, IN_TOOLS),
    ("etc/passwd", 0o644, "root::0:0:root:/root:/bin/sh\n"),
    ("etc/group", 0o644, "root:x:0:\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/profile", 0o644, "export HOME=/root PS1='# '\ncd\n"),
    // What busybox's acpid runs for the power button.
    ("etc/acpi/PWRF/00000080", 0o755, "#!/bin/sh\nexec poweroff\n"),
];

/// All that an initrd is made of, apart from packages: when this text changes, it is made again.
pub fn recipe(arch: Arch) -> String {
    format!("{FILES:?}\n{:?}\n{CARRIED:?}\n", loaded(arch))
}

fn loaded(arch: Arch) -> Vec<&'static str> {
    [LOADED, &[arch.button()]].concat()
}

/// Builds the initrd for the kernel whose modules are given.
pub fn build(arch: Arch, modules: &Path, fetched: &Fetched) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    archive.character_device("dev/console", 5, 1)?;
    archive.character_device("dev/null", 1, 3)?;
    for dir in ["proc", "sys", "run", "tmp", "root", "mnt", "var/log"] {
        archive.directory(dir)?;
    }
    archive.symlink("var/run", "../run")?;
    for (name, mode, content) in FILES {
        archive.file(name, *mode, content.as_bytes())?;
    }

    let busybox = Path::new("bin/busybox");
    archive.copy("bin/busybox", 0o755, &fetched.busybox.join(busybox))?;
    let mut list = Command::new(fetched.own_busybox.join(busybox));
    let applets = crate::host::output(list.arg("--list-full"))?;
    for applet in String::from_utf8_lossy(&applets).lines() {
        archive.symlink(applet, "/bin/busybox")?;
    }
    if let Some(dmidecode) = &fetched.dmidecode {
        let dmidecode = dmidecode.join("usr/sbin/dmidecode");
        for library in needed_libraries(&dmidecode)? {
            archive.copy(&library.to_string_lossy(), 0o755, &library)?;
        }
        archive.copy("usr/sbin/dmidecode", 0o755, &dmidecode)?;
    }

    let tree = Tree::new(modules)?;
    let release = modules.file_name().context("a kernel without a release")?.to_string_lossy();
    let base = format!("lib/modules/{release}");
    let mut dependencies = String::new();
    for module in tree.closure(&[&loaded(arch), CARRIED].concat())? {
        let name = format!("{base}/{}", module.path.display());
        archive.file(&name, 0o644, &module.bytes)?;
        let depends = module.depends.iter().map(|path| format!(" {}", path.display()));
        let depends = depends.collect::<String>();
        dependencies += &format!("{}:{depends}\n", module.path.display());
    }
    // busybox's modprobe loads what a line names, and what the lines of those name.
    archive.file(&format!("{base}/modules.dep"), 0o644, dependencies.as_bytes())?;
    let loaded = tree.closure(&loaded(arch))?;
    let loaded = loaded.iter().filter_map(|module| module.path.file_stem());
    let loaded: Vec<_> = loaded.map(|name| name.to_string_lossy()).collect();
    archive.file("etc/modules", 0o644, loaded.join("\n").as_bytes())?;
    archive.finish()
}
