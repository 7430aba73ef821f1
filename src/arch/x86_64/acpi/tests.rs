use std::path::Path;
use std::process::Command;

use vm_memory::GuestMemoryBackend;

use super::*;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
}

fn config() -> Config {
    let device = |n: u32| VirtioMmio {
        base: layout::VIRTIO_MMIO + u64::from(n) * layout::VIRTIO_MMIO_STRIDE,
        len: layout::VIRTIO_MMIO_STRIDE,
        gsi: layout::VIRTIO_GSIS[n as usize],
    };
    Config { cpus: 3, com: [true, false, true, false], virtio_mmio: (0..5).map(device).collect() }
}

/// What a guest finds: every table by its signature, the FACS included.
struct Found(Vec<(u64, Vec<u8>)>);

impl Found {
    /// Follows the addresses from the RSDP on, and checks what every table has: place, length and checksum.
    fn read(memory: &GuestMemoryMmap, rsdp: u64) -> Self {
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        let whole = |at: u64| read(at, u32_at(&read(at, 8), 4) as usize);
        let root = read(rsdp, 36);
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));
        assert_eq!((root[15], u32_at(&root, 20)), (2, 36), "revision and length");

        let xsdt = whole(u64_at(&root, 24));
        let mut tables: Vec<_> =
            xsdt[36..].chunks(8).map(|at| u64_at(at, 0)).map(|at| (at, whole(at))).collect();
        let fadt = tables.iter().find(|table| table.1.starts_with(b"FACP")).unwrap().1.clone();
        for at in [u64_at(&fadt, 140), u32_at(&fadt, 36).into()] {
            tables.push((at, whole(at)));
        }
        tables.push((u64_at(&root, 24), xsdt));
        for (at, table) in &tables {
            assert_eq!(at % 64, 0, "{at:#x}");
            if table.starts_with(b"FACS") {
                continue;
            }
            assert_eq!(sum(table), 0);
            assert_eq!(&table[10..24], b"HYPKITHYPERKIT");
            let end = at + table.len() as u64;
            assert!(*at >= layout::ACPI && end <= layout::ACPI + layout::ACPI_LEN, "{at:#x}");
        }
        Self(tables)
    }

    fn written(config: &Config) -> Self {
        let memory = memory();
        let rsdp = write(&memory, config).unwrap();
        Self::read(&memory, rsdp)
    }

    fn table(&self, signature: &[u8]) -> &[u8] {
        &self.0.iter().find(|table| table.1.starts_with(signature)).unwrap().1
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// An AML name with a package length: where the device that is called so begins and ends.
fn device<'a>(dsdt: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let at = dsdt.windows(4).position(|window| window == name)?;
    // 5b 82, a package length of one or two bytes, the name.
    let (length_at, len) = match dsdt[at - 2] >> 6 {
        1 => (at - 2, usize::from(dsdt[at - 2] & 0xf) | usize::from(dsdt[at - 1]) << 4),
        _ => (at - 1, usize::from(dsdt[at - 1])),
    };
    assert_eq!(dsdt[length_at - 2..length_at], [0x5b, 0x82], "{name:?} is no device");
    Some(&dsdt[at..length_at + len])
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn the_rsdp_is_where_a_guest_searches_for_it() {
    let memory = memory();
    let rsdp = write(&memory, &config()).unwrap();
    let found = (0xe_0000..0x10_0000).step_by(16).find(|&at| {
        let mut signature = [0; 8];
        memory.read_slice(&mut signature, GuestAddress(at)).unwrap();
        &signature == b"RSD PTR "
    });
    assert_eq!(found, Some(rsdp));
    Found::read(&memory, rsdp);
}

#[test]
fn nothing_is_written_outside_the_places_for_tables() {
    let memory = memory();
    memory.write_slice(&vec![0xa5; 2 << 20], GuestAddress(0)).unwrap();
    write(&memory, &config()).unwrap();
    let mut all = vec![0; 2 << 20];
    memory.read_slice(&mut all, GuestAddress(0)).unwrap();
    for (at, byte) in (0..).zip(all).filter(|&(_, byte)| byte != 0xa5) {
        let tables = (layout::ACPI..layout::ACPI + layout::ACPI_LEN).contains(&at);
        let facs = (layout::FACS..layout::FACS + 64).contains(&at);
        assert!(tables || facs, "{byte:#x} at {at:#x}");
    }
}

#[test]
fn the_fadt_describes_the_fixed_hardware() {
    let found = Found::written(&config());
    let fadt = found.table(b"FACP");
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 4), "length and revision");
    assert_eq!(u16_at(fadt, 46), 9, "SCI");
    assert_eq!(u32_at(fadt, 48), 0, "no SMI command: ACPI mode is always on");
    assert_eq!((u32_at(fadt, 56), fadt[88]), (0x600, 4), "PM1a events");
    assert_eq!((u32_at(fadt, 64), fadt[89]), (0x604, 2), "PM1a control");
    assert_eq!((u32_at(fadt, 76), fadt[91]), (0x608, 4), "PM timer");
    assert!(u16_at(fadt, 96) > 100 && u16_at(fadt, 98) > 1000, "no C2, no C3");
    assert_eq!(fadt[106..109], [0, 0, 0x32], "alarms within a day; the CMOS clock has a century");
    // Legacy devices, no VGA; there is a CMOS clock, but no keyboard controller to be probed.
    assert_eq!(u16_at(fadt, 109), 0b101);
    // WBINVD, C1, no sleep button, no fixed RTC wake-up, 32-bit timer, reset register, headless; neither
    // hardware-reduced nor without a fixed power button.
    assert_eq!(u32_at(fadt, 112), 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 12);
    let register = |at: usize| (fadt[at], fadt[at + 1], u64_at(fadt, at + 4));
    assert_eq!((register(116), fadt[128]), ((1, 8, 0xcf9), 6), "reset");

    // The 64-bit fields say the same as the 32-bit ones, or nothing.
    assert_eq!(u64_at(fadt, 132), 0);
    assert_eq!(u64_at(fadt, 140), u64::from(u32_at(fadt, 40)));
    assert_eq!(register(148), (1, 32, 0x600));
    assert_eq!(register(172), (1, 16, 0x604));
    assert_eq!(register(208), (1, 32, 0x608));
    for absent in [160, 184, 196, 220, 232] {
        assert_eq!(register(absent), (0, 0, 0), "at {absent}");
    }

    let facs = found.table(b"FACS");
    assert_eq!((facs.len(), facs[32]), (64, 2));
}

