//! The process's virtual machine, its memory, and the configuration objects.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use kvm_bindings::{
    KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER, KVM_CAP_ARM_NISV_TO_USER, kvm_device_attr,
    kvm_enable_cap, kvm_smccc_filter, kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};

use crate::abi::*;
use crate::gic::{Gic, GicConfig};
use crate::vcpu::Outside;

/// Pages of Apple silicon, of which mappings are made.
const PAGE: u64 = 16 << 10;
/// Most vCPUs.
pub const MAX_VCPUS: u32 = 64;
/// Bits of a guest-physical address unless the configuration says how many.
const DEFAULT_IPA_BITS: u32 = 36;

/// What can be called to filter: everything but the SMCCC's own calls, which KVM keeps.
const FILTERED: [(u32, u32); 3] =
    [(0, 0x7fff_ffff), (0x8001_0000, 0xbfff_ffff), (0xc001_0000, 0xffff_ffff)];

/// Held during every call to a vCPU but `KVM_RUN`: KVM lets nobody at the interrupt controller while one goes on.
pub static CALLS: Mutex<()> = Mutex::new(());

static VM: RwLock<Option<Arc<Vm>>> = RwLock::new(None);

/// The machine of this process.
pub struct Vm {
    pub fd: VmFd,
    /// Whether PSCI calls end a run.
    pub forwards_calls: bool,
    pub gic: OnceLock<Gic>,
    /// By handle; `None` once it has been destroyed.
    pub vcpus: Mutex<Vec<Option<Arc<Outside>>>>,
    /// Guest-physical address and length, by slot.
    memory: Mutex<Vec<(u64, u64)>>,
    /// Kept open as long as the machine.
    pub kvm: Kvm,
}

/// What `hv_vm_config_create` and `hv_gic_config_create` make.
pub enum Object {
    /// Bits of a guest-physical address, if they were set.
    Vm(Option<u32>),
    Gic(GicConfig),
}

impl Object {
    pub fn into_pointer(self) -> *mut c_void {
        Box::into_raw(Box::new(self)).cast()
    }

    /// # Safety
    /// `pointer` is null or what [`into_pointer`](Self::into_pointer) returned, not released, and not used elsewhere.
    pub unsafe fn of<'a>(pointer: *mut c_void) -> Option<&'a mut Self> {
        // SAFETY: the caller's promise.
        unsafe { pointer.cast::<Self>().as_mut() }
    }
}

/// The machine, if there is one.
pub fn current() -> Result<Arc<Vm>> {
    VM.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(HV_NO_DEVICE)
}

impl Vm {
    fn new(ipa_bits: Option<u32>) -> Result<Self> {
        let kvm = open_kvm()?;
        let bits = ipa_bits.unwrap_or(DEFAULT_IPA_BITS);
        let fd = kvm.create_vm_with_ipa_size(bits).map_err(refused("KVM_CREATE_VM"))?;
        // Loads and stores that the processor does not take apart end the run as well.
        let capability = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() };
        fd.enable_cap(&capability).map_err(refused("KVM_CAP_ARM_NISV_TO_USER"))?;
        let forwards_calls = filter_calls(&fd);
        Ok(Self {
            fd,
            forwards_calls,
            gic: OnceLock::new(),
            vcpus: Mutex::default(),
            memory: Mutex::default(),
            kvm,
        })
    }

    fn map(&self, host: u64, ipa: u64, len: u64) -> Result {
        let end = ipa.checked_add(len).ok_or(HV_BAD_ARGUMENT)?;
        if len == 0 || !ipa.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
            return Err(HV_BAD_ARGUMENT);
        }
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.iter().any(|&(start, size)| start < end && ipa < start + size) {
            return Err(HV_ERROR);
        }
        let region = kvm_userspace_memory_region {
            slot: memory.len() as u32,
            flags: 0,
            guest_phys_addr: ipa,
            memory_size: len,
            userspace_addr: host,
        };
        // SAFETY: whoever calls hv_vm_map promises that the memory is there for as long as the mapping.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
        memory.push((ipa, len));
        Ok(())
    }
}

/// KVM; who may not open it is refused as a program that is not signed.
fn open_kvm() -> Result<Kvm> {
    Kvm::new().map_err(|error| match error.errno() {
        libc::EACCES | libc::EPERM => HV_DENIED,
        _ => HV_UNSUPPORTED,
    })
}

