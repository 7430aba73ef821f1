//! vCPUs: each on its thread, its exits made into the framework's.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};

use kvm_bindings::*;
use kvm_ioctls::{Cap, VcpuFd};

use crate::abi::*;
use crate::access::Access;
use crate::kick::Kick;
use crate::registers::Register;
use crate::vm::{CALLS, Vm, current, mach_absolute_time};

// ESR_EL2 of hypervisor and secure monitor calls, and of data aborts (Arm ARM, D24.2.39).
const HVC: u64 = 0x16 << 26 | 1 << 25;
const SMC: u64 = 0x17 << 26 | 1 << 25;
const DATA_ABORT: u64 = 0x24 << 26 | 1 << 25;

const MPIDR_EL1: u16 = 0xc005;

const PSCI_SYSTEM_OFF: u64 = 0x8400_0008;
const PSCI_SYSTEM_RESET: u64 = 0x8400_0009;

thread_local! {
    /// The vCPU of this thread.
    static VCPU: RefCell<Option<Vcpu>> = const { RefCell::new(None) };
}

struct Vcpu {
    handle: u64,
    fd: VcpuFd,
    outside: Arc<Outside>,
    exit: Box<Exit>,
    pending: Pending,
    /// MPIDR_EL1 has been set.
    placed: bool,
    /// Counts accesses to devices.
    turn: u32,
    vm: Arc<Vm>,
}

/// What other threads know of a vCPU.
pub struct Outside {
    kick: Kick,
    /// Aff3 to Aff0 of MPIDR_EL1, a byte each.
    affinity: AtomicU32,
}

impl Outside {
    pub fn affinity(&self) -> u32 {
        self.affinity.load(Ordering::Relaxed)
    }

    fn set_affinity(&self, mpidr: u64) {
        let affinity = mpidr >> 8 & 0xff00_0000 | mpidr & 0x00ff_ffff;
        self.affinity.store(affinity as u32, Ordering::Relaxed);
    }
}

/// What has to happen before guest code runs on.
enum Pending {
    Nothing,
    /// The caller completes an access to a device.
    Access(Access),
    /// The caller has completed it, and KVM does so with its next run.
    Completed,
}

impl Vcpu {
    fn new(vm: Arc<Vm>) -> Result<Self> {
        let mut vcpus = vm.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = vcpus.len() as u64;
        if handle > 0 && !vm.forwards_calls {
            eprintln!("hvf_standin: a second vCPU needs KVM's SMCCC filter (Linux 6.4 or later)");
            return Err(HV_NO_RESOURCES);
        }
        let fd = vm.fd.create_vcpu(handle).map_err(refused("KVM_CREATE_VCPU"))?;
        let mut init = kvm_vcpu_init::default();
        vm.fd.get_preferred_target(&mut init).map_err(refused("KVM_ARM_PREFERRED_TARGET"))?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        if vm.kvm.check_extension(Cap::ArmPtrAuthAddress)
            && vm.kvm.check_extension(Cap::ArmPtrAuthGeneric)
        {
            init.features[0] |= 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS;
            init.features[0] |= 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
        }
        fd.vcpu_init(&init).map_err(refused("KVM_ARM_VCPU_INIT"))?;
        let kick = Kick::on_this_thread(&fd).map_err(|error| {
            eprintln!("hvf_standin: KVM_SET_SIGNAL_MASK: {error}");
            HV_ERROR
        })?;
        let outside = Arc::new(Outside { kick, affinity: AtomicU32::new(0) });
        outside.set_affinity(Register::of_system(MPIDR_EL1).get(&fd)?);
        vcpus.push(Some(outside.clone()));
        drop(vcpus);
        let exit = Box::default();
        let pending = Pending::Nothing;
        Ok(Self { handle, fd, outside, exit, pending, placed: false, turn: 0, vm })
    }

    fn run(&mut self) -> Result {
        if let Pending::Access(_) = self.pending {
            eprintln!("hvf_standin: the last access to a device has not been completed");
            return Err(HV_ILLEGAL_GUEST_STATE);
        }
        if let Some(gic) = self.vm.gic.get() {
            gic.start(&self.vm)?;
        }
        loop {
            let result = self.fd.run().map(|_| ());
            self.pending = Pending::Nothing;
            match result {
                Ok(()) => return self.left(),
                Err(error) if error.errno() == libc::EINTR => {
                    if self.outside.kick.take() {
                        self.exit.reason = EXIT_CANCELED;
                        return Ok(());
                    }
                }
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(error) => return Err(refused("KVM_RUN")(error)),
            }
        }
    }

