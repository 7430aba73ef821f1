//! What CPUID tells the guest: the accelerator's table, made to fit one vCPU.
//!
//! An accelerator reports what it can show a guest, mostly the host processor's own answers. Those speak of the host's
//! cores, caches and power management, so they are rewritten to the machine that the guest has:
//! one package with a core for each vCPU, one thread each, all sharing the last-level cache; timers that run
//! in every sleep state, and no instructions to wait for memory writes. Security features stay as reported.
//! Virtualization is not offered: a reset in place could not take a guest's own guests along.
//!
//! Leaves as in Intel's SDM, volume 2, CPUID, and AMD's APM, volume 3, appendix E.

/// One answer of CPUID, for one leaf and, where it matters, one subleaf.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the processor's own")]
pub struct CpuidEntry {
    /// The leaf, EAX of the question.
    pub function: u32,
    /// The subleaf, ECX of the question.
    pub index: u32,
    /// Whether ECX of the question matters.
    pub significant_index: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// What the accelerator does that its table does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Its local APIC has the TSC-deadline timer.
    pub tsc_deadline: bool,
    /// It has the interrupt controllers, so that the features that go with its local APIC work.
    pub kernel_irqchip: bool,
}

const BASIC: u32 = 0x0;
const FEATURES: u32 = 0x1;
const CACHES: u32 = 0x4;
const MONITOR: u32 = 0x5;
const POWER: u32 = 0x6;
const PERFORMANCE: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const TSC_FREQUENCY: u32 = 0x15;
const CPU_FREQUENCY: u32 = 0x16;
const TOPOLOGY_V2: u32 = 0x1f;
const KVM_FEATURES: u32 = 0x4000_0001;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

// Leaf 1, ECX.
const ECX_MONITOR: u32 = 1 << 3;
const ECX_VMX: u32 = 1 << 5;
const ECX_PDCM: u32 = 1 << 15;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
/// Mirrors a bit that the guest sets in CR4, so it is clear at power-on.
const ECX_OSXSAVE: u32 = 1 << 27;
const ECX_HYPERVISOR: u32 = 1 << 31;
// Leaf 1, EDX.
const EDX_CLFLUSH: u32 = 1 << 19;
/// The package has more than one logical processor.
const EDX_HTT: u32 = 1 << 28;
/// Leaf 6, EAX: the local APIC timer does not stop in sleep states.
const EAX_ARAT: u32 = 1 << 2;
// Leaf 0x8000_0001, ECX.
/// What look like threads (by `EDX_HTT`) are cores.
const ECX_CMP_LEGACY: u32 = 1 << 1;
const ECX_TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
const ECX_SVM: u32 = 1 << 2;
const ECX_MONITORX: u32 = 1 << 29;
/// Leaf 0x4000_0001, EAX (Linux, `Documentation/virt/kvm/x86/cpuid.rst`): asynchronous page faults, end of
/// interrupt in memory, wake-ups, interrupts by hypercall, asynchronous page faults by interrupt. All need KVM's APIC.
const EAX_NEEDS_KVM_APIC: u32 = 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 14;

// Leaf 0xb, ECX: what a level is made of.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// The table for vCPU `id` of `cpus`, whose APIC id is `id` too, from what the accelerator reports as `supported`.
pub fn for_vcpu(supported: &[CpuidEntry], id: u32, cpus: u32, options: Options) -> Vec<CpuidEntry> {
    let leaf = |function| supported.iter().find(|entry| entry.function == function);
    let basic = leaf(BASIC);
    let vcpu = Vcpu {
        id,
        cpus: cpus.max(1),
        options,
        amd: basic.is_some_and(is_amd),
        topology_extensions: leaf(EXTENDED_FEATURES)
            .is_some_and(|entry| entry.ecx & ECX_TOPOLOGY_EXTENSIONS != 0),
        performance: leaf(PERFORMANCE).is_some_and(|entry| entry.eax & 0xff != 0),
    };
    let mut table: Vec<_> = supported
        .iter()
        .filter(|entry| !matches!(entry.function, TOPOLOGY | TOPOLOGY_V2))
        .map(|&entry| vcpu.adapt(entry))
        .collect();
    let max = basic.map_or(0, |entry| entry.eax);
    if max >= TOPOLOGY {
        table.extend(vcpu.topology(TOPOLOGY));
    }
    if leaf(TOPOLOGY_V2).is_some() {
        table.extend(vcpu.topology(TOPOLOGY_V2));
    }
    table
}