#[test]
fn the_facs_is_in_memory_that_the_guest_leaves_alone() {
    let map = layout::memory_map(1 << 30);
    let range = map
        .iter()
        .find(|range| range.start <= layout::FACS && layout::FACS + 64 <= range.start + range.len);
    assert_eq!(range.unwrap().kind, layout::MemoryKind::Reserved);
}

/// The structures of a MADT as `(type, rest)`.
fn structures(madt: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = &madt[44..];
    let mut structures = Vec::new();
    while !rest.is_empty() {
        let (structure, behind) = rest.split_at(rest[1].into());
        structures.push((structure[0], &structure[2..]));
        rest = behind;
    }
    structures
}

#[test]
fn the_madt_lists_processors_and_interrupt_controllers() {
    let found = Found::written(&config());
    let madt = found.table(b"APIC");
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
    let structures = structures(madt);
    let expected: [(u8, &[u8]); 6] = [
        (0, &[0, 0, 1, 0, 0, 0]),
        (0, &[1, 1, 1, 0, 0, 0]),
        (0, &[2, 2, 1, 0, 0, 0]),
        (1, &[0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]),
        (2, &[0, 9, 9, 0, 0, 0, 0xd, 0]),
        (4, &[0xff, 0, 0, 1]),
    ];
    assert_eq!(structures, expected);
}

#[test]
fn processors_beyond_the_reach_of_an_xapic_are_x2apics() {
    let found = Found::written(&Config { cpus: 300, ..Config::default() });
    let structures = structures(found.table(b"APIC"));
    let count = |kind| structures.iter().filter(|structure| structure.0 == kind).count();
    assert_eq!([count(0), count(9), count(4), count(10)], [255, 45, 1, 1]);
    let last = structures.iter().rfind(|structure| structure.0 == 9).unwrap().1;
    assert_eq!([u32_at(last, 2), u32_at(last, 6), u32_at(last, 10)], [299, 1, 299]);
}