/// Has every call that it can, PSCI's among them, end a run; `false` if this kernel has no filter.
fn filter_calls(vm: &VmFd) -> bool {
    FILTERED.iter().all(|&(first, last)| {
        let filter = kvm_smccc_filter {
            base: first,
            nr_functions: last - first + 1,
            action: kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER as u8,
            pad: [0; 15],
        };
        vm.set_device_attr(&kvm_device_attr {
            group: KVM_ARM_VM_SMCCC_CTRL,
            attr: KVM_ARM_VM_SMCCC_FILTER.into(),
            addr: &raw const filter as u64,
            flags: 0,
        })
        .is_ok()
    })
}

/// The most vCPUs that a machine can have.
///
/// # Safety
/// `count` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_get_max_vcpu_count(count: *mut u32) -> Answer {
    // SAFETY: the caller's promise.
    unsafe { *count = MAX_VCPUS };
    HV_SUCCESS
}

/// A configuration of a machine, for `os_release` to free.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_config_create() -> *mut c_void {
    Object::Vm(None).into_pointer()
}

/// The most bits that a guest-physical address can have.
///
/// # Safety
/// `bits` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_config_get_max_ipa_size(bits: *mut u32) -> Answer {
    answer(open_kvm().map(|kvm| {
        // SAFETY: the caller's promise.
        unsafe { *bits = kvm.get_host_ipa_limit().max(DEFAULT_IPA_BITS as i32) as u32 };
    }))
}

/// Sets the bits of a guest-physical address.
///
/// # Safety
/// `config` is from `hv_vm_config_create`, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_config_set_ipa_size(config: *mut c_void, bits: u32) -> Answer {
    // SAFETY: the caller's promise.
    match unsafe { Object::of(config) } {
        Some(Object::Vm(ipa_bits)) => *ipa_bits = Some(bits),
        _ => return HV_BAD_ARGUMENT,
    }
    HV_SUCCESS
}

/// Makes the process's machine.
///
/// # Safety
/// `config` is from `hv_vm_config_create`, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_create(config: *mut c_void) -> Answer {
    // SAFETY: the caller's promise.
    let ipa_bits = match unsafe { Object::of(config) } {
        None => None,
        Some(Object::Vm(ipa_bits)) => *ipa_bits,
        Some(_) => return HV_BAD_ARGUMENT,
    };
    let mut machine = VM.write().unwrap_or_else(PoisonError::into_inner);
    if machine.is_some() {
        return HV_BUSY;
    }
    answer(Vm::new(ipa_bits).map(|vm| *machine = Some(Arc::new(vm))))
}

/// Destroys it, once its vCPUs are destroyed.
#[unsafe(no_mangle)]
pub extern "C" fn hv_vm_destroy() -> Answer {
    let mut machine = VM.write().unwrap_or_else(PoisonError::into_inner);
    let Some(vm) = &*machine else {
        return HV_NO_DEVICE;
    };
    if vm.vcpus.lock().unwrap_or_else(PoisonError::into_inner).iter().any(Option::is_some) {
        return HV_BUSY;
    }
    *machine = None;
    HV_SUCCESS
}

/// Maps memory of this process into the guest.
///
/// # Safety
/// The memory stays mapped here, and is only accessed as something that changes, as long as it is in the guest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hv_vm_map(host: *mut c_void, ipa: u64, len: usize, flags: u64) -> Answer {
    if flags != 0b111 {
        eprintln!("hvf_standin: memory is readable, writable and executable here, or nothing");
        return HV_UNSUPPORTED;
    }
    answer(current().and_then(|vm| vm.map(host as u64, ipa, len as u64)))
}

/// Frees a configuration object.
///
/// # Safety
/// `object` is from `hv_vm_config_create` or `hv_gic_config_create`, and was not released before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn os_release(object: *mut c_void) {
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(object.cast::<Object>()) });
}

/// The host's counter.
#[unsafe(no_mangle)]
pub extern "C" fn mach_absolute_time() -> u64 {
    let count: u64;
    // SAFETY: the virtual counter can be read at EL0, and is the physical one on a host.
    unsafe {
        std::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack))
    };
    count
}
