//! Putting a machine together, and bringing it up.
//!
//! The order matters to what a caller sees: the configuration is checked first, then what it names is opened, then
//! memory is mapped; the kernel is loaded, and vCPUs exist, only once all of that went well.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use uuid::Uuid;

use super::builder::{Claim, Config, OnReset};
use super::control::{Control, Order, VcpuGate};
use super::{End, Error, Running};
use crate::accel::{
    self, AccelVcpu, AccelVm, Accelerator, Doorbells, Interrupts, IrqLine, Kicker, VcpuBinder,
    VmSpec,
};
use crate::arch::CpuState;
use crate::arch::x86_64::{acpi, layout, smbios};
use crate::boot::{LoadParams, Payload};
use crate::bus::{Bus, BusDevice};
use crate::console::{OpenConsole, Port};
use crate::device::acpi_pm::AcpiPm;
use crate::device::cmos::Cmos;
use crate::device::i8042::I8042;
use crate::device::reset::ResetControl;
use crate::device::serial::Serial;
use crate::memory::GuestRam;
use crate::net::MacAddr;
use crate::sys;
use crate::vcpu::{self, VcpuBus};
use crate::virtio::blk::{Block, DiskHandle};
use crate::virtio::net::CardHandle;
use crate::virtio::p9::P9;
use crate::virtio::vsock::SocketDevice;
use crate::virtio::{self, MmioTransport, VirtioDevice};
use crate::vsock::VsockHandle;

/// A machine without its accelerator's type.
pub(super) trait Startable: Send {
    fn start(self: Box<Self>) -> Result<Running, Error>;
}

/// A machine that is put together. Dropping it stops its devices and closes its consoles.
pub(super) struct Machine<V: AccelVm> {
    vm: V,
    ram: GuestRam,
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    virtio: Vec<Arc<MmioTransport>>,
    power: Arc<AcpiPm>,
    payload: Payload,
    cmdline: String,
    acpi: acpi::Config,
    smbios: smbios::Config,
    cpus: u32,
    reboot: bool,
    disks: Vec<DiskHandle>,
    cards: Vec<CardHandle>,
    vsock: VsockHandle,
    /// Last, so that they close once no device can write to them any more.
    _consoles: Vec<OpenConsole>,
}

/// The line of a machine that has no interrupt controller: its guests poll.
struct Unwired;

impl IrqLine for Unwired {
    fn pulse(&self) {}
    fn set_level(&self, _high: bool) {}
}

/// Collects devices and what they take up.
struct Parts<'a> {
    lines: Option<&'a dyn Interrupts>,
    doorbells: Option<&'a dyn Doorbells>,
    ram: &'a GuestRam,
    pio: Bus,
    mmio: Bus,
    virtio: Vec<Arc<MmioTransport>>,
    acpi: acpi::Config,
}

impl Parts<'_> {
    fn line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, Error> {
        match self.lines {
            Some(lines) => Ok(lines.line(gsi)?),
            None => Ok(Arc::new(Unwired)),
        }
    }

    fn ports(
        &mut self,
        name: &str,
        first: u16,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), Error> {
        Ok(self.pio.insert(name, first.into(), len, device)?)
    }

    fn serial(&mut self, number: usize, port: Port) -> Result<(), Error> {
        let (Some(&first), Some(&gsi), Some(present)) = (
            layout::COM_PORTS.get(number),
            layout::COM_GSIS.get(number),
            self.acpi.com.get_mut(number),
        ) else {
            let most = layout::COM_PORTS.len();
            return Err(Error::Config(format!("a machine has at most {most} serial ports")));
        };
        *present = true;
        let serial = Serial::new(port, self.line(gsi)?);
        self.ports(&format!("COM{}", number + 1), first, Serial::PORTS, serial)
    }

    fn virtio(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), Error> {
        let number = self.virtio.len();
        let Some(&gsi) = layout::VIRTIO_GSIS.get(number) else {
            return Err(Error::Config(format!(
                "a machine has interrupt lines for {} virtio devices at most",
                layout::VIRTIO_GSIS.len()
            )));
        };
        let name = format!("virtio-{}", device.name());
        let base = layout::VIRTIO_MMIO + number as u64 * layout::VIRTIO_MMIO_STRIDE;
        let transport = MmioTransport::new(device, self.ram.memory().clone(), self.line(gsi)?)
            .map_err(Error::host(format!("start the thread of {name}")))?;
        self.mmio.insert(name, base, MmioTransport::SIZE, transport.clone())?;
        if let Some(doorbells) = self.doorbells {
            for queue in 0..transport.queue_count() {
                if let Some(notifier) = transport.doorbell(queue) {
                    doorbells.attach(base + MmioTransport::QUEUE_NOTIFY, queue.into(), notifier)?;
                }
            }
        }
        self.acpi.virtio_mmio.push(acpi::VirtioMmio { base, len: MmioTransport::SIZE, gsi });
        self.virtio.push(transport);
        Ok(())
    }
}