fn is_amd(basic: &CpuidEntry) -> bool {
    let name: Vec<u8> =
        [basic.ebx, basic.edx, basic.ecx].iter().flat_map(|part| part.to_le_bytes()).collect();
    name == b"AuthenticAMD" || name == b"HygonGenuine"
}

struct Vcpu {
    id: u32,
    cpus: u32,
    options: Options,
    amd: bool,
    topology_extensions: bool,
    performance: bool,
}

impl Vcpu {
    fn adapt(&self, mut entry: CpuidEntry) -> CpuidEntry {
        match entry.function {
            FEATURES => self.features(&mut entry),
            CACHES => self.cache(&mut entry, true),
            AMD_CACHES => self.cache(&mut entry, false),
            // It describes instructions that are not there.
            MONITOR => clear(&mut entry),
            POWER => {
                clear(&mut entry);
                entry.eax = if self.options.kernel_irqchip { EAX_ARAT } else { 0 };
            }
            PERFORMANCE if !self.performance => clear(&mut entry),
            // Both speak of the host's clocks. KVM's local APIC timer does not run at the crystal's frequency, which a
            // guest would conclude from the first.
            TSC_FREQUENCY | CPU_FREQUENCY => clear(&mut entry),
            KVM_FEATURES if !self.options.kernel_irqchip => entry.eax &= !EAX_NEEDS_KVM_APIC,
            EXTENDED_FEATURES => {
                entry.ecx &= !(ECX_MONITORX | ECX_SVM);
                if self.amd {
                    set(&mut entry.ecx, ECX_CMP_LEGACY, self.cpus > 1);
                }
            }
            SIZES if self.amd => {
                // Bits of an APIC id that number a core, and the count of cores less 1.
                entry.ecx = self.id_bits().min(0xf) << 12 | (self.cpus - 1).min(0xff);
            }
            AMD_TOPOLOGY if self.topology_extensions => {
                // APIC id; one thread in core `id`; node 0 of one.
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (self.id, self.id & 0xff, 0, 0);
            }
            _ => {}
        }
        entry
    }

    fn features(&self, entry: &mut CpuidEntry) {
        let mut line = entry.ebx >> 8 & 0xff;
        if line == 0 && entry.edx & EDX_CLFLUSH != 0 {
            // In units of 8 bytes; without it a guest that flushes its caches loops for ever.
            line = 8;
        }
        // Cores by the ids that they may have on Intel's processors, by their count on AMD's.
        let count = if self.amd { self.cpus } else { 1 << self.id_bits() };
        entry.ebx = (self.id & 0xff) << 24 | count.min(0xff) << 16 | line << 8 | entry.ebx & 0xff;
        entry.ecx &= !(ECX_MONITOR | ECX_OSXSAVE | ECX_VMX);
        entry.ecx |= ECX_HYPERVISOR;
        set(&mut entry.ecx, ECX_TSC_DEADLINE, self.options.tsc_deadline);
        if !self.options.kernel_irqchip {
            entry.ecx &= !ECX_X2APIC;
        }
        if !self.performance {
            entry.ecx &= !ECX_PDCM;
        }
        set(&mut entry.edx, EDX_HTT, self.cpus > 1);
    }

