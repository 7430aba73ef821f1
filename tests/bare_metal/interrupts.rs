//! Interrupt lines, doorbells, and the start of other processors, through the accelerator's traits.

use std::sync::mpsc;

use hyperkit::accel::kvm::{Kvm, KvmVm};
use hyperkit::accel::{AccelVcpu, AccelVm, Accelerator, Exit, ExitHandler, VmSpec};
use hyperkit::arch::CpuState;
use hyperkit::boot::{Kernel, LoadParams};
use hyperkit::bus::Flow;
use hyperkit::memory::{Backing, GuestRam};
use hyperkit::sys::Notifier;
use hyperkit::vm::End;

use super::guest::*;

// The boot processor copies a real-mode trampoline to 0x8000 and starts processor 1 there by INIT and SIPI.
guest!(
    starts_another,
    "cld",
    "lea rsi, [rip + 5f]",
    "mov edi, 0x8000",
    "mov ecx, 64",
    "rep movsb",
    "mov ebx, 0xfee00000",
    // Local APIC on.
    "mov dword ptr [rbx + 0xf0], 0x1ff",
    "mov dword ptr [rbx + 0x310], 0x01000000",
    "mov dword ptr [rbx + 0x300], 0x4500",
    "mov dword ptr [rbx + 0x310], 0x01000000",
    "mov dword ptr [rbx + 0x300], 0x4608",
    "2: hlt",
    "jmp 2b",
    "5:",
    ".code16",
    "mov dx, 0x500",
    "mov al, 0x41",
    "out dx, al",
    "mov dx, 0x604",
    "mov ax, 0x3400",
    "out dx, ax",
    "3: hlt",
    "jmp 3b",
    "6:",
    ".code64",
);

#[test]
fn a_second_processor_starts_when_the_first_says_so() {
    if !have_kvm() {
        return;
    }
    let (builder, _reporter, received) = machine(starts_another());
    let vm = builder.cpus(2).build().unwrap().start().unwrap();
    assert_eq!(vm.wait().unwrap(), End::PowerOff);
    assert_eq!(written(&received), [(0, vec![0x41])]);
}

/// A vCPU on its own thread, without the builder; what it writes comes out of the channel.
struct Bare {
    vm: KvmVm,
    writes: mpsc::Receiver<(u64, u32)>,
    kicker: hyperkit::accel::Kicker,
    thread: std::thread::JoinHandle<Exit>,
}

struct Writes(mpsc::Sender<(u64, u32)>);

impl Writes {
    fn send(&self, at: u64, data: &[u8]) -> Flow {
        let mut word = [0; 4];
        word[..data.len()].copy_from_slice(data);
        self.0.send((at, u32::from_le_bytes(word))).unwrap();
        Flow::Continue(())
    }
}

impl ExitHandler for Writes {
    fn pio_read(&mut self, _port: u16, _data: &mut [u8]) {}
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Flow {
        self.send(port.into(), data)
    }
    fn mmio_read(&mut self, _gpa: u64, _data: &mut [u8]) {}
    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow {
        self.send(gpa, data)
    }
}

fn bare(code: &[u8], prepare: impl FnOnce(&KvmVm)) -> Bare {
    let ram = GuestRam::new(&[(0, 16 << 20)], Backing::Anonymous, false).unwrap();
    let vm = Kvm::open().unwrap().create_vm(&VmSpec::new(1)).unwrap();
    vm.map(&ram).unwrap();
    prepare(&vm);
    let payload = Kernel::flat(code, CODE, CpuState::long_mode(CODE)).open().unwrap();
    let entry = payload.load(&ram, &LoadParams::new("")).unwrap();
    let binder = vm.vcpu(0).unwrap();
    let (writes, received) = mpsc::channel();
    let (ready, kicker) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut vcpu = binder.bind().unwrap();
        vcpu.reset(Some(&entry)).unwrap();
        ready.send(vcpu.kicker()).unwrap();
        vcpu.run(&mut Writes(writes)).unwrap()
    });
    Bare { vm, writes: received, kicker: kicker.recv_timeout(SOON).unwrap(), thread }
}

impl Bare {
    fn end(self) {
        self.kicker.kick();
        assert_eq!(self.thread.join().unwrap(), Exit::Interrupted);
    }
}

// Routes line 5 of the I/O APIC to vector 0x30 and sleeps. The handler reports, acknowledges, and with a level
// waits for the test to let the line down.
guest!(
    hears_line_5,
    "lea rax, [rip + 7f]",
    "mov edi, 0x200000",
    // A gate for vector 0x30: 64-bit interrupt gate, code selector 0x10.
    "mov [rdi + 0x300], ax",
    "mov word ptr [rdi + 0x302], 0x10",
    "mov word ptr [rdi + 0x304], 0x8e00",
    "shr rax, 16",
    "mov [rdi + 0x306], ax",
    "mov dword ptr [rdi + 0x308], 0",
    "mov dword ptr [rdi + 0x30c], 0",
    "push 0x200000",
    "mov word ptr [rsp - 2], 0xfff",
    "lidt [rsp - 2]",
    // The legacy controllers off.
    "mov al, 0xff",
    "out 0x21, al",
    "out 0xa1, al",
    "mov ebx, 0xfee00000",
    "mov dword ptr [rbx + 0xf0], 0x1ff",
    "mov ecx, 0xfec00000",
    "mov dword ptr [rcx], 0x1b",
    "mov dword ptr [rcx + 0x10], 0",
    "mov dword ptr [rcx], 0x1a",
    "mov dword ptr [rcx + 0x10], 0x30",
    "mov dx, 0x500",
    "mov al, 1",
    "out dx, al",
    "sti",
    "2: hlt",
    "jmp 2b",
    "7: mov al, 2",
    "out dx, al",
    "mov dword ptr [rbx + 0xb0], 0",
    "iretq",
);

