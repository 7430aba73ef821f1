//! `cargo xtask guest`: stock Debian kernels, and an initrd for each, below `target/guest/`.
//!
//! The packages are unpacked whole, once, into folders named by their versions; `--update` looks
//! for newer ones. Kernels and initrds are made from them again whenever anything they are made of
//! has changed, this program's own lists and script included. Every file appears by a rename and
//! the stamp that vouches for all of them comes last, so an interrupted run leaves nothing that
//! looks whole and is not.

mod archive;
mod elf;
mod initrd;
mod modules;
pub mod root;
mod vmlinux;

pub use archive::Archive;
pub use elf::{is_static, needed_libraries};
pub use modules::Tree as Modules;

use crate::host;
use crate::packages::Apt;
use anyhow::{Context, Result};
use lexopt::Arg::Long;
use std::fs;
use std::path::{Path, PathBuf};

const HELP: &str = "\
usage: cargo xtask guest [--root] [--update]

Fetches Debian's stock cloud and generic kernels and builds a busybox initrd for each, below
target/guest/. Needs no root; a second call does nothing. Prints where everything is:
  KERNEL, VMLINUX, INITRD                          the cloud kernel: bzImage, ELF, initrd
  KERNEL_GENERIC, VMLINUX_GENERIC, INITRD_GENERIC  the same for the generic kernel

  --root     also build ROOT, the image of a Debian root file system with fio and e2fsprogs; if it is
             not there yet this takes root's privileges, some 40 seconds and 100 MB of packages
  --update   look for newer packages than those fetched before

What the initrd does, and how a test makes it run something: see xtask/src/guest/init.sh.
";

/// Debian's package for each kernel flavour.
const KERNELS: [(&str, &str); 2] =
    [("cloud", "linux-image-cloud-amd64"), ("generic", "linux-image-amd64")];

/// One kernel, and what goes with it.
pub struct Image {
    pub kernel: PathBuf,
    pub vmlinux: PathBuf,
    pub initrd: PathBuf,
    /// The folder that has `modules.builtin` and `kernel/`.
    pub modules: PathBuf,
}

/// All that `cargo xtask guest` provides.
pub struct Guest {
    pub cloud: Image,
    pub generic: Image,
}

