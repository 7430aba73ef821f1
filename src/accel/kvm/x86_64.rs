//! What is particular to KVM on x86-64: processor state, CPUID, MSRs, the in-kernel interrupt controllers and timer.
//!
//! A reset in place must leave nothing of the guest's last life behind. So everything that KVM lets us read is
//! read once, right after the vCPU or the VM was made, and written back at each reset.

use kvm_bindings::*;
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use crate::accel::{Controller, Error, Exit};
use crate::arch::CpuState;
use crate::arch::x86_64::cpuid::{self, CpuidEntry};
use crate::arch::x86_64::layout;
use crate::arch::x86_64::state::{DescriptorTable, Registers, Segment, SystemRegisters};
use crate::memory::GuestRam;

use super::{Kvm, call};

/// Interrupt lines of KVM's I/O APIC.
pub(super) const LINES: u32 = 24;

/// What this crate cannot do without, by the kernel's names, besides what every architecture has.
pub(super) const REQUIRED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
];

/// Length of an instruction at most.
const MAX_INSTRUCTION: usize = 15;

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Local APIC register offsets and modes (Intel SDM volume 3, section 11.5.1).
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const APIC_MODE_NMI: u32 = 4 << 8;
const APIC_MODE_EXT_INT: u32 = 7 << 8;

/// What is the same for every vCPU of a VM, and the power-on state of the VM's own chips.
pub(super) struct Platform {
    cpuid: Vec<CpuidEntry>,
    options: cpuid::Options,
    msrs: Vec<u32>,
    chips: Option<Chips>,
}

struct Chips {
    irqchips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
}

impl Platform {
    pub fn new(kvm: &Kvm, vm: &VmFd, _cpus: u32) -> Result<Self, Error> {
        let (kvm, irqchip) = (&kvm.kvm, kvm.irqchip);
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(layout::KVM_TSS as usize).map_err(call("KVM_SET_TSS_ADDR"))?;
        let chips = if irqchip { Some(Chips::create(vm)?) } else { None };
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
        let msrs = kvm.get_msr_index_list().map_err(call("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(Self {
            cpuid: supported.as_slice().iter().map(from_kvm_cpuid).collect(),
            options: cpuid::Options {
                tsc_deadline: irqchip && kvm.check_extension(Cap::TscDeadlineTimer),
                kernel_irqchip: irqchip,
            },
            msrs: msrs.as_slice().to_vec(),
            chips,
        })
    }

    /// Makes vCPU `id`.
    pub fn vcpu(&self, vm: &VmFd, id: u32) -> Result<VcpuFd, Error> {
        vm.create_vcpu(id.into()).map_err(on_vcpu("KVM_CREATE_VCPU", id))
    }

    pub fn controller(&self) -> Controller {
        Controller::Apic
    }

    pub fn reset(&self, vm: &VmFd) -> Result<(), Error> {
        let Some(chips) = &self.chips else { return Ok(()) };
        for chip in &chips.irqchips {
            vm.set_irqchip(chip).map_err(call("KVM_SET_IRQCHIP"))?;
        }
        vm.set_pit2(&chips.pit).map_err(call("KVM_SET_PIT2"))
    }

    /// Gives a new vCPU its CPUID and boot-time MSRs, and remembers its state.
    pub fn prepare_vcpu(&self, fd: &VcpuFd, id: u32, cpus: u32) -> Result<Pristine, Error> {
        let entries: Vec<_> =
            cpuid::for_vcpu(&self.cpuid, id, cpus, self.options).iter().map(to_kvm_cpuid).collect();
        let table = CpuId::from_entries(&entries).map_err(|error| {
            Error::Unsupported(format!("the CPUID table is too long: {error:?}"))
        })?;
        fd.set_cpuid2(&table).map_err(on_vcpu("KVM_SET_CPUID2", id))?;
        Pristine::save(fd, id, &self.msrs, self.chips.is_some())
    }
}