    /// Tells the caller why KVM returned.
    fn left(&mut self) -> Result {
        let run = self.fd.get_kvm_run();
        let reason = run.exit_reason;
        // SAFETY: each member is read only for its own exit reason, for which the kernel has filled it in.
        let union = unsafe {
            (
                run.__bindgen_anon_1.mmio,
                run.__bindgen_anon_1.hypercall,
                run.__bindgen_anon_1.arm_nisv,
                run.__bindgen_anon_1.system_event.type_,
            )
        };
        let (mmio, call, plain, event) = union;
        let (syndrome, physical_address) = match reason {
            KVM_EXIT_MMIO => {
                self.turn = self.turn.wrapping_add(1);
                let data = mmio.data.get(..mmio.len as usize).ok_or(HV_ERROR)?;
                let access = match mmio.is_write {
                    0 => Access::load(mmio.len, self.turn),
                    _ => Access::store(data, self.turn),
                };
                let syndrome = access.syndrome();
                self.pending = Pending::Access(access);
                (syndrome, mmio.phys_addr)
            }
            KVM_EXIT_ARM_NISV => (DATA_ABORT | plain.esr_iss, plain.fault_ipa),
            KVM_EXIT_HYPERCALL => {
                // SAFETY: the member for arm64.
                let flags = unsafe { call.__bindgen_anon_1.flags };
                let smc = flags & u64::from(KVM_HYPERCALL_EXIT_SMC) != 0;
                if smc {
                    // KVM has moved on already.
                    let behind = Register::PC.get(&self.fd)?;
                    Register::PC.set(&self.fd, behind.wrapping_sub(4))?;
                }
                (if smc { SMC } else { HVC }, 0)
            }
            KVM_EXIT_SYSTEM_EVENT => (self.system_event(event)?, 0),
            _ => {
                eprintln!("hvf_standin: KVM_RUN returned for reason {reason}");
                self.exit.reason = EXIT_UNKNOWN;
                return Ok(());
            }
        };
        *self.exit =
            Exit { reason: EXIT_EXCEPTION, syndrome, virtual_address: 0, physical_address };
        Ok(())
    }

    /// KVM has answered a PSCI call that ends the machine: shows the call, and takes back what KVM made of it.
    fn system_event(&mut self, event: u32) -> Result<u64> {
        let call = match event {
            KVM_SYSTEM_EVENT_SHUTDOWN => PSCI_SYSTEM_OFF,
            KVM_SYSTEM_EVENT_RESET => PSCI_SYSTEM_RESET,
            _ => return Err(HV_ERROR),
        };
        Register::general(0).set(&self.fd, call)?;
        let runs = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        self.fd.set_mp_state(runs).map_err(refused("KVM_SET_MP_STATE"))?;
        Ok(HVC)
    }

    /// Has KVM finish an access that the caller has completed.
    fn settle(&mut self) {
        if let Pending::Completed = self.pending {
            let _calls = CALLS.lock();
            self.fd.set_kvm_immediate_exit(1);
            // Returns EINTR before any guest code.
            let _ = self.fd.run();
            self.fd.set_kvm_immediate_exit(0);
            self.pending = Pending::Nothing;
        }
    }

    fn get(&mut self, register: u32) -> Result<u64> {
        self.settle();
        if let Pending::Access(access) = &self.pending
            && let Some(value) = access.get(register)
        {
            return Ok(value);
        }
        Register::of(register)?.get(&self.fd)
    }

    fn set(&mut self, register: u32, value: u64) -> Result {
        self.settle();
        let Pending::Access(access) = &mut self.pending else {
            return Register::of(register)?.set(&self.fd, value);
        };
        if register == REG_PC {
            let next = Register::PC.get(&self.fd)?.wrapping_add(4);
            if value != next || !access.is_answered() {
                eprintln!("hvf_standin: an access to a device is not completed by PC = {value:#x}");
                return Err(HV_ILLEGAL_GUEST_STATE);
            }
            if let Some(data) = access.loaded() {
                self.fd.get_kvm_run().__bindgen_anon_1.mmio.data = data;
            }
            self.pending = Pending::Completed;
            return Ok(());
        }
        if !access.set(register, value) {
            let syndrome = access.syndrome();
            eprintln!("hvf_standin: register {register} = {value:#x} answers not {syndrome:#x}");
            return Err(HV_BAD_ARGUMENT);
        }
        Ok(())
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // Waits for a kick that is under way.
        let mut vcpus = self.vm.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus[self.handle as usize] = None;
    }
}

/// Runs `call` on the vCPU, if it is this thread's.
fn owned(vcpu: u64, call: impl FnOnce(&mut Vcpu) -> Result) -> Answer {
    VCPU.with_borrow_mut(|own| match own {
        Some(own) if own.handle == vcpu => answer(call(own)),
        _ => HV_BAD_ARGUMENT,
    })
}