impl Guest {
    /// Names and paths, as printed; with `HK_` before the names they are in the environment of tests.
    pub fn variables(&self) -> [(&'static str, &Path); 6] {
        [
            ("KERNEL", &self.cloud.kernel),
            ("VMLINUX", &self.cloud.vmlinux),
            ("INITRD", &self.cloud.initrd),
            ("KERNEL_GENERIC", &self.generic.kernel),
            ("VMLINUX_GENERIC", &self.generic.vmlinux),
            ("INITRD_GENERIC", &self.generic.initrd),
        ]
    }
}

pub fn main(mut args: lexopt::Parser) -> Result<u8> {
    let (mut root, mut update) = (false, false);
    while let Some(arg) = args.next()? {
        match arg {
            Long("root") => root = true,
            Long("update") => update = true,
            Long("help") => {
                print!("{HELP}");
                return Ok(0);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let guest = prepare(update)?;
    for (name, path) in guest.variables() {
        println!("{name}={}", path.display());
    }
    if root {
        println!("ROOT={}", root::prepare(&guest, update)?.display());
    }
    Ok(0)
}

/// The unpacked packages.
struct Packages {
    kernels: [PathBuf; 2],
    busybox: PathBuf,
    dmidecode: PathBuf,
}

impl Packages {
    fn from_list(list: Vec<PathBuf>) -> Option<Packages> {
        let [cloud, generic, busybox, dmidecode] = list.try_into().ok()?;
        Some(Packages { kernels: [cloud, generic], busybox, dmidecode })
    }

    /// Those that were fetched before, if they are all there.
    fn cached(dir: &Path) -> Option<Packages> {
        let list = fs::read_to_string(dir.join("current")).ok()?;
        let list: Vec<_> = list.lines().map(|name| dir.join(name)).collect();
        let whole = list.iter().all(|path| path.is_dir());
        if whole { Self::from_list(list) } else { None }
    }

    fn fetch(dir: &Path) -> Result<Packages> {
        fs::create_dir_all(dir)?;
        let mut apt = Apt::new(dir.join("apt"))?;
        let mut list = Vec::new();
        for (_, meta) in KERNELS {
            let package = apt.resolve(meta, "linux-image-")?;
            list.push(apt.unpack(&package, dir)?);
        }
        list.push(apt.unpack("busybox-static", dir)?);
        list.push(apt.unpack("dmidecode", dir)?);
        let names = list.iter().filter_map(|path| path.file_name()?.to_str());
        let names: Vec<_> = names.collect();
        host::write_atomically(&dir.join("current"), (names.join("\n") + "\n").as_bytes())?;
        Packages::from_list(list).context("a package is missing")
    }

    /// A text that changes whenever a kernel or initrd has to be made again.
    fn stamp(&self) -> String {
        let [cloud, generic] = &self.kernels;
        let packages = [cloud, generic, &self.busybox, &self.dmidecode].map(|dir| dir.file_name());
        format!("{packages:?}\n{}", initrd::recipe())
    }
}

/// Fetches and builds what is not there yet.
pub fn prepare(update: bool) -> Result<Guest> {
    let dir = host::target("guest")?;
    let stamp = || fs::read_to_string(dir.join("stamp")).unwrap_or_default();
    if !update
        && let Some(packages) = Packages::cached(&dir.join("packages"))
        && stamp() == packages.stamp()
    {
        return guest(&dir, &packages);
    }
    let _lock = host::Lock::take(&dir.join("lock"))?;
    let cached = if update { None } else { Packages::cached(&dir.join("packages")) };
    let packages = match cached {
        Some(packages) => packages,
        None => Packages::fetch(&dir.join("packages"))?,
    };
    let guest = guest(&dir, &packages)?;
    // Another xtask may have done it all while this one waited for the lock.
    if stamp() != packages.stamp() {
        let _ = fs::remove_file(dir.join("stamp"));
        for (image, package) in [&guest.cloud, &guest.generic].into_iter().zip(&packages.kernels) {
            build(image, package, &packages)?;
        }
        host::write_atomically(&dir.join("stamp"), packages.stamp().as_bytes())?;
    }
    Ok(guest)
}

fn guest(dir: &Path, packages: &Packages) -> Result<Guest> {
    let image = |index: usize| -> Result<Image> {
        let dir = dir.join(KERNELS[index].0);
        fs::create_dir_all(&dir)?;
        Ok(Image {
            kernel: dir.join("vmlinuz"),
            vmlinux: dir.join("vmlinux"),
            initrd: dir.join("initrd"),
            modules: only_entry(&packages.kernels[index].join("lib/modules"))?,
        })
    };
    Ok(Guest { cloud: image(0)?, generic: image(1)? })
}

fn build(image: &Image, package: &Path, packages: &Packages) -> Result<()> {
    eprintln!("xtask: building {}", image.initrd.display());
    let release = image.modules.file_name().context("a kernel without a release")?;
    let mut name = std::ffi::OsString::from("vmlinuz-");
    name.push(release);
    let kernel = package.join("boot").join(name);
    let kernel = fs::read(&kernel).with_context(|| format!("cannot read {}", kernel.display()))?;
    host::write_atomically(&image.kernel, &kernel)?;
    host::write_atomically(&image.vmlinux, &vmlinux::extract(&kernel)?)?;
    let initrd = initrd::build(&image.modules, &packages.busybox, &packages.dmidecode)?;
    host::write_atomically(&image.initrd, &initrd)
}

fn only_entry(dir: &Path) -> Result<PathBuf> {
    let mut entries =
        fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let entry = entries.next().with_context(|| format!("{} is empty", dir.display()))??;
    Ok(entry.path())
}