/// What a kernel without ACPI needs on its command line to find the virtio devices (`virtio_mmio.device` in the
/// kernel's admin-guide/kernel-parameters.txt).
fn announce(cmdline: &str, devices: &[acpi::VirtioMmio]) -> String {
    let mut cmdline = cmdline.to_owned();
    for device in devices {
        let space = if cmdline.is_empty() { "" } else { " " };
        let acpi::VirtioMmio { base, len, gsi } = device;
        cmdline += &format!("{space}virtio_mmio.device={len:#x}@{base:#x}:{gsi}");
    }
    cmdline
}

impl<V: AccelVm> Machine<V> {
    pub(super) fn assemble(
        accelerator: &impl Accelerator<Vm = V>,
        config: Config,
    ) -> Result<Self, Error> {
        if config.cpus == 0 {
            return Err(Error::Config("a machine needs at least one vCPU".into()));
        }
        let Some(kernel) = config.kernel else {
            return Err(Error::Config("a machine needs something to boot: call `kernel`".into()));
        };
        let payload = kernel.open()?;
        payload.check(config.memory, payload.cmdline())?;

        let vm = accelerator.create_vm(&VmSpec::new(config.cpus))?;
        if vm.interrupts().is_none() && config.cpus > 1 {
            let cpus = config.cpus;
            return Err(Error::Config(format!(
                "without an interrupt controller only one vCPU can start, not {cpus}"
            )));
        }
        let ram =
            GuestRam::new(&layout::ram_regions(config.memory), config.backing, config.huge_pages)?;
        vm.map(&ram)?;

        let mut parts = Parts {
            lines: vm.interrupts(),
            doorbells: vm.doorbells(),
            ram: &ram,
            pio: Bus::new(),
            mmio: Bus::new(),
            virtio: Vec::new(),
            acpi: acpi::Config { cpus: config.cpus, ..Default::default() },
        };
        let power = Arc::new(AcpiPm::new(parts.line(layout::SCI_GSI)?));
        parts.ports("ACPI", layout::ACPI_PM_PORT, AcpiPm::PORTS, power.clone())?;
        let keyboard_controller = Arc::new(I8042::new());
        parts.ports("keyboard controller", layout::I8042_COMMAND_PORT, 1, keyboard_controller)?;
        parts.ports("reset control", layout::RESET_PORT, 1, Arc::new(ResetControl::new()))?;
        let clock = Arc::new(Cmos::new(config.memory, parts.line(layout::RTC_GSI)?));
        parts.ports("CMOS", layout::CMOS_PORT, Cmos::PORTS, clock)?;

        let mut consoles = Vec::new();
        for (number, console) in config.serial.into_iter().enumerate() {
            let console = console.open()?;
            parts.serial(number, console.port().clone())?;
            consoles.push(console);
        }
        for console in config.consoles {
            let console = console.open()?;
            parts.virtio(Box::new(virtio::console::Console::new(console.port().clone())))?;
            consoles.push(console);
        }
        let mut disks = Vec::new();
        for disk in config.disks {
            let device = Block::new(disk.open()?, config.cpus)?;
            disks.push(device.handle());
            parts.virtio(Box::new(device))?;
        }
        let mut cards = Vec::new();
        for net in config.nets {
            let card = net.open(mac_address(config.uuid, cards.len()))?;
            cards.push(card.handle());
            parts.virtio(Box::new(card))?;
        }
        for share in config.shares {
            parts.virtio(Box::new(P9::new(share.open()?)?))?;
        }
        let vsock = match config.vsock {
            Some(vsock) => {
                let host = vsock.open()?;
                let handle = host.handle();
                parts.virtio(Box::new(SocketDevice::new(host)))?;
                handle
            }
            None => VsockHandle::absent().map_err(Error::host("make a notifier"))?,
        };
        if config.rng {
            parts.virtio(Box::new(virtio::rng::Rng::new()))?;
        }
        for device in config.virtio {
            parts.virtio(device)?;
        }
        for claim in config.ports {
            parts.pio.insert(claim.name, claim.start, claim.len, claim.device)?;
        }
        for claim in config.mmio {
            check_hole(&claim)?;
            parts.mmio.insert(claim.name, claim.start, claim.len, claim.device)?;
        }

        let cmdline = match config.virtio_on_cmdline {
            true => announce(payload.cmdline(), &parts.acpi.virtio_mmio),
            false => payload.cmdline().to_owned(),
        };
        payload.check(config.memory, &cmdline)?;
        let Parts { pio, mmio, virtio, acpi, .. } = parts;
        Ok(Self {
            pio: Arc::new(pio),
            mmio: Arc::new(mmio),
            virtio,
            power,
            payload,
            cmdline,
            acpi,
            smbios: smbios::Config {
                uuid: config.uuid,
                cpus: config.cpus,
                memory: config.memory,
                ..Default::default()
            },
            cpus: config.cpus,
            reboot: config.on_reset == OnReset::Reboot,
            disks,
            cards,
            vsock,
            _consoles: consoles,
            vm,
            ram,
        })
    }