    /// Leaf 4 and its AMD sibling: by how many processors a cache is shared and, in the former, how many there are.
    fn cache(&self, entry: &mut CpuidEntry, intel: bool) {
        let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 7);
        if kind == 0 {
            return;
        }
        // Ids that there are room for, less 1.
        let ids = (1_u32 << self.id_bits()) - 1;
        let sharing = if level >= 3 { ids.min(0xfff) } else { 0 };
        let cores = if intel { ids.min(0x3f) } else { 0 };
        entry.eax = entry.eax & 0x3fff | sharing << 14 | cores << 26;
    }

    /// The levels of leaf 0xb and leaf 0x1f: a thread by itself, cores in a package, and the end of the list.
    fn topology(&self, function: u32) -> [CpuidEntry; 3] {
        let level = |index, eax, ebx, kind| CpuidEntry {
            function,
            index,
            significant_index: true,
            eax,
            ebx,
            ecx: kind | index,
            edx: self.id,
        };
        [
            level(0, 0, 1, LEVEL_THREAD),
            level(1, self.id_bits(), self.cpus.min(0xffff), LEVEL_CORE),
            level(2, 0, 0, 0),
        ]
    }

    /// How many bits of an APIC id number the cores of the package.
    fn id_bits(&self) -> u32 {
        (u32::BITS - (self.cpus - 1).leading_zeros()).min(16)
    }
}

fn set(register: &mut u32, bit: u32, to: bool) {
    *register = if to { *register | bit } else { *register & !bit };
}

