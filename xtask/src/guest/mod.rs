//! `cargo xtask guest`: stock Debian kernels, and an initrd for each, below `target/guest/`.
//!
//! The packages are unpacked whole, once, into folders named by their versions; `--update` looks
//! for newer ones. Kernels and initrds are made from them again whenever anything they are made of
//! has changed, this program's own lists and script included. Every file appears by a rename and
//! the stamp that vouches for all of them comes last, so an interrupted run leaves nothing that
//! looks whole and is not.

mod arch;
mod archive;
mod elf;
mod fetched;
mod initrd;
mod modules;
pub mod root;
mod vmlinux;

pub use arch::Arch;
pub use archive::Archive;
pub use elf::{is_static, needed_libraries};
pub use modules::Tree as Modules;

use crate::host;
use anyhow::{Context, Result, ensure};
use fetched::Fetched;
use lexopt::Arg::Long;
use std::fs;
use std::path::{Path, PathBuf};

const HELP: &str = "\
usage: cargo xtask guest [--arm64 | --root] [--update]

Fetches Debian's stock cloud and generic kernels and builds a busybox initrd for each, below
target/guest/. Needs no root; a second call does nothing. Prints where everything is:
  KERNEL, VMLINUX, INITRD                          the cloud kernel: bzImage, ELF, initrd
  KERNEL_GENERIC, VMLINUX_GENERIC, INITRD_GENERIC  the same for the generic kernel

  --arm64    arm64 kernels instead of x86-64 ones, below target/guest/arm64/; there are no VMLINUX then
  --root     also build ROOT, the image of a Debian root file system with fio and e2fsprogs; if it is
             not there yet this takes root's privileges, some 40 seconds and 100 MB of packages
  --update   look for newer packages than those fetched before

What the initrd does, and how a test makes it run something: see xtask/src/guest/init.sh.
";

/// One kernel, and what goes with it.
pub struct Image {
    /// In the form that Debian has it: a bzImage, or an arm64 Image.
    pub kernel: PathBuf,
    /// The ELF kernel in a bzImage.
    pub vmlinux: Option<PathBuf>,
    pub initrd: PathBuf,
    /// The folder that has `modules.builtin` and `kernel/`.
    pub modules: PathBuf,
}

/// The kernel of the lab's own machine, in the form that QEMU starts soonest.
pub struct LabKernel {
    pub kernel: PathBuf,
    pub modules: PathBuf,
}

/// All that `cargo xtask guest` provides.
pub struct Guest {
    pub cloud: Image,
    pub generic: Image,
    pub lab: LabKernel,
}

impl Guest {
    /// Names and paths, as printed; with `HK_` before the names they are in the environment of tests.
    pub fn variables(&self) -> Vec<(&'static str, &Path)> {
        let all = [
            ("KERNEL", Some(&self.cloud.kernel)),
            ("VMLINUX", self.cloud.vmlinux.as_ref()),
            ("INITRD", Some(&self.cloud.initrd)),
            ("KERNEL_GENERIC", Some(&self.generic.kernel)),
            ("VMLINUX_GENERIC", self.generic.vmlinux.as_ref()),
            ("INITRD_GENERIC", Some(&self.generic.initrd)),
        ];
        all.into_iter().filter_map(|(name, path)| Some((name, path?.as_path()))).collect()
    }
}

pub fn main(mut args: lexopt::Parser) -> Result<u8> {
    let (mut arch, mut root, mut update) = (Arch::X86_64, false, false);
    while let Some(arg) = args.next()? {
        match arg {
            Long("arm64") => arch = Arch::Arm64,
            Long("root") => root = true,
            Long("update") => update = true,
            Long("help") => {
                print!("{HELP}");
                return Ok(0);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(!root || arch == Arch::X86_64, "there is no root file system for arm64");
    let guest = prepare(arch, update)?;
    for (name, path) in guest.variables() {
        println!("{name}={}", path.display());
    }
    if root {
        println!("ROOT={}", root::prepare(&guest, update)?.display());
    }
    Ok(0)
}

/// Fetches and builds what is not there yet.
pub fn prepare(arch: Arch, update: bool) -> Result<Guest> {
    let dir = host::target(arch.folder())?;
    let stamp = || fs::read_to_string(dir.join("stamp")).unwrap_or_default();
    if !update
        && let Some(fetched) = Fetched::cached(arch, &dir.join("packages"))
        && stamp() == fetched.stamp(arch)
    {
        return guest(arch, &dir, &fetched);
    }
    let _lock = host::Lock::take(&dir.join("lock"))?;
    let cached = if update { None } else { Fetched::cached(arch, &dir.join("packages")) };
    let fetched = match cached {
        Some(fetched) => fetched,
        None => Fetched::fetch(arch, &dir.join("packages"))?,
    };
    let guest = guest(arch, &dir, &fetched)?;
    // Another xtask may have done it all while this one waited for the lock.
    if stamp() != fetched.stamp(arch) {
        let _ = fs::remove_file(dir.join("stamp"));
        for (image, package) in [&guest.cloud, &guest.generic].into_iter().zip(&fetched.kernels) {
            build(arch, image, package, &fetched)?;
        }
        host::write_atomically(&dir.join("stamp"), fetched.stamp(arch).as_bytes())?;
    }
    Ok(guest)
}

fn guest(arch: Arch, dir: &Path, fetched: &Fetched) -> Result<Guest> {
    let image = |name: &str, package: &Path| -> Result<Image> {
        let dir = dir.join(name);
        fs::create_dir_all(&dir)?;
        Ok(Image {
            kernel: dir.join("vmlinuz"),
            vmlinux: (arch == Arch::X86_64).then(|| dir.join("vmlinux")),
            initrd: dir.join("initrd"),
            modules: only_entry(&package.join("lib/modules"))?,
        })
    };
    let [cloud, generic] = &fetched.kernels;
    let (cloud, generic) = (image("cloud", cloud)?, image("generic", generic)?);
    let lab = match &fetched.newer {
        Some(package) => {
            let modules = only_entry(&package.join("lib/modules"))?;
            LabKernel { kernel: packaged(package, &modules)?, modules }
        }
        None => LabKernel {
            kernel: generic.vmlinux.as_ref().unwrap_or(&generic.kernel).clone(),
            modules: generic.modules.clone(),
        },
    };
    Ok(Guest { cloud, generic, lab })
}

fn build(arch: Arch, image: &Image, package: &Path, fetched: &Fetched) -> Result<()> {
    eprintln!("xtask: building {}", image.initrd.display());
    let kernel = packaged(package, &image.modules)?;
    let kernel = fs::read(&kernel).with_context(|| format!("cannot read {}", kernel.display()))?;
    host::write_atomically(&image.kernel, &kernel)?;
    if let Some(path) = &image.vmlinux {
        host::write_atomically(path, &vmlinux::extract(&kernel)?)?;
    }
    host::write_atomically(&image.initrd, &initrd::build(arch, &image.modules, fetched)?)
}

/// The kernel in a package whose modules are in that folder.
fn packaged(package: &Path, modules: &Path) -> Result<PathBuf> {
    let mut name = std::ffi::OsString::from("vmlinuz-");
    name.push(modules.file_name().context("a kernel without a release")?);
    Ok(package.join("boot").join(name))
}

fn only_entry(dir: &Path) -> Result<PathBuf> {
    let mut entries =
        fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let entry = entries.next().with_context(|| format!("{} is empty", dir.display()))??;
    Ok(entry.path())
}