    /// Writes the kernel and the tables into memory; where the boot processor starts.
    fn load(&self) -> Result<CpuState, Error> {
        let memory = self.ram.memory();
        let rsdp = acpi::write(memory, &self.acpi).map_err(tables)?;
        smbios::write(memory, &self.smbios).map_err(tables)?;
        Ok(self.payload.load(&self.ram, &LoadParams::new(&self.cmdline).rsdp(rsdp))?)
    }

    /// Puts everything but the vCPUs back to power-on, and loads the kernel again. No vCPU runs meanwhile.
    fn reset(&self) -> Result<CpuState, Error> {
        for device in self.pio.devices().chain(self.mmio.devices()) {
            device.reset();
        }
        self.vm.reset()?;
        self.ram.clear().map_err(Error::host("clear guest memory"))?;
        self.load()
    }

    /// Carries out what is asked for until the machine is to end, and tells how it ends.
    fn supervise(&self, control: &Control, kickers: &[Kicker]) -> Result<End, Error> {
        loop {
            match control.order() {
                Order::Pause => {
                    control.park(kickers);
                    self.virtio.iter().for_each(|device| device.pause());
                    control.set_paused(true);
                }
                Order::Resume => {
                    self.virtio.iter().for_each(|device| device.resume());
                    control.set_paused(false);
                }
                Order::Reset => {
                    control.park(kickers);
                    control.boot(self.reset()?);
                }
                Order::Finish(end) => return end,
            }
        }
    }
}

