//! `cargo xtask boot`: a stock kernel to a shell on this terminal, by the `boot` example.
//!
//! On this machine if its /dev/kvm can run an unmodified kernel, which the example's own `--probe`
//! tells; if not, in the lab, with the same terminal or pipes.

use crate::guest::{self, Arch, Guest, root};
use crate::lab::{self, Folder, Lab};
use crate::{cargo, cross, host};
use anyhow::{Context, Result, ensure};
use lexopt::prelude::*;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const HELP: &str = "\
usage: cargo xtask boot [--arm64 | --host | --lab] [--generic] [--root] [-- ARGUMENT…]

Boots Debian's cloud kernel to a root shell on this terminal, by the example; Ctrl-] stops it.
The arguments after -- are the example's (-- --help lists them); --kernel, --initrd and --cmdline are
given to it unless they are among those. Standard input that is no terminal is fed to the guest:

  printf 'uname -r; nproc; poweroff -f\\n' | cargo xtask boot -- --cpus 2

  --arm64     Debian for arm64, in the arm64 lab
  --host      on this machine, whatever its /dev/kvm is
  --lab       in the lab, whatever this machine's /dev/kvm is
  --generic   Debian's generic kernel instead of the one for clouds
  --root      a whole Debian, to a login (root, no password): /dev/vda is a copy of the image that
              `cargo xtask guest --root` builds, and is gone afterwards

Exit status: the example's, 0 when the guest powers off; 125 if there was nothing to boot.
";

pub fn main(mut args: lexopt::Parser) -> Result<u8> {
    let (mut arch, mut place) = (Arch::X86_64, None);
    let (mut generic, mut root, mut given) = (false, false, Vec::new());
    while let Some(arg) = args.next()? {
        match arg {
            Long("arm64") => arch = Arch::Arm64,
            Long("host") => place = Some(false),
            Long("lab") => place = Some(true),
            Long("generic") => generic = true,
            Long("root") => root = true,
            Long("help") => {
                print!("{HELP}");
                return Ok(0);
            }
            Value(word) => {
                given.push(word);
                given.extend(args.raw_args()?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(!root || arch == Arch::X86_64, "there is no root file system for arm64");
    let guest = guest::prepare(arch, false)?;
    let boot = example(arch)?;
    let root = if root { Some(Root::copy(&guest)?) } else { None };
    let arguments = arguments(arch, &guest, generic, root.as_ref(), given);
    let in_lab = match place {
        _ if arch == Arch::Arm64 => true,
        Some(place) => place,
        None => host_can_run_linux(&boot)
            .inspect_err(|why| eprintln!("xtask boot: booting in the lab: {why}"))
            .is_err(),
    };
    if !in_lab {
        let mut boot = Command::new(&boot);
        boot.args(arguments);
        let run = if root.is_some() { boot.status() } else { Err(boot.exec()) };
        let status = run.context("cannot run the example")?;
        return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(host::FAILED));
    }
    let command = [vec![boot.into_os_string()], arguments].concat();
    Lab::new(lab::Options { arch, timeout: None, ..Default::default() })?.run(&command)
}

/// Builds the example.
fn example(arch: Arch) -> Result<PathBuf> {
    let words = ["build", "--release", "--example", "boot"];
    let built = match arch {
        Arch::X86_64 => cargo::build(cargo::cargo().args(words))?,
        Arch::Arm64 => cross::build(cross::cargo(cross::Accelerator::Kvm)?.args(words))?,
    };
    let boot = built.into_iter().find(|built| built.name == "boot" && built.kind == "example");
    Ok(boot.context("cargo has built no example named boot")?.path)
}

/// A copy of the root file system's image for one run.
struct Root {
    image: PathBuf,
    _folder: Folder,
}

impl Root {
    fn copy(guest: &Guest) -> Result<Root> {
        let original = root::prepare(guest, false)?;
        let folder = Folder::new(&host::target("boot")?)?;
        let image = folder.0.join("root.img");
        let mut copy = Command::new("cp");
        copy.args(["--reflink=auto", "--sparse=always"]).arg(original).arg(&image);
        host::output(&mut copy)?;
        Ok(Root { image, _folder: folder })
    }
}

/// The example's arguments: those given, and what is missing among them.
fn arguments(
    arch: Arch,
    guest: &Guest,
    generic: bool,
    root: Option<&Root>,
    given: Vec<OsString>,
) -> Vec<OsString> {
    let has = |name: &str| {
        let with_value = format!("{name}=");
        given.iter().any(|word| word == name || word.to_string_lossy().starts_with(&with_value))
    };
    let image = if generic { &guest.generic } else { &guest.cloud };
    let mut arguments = Vec::<OsString>::new();
    for (name, path) in [("--kernel", &image.kernel), ("--initrd", &image.initrd)] {
        if !has(name) {
            arguments.extend([name.into(), path.into()]);
        }
    }
    if !has("--cmdline") {
        let mut words = given.iter().map(|word| word.to_string_lossy());
        let virtio = has("--console=virtio") || words.any(|word| word == "virtio");
        let console = if virtio { "hvc0" } else { arch.console() };
        let size = if std::io::stdin().is_terminal() { lab::window() } else { None };
        let (columns, rows) = size.unwrap_or((80, 24));
        let mut cmdline = format!("console={console} quiet hk.size={columns}x{rows}");
        cmdline += if root.is_some() { " hk.root=/dev/vda" } else { "" };
        arguments.extend(["--cmdline".into(), cmdline.into()]);
    }
    if let Some(root) = root {
        // Before those given, which are further disks. A comma would begin an option.
        let path = root.image.to_string_lossy().replace(',', ",,");
        arguments.extend(["--disk".into(), path.into()]);
    }
    arguments.extend(given);
    arguments
}

/// Why this machine's /dev/kvm cannot run an unmodified kernel, if it cannot.
fn host_can_run_linux(boot: &Path) -> Result<(), String> {
    let probe = Command::new(boot).arg("--probe").stdin(Stdio::null()).output();
    let probe = probe.map_err(|error| format!("the probe cannot be run: {error}"))?;
    if probe.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&probe.stderr);
    let line = text.lines().find(|line| !line.is_empty());
    Err(line.map_or_else(|| format!("the probe ended with {}", probe.status), str::to_owned))
}