impl Chips {
    fn create(vm: &VmFd) -> Result<Self, Error> {
        vm.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(config).map_err(call("KVM_CREATE_PIT2"))?;
        let mut irqchips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut irqchips {
            vm.get_irqchip(chip).map_err(call("KVM_GET_IRQCHIP"))?;
        }
        let pit = vm.get_pit2().map_err(call("KVM_GET_PIT2"))?;
        Ok(Self { irqchips, pit })
    }
}

/// A vCPU's state at power-on.
pub(super) struct Pristine {
    mp_state: Option<kvm_mp_state>,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    events: kvm_vcpu_events,
    lapic: Option<kvm_lapic_state>,
    msrs: Vec<kvm_msr_entry>,
}

impl Pristine {
    fn save(fd: &VcpuFd, id: u32, indices: &[u32], irqchip: bool) -> Result<Self, Error> {
        let (mut mp_state, mut lapic) = (None, None);
        if irqchip {
            mp_state = Some(fd.get_mp_state().map_err(on_vcpu("KVM_GET_MP_STATE", id))?);
            let mut state = fd.get_lapic().map_err(on_vcpu("KVM_GET_LAPIC", id))?;
            // Virtual wire mode: the boot processor takes the legacy controller's interrupts, all take NMIs.
            set_lvt(&mut state, APIC_LVT_LINT0, APIC_MODE_EXT_INT);
            set_lvt(&mut state, APIC_LVT_LINT1, APIC_MODE_NMI);
            lapic = Some(state);
        }
        Ok(Self {
            mp_state,
            regs: fd.get_regs().map_err(on_vcpu("KVM_GET_REGS", id))?,
            sregs: fd.get_sregs().map_err(on_vcpu("KVM_GET_SREGS", id))?,
            xsave: fd.get_xsave().map_err(on_vcpu("KVM_GET_XSAVE", id))?,
            xcrs: fd.get_xcrs().map_err(on_vcpu("KVM_GET_XCRS", id))?,
            debugregs: fd.get_debug_regs().map_err(on_vcpu("KVM_GET_DEBUGREGS", id))?,
            events: fd.get_vcpu_events().map_err(on_vcpu("KVM_GET_VCPU_EVENTS", id))?,
            lapic,
            msrs: boot_msrs(read_msrs(fd, indices)),
        })
    }

    pub fn load(&self, fd: &VcpuFd, id: u32) -> Result<(), Error> {
        if let Some(mp_state) = self.mp_state {
            fd.set_mp_state(mp_state).map_err(on_vcpu("KVM_SET_MP_STATE", id))?;
        }
        fd.set_regs(&self.regs).map_err(on_vcpu("KVM_SET_REGS", id))?;
        fd.set_sregs(&self.sregs).map_err(on_vcpu("KVM_SET_SREGS", id))?;
        // SAFETY: no feature that would make the state larger than `kvm_xsave` is ever enabled for the process.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(on_vcpu("KVM_SET_XSAVE", id))?;
        fd.set_xcrs(&self.xcrs).map_err(on_vcpu("KVM_SET_XCRS", id))?;
        fd.set_debug_regs(&self.debugregs).map_err(on_vcpu("KVM_SET_DEBUGREGS", id))?;
        write_msrs(fd, &self.msrs, id)?;
        if let Some(lapic) = &self.lapic {
            fd.set_lapic(lapic).map_err(on_vcpu("KVM_SET_LAPIC", id))?;
        }
        fd.set_vcpu_events(&self.events).map_err(on_vcpu("KVM_SET_VCPU_EVENTS", id))
    }
}

fn on_vcpu(call: &'static str, id: u32) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |error| Error::Call { call, on: format!(" for vCPU {id}"), source: error.into() }
}

fn set_lvt(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    for (to, from) in lapic.regs[register..register + 4].iter_mut().zip(mode.to_le_bytes()) {
        *to = from as _;
    }
}

