//! A virtual machine of Hypervisor.framework: guest memory and the interrupt controller.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::seat::Seat;
use super::sys::*;
use super::vcpu::HvfVcpu;
use crate::accel::hvf_error::{check, check_create, hv_return_t};
use crate::accel::{
    AccelVm, Controller, Doorbells, Error, Interrupts, IrqLine, VcpuBinder, VmSpec,
};
use crate::arch::aarch64::layout;
use crate::arch::aarch64::psci::Psci;
use crate::memory::GuestRam;

/// Interrupt ID of line 0, the first shared peripheral interrupt.
const FIRST_LINE: u32 = 32;

/// A virtual machine of [`Hvf`](super::Hvf).
pub struct HvfVm(Arc<Shared>);

/// What vCPUs and interrupt lines share. The machine ends with the last of them.
pub(super) struct Shared {
    seats: Vec<Arc<Seat>>,
    /// Which vCPUs are on. There is an answer once it is known where memory is, and so code.
    psci: OnceLock<Psci>,
    /// Kept because the guest's memory is mapped from it.
    ram: Mutex<Option<GuestRam>>,
    _machine: Machine,
}

/// The process's one virtual machine.
struct Machine;

impl HvfVm {
    pub(super) fn new(spec: &VmSpec) -> Result<Self, Error> {
        let machine = Machine::create()?;
        let mut limit = 0;
        // SAFETY: the call writes the count.
        let answer = unsafe { hv_vm_get_max_vcpu_count(&mut limit) };
        check(answer, "hv_vm_get_max_vcpu_count", String::new)?;
        let cpus = spec.cpus;
        if cpus == 0 || cpus > limit {
            return Err(Error::Unsupported(format!(
                "cannot make a machine with {cpus} vCPUs: Hypervisor.framework on this host runs 1 to {limit}"
            )));
        }
        create_gic()?;
        Ok(Self(Arc::new(Shared {
            seats: (0..cpus).map(|_| Arc::default()).collect(),
            psci: OnceLock::new(),
            ram: Mutex::new(None),
            _machine: machine,
        })))
    }
}

impl Machine {
    fn create() -> Result<Self, Error> {
        let config = Config::new("hv_vm_config_create", hv_vm_config_create)?;
        let mut bits = 0;
        // SAFETY: the call writes the number.
        let answer = unsafe { hv_vm_config_get_max_ipa_size(&mut bits) };
        // The first call that a host without the framework, or a program without the entitlement, can fail at.
        check_create(answer, "hv_vm_config_get_max_ipa_size")?;
        // SAFETY: the object lives until the end of this function.
        let answer = unsafe { hv_vm_config_set_ipa_size(config.0, bits) };
        check(answer, "hv_vm_config_set_ipa_size", || format!(" for {bits} bits"))?;
        // SAFETY: the same.
        check_create(unsafe { hv_vm_create(config.0) }, "hv_vm_create")?;
        Ok(Self)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: every vCPU holds what holds this, so all are destroyed; nothing uses the guest's mappings.
        let answer = unsafe { hv_vm_destroy() };
        if let Err(error) = check(answer, "hv_vm_destroy", String::new) {
            log::error!("{error}");
        }
    }
}

/// A configuration object, which is counted by whoever holds it.
struct Config(*mut c_void);

impl Config {
    fn new(
        call: &'static str,
        create: unsafe extern "C" fn() -> *mut c_void,
    ) -> Result<Self, Error> {
        // SAFETY: these functions have no conditions.
        let object = unsafe { create() };
        if object.is_null() {
            let source = std::io::ErrorKind::OutOfMemory.into();
            return Err(Error::Call { call, on: String::new(), source });
        }
        Ok(Self(object))
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: the object was made by `new`, which is given its only count.
        unsafe { os_release(self.0) }
    }
}

/// Makes the interrupt controller, GICv3 with a frame for messages, where the machine's layout has it. After the
/// machine and before its first vCPU, as the framework asks.
fn create_gic() -> Result<(), Error> {
    use layout::*;
    fit("distributor", hv_gic_get_distributor_size, GIC_MESSAGES - GIC_DISTRIBUTOR)?;
    fit("redistributors", hv_gic_get_redistributor_region_size, GIC_REDISTRIBUTORS_MAX)?;
    fit("message frame", hv_gic_get_msi_region_size, SERIAL[0] - GIC_MESSAGES)?;
    let (mut first, mut count) = (0, 0);
    // SAFETY: the call writes the two numbers.
    let answer = unsafe { hv_gic_get_spi_interrupt_range(&mut first, &mut count) };
    check(answer, "hv_gic_get_spi_interrupt_range", String::new)?;
    let messages = FIRST_LINE + LINES;
    let end = first.saturating_add(count);
    if first > FIRST_LINE || end <= messages {
        return Err(Error::Unsupported(format!(
            "the interrupt controller of this host has lines {first} to {end}, and {FIRST_LINE} to {messages} are needed"
        )));
    }

    let config = Config::new("hv_gic_config_create", hv_gic_config_create)?;
    let place = |call, set: unsafe extern "C" fn(_, _) -> _, at: u64| {
        // SAFETY: the object lives until the end of this function.
        check(unsafe { set(config.0, at) }, call, || format!(" for {at:#x}"))
    };
    place(
        "hv_gic_config_set_distributor_base",
        hv_gic_config_set_distributor_base,
        GIC_DISTRIBUTOR,
    )?;
    place(
        "hv_gic_config_set_redistributor_base",
        hv_gic_config_set_redistributor_base,
        GIC_REDISTRIBUTORS,
    )?;
    place("hv_gic_config_set_msi_region_base", hv_gic_config_set_msi_region_base, GIC_MESSAGES)?;
    // SAFETY: the same.
    let answer =
        unsafe { hv_gic_config_set_msi_interrupt_range(config.0, messages, end - messages) };
    check(answer, "hv_gic_config_set_msi_interrupt_range", || format!(" for {messages} to {end}"))?;
    // SAFETY: the same.
    check(unsafe { hv_gic_create(config.0) }, "hv_gic_create", String::new)
}

