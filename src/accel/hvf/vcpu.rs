//! A vCPU of Hypervisor.framework: the inner half of the exit loop.

use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use super::registers::{self, Handle, Pristine};
use super::seat::Seat;
use super::sys::*;
use super::vm::Shared;
use crate::accel::{AccelVcpu, Error, Exit, ExitHandler, Kicker};
use crate::arch::CpuState;
use crate::arch::aarch64::esr::{Exception, MmioAccess, SysRegAccess, Wait};
use crate::arch::aarch64::inject::{Before, Fault};
use crate::arch::aarch64::psci::Action;
use crate::arch::aarch64::sysreg::Trapped;
use crate::arch::aarch64::{mpidr, vtimer};
use crate::bus::Flow;

/// The GIC field of ID_AA64PFR0_EL1, and what it says of system registers for GICv3.
const PFR0_GIC_MASK: u64 = 0xf << 24;
const PFR0_GIC_V3: u64 = 1 << 24;

/// How long a wait for an interrupt lasts at most. The framework's interrupt controller waits for its guests; a wait
/// that ends a run nevertheless is one whose interrupt this process cannot see, and the architecture lets waits end early.
const NAP: Duration = Duration::from_millis(1);

/// A vCPU of an [`HvfVm`](super::HvfVm).
pub struct HvfVcpu {
    handle: Handle,
    id: u32,
    seat: Arc<Seat>,
    pristine: Pristine,
    /// Whether it runs, as opposed to being off until another vCPU turns it on.
    on: bool,
    trapped: Trapped,
    shared: Arc<Shared>,
}

impl HvfVcpu {
    /// Makes vCPU `id` on the calling thread, in the state after power-on.
    pub(super) fn new(shared: Arc<Shared>, id: u32) -> Result<Self, Error> {
        let seat = shared.seat(id)?.clone();
        let mut handle = Handle::new(id)?;
        // Before anything that has to do with the interrupt controller, which knows vCPUs by it.
        handle.set_system(registers::MPIDR_EL1, mpidr::mpidr(id))?;
        let features = handle.get_system(registers::ID_AA64PFR0_EL1)?;
        if features & PFR0_GIC_MASK == 0 {
            handle.set_system(registers::ID_AA64PFR0_EL1, features | PFR0_GIC_V3)?;
        }
        handle.count_as_host()?;
        let pristine = Pristine::of(&handle)?;
        if !seat.take(handle.vcpu()) {
            return Err(Error::Unsupported(format!("there is a vCPU {id} already")));
        }
        // From here on the seat is given back when the vCPU goes.
        let trapped = Trapped::default();
        let vcpu = Self { handle, id, seat, pristine, on: id == 0, trapped, shared };
        vcpu.shared.check_redistributor(id, vcpu.handle.redistributor()?)?;
        Ok(vcpu)
    }

    /// Makes all state that of a vCPU that is switched on, in `state`.
    fn power_on(&mut self, state: &CpuState) -> Result<(), Error> {
        self.trapped = Trapped::default();
        self.pristine.load(&mut self.handle, state)
    }

