//! PSCI 1.1 (Arm DEN0022): how a guest starts and stops its processors and its machine, where the accelerator does
//! not do it itself; and the little of the SMC calling convention (Arm DEN0028) through which Linux finds it.
//!
//! One [`Psci`] is shared by a machine's vCPUs and knows which are on. [`Psci::call`] answers a call and says what is
//! to happen; the threads and what wakes them are the accelerator's. Nothing is lost between the two: what a vCPU is
//! started with waits here until its thread asks for it ([`Psci::take_start`]), and meanwhile other vCPUs are told
//! that the start is pending.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::mpidr;
use super::state::CpuState;

#[cfg(test)]
mod tests;

/// The version, both of PSCI and of the calling convention.
const VERSION_1_1: u64 = 1 << 16 | 1;
/// Function ids: parameters have 64 bits.
const SMC64: u32 = 1 << 30;

// Return values, section 5.2.2.
const SUCCESS: i64 = 0;
const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const ON_PENDING: i64 = -5;
const INVALID_ADDRESS: i64 = -9;

// What AFFINITY_INFO says.
const AFFINITY_ON: i64 = 0;
const AFFINITY_OFF: i64 = 1;
const AFFINITY_ON_PENDING: i64 = 2;

/// There is no trusted OS that would have to be moved to another processor.
const NO_MIGRATION: i64 = 2;

/// The functions there are.
#[derive(Debug, Clone, Copy)]
enum Function {
    Version,
    CpuSuspend,
    CpuOff,
    CpuOn,
    AffinityInfo,
    MigrateInfoType,
    SystemOff,
    SystemReset,
    Features,
    SystemReset2,
    SmcccVersion,
    SmcccArchFeatures,
}

impl Function {
    fn known(id: u32) -> Option<Self> {
        Some(match id {
            0x8400_0000 => Self::Version,
            0x8400_0001 | 0xc400_0001 => Self::CpuSuspend,
            0x8400_0002 => Self::CpuOff,
            0x8400_0003 | 0xc400_0003 => Self::CpuOn,
            0x8400_0004 | 0xc400_0004 => Self::AffinityInfo,
            0x8400_0006 => Self::MigrateInfoType,
            0x8400_0008 => Self::SystemOff,
            0x8400_0009 => Self::SystemReset,
            0x8400_000a => Self::Features,
            0x8400_0012 | 0xc400_0012 => Self::SystemReset2,
            0x8000_0000 => Self::SmcccVersion,
            0x8000_0001 => Self::SmcccArchFeatures,
            _ => return None,
        })
    }
}

/// What a call asks of the vCPU that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Go on with this value in X0.
    Return(u64),
    /// Wait for an interrupt as after WFI, then go on with zero in X0.
    Standby,
    /// Wait, whatever interrupts there are, until [`Psci::take_start`] has a state to go on in.
    Off,
    /// Wake the thread of this vCPU, which is off and finds a state now; go on with zero in X0.
    On(u32),
    /// The machine is to be turned off. The guest expects no return.
    PowerOff,
    /// The machine is to be reset. The guest expects no return.
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    Off,
    /// Switched on by another vCPU, but not running yet.
    Pending {
        entry: u64,
        context: u64,
    },
}

/// Which vCPUs of a machine are on.
#[derive(Debug)]
pub struct Psci {
    vcpus: Mutex<Vec<Power>>,
    /// First and last address of memory that code can be in.
    ram: Vec<(u64, u64)>,
}

impl Psci {
    /// A machine with `vcpus` vCPUs, the first of which is on, and RAM at these addresses (start, length): no vCPU is
    /// started anywhere else.
    pub fn new(vcpus: u32, ram: &[(u64, u64)]) -> Self {
        let power = |vcpu| if vcpu == 0 { Power::On } else { Power::Off };
        let last =
            |&(start, len): &(u64, u64)| Some((start, start.saturating_add(len.checked_sub(1)?)));
        Self {
            vcpus: Mutex::new((0..vcpus).map(power).collect()),
            ram: ram.iter().filter_map(last).collect(),
        }
    }

