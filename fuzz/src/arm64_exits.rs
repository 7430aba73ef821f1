//! Exits of arm64 processors, carried out as an accelerator does, on registers and a bus that are models.
//!
//! A store writes the low bytes of its register and a load fills it, by an arithmetic of its own; register 31 is
//! none. Which processors are on is known to a list beside PSCI, and the two agree after every call. What nobody
//! carries out is an exception at EL1 or an error. After a reset, a processor can be started, and reaches a device.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperkit::arch::aarch64::esr::{Exception, MmioAccess, SysRegAccess, Wait};
use hyperkit::arch::aarch64::inject::{Before, Fault};
use hyperkit::arch::aarch64::psci::{Action, Psci};
use hyperkit::arch::aarch64::state::CpuState;
use hyperkit::arch::aarch64::sysreg::{SysReg, Trapped};
use hyperkit::arch::aarch64::{mpidr, vtimer};

use crate::ops::parse;
use crate::{fields, operations};

fields! {
    /// The start of an input.
    pub struct Head {
        /// How many processors, from 1 to 20.
        pub cpus: u8,
        /// Ticks of the counter in a second.
        pub frequency: u64,
    }
}

operations! {
    /// What processors do, and time. Numbers of processors wrap; one that is off is started if somebody wants it to be.
    pub enum Op(8) {
        /// A register has a value: X0 to X30, then the program counter, PSTATE, VBAR_EL1, SCTLR_EL1.
        0 => Set { vcpu: u8, register: u8, value: u64 },
        /// An exit with any syndrome.
        1 => Exit { vcpu: u8, syndrome: u64, address: u64 },
        /// An exit of an exception class, with any rest.
        2 => Class { vcpu: u8, class: u8, iss: u32, address: u64 },
        /// A load or store: two bits of length, then sign extension, X register, store.
        3 => Access { vcpu: u8, how: u8, register: u8, address: u64 },
        /// A call: the function's low byte, its upper half by number, and HVC or SMC.
        4 => Call { vcpu: u8, how: u8, function: u8, x1: u64, x2: u64, x3: u64 },
        /// An access to a system register: 31 is none, and above that it is written.
        5 => SysReg { vcpu: u8, register: u16, rt: u8 },
        /// A wait, with the registers of the virtual timer.
        6 => Wait { vcpu: u8, how: u8, register: u8, control: u64, compare: u64 },
        /// The count goes on, and the machine is reset if it is odd.
        7 => Pass { ticks: u64 },
    }
}

/// Where code can be.
pub const RAM: (u64, u64) = (0x4000_0000, 0x1000_0000);
const MOST_CPUS: u8 = 20;
/// Upper halves of function ids: PSCI in both widths, the calling convention, others.
const SERVICES: [u64; 6] = [0x8400, 0xc400, 0x8000, 0xc000, 0x8600, 0x0000];
const AFFINITY_INFO: u64 = 0xc400_0004;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    Off,
    /// With an entry and a context.
    Pending(u64, u64),
}

struct Vcpu {
    state: CpuState,
    vbar: u64,
    sctlr: u64,
    trapped: Trapped,
    power: Power,
}

impl Vcpu {
    fn new(on: bool) -> Self {
        let power = if on { Power::On } else { Power::Off };
        let state = CpuState::default();
        Self { state, vbar: 0, sctlr: 0, trapped: Trapped::default(), power }
    }

    fn get(&self, register: Option<u8>) -> u64 {
        register.map_or(0, |n| self.state.x[usize::from(n)])
    }

    fn set(&mut self, register: Option<u8>, value: u64) {
        if let Some(n) = register {
            self.state.x[usize::from(n)] = value;
        }
    }

    /// The guest takes an exception at EL1, masked, with the way back saved.
    fn take(&mut self, fault: Fault) {
        let Self { state: CpuState { pc, pstate, .. }, vbar, sctlr, .. } = *self;
        let after = fault.enter(&Before { pc, pstate, vbar, sctlr });
        assert_eq!((after.elr, after.spsr), (pc, pstate));
        assert_eq!(after.pstate & 0x3df, 0x3c5, "EL1h, all masked");
        assert_eq!(after.pc & 0x1ff, 0);
        assert_eq!(after.far.is_none(), fault == Fault::Undefined);
        (self.state.pc, self.state.pstate) = (after.pc, after.pstate);
    }
}

struct Machine {
    psci: Psci,
    vcpus: Vec<Vcpu>,
    /// What has been written to devices. They read as ones before.
    bus: BTreeMap<u64, u8>,
    count: u64,
    frequency: u64,
}

