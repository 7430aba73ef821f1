use std::path::Path;
use std::process::Command;

use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};

use super::*;

/// A machine with everything.
fn config() -> Config {
    let device = |n: u64| VirtioMmio {
        base: layout::VIRTIO_MMIO + n * layout::VIRTIO_MMIO_STRIDE,
        len: 0x200,
        line: layout::VIRTIO_FIRST_LINE + n as u32,
    };
    Config {
        cpus: 2,
        memory: layout::ram_regions(1 << 30),
        gic: Gic::V3,
        serial: [true; 4],
        virtio_mmio: (0..layout::VIRTIO_MAX as u64).map(device).collect(),
        cmdline: "console=ttyAMA0 root=/dev/vda".into(),
        initrd: Some((0x4800_0000, 0x12_3457)),
        rng_seed: (0..64).collect(),
        kaslr_seed: 0x0123_4567_89ab_cdef,
    }
}

/// A tree, read by somebody else.
struct Read(Vec<u8>);

impl Read {
    fn of(config: &Config) -> Self {
        Self(build(config).unwrap())
    }

    fn tree(&self) -> Fdt<'_> {
        Fdt::new(&self.0).expect("a valid tree")
    }

    fn children(&self, path: &str) -> Vec<String> {
        let node = self.tree().find_node(path).unwrap();
        node.children().map(|child| child.name().to_owned()).collect()
    }

    /// A property of the node at `path`: its bytes, if there is one.
    fn find(&self, path: &str, property: &str) -> Option<Vec<u8>> {
        let node = self.tree().find_node(path)?;
        node.property(property).map(|property| property.value().to_vec())
    }

    fn bytes(&self, path: &str, property: &str) -> Vec<u8> {
        self.find(path, property).unwrap_or_else(|| panic!("{path}: no {property}"))
    }

    fn cells(&self, path: &str, property: &str) -> Vec<u32> {
        let bytes = self.bytes(path, property);
        assert_eq!(bytes.len() % 4, 0, "{path}/{property}");
        bytes.chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
    }

    /// Numbers of two cells.
    fn addresses(&self, path: &str, property: &str) -> Vec<u64> {
        let cells = self.cells(path, property);
        assert_eq!(cells.len() % 2, 0, "{path}/{property}");
        cells.chunks(2).map(|pair| u64::from(pair[0]) << 32 | u64::from(pair[1])).collect()
    }

    /// The strings of a property, joined by spaces.
    fn text(&self, path: &str, property: &str) -> String {
        let text = String::from_utf8(self.bytes(path, property)).unwrap();
        text.strip_suffix('\0').expect("strings end with zero").replace('\0', " ")
    }
}

#[test]
fn the_root_says_how_long_addresses_are_and_where_interrupts_go() {
    let tree = Read::of(&config());
    let size = u32::from_be_bytes(tree.0[4..8].try_into().unwrap());
    assert_eq!((&tree.0[..4], size as usize), (&[0xd0, 0x0d, 0xfe, 0xed][..], tree.0.len()));
    assert_eq!(tree.cells("/", "#address-cells"), [2]);
    assert_eq!(tree.cells("/", "#size-cells"), [2]);
    let gic = tree.cells("/interrupt-controller@8000000", "phandle");
    assert_eq!(tree.cells("/", "interrupt-parent"), gic);
}

#[test]
fn what_the_loader_knows_is_chosen() {
    let tree = Read::of(&config());
    assert_eq!(tree.text("/chosen", "bootargs"), "console=ttyAMA0 root=/dev/vda");
    assert_eq!(tree.text("/chosen", "stdout-path"), "/serial@9000000");
    assert_eq!(tree.addresses("/chosen", "linux,initrd-start"), [0x4800_0000]);
    assert_eq!(tree.addresses("/chosen", "linux,initrd-end"), [0x4812_3457]);
    assert_eq!(tree.addresses("/chosen", "kaslr-seed"), [0x0123_4567_89ab_cdef]);
    let seed: Vec<u8> = (0..64).collect();
    assert_eq!(tree.find("/chosen", "rng-seed"), Some(seed));
}