    /// Waits until another vCPU turns this one on; `false` after a kick.
    fn wait_for_start(&mut self) -> Result<bool, Error> {
        let psci = self.shared.psci()?;
        match self.seat.wait(None, || psci.take_start(self.id)) {
            Some(state) => {
                self.power_on(&state)?;
                self.on = true;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// A load or store of a device's register.
    #[inline]
    fn mmio(
        &mut self,
        access: &MmioAccess,
        ipa: u64,
        io: &mut impl ExitHandler,
    ) -> Result<Flow, Error> {
        let register = access.register.map(|number| HV_REG_X0 + hv_reg_t::from(number));
        if access.write {
            let value = match register {
                Some(register) => self.handle.get(register)?,
                None => 0,
            };
            let (bytes, len) = access.store_bytes(value);
            return Ok(io.mmio_write(ipa, &bytes[..len]));
        }
        let mut bytes = [0xff; 8];
        let data = &mut bytes[..access.len.min(8)];
        io.mmio_read(ipa, data);
        if let Some(register) = register {
            self.handle.set(register, access.load_value(data))?;
        }
        Ok(Flow::Continue(()))
    }

    /// Everything but accesses to devices.
    #[cold]
    fn other(&mut self, exception: &Exception, address: u64) -> Result<Flow, Error> {
        let done = match exception {
            Exception::SysReg(access) => self.system_register(access)?,
            _ => Fault::of(exception, address).is_none(),
        };
        if !done {
            log::debug!("vCPU {}: the guest is told of {exception}", self.id);
            self.inject(Fault::of(exception, address).unwrap_or(Fault::Undefined))?;
            return Ok(Flow::Continue(()));
        }
        self.handle.advance(exception.advance())?;
        match exception {
            Exception::Hvc(_) | Exception::Smc(_) => return self.call(),
            Exception::Wait(wait) => self.wait(*wait)?,
            Exception::Brk(_) | Exception::Other { .. } => {
                let (vcpu, reason) = (self.id, exception.to_string());
                let pc = self.handle.get(HV_REG_PC)?;
                return Err(Error::Internal { vcpu, reason, pc, bytes: Vec::new() });
            }
            _ => {}
        }
        Ok(Flow::Continue(()))
    }

    /// Carries out an access to a register that traps; `false` if the guest has no such register.
    fn system_register(&mut self, access: &SysRegAccess) -> Result<bool, Error> {
        let rt = access.rt.map(|number| HV_REG_X0 + hv_reg_t::from(number));
        if access.write {
            let value = match rt {
                Some(rt) => self.handle.get(rt)?,
                None => 0,
            };
            return Ok(self.trapped.write(access.register, value).is_ok());
        }
        let Ok(value) = self.trapped.read(access.register, registers::host_count) else {
            return Ok(false);
        };
        if let Some(rt) = rt {
            self.handle.set(rt, value)?;
        }
        Ok(true)
    }

    /// Waits for an interrupt, or not for long.
    fn wait(&mut self, wait: Wait) -> Result<(), Error> {
        let until = match wait {
            Wait::Interrupt => None,
            Wait::InterruptUntil(None) => return Ok(()),
            Wait::InterruptUntil(Some(number)) => {
                let count = self.handle.get(HV_REG_X0 + hv_reg_t::from(number))?;
                Some(vtimer::until(count, registers::host_count(), registers::host_frequency()))
            }
            // The event may have come already, from a vCPU that did not leave the guest for it.
            Wait::Event | Wait::EventUntil(_) => {
                std::thread::yield_now();
                return Ok(());
            }
        };
        let sleeps = [self.until_timer()?, until];
        let sleep = sleeps.into_iter().flatten().fold(NAP, Duration::min);
        self.seat.wait(Some(Instant::now() + sleep), || None::<()>);
        Ok(())
    }

    /// How long until the guest's virtual timer interrupts.
    fn until_timer(&self) -> Result<Option<Duration>, Error> {
        let control = self.handle.get_system(registers::CNTV_CTL_EL0)?;
        let compare = self.handle.get_system(registers::CNTV_CVAL_EL0)?;
        let (count, frequency) = (registers::host_count(), registers::host_frequency());
        Ok(vtimer::until_interrupt(control, compare, count, frequency))
    }

    /// A call of the guest's to what would be firmware.
    fn call(&mut self) -> Result<Flow, Error> {
        let mut x = [0; 4];
        for (register, value) in (HV_REG_X0..).zip(&mut x) {
            *value = self.handle.get(register)?;
        }
        let value = match self.shared.psci()?.call(self.id, x) {
            Action::Return(value) => value,
            Action::Standby => {
                self.wait(Wait::Interrupt)?;
                0
            }
            Action::On(target) => {
                self.shared.seat(target)?.wake();
                0
            }
            Action::Off => {
                self.on = false;
                return Ok(Flow::Continue(()));
            }
            Action::PowerOff => return Ok(Flow::Break(Exit::PowerOff)),
            Action::Reset => return Ok(Flow::Break(Exit::Reset)),
        };
        self.handle.set(HV_REG_X0, value)?;
        Ok(Flow::Continue(()))
    }

    /// Has the guest take an exception.
    fn inject(&mut self, fault: Fault) -> Result<(), Error> {
        let handle = &mut self.handle;
        let after = fault.enter(&Before {
            pc: handle.get(HV_REG_PC)?,
            pstate: handle.get(HV_REG_CPSR)?,
            vbar: handle.get_system(registers::VBAR_EL1)?,
            sctlr: handle.get_system(registers::SCTLR_EL1)?,
        });
        handle.set_system(registers::ELR_EL1, after.elr)?;
        handle.set_system(registers::SPSR_EL1, after.spsr)?;
        handle.set_system(registers::ESR_EL1, after.esr)?;
        if let Some(address) = after.far {
            handle.set_system(registers::FAR_EL1, address)?;
        }
        handle.set(HV_REG_CPSR, after.pstate)?;
        handle.set(HV_REG_PC, after.pc)
    }

    /// The virtual timer has ended a run, and is masked by that (`hv_vcpu_types.h`). It is not to be expected: the
    /// framework's interrupt controller sees to the timer by itself, and so needs it unmasked at once. A guest that sets its
    /// timer again and sleeps makes no other exit.
    #[cold]
    fn timer_ended_run(&mut self) -> Result<(), Error> {
        static TOLD: Once = Once::new();
        TOLD.call_once(|| {
            let id = self.id;
            log::warn!("vCPU {id}: the virtual timer ends runs, which is not to be expected");
        });
        self.handle.unmask_timer()
    }
}

impl AccelVcpu for HvfVcpu {
    #[inline]
    fn run(&mut self, io: &mut impl ExitHandler) -> Result<Exit, Error> {
        loop {
            if self.seat.take_kick() {
                return Ok(Exit::Interrupted);
            }
            if !self.on && !self.wait_for_start()? {
                continue;
            }
            let exit = self.handle.run()?;
            match exit.reason {
                HV_EXIT_REASON_EXCEPTION => {}
                HV_EXIT_REASON_CANCELED => continue,
                HV_EXIT_REASON_VTIMER_ACTIVATED => {
                    self.timer_ended_run()?;
                    continue;
                }
                reason => return Err(Error::UnexpectedExit { vcpu: self.id, reason }),
            }
            let exception = Exception::decode(exit.exception.syndrome);
            let flow = match &exception {
                Exception::Mmio(access) => {
                    let flow = self.mmio(access, exit.exception.physical_address, io)?;
                    self.handle.advance(exception.advance())?;
                    flow
                }
                _ => self.other(&exception, exit.exception.virtual_address)?,
            };
            if let Flow::Break(exit) = flow {
                return Ok(exit);
            }
        }
    }

    fn kicker(&self) -> Kicker {
        self.seat.kicker()
    }

    fn reset(&mut self, state: Option<&CpuState>) -> Result<(), Error> {
        self.on = state.is_some();
        self.shared.psci()?.set_power(self.id, self.on);
        self.power_on(state.unwrap_or(&CpuState::default()))
    }

    fn state(&self) -> Result<CpuState, Error> {
        registers::state(&self.handle)
    }
}

impl Drop for HvfVcpu {
    fn drop(&mut self) {
        self.seat.leave();
    }
}