impl Machine {
    fn new(head: Head) -> Self {
        let cpus = head.cpus % MOST_CPUS + 1;
        Self {
            psci: Psci::new(cpus.into(), &[RAM]),
            vcpus: (0..cpus).map(|n| Vcpu::new(n == 0)).collect(),
            bus: BTreeMap::new(),
            count: 0,
            frequency: head.frequency,
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Set { vcpu, register, value } => self.set(vcpu, register, value),
            Op::Exit { vcpu, syndrome, address } => self.exit(vcpu, syndrome, address),
            Op::Class { vcpu, class, iss, address } => {
                self.exit(vcpu, u64::from(class) << 26 | u64::from(iss & 0x3ff_ffff), address);
            }
            Op::Access { vcpu, how, register, address } => {
                let access = MmioAccess {
                    write: how & 16 != 0,
                    len: 1 << (how & 3),
                    register: Some(register % 32).filter(|&n| n != 31),
                    sign_extend: how & 4 != 0,
                    sixty_four: how & 8 != 0,
                };
                self.exit(vcpu, Exception::Mmio(access).encode(), address);
            }
            Op::Call { vcpu, how, function, x1, x2, x3 } => {
                let service = SERVICES[usize::from(how / 2) % SERVICES.len()];
                if let Some(vcpu) = self.running(vcpu) {
                    let x0 = service << 16 | u64::from(function);
                    self.vcpus[vcpu].state.x[..4].copy_from_slice(&[x0, x1, x2, x3]);
                }
                let call = if how & 1 == 0 { Exception::Hvc(0) } else { Exception::Smc(0) };
                self.exit(vcpu, call.encode(), 0);
            }
            Op::SysReg { vcpu, register, rt } => {
                let access = SysRegAccess {
                    register: SysReg::unpack(register),
                    write: rt & 32 != 0,
                    rt: Some(rt % 32).filter(|&n| n != 31),
                };
                self.exit(vcpu, Exception::SysReg(access).encode(), 0);
            }
            Op::Wait { vcpu, how, register, control, compare } => {
                let register = Some(register % 32).filter(|&n| n != 31);
                let waits = [
                    Wait::Interrupt,
                    Wait::Event,
                    Wait::InterruptUntil(register),
                    Wait::EventUntil(register),
                ];
                self.exit(vcpu, Exception::Wait(waits[usize::from(how % 4)]).encode(), 0);
                self.check_timer(control, compare);
            }
            Op::Pass { ticks } => {
                self.count = self.count.wrapping_add(ticks);
                if ticks % 2 == 1 {
                    self.reset();
                }
            }
        }
    }

    fn set(&mut self, vcpu: u8, register: u8, value: u64) {
        let n = usize::from(vcpu) % self.vcpus.len();
        let vcpu = &mut self.vcpus[n];
        match register % 35 {
            31 => vcpu.state.pc = value,
            32 => vcpu.state.pstate = value,
            33 => vcpu.vbar = value,
            34 => vcpu.sctlr = value,
            n => vcpu.set(Some(n), value),
        }
    }

    /// The processor, if it is on. One that is to start does.
    fn running(&mut self, vcpu: u8) -> Option<usize> {
        let n = usize::from(vcpu) % self.vcpus.len();
        let start = self.psci.take_start(n as u32);
        let vcpu = &mut self.vcpus[n];
        match vcpu.power {
            Power::Pending(entry, context) => {
                let state = CpuState::entry(entry, context);
                assert_eq!(start, Some(state));
                *vcpu = Vcpu { state, ..Vcpu::new(true) };
            }
            _ => assert_eq!(start, None),
        }
        (vcpu.power == Power::On).then_some(n)
    }

    /// What an accelerator does with an exit.
    fn exit(&mut self, vcpu: u8, syndrome: u64, address: u64) {
        let Some(n) = self.running(vcpu) else { return };
        let exception = Exception::decode(syndrome);
        assert_eq!(Exception::decode(exception.encode()), exception, "{syndrome:#x}");
        assert!(!exception.to_string().is_empty());
        let before = self.vcpus[n].state;
        if let Some(fault) = Fault::of(&exception, address) {
            assert_eq!(exception.advance(), 0);
            self.vcpus[n].take(fault);
            return;
        }
        self.vcpus[n].state.pc = before.pc.wrapping_add(exception.advance());
        match exception {
            Exception::Mmio(access) => self.access(n, access, address),
            Exception::Hvc(_) | Exception::Smc(_) => self.call(n),
            Exception::SysReg(access) => self.system_register(n, access),
            Exception::Wait(wait) => self.wait(n, wait),
            Exception::DataAbort(abort) => assert!(abort.cache_maintenance),
            // An error to whoever runs the machine.
            _ => assert_eq!(self.vcpus[n].state, before),
        }
    }

    fn access(&mut self, n: usize, access: MmioAccess, address: u64) {
        let mut before = self.vcpus[n].state;
        before.pc = self.vcpus[n].state.pc;
        assert!(matches!(access.len, 1 | 2 | 4 | 8));
        let addresses = (0..access.len as u64).map(|offset| address.wrapping_add(offset));
        if access.write {
            let value = self.vcpus[n].get(access.register);
            let (bytes, len) = access.store_bytes(value);
            assert_eq!(len, access.len);
            for (i, address) in addresses.enumerate() {
                assert_eq!(u64::from(bytes[i]), value >> (8 * i) & 0xff);
                self.bus.insert(address, bytes[i]);
            }
        } else {
            let found = addresses.map(|address| self.bus.get(&address).copied().unwrap_or(0xff));
            let found: Vec<u8> = found.collect();
            let value = access.load_value(&found);
            self.vcpus[n].set(access.register, value);
            let mut number =
                found.iter().rev().fold(0_i128, |sum, &byte| sum * 256 + i128::from(byte));
            if access.sign_extend && found.last().is_some_and(|&top| top >= 0x80) {
                number -= 1 << (8 * found.len());
            }
            let narrow = access.sign_extend && !access.sixty_four && access.len < 8;
            let expected = number.rem_euclid(1 << if narrow { 32 } else { 64 });
            assert_eq!(i128::from(value), expected, "{access:?}");
            if let Some(n) = access.register {
                before.x[usize::from(n)] = value;
            }
        }
        assert_eq!(self.vcpus[n].state, before, "nothing else changes");
    }

