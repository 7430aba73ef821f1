//! Whether this KVM can run an unmodified operating system.
//!
//! A KVM without virtualization hardware below it may emulate whatever the guest does in ring 0, with an emulator
//! that was made for the few instructions that touch devices. Kernels then die early and obscurely. The guest here
//! executes, in a long-mode kernel's surroundings, what every x86-64 kernel needs and such emulators lack: `popcnt`,
//! `cmpxchg16b`, a breakpoint through the IDT, and a system call from ring 3. It names each step on a port before it
//! takes it.

use std::arch::global_asm;
use std::sync::mpsc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::Kvm;
use crate::accel::{AccelVcpu, AccelVm, Accelerator, Error, Exit, ExitHandler, VmSpec};
use crate::arch::CpuState;
use crate::arch::x86_64::state::{DescriptorTable, Registers, Segment, SystemRegisters};
use crate::bus::Flow;
use crate::memory::{Backing, GuestRam};

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const STACK: u64 = 0x9000;
const CODE: u64 = 0x1_0000;

const STEP_PORT: u16 = 0x80;
const RESULT_PORT: u16 = 0x81;
const PASSED: u8 = 0x55;

/// Steps as the guest numbers them, from 1.
const STEPS: [&str; 4] =
    ["popcnt in ring 0", "cmpxchg16b in ring 0", "int3 in ring 0", "syscall from ring 3"];

/// A breakpoint that works returns at once; this is for one that never does.
const PATIENCE: Duration = Duration::from_secs(3);

global_asm!(
    ".pushsection .rodata.hyperkit_probe, \"a\"",
    ".globl hyperkit_probe_start, hyperkit_probe_breakpoint, hyperkit_probe_end",
    "hyperkit_probe_start:",
    "mov al, 1",
    "out 0x80, al",
    "mov eax, 0xff",
    "popcnt eax, eax",
    "cmp eax, 8",
    "jne 9f",
    "mov al, 2",
    "out 0x80, al",
    "mov edi, 0x6000",
    "xor eax, eax",
    "xor edx, edx",
    "mov ebx, 1",
    "mov ecx, 2",
    "lock cmpxchg16b [rdi]",
    "jne 9f",
    "cmp dword ptr [rdi], 1",
    "jne 9f",
    "mov al, 3",
    "out 0x80, al",
    "xor r12d, r12d",
    "int3",
    "cmp r12d, 3",
    "jne 9f",
    "mov al, 4",
    "out 0x80, al",
    // STAR: kernel selectors from 0x08, user selectors from 0x18.
    "mov ecx, 0xc0000081",
    "xor eax, eax",
    "mov edx, 0x00180008",
    "wrmsr",
    // LSTAR
    "lea rax, [rip + 5f]",
    "mov rdx, rax",
    "shr rdx, 32",
    "mov ecx, 0xc0000082",
    "wrmsr",
    // EFER.SCE
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 1",
    "wrmsr",
    "lea rcx, [rip + 4f]",
    "mov r11d, 2",
    "sysretq",
    "4:",
    "syscall",
    "jmp 9f",
    "5:",
    "mov al, 0x55",
    "out 0x81, al",
    "9:",
    "mov al, 0xee",
    "out 0x81, al",
    "hlt",
    "hyperkit_probe_breakpoint:",
    "mov r12d, 3",
    "iretq",
    "hyperkit_probe_end:",
    ".popsection",
);

unsafe extern "C" {
    static hyperkit_probe_start: u8;
    static hyperkit_probe_breakpoint: u8;
    static hyperkit_probe_end: u8;
}

/// The guest's code, and where in it the breakpoint handler is.
fn code() -> (&'static [u8], u64) {
    let (start, end) = (&raw const hyperkit_probe_start, &raw const hyperkit_probe_end);
    let breakpoint = &raw const hyperkit_probe_breakpoint;
    // SAFETY: the three symbols lie in one read-only section, in this order.
    unsafe {
        let len = end.offset_from(start) as usize;
        (std::slice::from_raw_parts(start, len), breakpoint.offset_from(start) as u64)
    }
}

/// Hears from the guest.
#[derive(Default)]
struct Listener {
    step: u8,
    passed: bool,
}

impl ExitHandler for Listener {
    fn pio_read(&mut self, _port: u16, _data: &mut [u8]) {}

