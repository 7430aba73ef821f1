//! What the stand-in promises, and what it refuses so that a backend that is wrong does not pass.

#![cfg(all(hyperkit_hvf_standin, target_os = "linux", target_arch = "aarch64"))]
#![allow(missing_docs)]

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hvf_standin as _;

const SUCCESS: i32 = 0;
const BUSY: i32 = 0xfae9_4002_u32 as i32;
const BAD_ARGUMENT: i32 = 0xfae9_4003_u32 as i32;
const ILLEGAL_GUEST_STATE: i32 = 0xfae9_4004_u32 as i32;

const PC: u32 = 31;
const CPSR: u32 = 34;
const MPIDR_EL1: u16 = 0xc005;
const CANCELED: u32 = 0;
const EXCEPTION: u32 = 1;

#[repr(C)]
struct Exit {
    reason: u32,
    syndrome: u64,
    virtual_address: u64,
    physical_address: u64,
}

unsafe extern "C" {
    safe fn hv_vm_destroy() -> i32;
    safe fn hv_vcpu_destroy(vcpu: u64) -> i32;
    safe fn hv_vcpu_run(vcpu: u64) -> i32;
    safe fn hv_vcpu_set_reg(vcpu: u64, register: u32, value: u64) -> i32;
    safe fn hv_vcpu_set_sys_reg(vcpu: u64, register: u16, value: u64) -> i32;
    safe fn hv_gic_set_spi(intid: u32, level: bool) -> i32;
    fn hv_vm_create(config: *mut c_void) -> i32;
    fn hv_vm_map(host: *mut c_void, ipa: u64, len: usize, flags: u64) -> i32;
    fn hv_vcpu_create(vcpu: *mut u64, exit: *mut *const Exit, config: *mut c_void) -> i32;
    fn hv_vcpu_get_reg(vcpu: u64, register: u32, value: *mut u64) -> i32;
    fn hv_vcpus_exit(vcpus: *const u64, count: u32) -> i32;
    safe fn hv_gic_config_create() -> *mut c_void;
    fn hv_gic_config_set_distributor_base(config: *mut c_void, at: u64) -> i32;
    fn hv_gic_config_set_redistributor_base(config: *mut c_void, at: u64) -> i32;
    fn hv_gic_config_set_msi_interrupt_range(config: *mut c_void, first: u32, count: u32) -> i32;
    fn hv_gic_create(config: *mut c_void) -> i32;
    fn hv_gic_get_redistributor_base(vcpu: u64, base: *mut u64) -> i32;
    fn os_release(object: *mut c_void);
}

/// Where guests are.
const CODE: u64 = 0x4000_0000;
const LEN: usize = 64 << 10;
/// Where nothing is: guests find it in X20.
const DEVICE: u64 = 0x2000_0000;

static ONLY: Mutex<()> = Mutex::new(());

/// The process's machine, with memory, an interrupt controller and no vCPU.
struct Machine {
    memory: *mut c_void,
    _only: MutexGuard<'static, ()>,
}

impl Machine {
    fn new() -> Self {
        let only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the configuration is released once; the memory is mapped until the machine is gone.
        let memory = unsafe {
            assert_eq!(hv_vm_create(null_mut()), SUCCESS);
            let config = hv_gic_config_create();
            assert_eq!(hv_gic_config_set_distributor_base(config, 0x0800_0000), SUCCESS);
            assert_eq!(hv_gic_config_set_redistributor_base(config, 0x1000_0000), SUCCESS);
            assert_eq!(hv_gic_config_set_msi_interrupt_range(config, 128, 100), SUCCESS);
            assert_eq!(hv_gic_create(config), SUCCESS);
            os_release(config);
            let (access, kind) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let memory = libc::mmap(null_mut(), LEN, access, kind, -1, 0);
            assert_ne!(memory, libc::MAP_FAILED);
            assert_eq!(hv_vm_map(memory, CODE, LEN, 0b111), SUCCESS);
            memory
        };
        Self { memory, _only: only }
    }

