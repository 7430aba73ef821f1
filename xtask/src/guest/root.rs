//! The image of a Debian root file system, for guests to boot from or to take tools from.
//!
//! A stock Debian of this machine's release, from the mirrors that this machine's apt uses: minimal,
//! with systemd, fio, iperf3, e2fsprogs and a compiler, Lua's source to try that on, and the cloud kernel's
//! modules but no kernel. A guest gets at it by the words of the initrd's `init.sh`. Making it takes
//! root's privileges and some 40 seconds, so that is done only when something wants it; what is to go
//! into it is the stamp beside it.

use super::Guest;
use crate::{host, packages};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

const SCRIPT: &str = include_str!("root.sh");

/// Beyond Debian's essential packages.
const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "procps",
    "socat",
    "util-linux",
    "iproute2",
    "e2fsprogs",
    "fio",
    "iperf3",
    "attr",
    "dbench",
    "gcc",
    "git",
    "libc6-dev",
    "make",
    "sqlite3",
    "stress-ng",
];

/// The image, if it has been made before, up to date or not.
pub fn present() -> Option<PathBuf> {
    Some(host::root().join("target/guest/root/root.img")).filter(|image| image.is_file())
}

/// Makes the image if it is not there yet.
pub fn prepare(guest: &Guest, update: bool) -> Result<PathBuf> {
    let dir = host::target("guest/root")?;
    let (image, stamp) = (dir.join("root.img"), dir.join("stamp"));
    let release = guest.cloud.modules.file_name().context("a kernel without a release")?;
    let suite = packages::suite()?;
    let recipe = format!("{suite}\n{release:?}\n{PACKAGES:?}\n{SCRIPT}");
    let fresh =
        || image.is_file() && fs::read_to_string(&stamp).is_ok_and(|of_image| of_image == recipe);
    if !update && fresh() {
        return Ok(image);
    }
    let _lock = host::Lock::take(&dir.join("lock"))?;
    // Another xtask may have done it while this one waited for the lock.
    if update || !fresh() {
        build(&image, &guest.cloud.modules, &suite)?;
        host::write_atomically(&stamp, recipe.as_bytes())?;
    }
    Ok(image)
}

fn build(image: &Path, modules: &Path, suite: &str) -> Result<()> {
    packages::install("mmdebstrap", "mmdebstrap")?;
    packages::install("mke2fs", "e2fsprogs")?;
    eprintln!("xtask: building {}: this fetches some 100 MB", image.display());
    let start = Instant::now();
    let part = image.with_extension("part");
    let owner = (rustix::process::getuid(), rustix::process::getgid());
    let mut script = packages::as_root("sh").context("a Debian root file system")?;
    script.args(["-c", SCRIPT, "root.sh"]).arg(&part);
    script.arg(format!("{}:{}", owner.0.as_raw(), owner.1.as_raw())).arg(modules);
    script.args([suite, &PACKAGES.join(",")]);
    script.args([packages::sources(suite)?, packages::transport()?]);
    host::output(script.stdin(Stdio::null()))?;
    fs::rename(&part, image)?;
    eprintln!("xtask: built it in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
