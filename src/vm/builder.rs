//! The builder: what a machine is to be, in a sentence.

use std::sync::Arc;

use uuid::Uuid;

use super::assemble::Machine;
use super::{Error, Vm};
use crate::accel::{Accelerator, Native};
use crate::boot::Kernel;
use crate::bus::BusDevice;
use crate::console::Console;
use crate::disk::Disk;
use crate::fs::Share;
use crate::memory::Backing;
use crate::net::Net;
use crate::virtio::VirtioDevice;
use crate::vsock::Vsock;

/// What happens when the guest asks for a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnReset {
    /// The machine boots again, in place.
    #[default]
    Reboot,
    /// The machine ends with [`End::Reset`](super::End::Reset).
    End,
}

/// Collects what a machine is to be. See [`Vm::builder`].
#[must_use = "a builder does nothing until `build`"]
pub struct VmBuilder<A = Native> {
    accelerator: A,
    machine: Config,
}

/// What a machine is to be, whatever runs it.
pub(super) struct Config {
    pub cpus: u32,
    pub memory: u64,
    pub backing: Backing,
    pub huge_pages: bool,
    pub kernel: Option<Kernel>,
    pub serial: Vec<Console>,
    pub consoles: Vec<Console>,
    pub disks: Vec<Disk>,
    pub nets: Vec<Net>,
    pub shares: Vec<Share>,
    pub vsock: Option<Vsock>,
    pub rng: bool,
    pub virtio: Vec<Box<dyn VirtioDevice>>,
    pub ports: Vec<Claim>,
    pub mmio: Vec<Claim>,
    pub uuid: Uuid,
    pub on_reset: OnReset,
    pub virtio_on_cmdline: bool,
}

/// Addresses that a device of the caller's wants.
pub(super) struct Claim {
    pub name: String,
    pub start: u64,
    pub len: u64,
    pub device: Arc<dyn BusDevice>,
}

impl Default for VmBuilder {
    fn default() -> Self {
        Self { accelerator: Native, machine: Config::default() }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: 512 << 20,
            backing: Backing::default(),
            huge_pages: false,
            kernel: None,
            serial: Vec::new(),
            consoles: Vec::new(),
            disks: Vec::new(),
            nets: Vec::new(),
            shares: Vec::new(),
            vsock: None,
            rng: true,
            virtio: Vec::new(),
            ports: Vec::new(),
            mmio: Vec::new(),
            uuid: Uuid::new_v4(),
            on_reset: OnReset::default(),
            virtio_on_cmdline: false,
        }
    }
}

impl<A: Accelerator> VmBuilder<A> {
    /// Runs the machine on `accelerator` instead of the host's own.
    pub fn accelerator<B: Accelerator>(self, accelerator: B) -> VmBuilder<B> {
        VmBuilder { accelerator, machine: self.machine }
    }

