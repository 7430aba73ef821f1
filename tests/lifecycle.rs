//! The life cycle of a machine, on the scripted accelerator: nothing here needs a hypervisor.

#![cfg(target_arch = "x86_64")]
#![allow(missing_docs)]

#[path = "common/small_vm.rs"]
mod small_vm;

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use hyperkit::accel::Exit;
use hyperkit::accel::scripted::{Event, Scripted, Step};
use hyperkit::boot::Kernel;
use hyperkit::bus::{BusDevice, Flow};
use hyperkit::console::Console;
use hyperkit::disk::Disk;
use hyperkit::net::{Datagram, DatagramOptions};
use hyperkit::virtio::rng::Rng;
use hyperkit::vm::{End, OnReset, Vm, VmBuilder};
use hyperkit::vsock::Vsock;
use small_vm::{SOON, builder, start};

/// One vCPU per script; how the machine ends, and what happened.
fn play(scripts: &[&[Step]]) -> (Result<End, String>, Vec<Event>) {
    let scripts: Vec<_> = scripts.iter().map(|script| script.to_vec()).collect();
    let cpus = scripts.len() as u32;
    let accelerator = Scripted::new(scripts);
    let vm = start(builder().cpus(cpus).accelerator(accelerator.clone()));
    let end = vm.wait_timeout(SOON).expect("the machine ends").map_err(|error| error.to_string());
    (end, accelerator.events())
}

/// ACPI S5: SLP_TYP 5 and SLP_EN in the PM1a control register.
fn power_off() -> Step {
    Step::PioWrite(0x604, vec![0x00, 0x34])
}

#[test]
fn every_way_to_end_is_told_apart() {
    assert_eq!(play(&[&[power_off()]]).0, Ok(End::PowerOff));
    assert_eq!(play(&[&[Step::Exit(Exit::PowerOff)]]).0, Ok(End::PowerOff));
    assert_eq!(play(&[&[Step::Exit(Exit::Crashed)]]).0, Ok(End::Crashed));
    assert_eq!(play(&[&[Step::Exit(Exit::Halted)]]).0, Ok(End::Halted));
    let (end, _) = play(&[&[Step::Fail]]);
    assert!(end.unwrap_err().contains("the script says to fail"));
}

#[test]
fn whoever_waits_may_wait_for_as_long_as_there_is() {
    let vm = start(builder().accelerator(Scripted::new([vec![power_off()]])));
    for timeout in [SOON, Duration::MAX] {
        assert_eq!(vm.wait_timeout(timeout).unwrap().unwrap(), End::PowerOff);
    }
}

#[test]
fn only_the_last_vcpu_that_halts_ends_the_machine() {
    let halt = [Step::Exit(Exit::Halted)];
    let (end, _) = play(&[&halt, &halt, &halt]);
    assert_eq!(end, Ok(End::Halted));

    let scripts = vec![halt.to_vec(), vec![Step::Spin]];
    let vm = start(builder().cpus(2).accelerator(Scripted::new(scripts)));
    assert!(vm.wait_timeout(Duration::from_millis(100)).is_none());
    vm.stop();
    assert_eq!(vm.wait().unwrap(), End::Stopped);
}

#[test]
fn unclaimed_addresses_read_as_ones() {
    let reads = [Step::PioRead(0x4f0, 4), Step::MmioRead(0xc800_0000, 8), power_off()];
    let (end, events) = play(&[&reads]);
    assert_eq!(end, Ok(End::PowerOff));
    let read: Vec<_> = events.iter().filter(|event| matches!(event, Event::Read(..))).collect();
    assert_eq!(read, [&Event::Read(0, vec![0xff; 4]), &Event::Read(0, vec![0xff; 8])]);
}

#[test]
fn a_reset_starts_every_vcpu_and_the_chips_anew() {
    // Each life of the boot processor resets the machine; the registers at 0xcf9 keep nothing of the one before.
    let reset = [Step::PioRead(0xcf9, 1), Step::PioWrite(0xcf9, vec![6])];
    let accelerator = Scripted::new([reset.to_vec(), vec![Step::Spin]]);
    let vm = start(builder().cpus(2).accelerator(accelerator.clone()));
    while accelerator.events().iter().filter(|event| **event == Event::ChipsReset).count() < 5 {
        assert!(vm.wait_timeout(Duration::from_millis(1)).is_none());
    }
    vm.stop();
    let events = accelerator.events();
    let count = |wanted: &Event| events.iter().filter(|event| *event == wanted).count();
    assert!(count(&Event::Reset(0, true)) >= 5);
    assert!(count(&Event::Reset(1, false)) >= 5);
    let reads: Vec<_> = events.iter().filter(|event| matches!(event, Event::Read(..))).collect();
    assert!(reads.iter().all(|read| **read == Event::Read(0, vec![0])), "{reads:?}");
}

#[test]
fn a_reset_can_be_the_end() {
    let script = vec![Step::PioWrite(0x64, vec![0xfe])];
    let accelerator = Scripted::new([script]);
    let vm = start(builder().on_reset(OnReset::End).accelerator(accelerator));
    assert_eq!(vm.wait_timeout(SOON).unwrap().unwrap(), End::Reset);
}

