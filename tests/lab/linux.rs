//! What a Linux guest sees of its machine.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use hyperkit::memory::Backing;
use hyperkit::vm::{End, VmBuilder};
use uuid::Uuid;

use super::dmesg;
use super::session::*;

const UUID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_1122_3344_5566_7788);

/// Prints `name=value` lines.
const LOOK_AROUND: &str = r#"
echo what time
read -r _
echo clock=$(date +%s)
echo release=$(uname -r)
echo cpus=$(nproc)
echo memory=$(awk '/MemTotal/ {print $2}' /proc/meminfo)
which dmidecode >/dev/null && echo uuid=$(dmidecode -s system-uuid)
echo rng=$(cat /sys/class/misc/hw_random/rng_current)
echo random=$(dd if=/dev/hwrng bs=16 count=4 iflag=fullblock 2>/dev/null | wc -c)
echo clocksource=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
echo threads=$(cat /sys/devices/system/cpu/cpu0/topology/thread_siblings_list)
[ -d /proc/device-tree ] && echo gic=$(tr '\0' ' ' < /proc/device-tree/interrupt-controller@8000000/compatible)
echo said on hvc0 > /dev/hvc0
"#;

/// Boots, looks around, powers off, and checks what the guest saw.
fn boot(flavour: Flavour, cpus: u32, memory: u64, change: impl FnOnce(VmBuilder) -> VmBuilder) {
    let (hvc0, hvc0_screen, _keyboard) = console();
    let script = format!("{LOOK_AROUND}{}", dmesg::SCRIPT);
    let mut session = Session::start(|builder| {
        let kernel = flavour.kernel(&scripted(QUIET, &script));
        change(builder.cpus(cpus).memory(memory).uuid(UUID).console(hvc0).kernel(kernel))
    });
    // Read on both sides of the guest's look at its clock, however long that takes.
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    session.wait_for("what time");
    let from = now();
    session.type_in("\n");
    session.wait_for("clock=");
    let to = now();
    assert_eq!(session.end().unwrap(), End::PowerOff, "{}", session.screen.text());

    let text = session.screen.text();
    let seen: HashMap<_, _> =
        text.lines().filter_map(|line| line.trim_end().split_once('=')).collect();
    let number = |name: &str| -> f64 {
        seen.get(name)
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("{name}: {text}"))
    };
    // It says whole seconds, and an arm64 guest has set it by such seconds, to the middle of one.
    let clock = number("clock");
    assert!(
        from - 2.0 < clock && clock <= to + 0.5,
        "the guest's clock is {} to {} s behind",
        from - clock,
        to - clock
    );
    assert!(!seen["release"].is_empty());
    assert_eq!(number("cpus"), f64::from(cpus));
    let given = memory as f64 / 1024.0;
    let found = number("memory");
    assert!(found < given && found > given * 0.9 - 65536.0, "{found} KiB of {given}");
    // A device tree has no place for it.
    assert_eq!(seen.get("uuid").copied(), (!ARM).then_some(&*UUID.to_string()));
    assert!(seen["rng"].starts_with("virtio_rng"), "{}", seen["rng"]);
    assert_eq!(number("random"), 64.0);
    assert_eq!(seen["clocksource"], if ARM { "arch_sys_counter" } else { "kvm-clock" });
    assert_eq!(seen["threads"], "0");
    if ARM {
        let older = std::env::var_os("HK_GIC_V2").is_some();
        assert_eq!(seen["gic"], if older { "arm,cortex-a15-gic" } else { "arm,gic-v3" });
    }
    assert!(hvc0_screen.text().contains("said on hvc0"), "{:?}", hvc0_screen.text());
    assert!(text.contains("hk-test: exit 0"), "{text}");
    let complaints = dmesg::complaints(&text);
    assert!(complaints.is_empty(), "the kernel complains:\n{}", complaints.join("\n"));
}

const SMALL: u64 = if ARM { 512 << 20 } else { 256 << 20 };
/// On x86-64, on both sides of the hole below 4 GiB.
const LARGE: u64 = if ARM { 3 << 30 } else { 6 << 30 };

macro_rules! boots {
    ($($(#[$attribute:meta])* $name:ident: $flavour:ident, $cpus:literal, $memory:ident;)+) => {$(
        #[test]
        $(#[$attribute])*
        fn $name() {
            if in_lab() {
                boot(Flavour::$flavour, $cpus, $memory, |builder| builder);
            }
        }
    )+};
}

boots! {
    cloud_kernel_1_cpu_small: Cloud, 1, SMALL;
    cloud_kernel_2_cpus_large: Cloud, 2, LARGE;
    generic_kernel_2_cpus_large: Generic, 2, LARGE;
}

#[cfg(target_arch = "x86_64")]
boots! {
    cloud_kernel_elf_2_cpus_small: CloudElf, 2, SMALL;
    generic_kernel_1_cpu_small: Generic, 1, SMALL;
    #[ignore = "takes long"] cloud_kernel_1_cpu_large: Cloud, 1, LARGE;
    #[ignore = "takes long"] cloud_kernel_2_cpus_small: Cloud, 2, SMALL;
    #[ignore = "takes long"] cloud_kernel_elf_1_cpu_small: CloudElf, 1, SMALL;
    #[ignore = "takes long"] cloud_kernel_elf_2_cpus_large: CloudElf, 2, LARGE;
    #[ignore = "takes long"] generic_kernel_1_cpu_large: Generic, 1, LARGE;
    #[ignore = "takes long"] generic_kernel_2_cpus_small: Generic, 2, SMALL;
}

#[test]
fn memory_in_a_memfd_and_in_huge_pages() {
    if in_lab() {
        boot(Flavour::Cloud, 1, SMALL, |builder| {
            builder.memory_backing(Backing::Memfd).huge_pages(true)
        });
    }
}

#[test]
fn virtio_devices_are_announced_on_the_command_line_when_asked() {
    if !in_lab() {
        return;
    }
    let kernel = Flavour::Cloud.kernel(&scripted(QUIET, "cat /proc/cmdline"));
    let session = Session::start(|builder| builder.kernel(kernel).virtio_on_cmdline(true));
    assert_eq!(session.end().unwrap(), End::PowerOff);
    let text = session.screen.text();
    let first = if ARM { "0xa000000:16" } else { "0xd0000000:16" };
    assert!(text.contains(&format!("virtio_mmio.device=0x200@{first}")), "{text}");
}