fn clear(entry: &mut CpuidEntry) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    const KVM: Options = Options { tsc_deadline: true, kernel_irqchip: true };

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
        let significant_index = matches!(function, 4 | 7 | 0xb | 0xd | 0x1f | 0x8000_001d);
        CpuidEntry { function, index, significant_index, eax, ebx, ecx, edx }
    }

    fn vendor(max: u32, name: &[u8; 12]) -> CpuidEntry {
        let word =
            |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        entry(0, 0, [max, word(0), word(8), word(4)])
    }

    /// A server of 28 cores with two threads each, seen from its thread 13.
    fn intel() -> Vec<CpuidEntry> {
        vec![
            vendor(0x1f, b"GenuineIntel"),
            entry(1, 0, [0x806f8, 0x0d40_0800, 0xfffa_b20b, 0x0f8b_fbff]),
            entry(4, 0, [0xfc00_4121, 0x2c0_003f, 0x3f, 0]),
            entry(4, 2, [0xfc00_4143, 0x3c0_003f, 0x7ff, 0]),
            entry(4, 3, [0xfc0f_c163, 0x380_003f, 0x1bfff, 4]),
            entry(4, 4, [0, 0, 0, 0]),
            entry(5, 0, [0x40, 0x40, 3, 0x2020]),
            entry(6, 0, [0xdf_8ff7, 2, 9, 0x1_0003]),
            entry(7, 0, [2, 0xf1bf_07ab, 0x1a40_5fde, 0xffdd_4432]),
            entry(0xa, 0, [0x0830_0805, 0, 0, 0x8603]),
            entry(0xb, 0, [1, 2, 0x100, 0x0d]),
            entry(0xb, 1, [6, 0x38, 0x201, 0x0d]),
            entry(0x15, 0, [2, 0xa8, 25_000_000, 0]),
            entry(0x16, 0, [2100, 3800, 100, 0]),
            entry(0x1f, 0, [1, 2, 0x100, 0x0d]),
            entry(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
            entry(0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
            entry(0x8000_0008, 0, [0x3034, 0x200, 0, 0]),
        ]
    }

    /// A processor of 16 cores with two threads each, seen from its thread 5.
    fn amd() -> Vec<CpuidEntry> {
        vec![
            vendor(0x10, b"AuthenticAMD"),
            entry(1, 0, [0xa2_0f10, 0x0520_0800, 0x7ef8_320b, 0x178b_fbff]),
            entry(6, 0, [4, 0, 1, 0]),
            entry(0xd, 0, [0x207, 0x988, 0x988, 0]),
            entry(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            entry(0x8000_0000, 0, [0x8000_0023, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
            entry(0x8000_0001, 0, [0xa2_0f10, 0x2000_0000, 0x75c2_37ff, 0x2fd3_fbff]),
            entry(0x8000_0008, 0, [0x3030, 0x111e_f657, 0x501f, 0x1_0000]),
            entry(0x8000_001d, 0, [0x4121, 0x1c0_003f, 0x3f, 0]),
            entry(0x8000_001d, 3, [0x3c163, 0x3c0_003f, 0x7fff, 1]),
            entry(0x8000_001e, 0, [5, 0x102, 0, 0]),
        ]
    }

    fn find(table: &[CpuidEntry], function: u32, index: u32) -> CpuidEntry {
        let mut found = table.iter().filter(|e| e.function == function && e.index == index);
        let entry = *found.next().unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"));
        assert!(found.next().is_none(), "leaf {function:#x}.{index} is there twice");
        entry
    }

    #[test]
    fn a_vcpu_is_one_core_of_the_package_on_intel() {
        for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (64, 6), (255, 8)] {
            let ids = 1_u32 << bits;
            let id = cpus - 1;
            let table = for_vcpu(&intel(), id, cpus, KVM);

            let features = find(&table, 1, 0);
            assert_eq!(features.ebx >> 24, id);
            assert_eq!(features.ebx >> 16 & 0xff, ids.min(0xff));
            assert_eq!(features.ebx & 0xffff, 0x0800, "CLFLUSH line and brand are the host's");
            assert_eq!(features.edx & EDX_HTT != 0, cpus > 1);

            for function in [0xb, 0x1f] {
                let level = |index| {
                    let level = find(&table, function, index);
                    assert!(level.significant_index);
                    assert_eq!(level.edx, id);
                    [level.eax, level.ebx, level.ecx]
                };
                assert_eq!(level(0), [0, 1, 0x100]);
                assert_eq!(level(1), [bits, cpus, 0x201]);
                assert_eq!(level(2), [0, 0, 2]);
            }

            let cores = (ids - 1).min(0x3f) << 26;
            assert_eq!(find(&table, 4, 0).eax, 0x121 | cores, "of one core alone");
            assert_eq!(find(&table, 4, 2).eax, 0x143 | cores, "of one core alone");
            assert_eq!(find(&table, 4, 3).eax, 0x163 | cores | (ids - 1) << 14, "shared");
            assert_eq!(find(&table, 4, 4), entry(4, 4, [0; 4]), "the end of the list");
            assert_eq!(find(&table, 0x8000_0008, 0).ecx, 0, "reserved on Intel");
        }
    }

    #[test]
    fn a_vcpu_is_one_core_of_the_package_on_amd() {
        for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (16, 4)] {
            let id = cpus - 1;
            let table = for_vcpu(&amd(), id, cpus, KVM);
            assert_eq!(find(&table, 1, 0).ebx, id << 24 | cpus << 16 | 0x0800);
            assert_eq!(find(&table, 0x8000_0001, 0).ecx & ECX_CMP_LEGACY != 0, cpus > 1);
            assert_eq!(find(&table, 0x8000_0008, 0).ecx, bits << 12 | id);
            assert_eq!(find(&table, 0x8000_001e, 0), entry(0x8000_001e, 0, [id, id, 0, 0]));
            assert_eq!(find(&table, 0x8000_001d, 0).eax, 0x121);
            assert_eq!(find(&table, 0x8000_001d, 3).eax, 0x163 | ((1 << bits) - 1) << 14);
            assert_eq!(find(&table, 0xb, 1).eax, bits);
            assert!(!table.iter().any(|entry| entry.function == 0x1f), "the host has none");
        }
    }

    #[test]
    fn without_topology_extensions_their_leaf_stays_as_it_is() {
        let mut supported = amd();
        for entry in &mut supported {
            match entry.function {
                0x8000_0001 => entry.ecx &= !ECX_TOPOLOGY_EXTENSIONS,
                0x8000_001e => clear(entry),
                _ => {}
            }
        }
        let table = for_vcpu(&supported, 1, 2, KVM);
        assert_eq!(find(&table, 0x8000_001e, 0), entry(0x8000_001e, 0, [0; 4]));
    }

    #[test]
    fn the_topology_leaf_is_left_out_where_the_processor_ends_before_it() {
        let supported = [vendor(0xa, b"GenuineIntel"), intel()[1]];
        let table = for_vcpu(&supported, 0, 2, KVM);
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn features_follow_the_accelerator_and_not_the_host() {
        let user = Options::default();
        for supported in [intel(), amd()] {
            let kvm = find(&for_vcpu(&supported, 0, 2, KVM), 1, 0).ecx;
            let own = find(&for_vcpu(&supported, 0, 2, user), 1, 0).ecx;
            for ecx in [kvm, own] {
                assert_eq!(ecx & (ECX_MONITOR | ECX_OSXSAVE), 0);
                assert_ne!(ecx & ECX_HYPERVISOR, 0);
            }
            assert_ne!(kvm & ECX_TSC_DEADLINE, 0);
            assert_eq!(own & (ECX_TSC_DEADLINE | ECX_X2APIC), 0);
            let power = |options| find(&for_vcpu(&supported, 0, 2, options), 6, 0);
            assert_eq!(power(KVM), entry(6, 0, [4, 0, 0, 0]));
            assert_eq!(power(user), entry(6, 0, [0; 4]));
        }
    }

    #[test]
    fn what_describes_the_host_is_gone_and_the_rest_is_kept() {
        let supported = intel();
        let table = for_vcpu(&supported, 0, 2, KVM);
        for function in [5, 0x15, 0x16] {
            assert_eq!(find(&table, function, 0), entry(function, 0, [0; 4]));
        }
        for function in [0, 7, 0xa, 0x4000_0000, 0x4000_0001] {
            assert_eq!(find(&table, function, 0), find(&supported, function, 0));
        }
        let user = for_vcpu(&supported, 0, 2, Options::default());
        assert_eq!(find(&user, 0x4000_0001, 0).eax, 0x0100_362b);
    }

    #[test]
    fn a_processor_without_counters_says_so_in_both_places() {
        let mut supported = intel();
        supported.iter_mut().filter(|entry| entry.function == 0xa).for_each(|entry| entry.eax = 0);
        assert_ne!(find(&for_vcpu(&intel(), 0, 1, KVM), 1, 0).ecx & ECX_PDCM, 0);
        let table = for_vcpu(&supported, 0, 1, KVM);
        assert_eq!(find(&table, 1, 0).ecx & ECX_PDCM, 0);
        assert_eq!(find(&table, 0xa, 0), entry(0xa, 0, [0; 4]));
    }

    #[test]
    fn a_missing_flush_line_size_is_filled_in() {
        let mut supported = intel();
        supported[1].ebx &= !0xff00;
        assert_eq!(find(&for_vcpu(&supported, 0, 1, KVM), 1, 0).ebx & 0xff00, 0x0800);
    }

    #[test]
    fn a_guest_is_offered_no_virtualization_of_its_own() {
        for mut supported in [intel(), amd()] {
            for entry in &mut supported {
                match entry.function {
                    FEATURES => entry.ecx |= ECX_VMX,
                    EXTENDED_FEATURES => entry.ecx |= ECX_SVM,
                    _ => {}
                }
            }
            let table = for_vcpu(&supported, 0, 1, KVM);
            assert_eq!(find(&table, FEATURES, 0).ecx & ECX_VMX, 0);
            assert_eq!(find(&table, EXTENDED_FEATURES, 0).ecx & ECX_SVM, 0);
        }
    }

    #[test]
    fn any_table_and_any_count_will_do() {
        assert!(for_vcpu(&[], 0, 1, KVM).is_empty());
        let wild: Vec<_> =
            (0..0x20).chain(0x8000_0000..0x8000_0020).map(|f| entry(f, 0, [u32::MAX; 4])).collect();
        for (id, cpus) in [(0, 0), (u32::MAX, u32::MAX), (5, 1 << 20)] {
            assert!(for_vcpu(&wild, id, cpus, KVM).len() >= wild.len());
        }
    }
}
