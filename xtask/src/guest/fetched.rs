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
    /// A newer kernel, for the lab's own machine: a user of KVM can have guests' PSCI calls only from Linux
    /// 6.4 on (the SMCCC filter).
    pub newer: Option<PathBuf>,
}

impl Fetched {
    fn from_list(arch: Arch, list: Vec<PathBuf>) -> Option<Fetched> {
        let mut list = list.into_iter();
        let kernels = [list.next()?, list.next()?];
        let busybox = list.next()?;
        let (own_busybox, dmidecode, newer) = match arch {
            Arch::X86_64 => (busybox.clone(), Some(list.next()?), None),
            Arch::Arm64 => (list.next()?, None, Some(list.next()?)),
        };
        Some(Fetched { kernels, busybox, own_busybox, dmidecode, newer })
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
        fs::create_dir_all(dir)?;
        let suite = packages::suite()?;
        let mut apt = match arch {
            Arch::X86_64 => Apt::new(dir.join("apt"))?,
            Arch::Arm64 => Apt::elsewhere(dir.join("apt"), &packages::sources(&suite)?, "arm64")?,
        };
        let mut list = Vec::new();
        for meta in arch.kernels() {
            let package = apt.resolve(meta, "linux-image-")?;
            list.push(apt.unpack(&package, dir)?);
        }
        list.push(apt.unpack("busybox-static", dir)?);
        match arch {
            Arch::X86_64 => list.push(apt.unpack("dmidecode", dir)?),
            Arch::Arm64 => {
                let own = dir.join("own");
                list.push(Apt::new(own.join("apt"))?.unpack("busybox-static", &own)?);
                let sources = packages::sources_beside(&suite, &format!("{suite}-backports"))?;
                let mut apt = Apt::elsewhere(dir.join("apt-backports"), &sources, "arm64")?;
                let package = apt.resolve("linux-image-arm64", "linux-image-")?;
                list.push(apt.unpack(&package, dir)?);
            }
        }
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