    fn pio_write(&mut self, port: u16, data: &[u8]) -> Flow {
        match (port, data) {
            (STEP_PORT, &[step]) => self.step = step,
            (RESULT_PORT, &[result]) => {
                self.passed = result == PASSED;
                return Flow::Break(Exit::PowerOff);
            }
            _ => {}
        }
        Flow::Continue(())
    }

    fn mmio_read(&mut self, _gpa: u64, _data: &mut [u8]) {}

    fn mmio_write(&mut self, _gpa: u64, _data: &[u8]) -> Flow {
        Flow::Continue(())
    }
}

pub(super) fn probe(kvm: &Kvm) -> Result<(), Error> {
    let unsupported = |error: &dyn std::fmt::Display| Error::Unsupported(error.to_string());
    let ram =
        GuestRam::new(&[(0, 2 << 20)], Backing::Anonymous, false).map_err(|e| unsupported(&e))?;
    let (code, breakpoint) = code();
    write_tables(&ram, breakpoint).map_err(|e| unsupported(&e))?;
    ram.memory().write_slice(code, GuestAddress(CODE)).map_err(|e| unsupported(&e))?;

    let vm = kvm.create_vm(&VmSpec::new(1))?;
    vm.map(&ram)?;
    let mut vcpu = vm.vcpu(0)?.bind()?;
    vcpu.reset(Some(&entry()))?;

    let kicker = vcpu.kicker();
    let (done, waiting) = mpsc::channel::<()>();
    let mut listener = Listener::default();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                kicker.kick();
            }
        });
        let outcome = vcpu.run(&mut listener);
        drop(done);
        outcome
    });
    if listener.passed {
        return Ok(());
    }
    let step = usize::from(listener.step).checked_sub(1).and_then(|step| STEPS.get(step));
    let step = step.unwrap_or(&"the first instruction");
    let how = match outcome {
        Ok(Exit::PowerOff) => "gave a wrong result".into(),
        Ok(Exit::Crashed) => "ended in a triple fault".into(),
        Ok(Exit::Interrupted) => "never came back".into(),
        Ok(exit) => format!("ended with {exit:?}"),
        Err(error) => error.to_string(),
    };
    Err(Error::Unavailable {
        what: super::DEVICE.into(),
        why: format!("it cannot run an unmodified kernel: {step}: {how}"),
        hint: "use a host, or a virtual machine with nested virtualization, whose KVM has VMX or SVM below it"
            .into(),
    })
}

fn write_tables(ram: &GuestRam, breakpoint: u64) -> Result<(), vm_memory::GuestMemoryError> {
    let memory = ram.memory();
    let put = |value: u64, at: u64| memory.write_obj(value, GuestAddress(at));
    // Present, writable, for ring 3; the directory's one entry maps the first 2 MiB.
    put(PDPT | 7, PML4)?;
    put(DIRECTORY | 7, PDPT)?;
    put(0x87, DIRECTORY)?;
    for (at, descriptor) in [
        (0x08, 0x00af_9b00_0000_ffff_u64),
        (0x10, 0x00cf_9300_0000_ffff),
        (0x20, 0x00cf_f300_0000_ffff),
        (0x28, 0x00af_fb00_0000_ffff),
    ] {
        put(descriptor, GDT + at)?;
    }
    let handler = CODE + breakpoint;
    put(
        handler & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48,
        IDT + 3 * 16,
    )?;
    put(handler >> 32, IDT + 3 * 16 + 8)
}

fn entry() -> CpuState {
    let code = Segment { base: 0, limit: u32::MAX, selector: 0x08, access: 0xa09b };
    let data = Segment { base: 0, limit: u32::MAX, selector: 0x10, access: 0xc093 };
    CpuState {
        regs: Registers { rip: CODE, rsp: STACK, rflags: 2, ..Default::default() },
        system: SystemRegisters {
            cr0: 0x8005_0033,
            cr3: PML4,
            cr4: 0x2a0,
            efer: 0x500,
            cs: code,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment { base: 0, limit: 0xffff, selector: 0, access: 0x8b },
            ldt: Segment { base: 0, limit: 0xffff, selector: 0, access: 0x82 },
            gdt: DescriptorTable { base: GDT, limit: 0x2f },
            idt: DescriptorTable { base: IDT, limit: 0xff },
        },
    }
}
