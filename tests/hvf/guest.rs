//! How a test writes a guest, runs it, and hears from it.

use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hyperkit::accel::hvf::{Hvf, HvfVcpu, HvfVm};
use hyperkit::accel::{AccelVcpu, AccelVm, Accelerator, Exit, ExitHandler, VmSpec};
use hyperkit::arch::CpuState;
use hyperkit::arch::aarch64::layout::RAM_START;
use hyperkit::bus::Flow;
use hyperkit::memory::{Backing, GuestRam};
use vm_memory::{Bytes, GuestAddress};

/// Where guests are loaded and entered.
pub const CODE: u64 = RAM_START;
/// Bytes of RAM.
const MEMORY: u64 = 4 << 20;
/// Bytes of a guest, with what happens to be behind it.
pub const GUEST_LEN: usize = 1024;

/// Registers that give [`Devices::VALUE`] and take reports. Guests find the address in X20.
pub const REPORT: u64 = 0x2000_0000;
/// A store here ends the run.
pub const STOP: u64 = 0x2000_1000;

/// Assembles a guest: `guest!(NAME, "instruction", …)` gives `fn NAME() -> &'static [u8]`. It begins at EL1 with the MMU off,
/// [`REPORT`] in X20 and [`STOP`] in X21.
macro_rules! guest {
    ($name:ident, $($line:expr),+ $(,)?) => {
        fn $name() -> &'static [u8] {
            #[unsafe(naked)]
            extern "C" fn code() {
                std::arch::naked_asm!(
                    "movz x20, #0x2000, lsl #16",
                    "add x21, x20, #1, lsl #12",
                    $($line,)+
                    ".space 1024",
                )
            }
            let start = code as *const u8;
            // SAFETY: there is more than that of it.
            unsafe { std::slice::from_raw_parts(start, $crate::guest::GUEST_LEN) }
        }
    };
}
pub(crate) use guest;

/// Held by every test: a process has one machine.
static MACHINE: Mutex<()> = Mutex::new(());

/// A machine without devices.
pub struct Machine {
    pub vm: HvfVm,
    pub ram: GuestRam,
    pub only: MutexGuard<'static, ()>,
}

impl Machine {
    pub fn new(cpus: u32) -> Self {
        let only = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let vm = Hvf.create_vm(&VmSpec::new(cpus)).unwrap();
        let ram = GuestRam::new(&[(RAM_START, MEMORY)], Backing::Anonymous, false).unwrap();
        vm.map(&ram).unwrap();
        Self { vm, ram, only }
    }

    /// A machine of one vCPU with `code` in its memory.
    pub fn with(code: &[u8]) -> Self {
        let machine = Self::new(1);
        machine.load(code, CODE);
        machine
    }

    pub fn load(&self, code: &[u8], at: u64) {
        self.ram.memory().write_slice(code, GuestAddress(at)).unwrap();
        self.ram.sync_code(at, code.len() as u64);
    }

    /// vCPU `id`, on this thread. All of them are to be there before one runs.
    pub fn vcpu(&self, id: u32) -> HvfVcpu {
        self.vm.vcpu(id).unwrap().bind().unwrap()
    }

    /// Runs the guest at [`CODE`] from its beginning to a store to [`STOP`]; what it reported.
    pub fn run(&self, vcpu: &mut HvfVcpu) -> Vec<u64> {
        vcpu.reset(Some(&CpuState::entry(CODE, 0))).unwrap();
        let mut devices = Devices::default();
        assert_eq!(vcpu.run(&mut devices).unwrap(), Exit::PowerOff);
        devices.reports()
    }
}

/// What the guest's accesses find.
#[derive(Default)]
pub struct Devices {
    pub loads: Vec<(u64, usize)>,
    pub stores: Vec<(u64, Vec<u8>)>,
    /// Who is told of each store to [`REPORT`].
    pub told: Option<Sender<()>>,
}

impl Devices {
    /// What every load finds, as far as it goes.
    pub const VALUE: u64 = 0x8877_a655_c433_f291;

    /// What was stored to [`REPORT`], 8 bytes each.
    pub fn reports(&self) -> Vec<u64> {
        let reports = self.stores.iter().filter(|(address, _)| *address == REPORT);
        reports.map(|(_, data)| u64::from_le_bytes(data.as_slice().try_into().unwrap())).collect()
    }
}

impl ExitHandler for Devices {
    fn pio_read(&mut self, port: u16, _data: &mut [u8]) {
        panic!("arm64 has no port {port:#x}");
    }

    fn pio_write(&mut self, port: u16, _data: &[u8]) -> Flow {
        panic!("arm64 has no port {port:#x}");
    }

    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) {
        self.loads.push((gpa, data.len()));
        let len = data.len();
        data.copy_from_slice(&Self::VALUE.to_le_bytes()[..len]);
    }

    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow {
        if gpa == STOP {
            return Flow::Break(Exit::PowerOff);
        }
        self.stores.push((gpa, data.to_vec()));
        if gpa == REPORT
            && let Some(told) = &self.told
        {
            // Who has heard the first may be gone.
            let _ = told.send(());
        }
        Flow::Continue(())
    }
}