/// Makes a vCPU of this thread.
///
/// # Safety
/// `vcpu` and `exit` can be written, and what is written to `exit` is not used after the vCPU is destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_create(
    vcpu: *mut u64,
    exit: *mut *const Exit,
    config: *mut c_void,
) -> Answer {
    if !config.is_null() {
        return HV_UNSUPPORTED;
    }
    VCPU.with_borrow_mut(|own| {
        if own.is_some() {
            return HV_BUSY;
        }
        answer(current().and_then(Vcpu::new).map(|new| {
            // SAFETY: the caller's promise.
            unsafe {
                *vcpu = new.handle;
                *exit = &raw const *new.exit;
            }
            *own = Some(new);
        }))
    })
}

/// Destroys it.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_destroy(vcpu: u64) -> Answer {
    VCPU.with_borrow_mut(|own| match own {
        Some(vcpu_of_thread) if vcpu_of_thread.handle == vcpu => {
            *own = None;
            HV_SUCCESS
        }
        _ => HV_BAD_ARGUMENT,
    })
}

/// Runs guest code until something ends the run.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_run(vcpu: u64) -> Answer {
    owned(vcpu, Vcpu::run)
}

/// Ends the runs of vCPUs, from any thread.
///
/// # Safety
/// There are `count` handles at `vcpus`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpus_exit(vcpus: *const u64, count: u32) -> Answer {
    // SAFETY: the caller's promise.
    let handles = unsafe { std::slice::from_raw_parts(vcpus, count as usize) };
    let kick = |vm: Arc<Vm>| {
        let vcpus = vm.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        for handle in handles {
            match vcpus.get(*handle as usize) {
                Some(Some(outside)) => outside.kick.kick(),
                _ => return Err(HV_BAD_ARGUMENT),
            }
        }
        Ok(())
    };
    answer(current().and_then(kick))
}

/// Reads a register.
///
/// # Safety
/// `value` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_reg(vcpu: u64, register: u32, value: *mut u64) -> Answer {
    // SAFETY: the caller's promise.
    owned(vcpu, |own| own.get(register).map(|read| unsafe { *value = read }))
}

/// Writes a register.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_reg(vcpu: u64, register: u32, value: u64) -> Answer {
    owned(vcpu, |own| own.set(register, value))
}

/// Reads a system register.
///
/// # Safety
/// `value` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vcpu_get_sys_reg(vcpu: u64, register: u16, value: *mut u64) -> Answer {
    owned(vcpu, |own| {
        own.settle();
        // SAFETY: the caller's promise.
        Register::of_system(register).get(&own.fd).map(|read| unsafe { *value = read })
    })
}

/// Writes a system register.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_sys_reg(vcpu: u64, register: u16, value: u64) -> Answer {
    owned(vcpu, |own| {
        own.settle();
        Register::of_system(register).set(&own.fd, value)?;
        if register == MPIDR_EL1 {
            own.placed = true;
            own.outside.set_affinity(value);
        }
        Ok(())
    })
}

/// Masks the exits of the virtual timer, of which there are none.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_vtimer_mask(vcpu: u64, _masked: bool) -> Answer {
    owned(vcpu, |_| Ok(()))
}

/// Sets what the guest's counter is behind [`mach_absolute_time`]. It is the same on all vCPUs here.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vcpu_set_vtimer_offset(vcpu: u64, offset: u64) -> Answer {
    owned(vcpu, |own| Register::counter().set(&own.fd, mach_absolute_time().wrapping_sub(offset)))
}

/// Reads a register of the vCPU's interface to the interrupt controller.
///
/// # Safety
/// `value` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_icc_reg(vcpu: u64, register: u16, value: *mut u64) -> Answer {
    owned(vcpu, |own| {
        let gic = own.vm.gic.get().ok_or(HV_NO_DEVICE)?;
        let read = gic.get_interface(own.outside.affinity(), register)?;
        // SAFETY: the caller's promise.
        unsafe { *value = read };
        Ok(())
    })
}

/// Writes a register of the vCPU's interface to the interrupt controller.
#[unsafe(no_mangle)]
pub extern "C" fn hv_gic_set_icc_reg(vcpu: u64, register: u16, value: u64) -> Answer {
    owned(vcpu, |own| {
        let gic = own.vm.gic.get().ok_or(HV_NO_DEVICE)?;
        gic.set_interface(own.outside.affinity(), register, value)
    })
}

/// Where the vCPU's redistributor is, once its MPIDR_EL1 has been set.
///
/// # Safety
/// `base` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_gic_get_redistributor_base(vcpu: u64, base: *mut u64) -> Answer {
    owned(vcpu, |own| {
        let gic = own.vm.gic.get().ok_or(HV_NO_DEVICE)?;
        if !own.placed {
            return Err(HV_BAD_ARGUMENT);
        }
        // SAFETY: the caller's promise.
        unsafe { *base = gic.redistributor(own.handle) };
        Ok(())
    })
}