    /// How many vCPUs; 1 unless said otherwise, and at most as many as the accelerator runs on this host. On arm64
    /// there are 512 at most, and 8 where the host's interrupt controller is a GICv2.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.machine.cpus = cpus;
        self
    }

    /// Bytes of guest memory; 512 MiB unless said otherwise. At least 2 MiB and enough for the kernel, and a multiple
    /// of the host's page size. The host gives them only as the guest touches them.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.machine.memory = bytes;
        self
    }

    /// How guest memory is backed on the host; [`Backing::Anonymous`] unless said otherwise.
    pub fn memory_backing(mut self, backing: Backing) -> Self {
        self.machine.backing = backing;
        self
    }

    /// Asks the host for transparent huge pages: faster, and coarser in what it takes.
    pub fn huge_pages(mut self, huge_pages: bool) -> Self {
        self.machine.huge_pages = huge_pages;
        self
    }

    /// What to boot.
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.machine.kernel = Some(kernel);
        self
    }

    /// Adds a serial port with `console` behind it. There can be four: `ttyS0` to `ttyS3`, a PC's COM1 to COM4, on
    /// x86-64; `ttyAMA0` to `ttyAMA3` on arm64. [`SERIAL_CONSOLE`](crate::arch::SERIAL_CONSOLE) is the name of the
    /// first.
    pub fn serial(mut self, console: Console) -> Self {
        self.machine.serial.push(console);
        self
    }

    /// Adds a virtio console with `console` behind it (`hvc0`, `hvc1`, …): much faster than a serial port, and
    /// there later in the guest's boot.
    pub fn console(mut self, console: Console) -> Self {
        self.machine.consoles.push(console);
        self
    }

    /// Adds a disk: the first is `vda`, the second `vdb`.
    pub fn disk(mut self, disk: Disk) -> Self {
        self.machine.disks.push(disk);
        self
    }

    /// Adds a network card.
    pub fn net(mut self, net: impl Into<Net>) -> Self {
        self.machine.nets.push(net.into());
        self
    }

    /// Shares a folder of the host: the guest mounts it by its tag,
    /// `mount -t 9p -o trans=virtio,version=9p2000.L TAG DIR`.
    pub fn share(mut self, share: Share) -> Self {
        self.machine.shares.push(share);
        self
    }

    /// Gives the machine a socket device: connections between programs of the host and of the guest, without a network.
    /// A machine has one; another call replaces it.
    pub fn vsock(mut self, vsock: Vsock) -> Self {
        self.machine.vsock = Some(vsock);
        self
    }

    /// Whether the machine has a virtio entropy device; it has, unless said otherwise.
    pub fn rng(mut self, rng: bool) -> Self {
        self.machine.rng = rng;
        self
    }

    /// Adds a virtio device. A machine has 14 at most on x86-64 and 64 on arm64: these, those for entropy and sockets,
    /// and one for each virtio console, disk, card and share.
    pub fn device(mut self, device: impl VirtioDevice + 'static) -> Self {
        self.machine.virtio.push(Box::new(device));
        self
    }

    /// Puts `device` on the ports `first..first + len`, which only x86-64 has. `name` appears in errors.
    pub fn port_device(
        mut self,
        name: impl Into<String>,
        first: u16,
        len: u16,
        device: Arc<dyn BusDevice>,
    ) -> Self {
        let (start, len) = (first.into(), len.into());
        self.machine.ports.push(Claim { name: name.into(), start, len, device });
        self
    }

    /// Puts `device` on `len` guest-physical addresses from `start`, where no other device is: on x86-64 between
    /// 0xc000_0000 and 0xfec0_0000, with the virtio devices from 0xd000_0000 on, a page each; on arm64 between
    /// 0x2000_0000 and 0x4000_0000. `name` appears in errors.
    pub fn mmio_device(
        mut self,
        name: impl Into<String>,
        start: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Self {
        self.machine.mmio.push(Claim { name: name.into(), start, len, device });
        self
    }

    /// The machine's UUID; a random one unless said otherwise. On x86-64 SMBIOS tells it to the guest. The Ethernet
    /// addresses of cards that have no other are made of it, and so stay the same as long as it does.
    pub fn uuid(mut self, uuid: Uuid) -> Self {
        self.machine.uuid = uuid;
        self
    }

    /// What happens when the guest asks for a reset; it boots again in place unless said otherwise.
    pub fn on_reset(mut self, on_reset: OnReset) -> Self {
        self.machine.on_reset = on_reset;
        self
    }

    /// Announces virtio devices on the kernel's command line (`virtio_mmio.device=…`), for x86-64 kernels without ACPI;
    /// others find them in the ACPI tables or, on arm64, in the device tree.
    pub fn virtio_on_cmdline(mut self, announce: bool) -> Self {
        self.machine.virtio_on_cmdline = announce;
        self
    }

    /// Checks everything, opens what is named, and puts the machine together. Nothing runs yet.
    pub fn build(self) -> Result<Vm, Error> {
        Ok(Vm(Box::new(Machine::assemble(&self.accelerator, self.machine)?)))
    }
}