    /// Answers a call that `vcpu` made with these values in X0 to X3. Calls by HVC and SMC mean the same, and so do all
    /// their immediates.
    pub fn call(&self, vcpu: u32, x: [u64; 4]) -> Action {
        let id = x[0] as u32;
        // Of 32-bit calls the upper halves mean nothing.
        let [_, x1, x2, x3] =
            if id & SMC64 != 0 { x } else { x.map(|value| u64::from(value as u32)) };
        let Some(function) = Function::known(id) else {
            return value(NOT_SUPPORTED);
        };
        match function {
            Function::Version | Function::SmcccVersion => Action::Return(VERSION_1_1),
            // States in which a processor forgets may be answered with one in which it does not (5.4.2). The device
            // tree has no idle states, but the function is mandatory.
            Function::CpuSuspend => Action::Standby,
            Function::CpuOff => {
                self.set_power(vcpu, false);
                Action::Off
            }
            Function::CpuOn => self.cpu_on(x1, x2, x3),
            Function::AffinityInfo => value(self.affinity_info(x1, x2 as u32)),
            Function::MigrateInfoType => value(NO_MIGRATION),
            Function::SystemOff => Action::PowerOff,
            Function::SystemReset => Action::Reset,
            Function::SystemReset2 => match x1 as u32 {
                // SYSTEM_WARM_RESET. There are no others, and none of a vendor's.
                0 => Action::Reset,
                _ => value(INVALID_PARAMETERS),
            },
            // Zero also says that CPU_SUSPEND has the original format of states and no OS-initiated mode.
            Function::Features => value(match Function::known(x1 as u32) {
                Some(Function::SmcccArchFeatures) | None => NOT_SUPPORTED,
                Some(_) => SUCCESS,
            }),
            Function::SmcccArchFeatures => value(match Function::known(x1 as u32) {
                Some(Function::SmcccVersion | Function::SmcccArchFeatures) => SUCCESS,
                _ => NOT_SUPPORTED,
            }),
        }
    }

    /// What a vCPU that was switched on starts with. It counts as running from here on.
    pub fn take_start(&self, vcpu: u32) -> Option<CpuState> {
        let mut vcpus = self.lock();
        let power = vcpus.get_mut(vcpu as usize)?;
        let Power::Pending { entry, context } = *power else { return None };
        *power = Power::On;
        Some(CpuState::entry(entry, context))
    }

    /// Makes a vCPU one that is on, or off: how it is after a reset of the machine. A start that was pending is
    /// forgotten.
    pub fn set_power(&self, vcpu: u32, on: bool) {
        if let Some(power) = self.lock().get_mut(vcpu as usize) {
            *power = if on { Power::On } else { Power::Off };
        }
    }

    /// Section 5.6.
    fn cpu_on(&self, target: u64, entry: u64, context: u64) -> Action {
        let mut vcpus = self.lock();
        let target = mpidr::vcpu(target).and_then(|n| Some((n, vcpus.get_mut(n as usize)?)));
        match target {
            None => value(INVALID_PARAMETERS),
            Some((_, Power::On)) => value(ALREADY_ON),
            Some((_, Power::Pending { .. })) => value(ON_PENDING),
            Some((_, Power::Off)) if !self.is_code(entry) => value(INVALID_ADDRESS),
            Some((n, power)) => {
                *power = Power::Pending { entry, context };
                Action::On(n)
            }
        }
    }

    /// Section 5.7: of all processors whose affinities agree with `target` from this level up.
    fn affinity_info(&self, target: u64, level: u32) -> i64 {
        // Bits that are in no affinity differ from all of them.
        let compared: u64 = match level {
            0 => !0,
            1 => !0xff,
            2 => !0xffff,
            3 => !0xff_ffff,
            _ => return INVALID_PARAMETERS,
        };
        let vcpus = self.lock();
        let mut answer = None;
        for (power, n) in vcpus.iter().zip(0..) {
            if (mpidr::affinity(n) ^ target) & compared != 0 {
                continue;
            }
            match power {
                Power::On => return AFFINITY_ON,
                Power::Pending { .. } => answer = Some(AFFINITY_ON_PENDING),
                Power::Off => answer = answer.or(Some(AFFINITY_OFF)),
            }
        }
        answer.unwrap_or(INVALID_PARAMETERS)
    }

    /// Could an instruction be there?
    fn is_code(&self, entry: u64) -> bool {
        let inside = |&(start, last): &(u64, u64)| (start..=last).contains(&entry);
        entry.is_multiple_of(4) && self.ram.iter().any(inside)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Power>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A value for X0. Its sign goes through all bits, so that it is the same to those who look at W0 and at X0.
fn value(value: i64) -> Action {
    Action::Return(value as u64)
}
