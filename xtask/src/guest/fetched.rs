//! The packages that guests are made of, unpacked once into folders named by their versions.

use super::{Arch, initrd};
use crate::host;
use crate::packages::{self, Apt};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The unpacked packages.
pub struct Fetched {
    /// The cloud kernel and the generic one.
    pub kernels: [PathBuf; 2],
    pub busybox: PathBuf,
    /// A busybox of the same release that this machine can run, to ask for its applets.
    pub own_busybox: PathBuf,
    /// Only machines that have an SMBIOS want it.
    pub dmidecode: Option<PathBuf>,
}

impl Fetched {
    fn from_list(arch: Arch, list: Vec<PathBuf>) -> Option<Fetched> {
        let [cloud, generic, busybox, other] = list.try_into().ok()?;
        let kernels = [cloud, generic];
        Some(match arch {
            Arch::X86_64 => {
                let own_busybox = busybox.clone();
                Fetched { kernels, busybox, own_busybox, dmidecode: Some(other) }
            }
            Arch::Arm64 => Fetched { kernels, busybox, own_busybox: other, dmidecode: None },
        })
    }

    /// Those that were fetched before, if they are all there.
    pub fn cached(arch: Arch, dir: &Path) -> Option<Fetched> {
        let list = fs::read_to_string(dir.join("current")).ok()?;
        let list: Vec<_> = list.lines().map(|name| dir.join(name)).collect();
        let whole = list.iter().all(|path| path.is_dir());
        if whole { Self::from_list(arch, list) } else { None }
    }

    /// Fetches what is not there in its newest version.
    pub fn fetch(arch: Arch, dir: &Path) -> Result<Fetched> {
        let own = dir.join("own");
        fs::create_dir_all(&own)?;
        let mut apt = match arch {
            Arch::X86_64 => Apt::new(dir.join("apt"))?,
            Arch::Arm64 => {
                let sources = packages::sources(&packages::suite()?)?;
                Apt::elsewhere(dir.join("apt"), &sources, "arm64")?
            }
        };
        let mut list = Vec::new();
        for meta in arch.kernels() {
            let package = apt.resolve(meta, "linux-image-")?;
            list.push(apt.unpack(&package, dir)?);
        }
        list.push(apt.unpack("busybox-static", dir)?);
        list.push(match arch {
            Arch::X86_64 => apt.unpack("dmidecode", dir)?,
            Arch::Arm64 => Apt::new(own.join("apt"))?.unpack("busybox-static", &own)?,
        });
        let names = list.iter().filter_map(|path| path.strip_prefix(dir).ok()?.to_str());
        let names: Vec<_> = names.collect();
        host::write_atomically(&dir.join("current"), (names.join("\n") + "\n").as_bytes())?;
        Fetched::from_list(arch, list).context("a package is missing")
    }

    /// A text that changes whenever a kernel or initrd has to be made again.
    pub fn stamp(&self, arch: Arch) -> String {
        let [cloud, generic] = &self.kernels;
        let packages = [Some(cloud), Some(generic), Some(&self.busybox), self.dmidecode.as_ref()];
        let packages: Vec<_> = packages.into_iter().flatten().map(|dir| dir.file_name()).collect();
        format!("{packages:?}\n{}", initrd::recipe(arch))
    }
}
