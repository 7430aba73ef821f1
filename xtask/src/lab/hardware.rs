//! What the lab's machine of an architecture is made of.

use super::Options;
use crate::guest::Arch;

pub struct Hardware {
    /// The emulator, and Debian's package of it.
    pub qemu: (&'static str, &'static str),
    /// Its board …
    pub board: &'static str,
    /// … and a processor that can virtualise.
    pub processor: &'static str,
    /// How many processors there are unless the caller says otherwise.
    pub smp: u32,
    /// The kernel's command line, beyond [`CMDLINE`].
    cmdline: &'static str,
    /// Is the machine to be poked, see [`Machine::poke`](super::machine::Machine::poke)?
    pub poked: bool,
}

/// With `-no-reboot`, QEMU leaves when the kernel dies. The rest is for speed: the less a kernel
/// checks of itself, protects its own code and clears pages, the less QEMU has to do, and to
/// translate again.
const CMDLINE: &str = "quiet panic=-1 oops=panic random.trust_cpu=on cryptomgr.notests \
    mitigations=off rodata=off init_on_alloc=0";

/// An AMD processor with SVM. One, as stock kernels patch their own code while they run
/// (CONFIG_JUMP_LABEL), which QEMU's emulation of a second processor sometimes trips over.
///
/// Of a family later than those that could have an AGP bridge: for one, a kernel asks every place of a PCI bus that
/// is not there, twice, which takes an emulated processor ten seconds a boot.
///
/// `no_timer_check`: on a busy host, timer interrupts come too late for the kernel's patience at boot.
/// `noreplace-smp`: less code is patched.
const X86_64: Hardware = Hardware {
    qemu: ("qemu-system-x86_64", "qemu-system-x86"),
    board: "q35,hpet=off,vmport=off",
    processor: "max,+svm,+npt,-la57,family=26,model=1,stepping=1",
    smp: 1,
    cmdline: "reboot=t tsc=reliable no_timer_check noreplace-smp",
    poked: true,
};

/// A processor with EL2, so that the kernel is a host as on any arm64 server (VHE), without what costs
/// an emulator most: pointers signed at every call, and vectors so long to save.
///
/// One here too: it is for whole machines side by side to use the host's processors. More are stable,
/// as the arm64 kernel patches its code by single stores.
const ARM64: Hardware = Hardware {
    qemu: ("qemu-system-aarch64", "qemu-system-arm"),
    board: "virt,virtualization=on,gic-version=3",
    processor: "max,pauth=off,sve=off,sme=off",
    smp: 1,
    cmdline: "",
    poked: false,
};

/// The same with the interrupt controller of older processors.
const ARM64_GIC_V2: Hardware = Hardware { board: "virt,virtualization=on,gic-version=2", ..ARM64 };

impl Hardware {
    pub fn of(options: &Options) -> &'static Hardware {
        match (options.arch, options.gic_v2) {
            (Arch::X86_64, _) => &X86_64,
            (Arch::Arm64, false) => &ARM64,
            (Arch::Arm64, true) => &ARM64_GIC_V2,
        }
    }

    /// The kernel's command line.
    pub fn words(&self, arch: Arch) -> String {
        format!("console={} {} {CMDLINE}", arch.console(), self.cmdline)
    }
}