#[test]
fn pause_and_resume_work_without_doorbells_and_with() {
    for doorbells in [false, true] {
        let mut accelerator = Scripted::new([vec![Step::Spin; 1000]]);
        if doorbells {
            accelerator = accelerator.with_doorbells();
        }
        let vm = start(builder().rng(true).console(Console::null()).accelerator(accelerator));
        for _ in 0..50 {
            vm.pause().unwrap();
            assert!(vm.is_paused());
            vm.resume().unwrap();
            assert!(!vm.is_paused());
        }
        vm.pause().unwrap();
        drop(vm);
    }
}

#[test]
fn the_power_button_raises_the_system_control_interrupt() {
    // PM1 enable, bit 8: power button.
    let script = vec![Step::PioWrite(0x602, vec![0x00, 0x01]), Step::Spin];
    let accelerator = Scripted::new([script]);
    let vm = start(builder().accelerator(accelerator.clone()));
    let pressed = || accelerator.events().contains(&Event::Level(9, true));
    for _ in 0..2000 {
        vm.power_button();
        if pressed() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(pressed());
}

/// On macOS the next machine of the process waits for it, and everywhere the guest's memory does.
#[test]
fn a_machine_that_has_ended_is_gone_while_its_handles_live() {
    let accelerator = Scripted::new([vec![Step::Spin]]);
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let (socket, _peer) = UnixDatagram::pair().unwrap();
    let builder = builder()
        .serial(Console::null())
        .console(Console::null())
        .disk(Disk::raw(image.path()).unwrap())
        .net(Datagram::from_fd(socket.into(), DatagramOptions::default()))
        .vsock(Vsock::new());
    let vm = start(builder.accelerator(accelerator.clone()));
    let handles = (vm.disks().to_vec(), vm.cards().to_vec(), vm.vsock().clone());
    vm.power_button();
    assert!(!accelerator.events().contains(&Event::Gone));
    vm.stop();
    assert!(accelerator.events().contains(&Event::Gone));
    vm.power_button();
    assert_eq!(vm.wait().unwrap(), End::Stopped);
    drop(handles);
}

struct Panics;

impl BusDevice for Panics {
    fn read(&self, _offset: u64, _data: &mut [u8]) {
        panic!("on purpose");
    }
    fn write(&self, _offset: u64, _data: &[u8]) -> Flow {
        Flow::Continue(())
    }
}

#[test]
fn a_device_that_panics_ends_its_machine_and_nothing_else() {
    let script = vec![Step::PioRead(0x500, 1), Step::Spin];
    let accelerator = Scripted::new([script, vec![Step::Spin]]);
    let builder = builder().cpus(2).port_device("panics", 0x500, 1, Arc::new(Panics));
    let vm = start(builder.accelerator(accelerator));
    let error = vm.wait_timeout(SOON).unwrap().unwrap_err().to_string();
    assert!(error.contains("panicked"), "{error}");
}

#[test]
fn a_machine_that_cannot_be_is_refused_before_it_runs() {
    let nothing = || Scripted::new([]);
    let refused = |builder: VmBuilder, word: &str| {
        let error = builder.accelerator(nothing()).build().unwrap_err().to_string();
        assert!(error.contains(word), "{error:?} does not contain {word:?}");
    };
    refused(Vm::builder(), "something to boot");
    refused(builder().cpus(0), "at least one vCPU");
    refused(builder().memory(0), "no memory there");
    refused(builder().memory((8 << 20) + 1), "page size");
    refused(builder().kernel(Kernel::linux("/nonexistent/vmlinuz")), "/nonexistent/vmlinuz");
    let many = (0..15).fold(builder(), |builder, _| builder.device(Rng::new()));
    refused(many, "14 virtio devices");
    let many = (0..5).fold(builder(), |builder, _| builder.serial(Console::null()));
    refused(many, "4 serial ports; this is number 5");
    let device = Arc::new(Panics);
    refused(builder().port_device("mine", 0x64, 1, device.clone()), "mine");
    refused(builder().mmio_device("mine", 0x10_0000, 0x1000, device.clone()), "mine");
    refused(builder().mmio_device("mine", 0xfec0_0000, 0x1000, device), "mine");
}

#[test]
fn a_machine_without_sockets_says_so_and_one_with_them_waits_for_its_guest() {
    let without = start(builder().accelerator(Scripted::new(vec![vec![Step::Spin]])));
    let error = without.vsock().connect(1).unwrap_err();
    assert_eq!(error.to_string(), "the machine has no socket device: give its builder a `vsock`");
    assert!(without.vsock().listen(1).is_err());

    let scripted = Scripted::new(vec![vec![Step::Spin]]);
    let with = start(builder().vsock(Vsock::new().cid(7)).accelerator(scripted));
    let error = with.vsock().connect(1).unwrap_err();
    assert!(error.to_string().contains("has no driver"), "{error}");
    let (handle, listener) = (with.vsock().clone(), with.vsock().listen(1).unwrap());
    assert_eq!(handle.cid(), 7);
    let waiting = std::thread::spawn(move || listener.accept().map(drop));
    with.stop();
    drop(with);
    assert_eq!(waiting.join().unwrap().unwrap_err().to_string(), "the machine has ended");
    assert_eq!(handle.connect(1).unwrap_err().to_string(), "the machine has ended");
}