#[test]
fn nothing_is_said_of_what_there_is_not() {
    let config = Config { cpus: 1, memory: layout::ram_regions(1 << 27), ..Config::default() };
    let tree = Read::of(&config);
    for property in ["linux,initrd-start", "linux,initrd-end", "rng-seed", "kaslr-seed"] {
        assert_eq!(tree.find("/chosen", property), None, "{property}");
    }
    assert_eq!(tree.find("/chosen", "stdout-path"), None);
    assert_eq!(tree.text("/chosen", "bootargs"), "");
    let expected = [
        "chosen",
        "aliases",
        "cpus",
        "psci",
        "memory@40000000",
        "interrupt-controller@8000000",
        "timer",
        "apb-pclk",
        "rtc@9010000",
        "gpio@9030000",
        "gpio-keys",
    ];
    assert_eq!(tree.children("/"), expected);
}

#[test]
fn processors_have_their_affinities() {
    let tree = Read::of(&Config { cpus: layout::MAX_CPUS, ..config() });
    let cpus = tree.tree().find_node("/cpus").unwrap();
    assert_eq!(cpus.children().count(), layout::MAX_CPUS as usize);
    for (n, cpu) in cpus.children().enumerate() {
        let affinity = n / 16 * 256 + n % 16;
        assert_eq!(cpu.name(), format!("cpu@{affinity:x}"));
        let property = |name| cpu.property(name).unwrap().value().to_vec();
        assert_eq!(property("reg"), (affinity as u32).to_be_bytes());
        assert_eq!(property("device_type"), b"cpu\0");
        assert_eq!(property("enable-method"), b"psci\0");
    }
}

#[test]
fn psci_is_called_by_hvc() {
    let tree = Read::of(&config());
    assert_eq!(tree.text("/psci", "method"), "hvc");
    assert_eq!(tree.text("/psci", "compatible"), "arm,psci-1.0 arm,psci-0.2");
}

#[test]
fn the_interrupt_controller_is_as_large_as_the_processors_are_many() {
    let path = "/interrupt-controller@8000000";
    let tree = Read::of(&Config { cpus: 3, ..config() });
    assert_eq!(tree.text(path, "compatible"), "arm,gic-v3");
    assert_eq!(tree.addresses(path, "reg"), [0x0800_0000, 0x1_0000, 0x1000_0000, 0x6_0000]);
    assert_eq!(tree.cells(path, "#interrupt-cells"), [3]);
    let tree = Read::of(&Config { cpus: 3, gic: Gic::V2, ..config() });
    assert_eq!(tree.text(path, "compatible"), "arm,cortex-a15-gic");
    assert_eq!(tree.addresses(path, "reg"), [0x0800_0000, 0x1_0000, 0x0801_0000, 0x1_0000]);
}

#[test]
fn timers_interrupt_the_processors_that_there_are() {
    let timers = |gic, cpus, flags: u32| {
        let tree = Read::of(&Config { gic, cpus, ..config() });
        let expected: Vec<_> = [13, 14, 11, 10].iter().flat_map(|&n| [1, n, flags]).collect();
        assert_eq!(tree.cells("/timer", "interrupts"), expected, "{gic:?}, {cpus} processors");
        assert!(tree.find("/timer", "always-on").is_some());
    };
    timers(Gic::V3, 1, 4);
    timers(Gic::V3, 512, 4);
    timers(Gic::V2, 1, 0x104);
    timers(Gic::V2, 8, 0xff04);
}

#[test]
fn memory_may_be_in_pieces() {
    let memory = vec![(0x4000_0000, 0x1000_0000), (0x8_0000_0000, 0x2_0000_0000)];
    let tree = Read::of(&Config { memory, ..config() });
    assert_eq!(tree.addresses("/memory@40000000", "reg"), [0x4000_0000, 0x1000_0000]);
    let second = "/memory@800000000";
    assert_eq!(tree.addresses(second, "reg"), [0x8_0000_0000, 0x2_0000_0000]);
    assert_eq!(tree.text(second, "device_type"), "memory");
}