    /// A vCPU of this thread at the first of these instructions.
    fn vcpu(&self, code: &[u32]) -> Vcpu {
        let (mut vcpu, mut exit) = (0, null());
        // SAFETY: the code fits, and nothing runs yet.
        unsafe {
            self.memory.cast::<u32>().copy_from_nonoverlapping(code.as_ptr(), code.len());
            assert_eq!(hv_vcpu_create(&mut vcpu, &mut exit, null_mut()), SUCCESS);
        }
        let vcpu = Vcpu { vcpu, exit };
        for (register, value) in [(PC, CODE), (CPSR, 0x3c5), (20, DEVICE)] {
            assert_eq!(hv_vcpu_set_reg(vcpu.vcpu, register, value), SUCCESS);
        }
        vcpu
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        assert_eq!(hv_vm_destroy(), SUCCESS);
        // SAFETY: nobody uses it any more.
        unsafe { libc::munmap(self.memory, LEN) };
    }
}

struct Vcpu {
    vcpu: u64,
    exit: *const Exit,
}

impl Vcpu {
    fn get(&self, register: u32) -> u64 {
        let mut value = 0;
        // SAFETY: the value can be written.
        assert_eq!(unsafe { hv_vcpu_get_reg(self.vcpu, register, &mut value) }, SUCCESS);
        value
    }

    /// Runs to an access, and takes its syndrome apart: register, length, is it a store, is it signed, is it wide.
    fn run(&self) -> (u32, u32, bool, bool, bool) {
        assert_eq!(hv_vcpu_run(self.vcpu), SUCCESS);
        // SAFETY: the vCPU lives, and does not run.
        let exit = unsafe { &*self.exit };
        assert_eq!((exit.reason, exit.virtual_address), (EXCEPTION, 0));
        assert_eq!(exit.physical_address, DEVICE);
        assert_eq!(exit.syndrome >> 24, 0x93, "a data abort that has been taken apart");
        let field = |shift: u32, mask: u64| (exit.syndrome >> shift & mask) as u32;
        (field(16, 31), 1 << field(22, 3), field(6, 1) != 0, field(21, 1) != 0, field(15, 1) != 0)
    }

    fn reason(&self) -> u32 {
        // SAFETY: as for `run`.
        unsafe { (*self.exit).reason }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        assert_eq!(hv_vcpu_destroy(self.vcpu), SUCCESS);
    }
}

const LDRB_W1_X20: u32 = 0x3940_0281;
const STR_WZR_X20: u32 = 0xb900_029f;
const STRH_W2_X20: u32 = 0x7900_0282;
const BRANCH_HERE: u32 = 0x1400_0000;

#[test]
fn a_process_has_one_machine_and_it_outlives_its_vcpus() {
    let machine = Machine::new();
    // SAFETY: no configuration.
    assert_eq!(unsafe { hv_vm_create(null_mut()) }, BUSY);
    let vcpu = machine.vcpu(&[BRANCH_HERE]);
    assert_eq!(hv_vm_destroy(), BUSY);
    drop(vcpu);
}

#[test]
fn a_vcpu_answers_its_own_thread() {
    let machine = Machine::new();
    let vcpu = machine.vcpu(&[BRANCH_HERE]);
    let handle = vcpu.vcpu;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            assert_eq!(hv_vcpu_run(handle), BAD_ARGUMENT);
            assert_eq!(hv_vcpu_set_reg(handle, 0, 1), BAD_ARGUMENT);
            assert_eq!(hv_vcpu_destroy(handle), BAD_ARGUMENT);
            // SAFETY: one handle.
            assert_eq!(unsafe { hv_vcpus_exit(&handle, 1) }, SUCCESS);
        });
    });
    // Twice is once.
    assert_eq!(hv_vcpu_run(handle), SUCCESS);
    assert_eq!((vcpu.reason(), vcpu.get(PC)), (CANCELED, CODE));
    let (mut another, mut exit) = (0, null());
    // SAFETY: both can be written.
    assert_eq!(unsafe { hv_vcpu_create(&mut another, &mut exit, null_mut()) }, BUSY);
}

#[test]
fn memory_is_mapped_by_pages_of_16_kib() {
    let machine = Machine::new();
    let page = 16 << 10;
    for (ipa, len) in [(CODE + 0x1000, page), (CODE * 2, 0x1000), (CODE * 2, 0), (u64::MAX, page)] {
        // SAFETY: no vCPU runs.
        assert_eq!(unsafe { hv_vm_map(machine.memory, ipa, len, 0b111) }, BAD_ARGUMENT);
    }
    // SAFETY: the same.
    assert_ne!(unsafe { hv_vm_map(machine.memory, CODE + page as u64, page, 0b111) }, SUCCESS);
}

