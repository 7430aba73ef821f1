//! What goes wrong around a machine, or comes at an awkward moment. As in `lifecycle`, nothing here needs a hypervisor.

#![cfg(target_arch = "x86_64")]
#![allow(missing_docs)]

#[path = "common/small_vm.rs"]
mod small_vm;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use hyperkit::accel::scripted::{Event, Scripted, ScriptedVcpu, ScriptedVm, Step};
use hyperkit::accel::{
    AccelVcpu, AccelVm, Accelerator, Controller, Doorbells, Error, Exit, ExitHandler, Interrupts,
    IrqLine, Kicker, VcpuBinder, VmSpec,
};
use hyperkit::arch::CpuState;
use hyperkit::bus::{BusDevice, Flow};
use hyperkit::memory::GuestRam;
use hyperkit::vm::End;
use small_vm::{SOON, builder, start};

/// A read of a port that nobody has: says that a vCPU runs.
const RUNS: Step = Step::PioRead(0x4f0, 1);

/// Waits for `done`.
fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How often `wanted` has happened.
fn count(scripted: &Scripted, wanted: &Event) -> usize {
    scripted.events().iter().filter(|event| *event == wanted).count()
}

/// How often the boot processor has come to [`RUNS`].
fn runs(scripted: &Scripted) -> usize {
    count(scripted, &Event::Read(0, vec![0xff]))
}

/// The scripted accelerator, but for one thing.
struct Nearly {
    scripted: Scripted,
    odd: Odd,
}

#[derive(Clone)]
enum Odd {
    /// The second vCPU panics as it is bound to its thread.
    PanicsAsItIsBound,
    /// A vCPU that is kicked for the first time has just asked for a reset.
    ResetsWhenKicked,
    /// Whoever raises a line is held up.
    HoldsLines(Arc<Hold>),
}

#[derive(Default)]
struct Hold {
    raised: AtomicBool,
    released: AtomicBool,
}

impl Accelerator for Nearly {
    type Vm = NearlyVm;

    fn create_vm(&self, spec: &VmSpec) -> Result<NearlyVm, Error> {
        Ok(NearlyVm { vm: self.scripted.create_vm(spec)?, odd: self.odd.clone() })
    }
}

struct NearlyVm {
    vm: ScriptedVm,
    odd: Odd,
}

impl AccelVm for NearlyVm {
    type Vcpu = NearlyVcpu;

    fn map(&self, ram: &GuestRam) -> Result<(), Error> {
        self.vm.map(ram)
    }

    fn vcpu(&self, id: u32) -> Result<VcpuBinder<NearlyVcpu>, Error> {
        let (binder, odd) = (self.vm.vcpu(id)?, self.odd.clone());
        Ok(VcpuBinder::new(move || {
            assert!(id != 1 || !matches!(odd, Odd::PanicsAsItIsBound), "on purpose");
            let resets = matches!(odd, Odd::ResetsWhenKicked);
            Ok(NearlyVcpu { vcpu: binder.bind()?, resets })
        }))
    }

    fn interrupts(&self) -> Option<&dyn Interrupts> {
        Some(self)
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        None
    }

    fn reset(&self) -> Result<(), Error> {
        self.vm.reset()
    }
}

impl Interrupts for NearlyVm {
    fn controller(&self) -> Controller {
        self.vm.controller()
    }

    fn line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, Error> {
        let line = self.vm.line(gsi)?;
        match &self.odd {
            Odd::HoldsLines(hold) => Ok(Arc::new(Holding { line, hold: hold.clone() })),
            _ => Ok(line),
        }
    }
}

struct Holding {
    line: Arc<dyn IrqLine>,
    hold: Arc<Hold>,
}

impl IrqLine for Holding {
    fn pulse(&self) {
        self.line.pulse();
    }

    fn set_level(&self, high: bool) {
        if high {
            self.hold.raised.store(true, Ordering::SeqCst);
            until("the release", || self.hold.released.load(Ordering::SeqCst));
        }
        self.line.set_level(high);
    }
}

struct NearlyVcpu {
    vcpu: ScriptedVcpu,
    resets: bool,
}

impl AccelVcpu for NearlyVcpu {
    fn run(&mut self, io: &mut impl ExitHandler) -> Result<Exit, Error> {
        let exit = self.vcpu.run(io)?;
        let resets = exit == Exit::Interrupted && std::mem::take(&mut self.resets);
        Ok(if resets { Exit::Reset } else { exit })
    }

    fn kicker(&self) -> Kicker {
        self.vcpu.kicker()
    }