/// Refuses a range that guest memory, or the interrupt controllers, could be at: accesses would never get out.
fn check_hole(claim: &Claim) -> Result<(), Error> {
    let end = claim.start.saturating_add(claim.len);
    let hole = layout::HOLE_START..layout::IO_APIC.into();
    if claim.start < hole.start || end > hole.end {
        return Err(Error::Config(format!(
            "{} cannot have {:#x}..{end:#x}: registers go between {:#x} and {:#x}",
            claim.name, claim.start, hole.start, hole.end
        )));
    }
    Ok(())
}

/// The Ethernet address of a machine's card number `index`: administered locally, the same whenever the machine's UUID
/// is.
fn mac_address(uuid: Uuid, index: usize) -> MacAddr {
    let [.., a, b, c, d, e, f] = uuid.into_bytes();
    MacAddr([a & 0xfc | 0x02, b, c, d, e, f.wrapping_add(index as u8)])
}

fn tables(error: impl std::fmt::Display) -> Error {
    Error::Config(error.to_string())
}

impl<V: AccelVm> Startable for Machine<V> {
    fn start(self: Box<Self>) -> Result<Running, Error> {
        let entry = self.load()?;
        let control = Arc::new(Control::new(self.cpus as usize, self.reboot));
        let mut vcpus = Vcpus::new(control.clone());
        for id in 0..self.cpus {
            let bus = VcpuBus::new(self.pio.clone(), self.mmio.clone());
            vcpus.start(id, self.vm.vcpu(id)?, bus)?;
        }
        vcpus.wait_ready()?;
        let power = self.power.clone();
        let (disks, cards) = (self.disks.clone(), self.cards.clone());
        let vsock = self.vsock.clone();
        control.boot(entry);
        let supervisor = {
            let control = control.clone();
            sys::spawn("hk-machine", move || {
                let end = self.supervise(&control, &vcpus.kickers);
                drop(vcpus);
                drop(self);
                control.finish(end);
            })
        };
        let supervisor = supervisor.map_err(Error::host("start the machine's thread"))?;
        Ok(Running::new(control, power, disks, cards, vsock, supervisor))
    }
}

/// The vCPUs' threads. Dropping it ends them.
struct Vcpus {
    control: Arc<Control>,
    threads: Vec<JoinHandle<()>>,
    kickers: Vec<Kicker>,
    ready: mpsc::Receiver<Result<Kicker, accel::Error>>,
    report: mpsc::Sender<Result<Kicker, accel::Error>>,
}

impl Vcpus {
    fn new(control: Arc<Control>) -> Self {
        let (report, ready) = mpsc::channel();
        Self { control, threads: Vec::new(), kickers: Vec::new(), ready, report }
    }

    fn start<V: AccelVcpu + 'static>(
        &mut self,
        id: u32,
        binder: VcpuBinder<V>,
        mut bus: VcpuBus,
    ) -> Result<(), Error> {
        let (control, report) = (self.control.clone(), self.report.clone());
        let thread = sys::spawn(&format!("hk-vcpu-{id}"), move || {
            let bound = binder.bind();
            // Nobody listens any more if another vCPU could not be had.
            match bound {
                Ok(mut vcpu) => {
                    let _ = report.send(Ok(vcpu.kicker()));
                    drop(report);
                    vcpu::run(&mut vcpu, &mut bus, &VcpuGate::new(&control, id));
                }
                Err(error) => drop(report.send(Err(error))),
            }
        });
        self.threads.push(thread.map_err(Error::host(format!("start the thread of vCPU {id}")))?);
        Ok(())
    }

    /// Waits until every vCPU is bound to its thread.
    fn wait_ready(&mut self) -> Result<(), Error> {
        for _ in 0..self.threads.len() {
            let kicker = self.ready.recv().map_err(|_| Error::VcpuLost)??;
            self.kickers.push(kicker);
        }
        Ok(())
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.control.quit(&self.kickers);
        for thread in self.threads.drain(..) {
            // A panic there has been reported by the gate.
            let _ = thread.join();
        }
    }
}