#[test]
fn serial_ports_keep_their_numbers() {
    let tree = Read::of(&Config { serial: [false, true, false, true], ..config() });
    let node = tree.tree().find_node("/aliases").unwrap();
    let aliases: Vec<_> = node
        .properties()
        .map(|property| (property.name().to_owned(), tree.text("/aliases", property.name())))
        .collect();
    let alias = |name: &str, path: &str| (name.to_owned(), path.to_owned());
    assert_eq!(aliases, [alias("serial1", "/serial@9001000"), alias("serial3", "/serial@9003000")]);
    assert_eq!(tree.text("/chosen", "stdout-path"), "/serial@9001000");
    assert_eq!(tree.text("/serial@9001000", "compatible"), "arm,pl011 arm,primecell");
    assert_eq!(tree.cells("/serial@9001000", "interrupts"), [0, 1, 4]);
    assert_eq!(tree.find("/serial@9000000", "reg"), None);
}

#[test]
fn peripherals_have_a_clock_and_the_power_key_a_pin() {
    let tree = Read::of(&config());
    let clock = tree.cells("/apb-pclk", "phandle")[0];
    assert_eq!(tree.cells("/apb-pclk", "clock-frequency"), [24_000_000]);
    for (path, names) in [
        ("/serial@9000000", "uartclk apb_pclk"),
        ("/rtc@9010000", "apb_pclk"),
        ("/gpio@9030000", "apb_pclk"),
    ] {
        assert_eq!(tree.text(path, "clock-names"), names);
        assert_eq!(tree.cells(path, "clocks"), vec![clock; names.split(' ').count()]);
        assert!(tree.text(path, "compatible").ends_with(" arm,primecell"));
    }
    let gpio = tree.cells("/gpio@9030000", "phandle")[0];
    assert_eq!(tree.cells("/gpio-keys/power", "gpios"), [gpio, layout::POWER_PIN, 0]);
    assert_eq!(tree.cells("/gpio-keys/power", "linux,code"), [116]);
    let phandles = [clock, gpio, tree.cells("/", "interrupt-parent")[0]];
    assert!(phandles[0] != phandles[1] && !phandles[..2].contains(&phandles[2]));
}

#[test]
fn virtio_devices_pulse_their_lines_and_come_in_order() {
    let tree = Read::of(&config());
    let mut virtio = tree.children("/");
    virtio.retain(|name| name.starts_with("virtio_mmio@"));
    assert_eq!(virtio.len(), layout::VIRTIO_MAX);
    for (n, name) in virtio.into_iter().enumerate() {
        let path = format!("/{name}");
        assert_eq!(tree.addresses(&path, "reg"), [0x0a00_0000 + n as u64 * 0x1000, 0x200]);
        assert_eq!(tree.cells(&path, "interrupts"), [0, 16 + n as u32, 1]);
        assert_eq!(tree.text(&path, "compatible"), "virtio,mmio");
        assert!(tree.find(&path, "dma-coherent").is_some());
    }
}

/// Whatever is in the tree, with its names' addresses those of the registers.
#[test]
fn no_two_devices_share_registers_or_lines() {
    for gic in [Gic::V2, Gic::V3] {
        let tree = Read::of(&Config { cpus: 8, gic, ..config() });
        let mut ranges = Vec::new();
        let mut lines = Vec::new();
        for name in tree.children("/") {
            let path = format!("/{name}");
            if let Some((_, address)) = name.split_once('@') {
                let reg = tree.addresses(&path, "reg");
                assert_eq!(u64::from_str_radix(address, 16), Ok(reg[0]), "{path}");
                ranges.extend(reg.chunks(2).map(|pair| (pair[0], pair[0] + pair[1])));
            }
            if tree.find(&path, "interrupts").is_some() && name != "timer" {
                let interrupt = tree.cells(&path, "interrupts");
                assert!(interrupt[0] == 0 && interrupt[1] < layout::LINES, "{path}");
                lines.push(interrupt[1]);
            }
        }
        ranges.sort();
        assert_eq!(ranges.len(), 4 + 2 + 2 + layout::VIRTIO_MAX + 1);
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:x?}");
        let all = lines.len();
        lines.sort();
        lines.dedup();
        assert_eq!(lines.len(), all);
    }
}

