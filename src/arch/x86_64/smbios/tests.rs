use std::process::Command;

use uuid::uuid;

use super::*;

const UUID: Uuid = uuid!("00112233-4455-6677-8899-aabbccddeeff");

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
}

fn config() -> Config {
    Config {
        uuid: UUID,
        serial: Some("S-42".into()),
        oem_strings: vec!["io.systemd.credential:name=value".into(), "second".into()],
        cpus: 3,
        memory: 6 << 30,
    }
}

/// All of the place for the tables, as a guest sees it.
fn written(config: &Config) -> Vec<u8> {
    let memory = memory();
    write(&memory, config).unwrap();
    let mut bytes = vec![0; layout::SMBIOS_LEN as usize];
    memory.read_slice(&mut bytes, GuestAddress(layout::SMBIOS)).unwrap();
    bytes
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A structure's formatted area and its strings.
type Parsed = (Vec<u8>, Vec<String>);

/// All structures, found as the specification says: area by its length, strings up to the empty one.
fn parse(bytes: &[u8]) -> Vec<Parsed> {
    let len = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let start = (u64_at(bytes, 16) - layout::SMBIOS) as usize;
    let mut rest = &bytes[start..start + len];
    let mut structures = Vec::new();
    while !rest.is_empty() {
        let (area, behind) = rest.split_at(rest[1].into());
        let end = behind.windows(2).position(|pair| pair == [0, 0]).unwrap();
        let strings = behind[..end].split(|&byte| byte == 0).filter(|string| !string.is_empty());
        let strings = strings.map(|string| String::from_utf8(string.to_vec()).unwrap()).collect();
        structures.push((area.to_vec(), strings));
        rest = &behind[end + 2..];
    }
    structures
}

fn find(structures: &[Parsed], kind: u8) -> &Parsed {
    structures.iter().find(|(area, _)| area[0] == kind).unwrap()
}

#[test]
fn the_entry_point_leads_to_the_structures() {
    let bytes = written(&config());
    assert_eq!(&bytes[..5], b"_SM3_");
    assert_eq!(bytes[..24].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!((bytes[6], &bytes[7..11]), (24, &[3, 0, 0, 1][..]));
    assert_eq!(layout::SMBIOS % 16, 0);
    let structures = parse(&bytes);
    let kinds: Vec<_> = structures.iter().map(|(area, _)| area[0]).collect();
    assert_eq!(kinds, [0, 1, 3, 4, 11, 16, 17, 19, 19, 32, 127]);
    let mut handles: Vec<_> = structures.iter().map(|(area, _)| [area[2], area[3]]).collect();
    handles.sort_unstable();
    handles.dedup();
    assert_eq!(handles.len(), structures.len(), "every handle is there once");
}

#[test]
fn every_structure_has_the_length_of_version_3_0() {
    let lengths =
        [(0, 24), (1, 27), (3, 22), (4, 48), (16, 23), (17, 40), (19, 31), (32, 11), (127, 4)];
    let structures = parse(&written(&config()));
    for (kind, len) in lengths {
        assert_eq!(find(&structures, kind).0.len(), len, "type {kind}");
    }
}

#[test]
fn the_machine_has_its_uuid_and_serial_number() {
    let structures = parse(&written(&config()));
    let (area, strings) = find(&structures, 1);
    let swapped = [
        0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
    ];
    assert_eq!(area[8..24], swapped);
    assert_eq!(strings[usize::from(area[7]) - 1], "S-42");
    let structures = parse(&written(&Config { serial: None, ..config() }));
    assert_eq!(find(&structures, 1).0[7], 0, "no serial number");
}

#[test]
fn the_owners_words_are_passed_on_in_order() {
    let structures = parse(&written(&config()));
    let (area, strings) = find(&structures, 11);
    assert_eq!(area[4], 2);
    assert_eq!(*strings, config().oem_strings);
    let without = Config { oem_strings: Vec::new(), ..config() };
    assert!(!parse(&written(&without)).iter().any(|(area, _)| area[0] == 11));
}

#[test]
fn memory_is_told_at_any_size() {
    for (size, short, extended) in [
        (64_u64 << 10, 1 << 15 | 64, 0),
        (2 << 20, 2, 0),
        (32766 << 20, 32766, 0),
        (32767 << 20, 0x7fff, 32767),
        (1 << 40, 0x7fff, 1 << 20),
        (u64::MAX, 0x7fff, u32::MAX >> 1),
    ] {
        let structures = parse(&written(&Config { memory: size, ..config() }));
        let device = &find(&structures, 17).0;
        assert_eq!(u16::from_le_bytes([device[12], device[13]]), short, "{size:#x}");
        assert_eq!(u32::from_le_bytes(device[28..32].try_into().unwrap()), extended, "{size:#x}");
        assert_eq!(u64_at(&find(&structures, 16).0, 15), size);
    }
    let structures = parse(&written(&config()));
    let mapped: Vec<_> = structures
        .iter()
        .filter(|(area, _)| area[0] == 19)
        .map(|(area, _)| (u64_at(area, 15), u64_at(area, 23)))
        .collect();
    assert_eq!(mapped, [(0, 0xbfff_ffff), (1 << 32, 0x1_bfff_ffff)]);
}

#[test]
fn processors_are_counted() {
    for (cpus, short, long) in [(3, 3, 3), (256, 0xff, 256), (1 << 20, 0xff, 0xfffe)] {
        let structures = parse(&written(&Config { cpus, ..config() }));
        let (area, _) = find(&structures, 4);
        assert_eq!(area[0x23..0x26], [short; 3]);
        assert_eq!(u16::from_le_bytes([area[0x2a], area[0x2b]]), long);
    }
}

#[test]
fn strings_that_cannot_be_told_are_refused() {
    let refuse = |config: Config| write(&memory(), &config).unwrap_err();
    for bad in ["", "a\0b"] {
        let strings = Config { oem_strings: vec!["good".into(), bad.into()], ..config() };
        assert!(matches!(refuse(strings), Error::BadString(string) if string == bad));
        let serial = Config { serial: Some(bad.into()), ..config() };
        assert!(matches!(refuse(serial), Error::BadString(string) if string == bad));
    }
    let many = |count| Config { oem_strings: vec!["x".into(); count], ..config() };
    assert!(matches!(refuse(many(256)), Error::TooManyStrings(256)));
    write(&memory(), &many(255)).unwrap();
    let long = |len| Config { oem_strings: vec!["x".repeat(len)], ..config() };
    assert!(matches!(refuse(long(0x1_0000)), Error::TooLarge { max: 0xffe0, .. }));
    write(&memory(), &long(0xf000)).unwrap();
    let small = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    assert!(matches!(write(&small, &config()), Err(Error::Memory(_))));
}

/// Lets dmidecode read the tables from a dump of its own kind: entry point first, structures 32 bytes into the file.
fn dmidecode(config: &Config, arguments: &[&str]) -> Option<String> {
    let mut dump = written(config);
    dump[16..24].copy_from_slice(&32_u64.to_le_bytes());
    dump[5] = 0;
    dump[5] = dump[..24].iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), dump).unwrap();
    let run =
        Command::new("dmidecode").arg("--from-dump").arg(file.path()).args(arguments).output();
    let output = match run {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no dmidecode");
            return None;
        }
        Err(error) => panic!("dmidecode: {error}"),
    };
    assert!(output.status.success());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn dmidecode_prints_the_uuid_as_given() {
    let Some(text) = dmidecode(&config(), &["-s", "system-uuid"]) else { return };
    assert_eq!(text.trim(), UUID.to_string());
}

#[test]
fn dmidecode_is_content_with_every_structure() {
    let Some(text) = dmidecode(&config(), &[]) else { return };
    for line in [
        "Manufacturer: HyperKit",
        "Serial Number: S-42",
        "System is a virtual machine",
        "String 1: io.systemd.credential:name=value",
        "Core Count: 3",
        "Maximum Capacity: 6 GB",
        "Size: 6 GB",
        "Range Size: 3 GB",
        "Status: No errors detected",
        "End Of Table",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    for word in
        ["OUT OF SPEC", "BAD INDEX", "broken", "TRUNCATED", "Wrong", "Invalid", "Unknown Type"]
    {
        assert!(!text.contains(word), "{word}\n{text}");
    }
}
