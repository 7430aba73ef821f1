//! `cargo xtask lab -- COMMAND…`: runs a command in a Linux machine that has a working /dev/kvm.
//!
//! Many machines have no KVM, or one that cannot run a whole kernel. QEMU emulates one that can, with
//! an AMD processor's SVM or an arm64 processor's EL2, and a stock Debian kernel in it has a complete
//! /dev/kvm. It is some ten times slower than hardware, so it is for tests, and for ratios between
//! things measured inside it.
//!
//! xtask starts QEMU ([`machine`]) with itself as the first process ([`init`](mod@init), [`job`]);
//! the two speak over a virtio-serial port ([`wire`]). Before the command has been started a
//! machine that hangs or dies is replaced by another; afterwards nothing is ever run again.

mod hardware;
mod image;
#[cfg(target_os = "linux")]
mod init;
#[cfg(target_os = "linux")]
mod job;
mod link;
mod machine;
mod run;
mod terminal;
// Half of it is for the machine's side, which is always Linux.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
mod wire;

#[cfg(target_os = "linux")]
pub use init::main as init;
pub use link::Folder;
pub use run::{Lab, Options, is_of_xtask};
pub use terminal::window;

use crate::guest::Arch;
use anyhow::{Context, Result, ensure};
use lexopt::prelude::*;
use std::time::Duration;

const HELP: &str = "\
usage: cargo xtask lab [OPTION…] [--] COMMAND [ARGUMENT…]

Runs a command of this checkout in a Linux machine (emulated by QEMU) that has a working /dev/kvm,
/dev/net/tun, /dev/vhost-net and /dev/vhost-vsock. Path, working directory, environment and files are
the caller's; it runs as root. Everything can be written, but what is written is gone afterwards,
apart from the checkout's target/, $CARGO_TARGET_DIR, and what --share names. TMPDIR is a tmpfs,
HK_SCRATCH an ext4 file system of 8 GiB on a disk. There is no network but lo.

  --arm64           an arm64 machine, with the kernel of Debian's backports, and HK_… files for it. All other
                    files are this machine's, so the command is a static program, such as
                    `cargo xtask build-arm64` builds
  --gic-v2          an arm64 machine with a GICv2, as older processors have, instead of a GICv3
  --memory MIB      memory of the machine (default 3072)
  --smp N           its processors (default 1; with more, a stock kernel sometimes hangs in QEMU)
  --timeout SECS    end the command after this time (default 1200; 0: never)
  --root            build the image that HK_ROOT names, if it is not there yet
  --share DIR       let the command write to this folder too (may be given again)
  --qemu-log FILE   keep what the machine's kernel and QEMU said

Environment: HYPERKIT_LAB=1, TMPDIR, HK_SCRATCH; HK_KERNEL, HK_VMLINUX, HK_INITRD, HK_KERNEL_GENERIC,
HK_VMLINUX_GENERIC and HK_INITRD_GENERIC, the files that `cargo xtask guest` (--arm64) provides; HK_ROOT,
if `cargo xtask guest --root` has provided that; HK_GIC_V2=1 with --gic-v2.

Exit status: the command's; 128 and the signal's number if one ended it; 124 after the time limit;
125 if the lab itself failed, with the tail of the kernel's log on standard error.
In the lab itself, `cargo xtask lab` just runs the command.
";

/// Are we in the lab already?
pub fn inside() -> bool {
    std::env::var_os("HYPERKIT_LAB").is_some()
}

pub fn main(mut args: lexopt::Parser) -> Result<u8> {
    let mut options = Options::default();
    let mut command = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Long("arm64") => options.arch = Arch::Arm64,
            Long("gic-v2") => (options.arch, options.gic_v2) = (Arch::Arm64, true),
            Long("memory") => options.memory = args.value()?.parse()?,
            Long("smp") => options.smp = Some(args.value()?.parse()?),
            Long("timeout") => {
                let limit = Duration::from_secs(args.value()?.parse()?);
                options.timeout = Some(limit).filter(|limit| !limit.is_zero());
            }
            Long("root") => options.root = true,
            Long("share") => {
                let dir = args.value()?;
                let path = std::fs::canonicalize(&dir);
                let path = path.with_context(|| format!("cannot share {}", dir.display()))?;
                options.writable.push(path.into_os_string());
            }
            Long("qemu-log") => options.log = Some(args.value()?.into()),
            Long("help") => {
                print!("{HELP}");
                return Ok(0);
            }
            Value(word) => {
                command.push(word);
                command.extend(args.raw_args()?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(!command.is_empty(), "what command is to be run?\n\n{HELP}");
    Lab::new(options)?.run(&command)
}