    fn reset(&mut self, state: Option<&CpuState>) -> Result<(), Error> {
        self.vcpu.reset(state)
    }

    fn state(&self) -> Result<CpuState, Error> {
        self.vcpu.state()
    }
}

#[test]
fn a_vcpu_that_panics_before_it_can_run_is_an_error_of_the_start() {
    let scripted = Scripted::new([vec![RUNS], vec![RUNS], vec![RUNS]]);
    let nearly = Nearly { scripted, odd: Odd::PanicsAsItIsBound };
    let vm = builder().cpus(3).accelerator(nearly).build().unwrap();
    let (done, started) = channel();
    std::thread::spawn(move || done.send(vm.start().map(drop)));
    let error = started.recv_timeout(SOON).expect("the start returns").unwrap_err();
    assert!(error.to_string().contains("vCPU's thread panicked"), "{error}");
}

#[test]
fn a_reset_that_the_guest_asks_for_while_it_is_paused_waits_until_it_goes_on() {
    let scripted = Scripted::new([vec![RUNS]]);
    let nearly = Nearly { scripted: scripted.clone(), odd: Odd::ResetsWhenKicked };
    let vm = start(builder().accelerator(nearly));
    until("the guest", || runs(&scripted) == 1);
    vm.pause().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(count(&scripted, &Event::ChipsReset), 0, "it is reset while it is paused");
    assert!(vm.is_paused());
    vm.resume().unwrap();
    until("the reset", || runs(&scripted) == 2);
    assert_eq!(count(&scripted, &Event::ChipsReset), 1);
    vm.pause().unwrap();
    vm.resume().unwrap();
    vm.stop();
    assert_eq!(vm.wait().unwrap(), End::Stopped);
}

#[test]
fn a_machine_that_ends_waits_for_a_press_of_its_power_button() {
    let hold = Arc::new(Hold::default());
    // PM1 enable, bit 8: power button.
    let enable = Step::PioWrite(0x602, vec![0x00, 0x01]);
    let scripted = Scripted::new([vec![enable, RUNS]]);
    let nearly = Nearly { scripted: scripted.clone(), odd: Odd::HoldsLines(hold.clone()) };
    let vm = start(builder().accelerator(nearly));
    until("the guest", || runs(&scripted) == 1);
    let end = std::thread::scope(|scope| {
        scope.spawn(|| vm.power_button());
        until("the press", || hold.raised.load(Ordering::SeqCst));
        scope.spawn(|| vm.stop());
        let end = vm.wait_timeout(Duration::from_millis(300));
        hold.released.store(true, Ordering::SeqCst);
        end
    });
    assert!(end.is_none(), "the machine has ended, and a press still holds it");
    assert_eq!(vm.wait().unwrap(), End::Stopped);
    assert!(scripted.events().contains(&Event::Gone));
}

struct PanicsAtReset;

impl BusDevice for PanicsAtReset {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}
    fn write(&self, _offset: u64, _data: &[u8]) -> Flow {
        Flow::Continue(())
    }
    fn reset(&self) {
        panic!("on purpose");
    }
}

struct PanicsAtTheEnd;

impl BusDevice for PanicsAtTheEnd {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}
    fn write(&self, _offset: u64, _data: &[u8]) -> Flow {
        Flow::Continue(())
    }
}

impl Drop for PanicsAtTheEnd {
    fn drop(&mut self) {
        panic!("on purpose");
    }
}

/// How a machine with `device` ends, one of whose vCPUs does `last`.
fn end_with(device: Arc<dyn BusDevice>, last: Step) -> String {
    let scripted = Scripted::new([vec![last], vec![Step::Spin]]);
    let builder = builder().cpus(2).port_device("panics", 0x500, 1, device);
    let vm = start(builder.accelerator(scripted));
    let error = vm.wait_timeout(SOON).expect("the machine ends").unwrap_err().to_string();
    assert!(vm.pause().is_err());
    vm.stop();
    error
}

#[test]
fn a_device_that_panics_as_it_is_reset_or_dropped_is_how_the_machine_ends() {
    let reset = Step::PioWrite(0x64, vec![0xfe]);
    let error = end_with(Arc::new(PanicsAtReset), reset);
    assert!(error.contains("machine's thread panicked"), "{error}");
    // ACPI S5: SLP_TYP 5 and SLP_EN in the PM1a control register.
    let power_off = Step::PioWrite(0x604, vec![0x00, 0x34]);
    let error = end_with(Arc::new(PanicsAtTheEnd), power_off);
    assert!(error.contains("machine's thread panicked"), "{error}");
}