#[test]
fn edges_of_a_line_reach_the_guest() {
    if !have_kvm() {
        return;
    }
    let bare = bare(hears_line_5(), |_| {});
    let line = bare.vm.interrupts().unwrap().line(5).unwrap();
    assert_eq!(bare.writes.recv_timeout(SOON).unwrap(), (0x500, 1));
    for _ in 0..100 {
        line.pulse();
        assert_eq!(bare.writes.recv_timeout(SOON).unwrap(), (0x500, 2));
    }
    bare.end();
}

#[test]
fn a_rising_level_of_a_line_reaches_the_guest_once() {
    if !have_kvm() {
        return;
    }
    let bare = bare(hears_line_5(), |_| {});
    let line = bare.vm.interrupts().unwrap().line(5).unwrap();
    assert_eq!(bare.writes.recv_timeout(SOON).unwrap(), (0x500, 1));
    for _ in 0..20 {
        line.set_level(true);
        line.set_level(true);
        assert_eq!(bare.writes.recv_timeout(SOON).unwrap(), (0x500, 2));
        line.set_level(false);
    }
    assert!(bare.writes.try_recv().is_err());
    bare.end();
}

#[test]
fn lines_that_do_not_exist_are_refused() {
    if !have_kvm() {
        return;
    }
    let vm = Kvm::open().unwrap().create_vm(&VmSpec::new(1)).unwrap();
    let error = vm.interrupts().unwrap().line(24).err().unwrap().to_string();
    assert!(error.contains("24"), "{error}");
}

guest!(
    rings,
    "mov ebx, 0xd0000050",
    "mov dx, 0x500",
    "2: mov dword ptr [rbx], 1",
    "mov dword ptr [rbx], 2",
    "mov dword ptr [rbx], 3",
    "mov al, 9",
    "out dx, al",
    "3: hlt",
    "jmp 3b",
);

#[test]
fn a_doorbell_wakes_its_notifier_and_leaves_the_vcpu_alone() {
    if !have_kvm() {
        return;
    }
    let notifiers = [Notifier::new().unwrap(), Notifier::new().unwrap(), Notifier::new().unwrap()];
    let bare = bare(rings(), |vm| {
        let doorbells = vm.doorbells().unwrap();
        doorbells.attach(0xd000_0050, 1, &notifiers[0]).unwrap();
        doorbells.attach(0xd000_0050, 3, &notifiers[1]).unwrap();
        doorbells.attach(0xd000_0050, 4, &notifiers[2]).unwrap();
        // The same doorbell twice is an error that says where.
        let error = doorbells.attach(0xd000_0050, 1, &notifiers[0]).unwrap_err().to_string();
        assert!(error.contains("0xd0000050"), "{error}");
    });
    assert_eq!(bare.writes.recv_timeout(SOON).unwrap(), (0xd000_0050, 2));
    assert_eq!(bare.writes.recv_timeout(SOON).unwrap(), (0x500, 9));
    assert_eq!(notifiers.map(|notifier| notifier.clear()), [true, true, false]);
    bare.end();
}

guest!(turns, "2: jmp 2b");

#[test]
fn a_kick_is_not_lost_whenever_it_comes() {
    if !have_kvm() {
        return;
    }
    let ram = GuestRam::new(&[(0, 16 << 20)], Backing::Anonymous, false).unwrap();
    let vm = Kvm::open().unwrap().create_vm(&VmSpec::new(1)).unwrap();
    vm.map(&ram).unwrap();
    let payload = Kernel::flat(turns(), CODE, CpuState::long_mode(CODE)).open().unwrap();
    let entry = payload.load(&ram, &LoadParams::new("")).unwrap();
    let mut vcpu = vm.vcpu(0).unwrap().bind().unwrap();
    vcpu.reset(Some(&entry)).unwrap();
    let kicker = vcpu.kicker();
    let mut writes = Writes(mpsc::channel().0);
    // Before the run, twice: counts as one.
    kicker.kick();
    kicker.kick();
    assert_eq!(vcpu.run(&mut writes).unwrap(), Exit::Interrupted);
    // At any moment around it.
    let (go, gone) = mpsc::channel::<u32>();
    let kicks = std::thread::spawn(move || {
        for pause in gone {
            for _ in 0..pause {
                std::hint::spin_loop();
            }
            kicker.kick();
        }
        kicker
    });
    for n in 0..2000 {
        go.send(n * 7 % 3000).unwrap();
        assert_eq!(vcpu.run(&mut writes).unwrap(), Exit::Interrupted);
    }
    drop(go);
    let kicker = kicks.join().unwrap();
    assert_eq!(vcpu.state().unwrap().regs.rip, CODE);
    drop(vcpu);
    // A kick after the vCPU has gone does nothing.
    kicker.kick();
}