    fn call(&mut self, n: usize) {
        let x = self.vcpus[n].state.x;
        let x = [x[0], x[1], x[2], x[3]];
        let id = x[0] as u32;
        let [_, _, entry, context] =
            if id & 1 << 30 != 0 { x } else { x.map(|value| value & 0xffff_ffff) };
        match self.psci.call(n as u32, x) {
            Action::Return(value) => {
                let signed = value as i64;
                assert!((-9..=0x1_0001).contains(&signed), "{x:x?}: {signed}");
                self.vcpus[n].state.x[0] = value;
            }
            Action::Standby => self.vcpus[n].state.x[0] = 0,
            Action::On(target) => {
                assert!(entry % 4 == 0 && (RAM.0..RAM.0 + RAM.1).contains(&entry));
                let target = &mut self.vcpus[target as usize].power;
                assert_eq!(*target, Power::Off);
                *target = Power::Pending(entry, context);
                self.vcpus[n].state.x[0] = 0;
            }
            Action::Off => {
                assert_eq!(id, 0x8400_0002);
                self.vcpus[n].power = Power::Off;
            }
            Action::PowerOff | Action::Reset => self.reset(),
        }
        self.check_power();
    }

    fn system_register(&mut self, n: usize, access: SysRegAccess) {
        let count = self.count;
        let vcpu = &mut self.vcpus[n];
        let value = vcpu.get(access.rt);
        let result = if access.write {
            vcpu.trapped.write(access.register, value)
        } else {
            let read = vcpu.trapped.read(access.register, || count);
            read.map(|value| vcpu.set(access.rt, value))
        };
        if let Err(undefined) = result {
            assert_eq!((undefined.register, undefined.write), (access.register, access.write));
            vcpu.state.pc = vcpu.state.pc.wrapping_sub(4);
            vcpu.take(Fault::Undefined);
        }
    }

    fn wait(&mut self, n: usize, wait: Wait) {
        if let Wait::InterruptUntil(register) | Wait::EventUntil(register) = wait {
            let deadline = self.vcpus[n].get(register);
            let sleep = vtimer::until(deadline, self.count, self.frequency);
            assert_eq!(sleep == Duration::ZERO, deadline <= self.count);
        }
    }

    fn check_timer(&self, control: u64, compare: u64) {
        let sleep = vtimer::until_interrupt(control, compare, self.count, self.frequency);
        assert_eq!(sleep.is_some(), control & 0b11 == 0b01);
        if let Some(sleep) = sleep {
            assert_eq!(sleep == Duration::ZERO, compare <= self.count);
        }
    }

    fn check_power(&self) {
        for (n, vcpu) in (0..).zip(&self.vcpus) {
            let info = match vcpu.power {
                Power::On => 0,
                Power::Off => 1,
                Power::Pending(..) => 2,
            };
            let call = [AFFINITY_INFO, mpidr::affinity(n), 0, 0];
            assert_eq!(self.psci.call(0, call), Action::Return(info), "processor {n}");
        }
    }

    fn reset(&mut self) {
        for (n, vcpu) in (0..).zip(&mut self.vcpus) {
            self.psci.set_power(n, n == 0);
            *vcpu = Vcpu::new(n == 0);
        }
        self.bus.clear();
        self.check_power();
    }

    /// The first processor starts the last one, which writes to a device and reads it back.
    fn check(&mut self) {
        self.reset();
        let last = self.vcpus.len() as u8 - 1;
        let target = mpidr::affinity(last.into());
        // CPU_ON, with 64-bit parameters.
        let on = Op::Call { vcpu: 0, how: 2, function: 3, x1: target, x2: RAM.0, x3: 0xabcd };
        self.step(on);
        if last > 0 {
            assert_eq!(self.vcpus[0].state.x[0], 0);
            self.step(Op::Access { vcpu: last, how: 2 | 16, register: 0, address: 0x0900_0000 });
            self.step(Op::Access { vcpu: last, how: 1, register: 7, address: 0x0900_0000 });
            let started = &self.vcpus[usize::from(last)].state;
            assert_eq!((started.pc, started.x[7]), (RAM.0 + 8, 0xabcd));
        }
    }
}

/// Carries out an input.
pub fn run(data: &[u8]) {
    let (head, ops) = parse(data);
    let mut machine = Machine::new(head);
    for op in ops {
        machine.step(op);
    }
    machine.check();
}