/// Reads every MSR of `indices` that can be read. KVM stops at the first that cannot: it lists some that the
/// processor does not have.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Vec<kvm_msr_entry> {
    let mut left: Vec<_> =
        indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut read = Vec::new();
    while !left.is_empty() {
        let chunk = left.len().min(KVM_MAX_MSR_ENTRIES);
        let Ok(mut msrs) = Msrs::from_entries(&left[..chunk]) else { break };
        let count = fd.get_msrs(&mut msrs).unwrap_or(0).min(chunk);
        read.extend_from_slice(&msrs.as_slice()[..count]);
        // Behind the ones that were read, one that cannot be.
        let skip = if count < chunk { count + 1 } else { count };
        left.drain(..skip);
    }
    read
}

/// What the MSRs are to be at boot: as they came, but the TSC at zero (which also makes the vCPUs' agree), and what
/// firmware would have set up.
fn boot_msrs(mut msrs: Vec<kvm_msr_entry>) -> Vec<kvm_msr_entry> {
    for (index, data) in [
        (MSR_IA32_TSC, 0),
        (MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ] {
        match msrs.iter_mut().find(|msr| msr.index == index) {
            Some(msr) => msr.data = if data == 0 { 0 } else { msr.data | data },
            None => msrs.push(kvm_msr_entry { index, data, ..Default::default() }),
        }
    }
    msrs
}

fn write_msrs(fd: &VcpuFd, msrs: &[kvm_msr_entry], id: u32) -> Result<(), Error> {
    let mut left = msrs;
    while !left.is_empty() {
        let chunk = left.len().min(KVM_MAX_MSR_ENTRIES);
        let table = Msrs::from_entries(&left[..chunk])
            .map_err(|error| Error::Unsupported(format!("too many MSRs: {error:?}")))?;
        let count = fd.set_msrs(&table).map_err(on_vcpu("KVM_SET_MSRS", id))?.min(chunk);
        if count < chunk {
            // Readable but not writable, with the value it already has.
            log::debug!("vCPU {id}: MSR {:#x} cannot be written", left[count].index);
            left = &left[count + 1..];
        } else {
            left = &left[count..];
        }
    }
    Ok(())
}

/// The number of an interrupt line for KVM_IRQ_LINE.
pub(super) fn irq(gsi: u32) -> u32 {
    gsi
}

/// An exit that is not the same on every architecture.
pub(super) fn other_exit(_fd: &VcpuFd, reason: u32, vcpu: u32) -> Result<Option<Exit>, Error> {
    Err(Error::UnexpectedExit { vcpu, reason })
}

/// Where the guest is; 0 if that cannot be had.
pub(super) fn program_counter(fd: &VcpuFd) -> u64 {
    fd.get_regs().map_or(0, |regs| regs.rip)
}

/// The bytes at `rip`, through the guest's page tables; empty if they cannot be had.
pub(super) fn instruction_at(fd: &VcpuFd, ram: &GuestRam, rip: u64) -> Vec<u8> {
    let base = fd.get_sregs().map_or(0, |sregs| sregs.cs.base);
    let physical = match fd.translate_gva(base.wrapping_add(rip)) {
        Ok(found) if found.valid != 0 => GuestAddress(found.physical_address),
        _ => return Vec::new(),
    };
    let mut bytes = vec![0; MAX_INSTRUCTION];
    match ram.memory().read(&mut bytes, physical) {
        Ok(len) => bytes.truncate(len),
        Err(_) => bytes.clear(),
    }
    bytes
}

pub(super) fn set_state(fd: &VcpuFd, state: &CpuState, id: u32) -> Result<(), Error> {
    let r = &state.regs;
    let regs = kvm_regs {
        rax: r.rax,
        rbx: r.rbx,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        rsp: r.rsp,
        rbp: r.rbp,
        r8: r.r8,
        r9: r.r9,
        r10: r.r10,
        r11: r.r11,
        r12: r.r12,
        r13: r.r13,
        r14: r.r14,
        r15: r.r15,
        rip: r.rip,
        rflags: r.rflags,
    };
    let s = &state.system;
    let mut sregs = fd.get_sregs().map_err(on_vcpu("KVM_GET_SREGS", id))?;
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (s.cr0, s.cr3, s.cr4, s.efer);
    for (to, from) in [
        (&mut sregs.cs, &s.cs),
        (&mut sregs.ds, &s.ds),
        (&mut sregs.es, &s.es),
        (&mut sregs.fs, &s.fs),
        (&mut sregs.gs, &s.gs),
        (&mut sregs.ss, &s.ss),
        (&mut sregs.tr, &s.tr),
        (&mut sregs.ldt, &s.ldt),
    ] {
        *to = to_kvm_segment(from);
    }
    for (to, from) in [(&mut sregs.gdt, &s.gdt), (&mut sregs.idt, &s.idt)] {
        *to = kvm_dtable { base: from.base, limit: from.limit, ..Default::default() };
    }
    fd.set_sregs(&sregs).map_err(on_vcpu("KVM_SET_SREGS", id))?;
    fd.set_regs(&regs).map_err(on_vcpu("KVM_SET_REGS", id))
}

pub(super) fn state(fd: &VcpuFd, id: u32) -> Result<CpuState, Error> {
    let r = fd.get_regs().map_err(on_vcpu("KVM_GET_REGS", id))?;
    let s = fd.get_sregs().map_err(on_vcpu("KVM_GET_SREGS", id))?;
    let table = |from: &kvm_dtable| DescriptorTable { base: from.base, limit: from.limit };
    Ok(CpuState {
        regs: Registers {
            rax: r.rax,
            rbx: r.rbx,
            rcx: r.rcx,
            rdx: r.rdx,
            rsi: r.rsi,
            rdi: r.rdi,
            rsp: r.rsp,
            rbp: r.rbp,
            r8: r.r8,
            r9: r.r9,
            r10: r.r10,
            r11: r.r11,
            r12: r.r12,
            r13: r.r13,
            r14: r.r14,
            r15: r.r15,
            rip: r.rip,
            rflags: r.rflags,
        },
        system: SystemRegisters {
            cr0: s.cr0,
            cr3: s.cr3,
            cr4: s.cr4,
            efer: s.efer,
            cs: from_kvm_segment(&s.cs),
            ds: from_kvm_segment(&s.ds),
            es: from_kvm_segment(&s.es),
            fs: from_kvm_segment(&s.fs),
            gs: from_kvm_segment(&s.gs),
            ss: from_kvm_segment(&s.ss),
            tr: from_kvm_segment(&s.tr),
            ldt: from_kvm_segment(&s.ldt),
            gdt: table(&s.gdt),
            idt: table(&s.idt),
        },
    })
}

fn to_kvm_segment(from: &Segment) -> kvm_segment {
    let bit = |at: u32| (from.access >> at & 1) as u8;
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: (from.access & 0xf) as u8,
        s: bit(4),
        dpl: (from.access >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: 1 - bit(7),
        padding: 0,
    }
}

fn from_kvm_segment(from: &kvm_segment) -> Segment {
    let bits = [(from.type_, 0), (from.s, 4), (from.dpl, 5), (from.present, 7)]
        .into_iter()
        .chain([(from.avl, 12), (from.l, 13), (from.db, 14), (from.g, 15)]);
    let access = bits.fold(0, |access, (value, at)| access | u16::from(value) << at);
    Segment { base: from.base, limit: from.limit, selector: from.selector, access }
}

fn from_kvm_cpuid(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        function: entry.function,
        index: entry.index,
        significant_index: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

fn to_kvm_cpuid(entry: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: entry.function,
        index: entry.index,
        flags: if entry.significant_index { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_the_way_to_kvm_and_back() {
        for access in [0, 0x9b, 0xa09b, 0xc093, 0x8b, 0x82, 0xf0ff] {
            let segment = Segment { base: 0x1234_5000, limit: 0xf_ffff, selector: 0x10, access };
            assert_eq!(from_kvm_segment(&to_kvm_segment(&segment)), segment);
        }
    }
}