#[test]
fn the_dsdt_has_the_devices_of_the_machine_and_no_others() {
    let found = Found::written(&config());
    let dsdt = found.table(b"DSDT");
    assert!(has(dsdt, b"\x08_S5_\x12\x07\x04\x0a\x05\0\0\0"));
    for name in [&b"C000"[..], b"C002", b"COM1", b"COM3", b"RTC_", b"MBRD", b"V000", b"V004"] {
        assert!(device(dsdt, name).is_some(), "{name:?}");
    }
    for name in [&b"C003"[..], b"COM2", b"COM4", b"V005"] {
        assert!(device(dsdt, name).is_none(), "{name:?}");
    }

    let com3 = device(dsdt, b"COM3").unwrap();
    assert!(has(com3, b"\x08_HID\x0c\x41\xd0\x05\x01"), "PNP0501");
    assert!(has(com3, b"\x08_UID\x0a\x03"));
    assert!(has(com3, &[0x47, 1, 0xe8, 3, 0xe8, 3, 1, 8]), "ports");
    assert!(has(com3, &[0x89, 6, 0, 0b0011, 1, 5, 0, 0, 0]), "an edge, active high, not shared");

    let virtio = device(dsdt, b"V002").unwrap();
    assert!(has(virtio, b"\x08_HID\x0dLNRO0005\0"));
    assert!(has(virtio, b"\x08_UID\x0a\x02"));
    assert!(has(virtio, b"\x08_CCA\x01"));
    assert!(has(virtio, &[0x86, 9, 0, 1, 0, 0x20, 0, 0xd0, 0, 0x10, 0, 0]), "registers");
    assert!(has(virtio, &[0x89, 6, 0, 0b0011, 1, 18, 0, 0, 0]), "interrupt");

    let board = device(dsdt, b"MBRD").unwrap();
    assert!(
        has(board, &[0x47, 1, 0, 6, 0, 6, 1, 12])
            && has(board, &[0x47, 1, 0xf9, 0xc, 0xf9, 0xc, 1, 1])
    );
}

#[test]
fn a_machine_that_the_tables_cannot_describe_is_refused() {
    let refuse = |config: Config| write(&memory(), &config).unwrap_err();
    let cpus = |cpus| Config { cpus, ..Config::default() };
    assert!(matches!(refuse(cpus(0x1001)), Error::TooMany { count: 0x1001, .. }));
    assert!(matches!(refuse(cpus(0x1000)), Error::TooLarge { max: 0x1_0000, .. }));
    write(&memory(), &cpus(1024)).unwrap();

    let device = |base, len| VirtioMmio { base, len, gsi: 5 };
    let with = |devices| Config { virtio_mmio: devices, ..Config::default() };
    for (base, len) in [(1 << 32, 1), ((1 << 32) - 1, 2), (0, 0), (u64::MAX, 2), (0, 1 << 32)] {
        assert!(matches!(refuse(with(vec![device(base, len)])), Error::Device { .. }), "{base:#x}");
    }
    write(&memory(), &with(vec![device(0xffff_f000, 0x1000)])).unwrap();
    let many = vec![device(0xd000_0000, 0x1000); 0x1001];
    assert!(matches!(refuse(with(many)), Error::TooMany { .. }));

    let small = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    assert!(matches!(write(&small, &config()), Err(Error::Memory { address: 0xe_0000, .. })));
    assert!(small.last_addr() == GuestAddress(0xfff));
}

/// Runs `iasl` in `folder`; `None` where there is none.
fn iasl(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = match Command::new("iasl").args(arguments).current_dir(folder).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("iasl: {error}"),
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{text}");
    Some(text)
}

/// The reference compiler takes every table apart and finds nothing wrong with it, or with what it makes of it.
#[test]
fn iasl_is_content_with_every_table() {
    for cpus in [1, 300] {
        let folder = tempfile::tempdir().unwrap();
        let found = Found::written(&Config { cpus, com: [true; 4], ..config() });
        for (_, table) in &found.0 {
            let name = std::str::from_utf8(&table[..4]).unwrap();
            let (binary, source) = (format!("{name}.dat"), format!("{name}.dsl"));
            std::fs::write(folder.path().join(&binary), table).unwrap();
            let Some(taken_apart) = iasl(folder.path(), &["-d", &binary]) else {
                eprintln!("skipped: there is no iasl (package acpica-tools)");
                return;
            };
            let compiled = iasl(folder.path(), &["-we", &source]).unwrap();
            assert!(compiled.contains("0 Errors") && compiled.contains("0 Warnings"), "{compiled}");
            let listing = std::fs::read_to_string(folder.path().join(&source)).unwrap();
            for text in [&taken_apart, &listing] {
                for word in ["Error", "Warning", "Invalid", "Incorrect", "Unknown", "****"] {
                    assert!(!text.contains(word), "{name}: {word}\n{text}");
                }
            }
            let again = std::fs::read(folder.path().join(format!("{name}.aml"))).unwrap();
            // The compiler signs with its own name and version, and so changes the checksum.
            assert_eq!(again[36..], table[36..], "{name}");
        }
    }
}