#[test]
fn lines_are_neither_private_interrupts_nor_messages() {
    let _machine = Machine::new();
    for (intid, answer) in [
        (31, BAD_ARGUMENT),
        (32, SUCCESS),
        (127, SUCCESS),
        (128, BAD_ARGUMENT),
        (5000, BAD_ARGUMENT),
    ] {
        assert_eq!(hv_gic_set_spi(intid, true), answer, "{intid}");
    }
}

#[test]
fn a_vcpu_has_a_redistributor_once_it_has_an_affinity() {
    let machine = Machine::new();
    let vcpu = machine.vcpu(&[BRANCH_HERE]);
    let mut base = 0;
    // SAFETY: the address can be written.
    assert_eq!(unsafe { hv_gic_get_redistributor_base(vcpu.vcpu, &mut base) }, BAD_ARGUMENT);
    assert_eq!(hv_vcpu_set_sys_reg(vcpu.vcpu, MPIDR_EL1, 0x8000_0000), SUCCESS);
    // SAFETY: the same.
    assert_eq!(unsafe { hv_gic_get_redistributor_base(vcpu.vcpu, &mut base) }, SUCCESS);
    assert_eq!(base, 0x1000_0000);
}

#[test]
fn a_load_is_not_over_before_its_register_is_right_and_the_guest_behind_it() {
    let machine = Machine::new();
    let vcpu = machine.vcpu(&[LDRB_W1_X20; 8]);
    let mut signed = 0;
    for turn in 0..8 {
        let (register, len, store, sign, wide) = vcpu.run();
        assert_eq!((len, store), (1, false));
        let here = vcpu.get(PC);
        assert_eq!(here, CODE + 4 * turn);
        assert_eq!(hv_vcpu_run(vcpu.vcpu), ILLEGAL_GUEST_STATE);
        assert_eq!(hv_vcpu_set_reg(vcpu.vcpu, PC, here + 4), ILLEGAL_GUEST_STATE);
        // 0x91 is negative.
        let value = match (sign, wide) {
            (false, _) => 0x91,
            (true, false) => 0xffff_ff91,
            (true, true) => 0xffff_ffff_ffff_ff91,
        };
        signed += u32::from(sign);
        assert_eq!(hv_vcpu_set_reg(vcpu.vcpu, register, value ^ 0x100), BAD_ARGUMENT);
        assert_eq!(hv_vcpu_set_reg(vcpu.vcpu, register ^ 1, value), BAD_ARGUMENT);
        assert_eq!(hv_vcpu_set_reg(vcpu.vcpu, register, value), SUCCESS);
        assert_eq!(hv_vcpu_set_reg(vcpu.vcpu, PC, here + 8), ILLEGAL_GUEST_STATE);
        assert_eq!(hv_vcpu_set_reg(vcpu.vcpu, PC, here + 4), SUCCESS);
        assert_eq!(vcpu.get(PC), here + 4);
        assert_eq!(vcpu.get(1), 0x91, "the register of the instruction");
    }
    assert_eq!(signed, 4, "some are signed, some not");
}

#[test]
fn a_store_comes_from_a_register_with_more_in_it_or_from_none() {
    let machine = Machine::new();
    let code = [STR_WZR_X20, STR_WZR_X20, STRH_W2_X20, STRH_W2_X20];
    let vcpu = machine.vcpu(&code);
    assert_eq!(hv_vcpu_set_reg(vcpu.vcpu, 2, 0x5555_1234), SUCCESS);
    let mut registers = Vec::new();
    for (turn, expected) in (0..).zip([(4, 0), (4, 0), (2, 0x1234), (2, 0x1234)]) {
        let (register, len, store, ..) = vcpu.run();
        let here = vcpu.get(PC);
        assert_eq!((here, store), (CODE + 4 * turn, true));
        if register != 31 {
            let value = vcpu.get(register);
            assert_eq!((len, value & ((1 << (8 * len)) - 1)), expected);
            assert_ne!(value >> (8 * len), 0);
        }
        registers.push(register);
        assert_eq!(hv_vcpu_set_reg(vcpu.vcpu, PC, here + 4), SUCCESS);
    }
    assert_eq!(registers.iter().filter(|register| **register == 31).count(), 1);
    registers.dedup();
    assert_eq!(registers.len(), 4, "{registers:?}");
}
