//! Putting a machine together, and bringing it up.
//!
//! The order matters to what a caller sees. The kernel is opened and checked first; then the accelerator makes its
//! machine and memory is mapped; then each console, disk, card, share and the sockets are checked, opened and put
//! behind a device, in turn; the caller's own devices come last, and once more a look at the command line. Only a
//! machine for which all of that went well can be started: it loads the kernel, and vCPUs get their threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use uuid::Uuid;

use super::board::{self, Board};
use super::builder::{Config, OnReset};
use super::control::{Control, Order, VcpuGate};
use super::parts::{Parts, Place, announce};
use super::{End, Error, Running};
use crate::accel::{self, AccelVcpu, AccelVm, Accelerator, Kicker, VcpuBinder, VmSpec};
use crate::arch::CpuState;
use crate::boot::Payload;
use crate::bus::Bus;
use crate::console::OpenConsole;
use crate::memory::GuestRam;
use crate::net::MacAddr;
use crate::sys;
use crate::vcpu::{self, VcpuBus};
use crate::virtio::blk::{Block, DiskHandle};
use crate::virtio::net::CardHandle;
use crate::virtio::p9::P9;
use crate::virtio::vsock::SocketDevice;
use crate::virtio::{self, MmioTransport};
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
    places: Vec<Place>,
    board: Board,
    payload: Payload,
    cmdline: String,
    cpus: u32,
    reboot: bool,
    disks: Vec<DiskHandle>,
    cards: Vec<CardHandle>,
    vsock: VsockHandle,
    /// Last, so that they close once no device can write to them any more.
    _consoles: Vec<OpenConsole>,
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
        let regions = board::ram_regions(config.memory);
        let ram = GuestRam::new(&regions, config.backing, config.huge_pages)?;
        vm.map(&ram)?;

        let mut parts = Parts {
            lines: vm.interrupts(),
            doorbells: vm.doorbells(),
            ram: &ram,
            pio: Bus::new(),
            mmio: Bus::new(),
            virtio: Vec::new(),
            places: Vec::new(),
        };
        let mut board = Board::new(&mut parts, config.cpus, config.memory, config.uuid)?;

        let mut consoles = Vec::new();
        for (number, console) in config.serial.into_iter().enumerate() {
            let console = console.open()?;
            board.serial(&mut parts, number, console.port().clone())?;
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
            None => VsockHandle::absent().map_err(Error::host("make a notifier for sockets"))?,
        };
        if config.rng {
            parts.virtio(Box::new(virtio::rng::Rng::new()))?;
        }
        for device in config.virtio {
            parts.virtio(device)?;
        }
        for claim in config.ports {
            parts.port_device(claim)?;
        }
        for claim in config.mmio {
            parts.mmio_device(claim)?;
        }

        let cmdline = match config.virtio_on_cmdline {
            true => announce(payload.cmdline(), &parts.places),
            false => payload.cmdline().to_owned(),
        };
        payload.check(config.memory, &cmdline)?;
        let Parts { pio, mmio, virtio, places, .. } = parts;
        Ok(Self {
            pio: Arc::new(pio),
            mmio: Arc::new(mmio),
            virtio,
            places,
            board,
            payload,
            cmdline,
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
        self.board.load(&self.ram, &self.payload, &self.cmdline, &self.places)
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

/// The Ethernet address of a machine's card number `index`: administered locally, the same whenever the machine's UUID
/// is.
fn mac_address(uuid: Uuid, index: usize) -> MacAddr {
    let [.., a, b, c, d, e, f] = uuid.into_bytes();
    MacAddr([a & 0xfc | 0x02, b, c, d, e, f.wrapping_add(index as u8)])
}

impl<V: AccelVm> Startable for Machine<V> {
    fn start(self: Box<Self>) -> Result<Running, Error> {
        let entry = self.load()?;
        let control = Arc::new(Control::new(self.cpus as usize, self.reboot));
        let mut vcpus =
            Vcpus { control: control.clone(), threads: Vec::new(), kickers: Vec::new() };
        let (report, ready) = mpsc::channel();
        for id in 0..self.cpus {
            let bus = VcpuBus::new(self.pio.clone(), self.mmio.clone());
            vcpus.start(id, self.vm.vcpu(id)?, bus, report.clone())?;
        }
        // Now a vCPU that panics before it has reported is noticed: nobody else can report for it.
        drop(report);
        vcpus.wait_ready(&ready)?;
        let power = Arc::new(Mutex::new(Some(self.board.power_button().clone())));
        let (disks, cards) = (self.disks.clone(), self.cards.clone());
        let vsock = self.vsock.clone();
        control.boot(entry);
        let supervisor = {
            let (control, power) = (control.clone(), power.clone());
            sys::spawn("hk-machine", move || {
                let end = guarded(|| self.supervise(&control, &vcpus.kickers));
                // A press that is under way holds the machine: it is waited for.
                drop(power.lock().unwrap_or_else(PoisonError::into_inner).take());
                let gone = guarded(|| {
                    drop(vcpus);
                    drop(self);
                    Ok(())
                });
                control.finish(end.and_then(|end| gone.map(|()| end)));
            })
        };
        let supervisor = supervisor.map_err(Error::host("start the machine's thread"))?;
        Ok(Running::new(control, power, disks, cards, vsock, supervisor))
    }
}

/// Calls `call`, in which a device of the caller's may panic: whoever waits for the machine is told.
fn guarded<T>(call: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(Error::SupervisorLost))
}

/// The vCPUs' threads. Dropping it ends them.
struct Vcpus {
    control: Arc<Control>,
    threads: Vec<JoinHandle<()>>,
    kickers: Vec<Kicker>,
}

/// What a vCPU says once it is bound to its thread.
type Bound = Result<Kicker, accel::Error>;

impl Vcpus {
    fn start<V: AccelVcpu + 'static>(
        &mut self,
        id: u32,
        binder: VcpuBinder<V>,
        mut bus: VcpuBus,
        report: mpsc::Sender<Bound>,
    ) -> Result<(), Error> {
        let control = self.control.clone();
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
    fn wait_ready(&mut self, ready: &mpsc::Receiver<Bound>) -> Result<(), Error> {
        for _ in 0..self.threads.len() {
            let kicker = ready.recv().map_err(|_| Error::VcpuLost)??;
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