/// Checks that a part of the interrupt controller is no larger than its place.
fn fit(
    part: &str,
    size: unsafe extern "C" fn(*mut usize) -> hv_return_t,
    room: u64,
) -> Result<(), Error> {
    let mut bytes = 0;
    // SAFETY: the call writes the size.
    check(unsafe { size(&mut bytes) }, "hv_gic_get_…_size", || format!(" for the {part}"))?;
    if bytes as u64 <= room {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "the interrupt controller's {part} takes {bytes} bytes on this host, and the machine has {room} for it"
    )))
}

/// Where a guest is told the redistributors of `cpus` vCPUs are (`gic` in `arch/aarch64/fdt.rs`).
fn redistributors(cpus: u64) -> Range<u64> {
    let start = layout::GIC_REDISTRIBUTORS;
    start..start + cpus * layout::GIC_REDISTRIBUTOR_LEN
}

impl Shared {
    /// The place of vCPU `id`.
    pub fn seat(&self, id: u32) -> Result<&Arc<Seat>, Error> {
        self.seats.get(id as usize).ok_or_else(|| {
            let cpus = self.seats.len();
            Error::Unsupported(format!("there is no vCPU {id}: there are {cpus}"))
        })
    }

    /// Checks that the redistributor of vCPU `id`, at `base`, is where guests look for it.
    pub fn check_redistributor(&self, id: u32, base: u64) -> Result<(), Error> {
        let Range { start, end } = redistributors(self.seats.len() as u64);
        if base >= start && base.saturating_add(layout::GIC_REDISTRIBUTOR_LEN) <= end {
            return Ok(());
        }
        Err(Error::Unsupported(format!(
            "the redistributor of vCPU {id} is at {base:#x} on this host, and a guest looks for it from {start:#x} to {end:#x}"
        )))
    }

    /// Which vCPUs are on.
    pub fn psci(&self) -> Result<&Psci, Error> {
        let why = "a vCPU needs memory before it runs";
        self.psci.get().ok_or_else(|| Error::Unsupported(why.into()))
    }

    /// Raises or lowers a line. For one that the guest has made an edge, raising is all there is.
    fn set_line(&self, intid: u32, level: bool) {
        // SAFETY: the machine and its interrupt controller live as long as `self`; any thread may call.
        let answer = unsafe { hv_gic_set_spi(intid, level) };
        if let Err(error) = check(answer, "hv_gic_set_spi", || format!(" for interrupt {intid}")) {
            log::error!("{error}");
        }
    }
}

impl AccelVm for HvfVm {
    type Vcpu = HvfVcpu;

    /// Clearing memory later leaves the pages where they are, so once is enough.
    fn map(&self, ram: &GuestRam) -> Result<(), Error> {
        for (ipa, host, len) in ram.regions() {
            let on = || format!(" for {len} bytes at {ipa:#x}");
            let bytes = usize::try_from(len)
                .map_err(|_| Error::Unsupported("the host cannot address that much".into()))?;
            let flags = HV_MEMORY_READ | HV_MEMORY_WRITE | HV_MEMORY_EXEC;
            // SAFETY: the region is mapped as long as `ram` or a copy lives, and the machine keeps a copy as long as it
            // lives. What the guest writes there is only accessed volatilely.
            check(unsafe { hv_vm_map(host.cast(), ipa, bytes, flags) }, "hv_vm_map", on)?;
        }
        *self.0.ram.lock().unwrap_or_else(PoisonError::into_inner) = Some(ram.clone());
        let regions: Vec<_> = ram.regions().map(|(start, _, len)| (start, len)).collect();
        self.0.psci.get_or_init(|| Psci::new(self.0.seats.len() as u32, &regions));
        Ok(())
    }

    fn vcpu(&self, id: u32) -> Result<VcpuBinder<HvfVcpu>, Error> {
        let shared = self.0.clone();
        shared.seat(id)?;
        Ok(VcpuBinder::new(move || HvfVcpu::new(shared, id)))
    }

    fn interrupts(&self) -> Option<&dyn Interrupts> {
        Some(self)
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        None
    }

    fn reset(&self) -> Result<(), Error> {
        // SAFETY: no vCPU runs.
        check(unsafe { hv_gic_reset() }, "hv_gic_reset", String::new)
    }
}

impl Interrupts for HvfVm {
    fn controller(&self) -> Controller {
        Controller::GicV3
    }

    fn line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, Error> {
        if gsi >= layout::LINES {
            return Err(Error::Unsupported(format!(
                "there is no interrupt line {gsi}: there are lines 0 to {}",
                layout::LINES - 1
            )));
        }
        Ok(Arc::new(Line { shared: self.0.clone(), intid: FIRST_LINE + gsi }))
    }
}

struct Line {
    shared: Arc<Shared>,
    intid: u32,
}

impl IrqLine for Line {
    fn pulse(&self) {
        self.shared.set_line(self.intid, true);
        self.shared.set_line(self.intid, false);
    }

    fn set_level(&self, high: bool) {
        self.shared.set_line(self.intid, high);
    }
}