#[test]
fn a_machine_that_cannot_be_is_refused_with_what_can() {
    let error = |config: &Config| build(config).unwrap_err().to_string();
    let many = Config { cpus: 9, gic: Gic::V2, ..config() };
    assert!(error(&many).contains("at most 8 processors, not 9"), "{}", error(&many));
    let more = Config { cpus: layout::MAX_CPUS + 1, ..config() };
    assert!(error(&more).contains("at most 512 processors, not 513"), "{}", error(&more));
    let zero = Config { cmdline: "a\0b".into(), ..config() };
    assert!(matches!(build(&zero), Err(Error::Write(WriteError::InvalidString))));
}

#[test]
fn a_tree_is_no_longer_than_a_guest_reads() {
    let with = |seed: usize| build(&Config { rng_seed: vec![1; seed], ..config() });
    let most = (MAX_LEN - with(4).unwrap().len() + 4) / 4 * 4;
    assert!((MAX_LEN - 3..=MAX_LEN).contains(&with(most).unwrap().len()));
    assert!(matches!(with(most + 4), Err(Error::TooLarge { len }) if len > MAX_LEN));
}

/// A configuration is the crate's own, but numbers that make no sense shall not end the process either.
#[test]
fn numbers_without_sense_are_written_as_they_are() {
    let odd = Config {
        cpus: 0,
        gic: Gic::V2,
        memory: vec![(u64::MAX, u64::MAX)],
        virtio_mmio: vec![VirtioMmio { base: u64::MAX, len: u64::MAX, line: u32::MAX }],
        initrd: Some((u64::MAX, u64::MAX)),
        ..config()
    };
    let tree = Read::of(&odd);
    assert_eq!(tree.addresses("/chosen", "linux,initrd-end"), [u64::MAX]);
    assert_eq!(tree.addresses("/memory@ffffffffffffffff", "reg"), [u64::MAX; 2]);
}

/// Runs `dtc` on a file and returns what it says; `None` where there is none.
fn dtc(file: &Path) -> Option<String> {
    let output = match Command::new("dtc").args(["-I", "dtb", "-O", "dts"]).arg(file).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("dtc: {error}"),
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("virtio_mmio@a000000"));
    Some(said)
}

/// The reference compiler takes every tree apart and finds nothing to warn of.
#[test]
fn dtc_is_content_with_every_tree() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tree.dtb");
    for (gic, cpus) in [(Gic::V2, 1), (Gic::V2, 8), (Gic::V3, 1), (Gic::V3, 512)] {
        std::fs::write(&file, build(&Config { gic, cpus, ..config() }).unwrap()).unwrap();
        let Some(said) = dtc(&file) else {
            eprintln!("skipped: there is no dtc (package device-tree-compiler)");
            return;
        };
        assert_eq!(said, "", "{gic:?}, {cpus} processors");
    }
}

/// And would, if nothing received interrupts.
#[test]
fn dtc_warns_of_a_tree_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tree.dtb");
    let mut tree = build(&config()).unwrap();
    let property = b"interrupt-controller\0";
    let at = tree.windows(property.len()).position(|window| window == property).unwrap();
    tree[at] = b'j';
    std::fs::write(&file, tree).unwrap();
    if let Some(said) = dtc(&file) {
        assert!(said.contains("Warning (interrupt"), "{said}");
    }
}
