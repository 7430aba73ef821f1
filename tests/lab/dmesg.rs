//! What a kernel may complain about on this machine, and why that is all right.

/// Parts of lines that the kernel logs as warnings or errors, each with its reason.
const ALLOWED: &[(&str, &str)] = &[
    ("PCI: Fatal: No config space access function found", "the machine has no PCI bus"),
    ("PCI: System does not support PCI", "the machine has no PCI bus"),
    ("hrtimer: interrupt took", "the lab's processor is emulated, and slow"),
    ("CPUID[0d, ", "belongs to the report below"),
    (
        "cacheinfo: Unable to detect cache hierarchy",
        "the device tree does not know the host's caches",
    ),
];

/// Parts of reports, which begin with "cut here" and end with "end trace", each with its reason.
const ALLOWED_REPORTS: &[(&str, &str)] = &[(
    "XSAVE consistency problem",
    "the lab's processor does not tell KVM when a guest writes XCR0; QEMU's guests report it there too",
)];

fn allowed(list: &[(&str, &str)], line: &str) -> bool {
    list.iter().any(|(part, _)| line.contains(part))
}

/// The lines of `dmesg -r` in `text` that are warnings or worse and not on the lists. Lines come marked `dmesg:`.
pub fn complaints(text: &str) -> Vec<&str> {
    let mut complaints = Vec::new();
    let mut lines = text.lines().filter_map(|line| line.trim_end().strip_prefix("dmesg:"));
    while let Some(line) = lines.next() {
        let mut report = vec![line];
        if line.contains("cut here") {
            for line in lines.by_ref() {
                report.push(line);
                if line.contains("end trace") {
                    break;
                }
            }
        }
        if !allowed(ALLOWED, line) && !report.iter().any(|line| allowed(ALLOWED_REPORTS, line)) {
            complaints.append(&mut report);
        }
    }
    complaints
}

/// For a guest's script: prints what [`complaints`] looks through.
pub const SCRIPT: &str = "dmesg -r | grep '^<[0-4]>' | sed 's/^/dmesg:/'\n";

#[test]
fn complaints_that_are_not_on_the_lists_are_found() {
    let text = "dmesg:<4>[ 1.0] ---[ cut here ]---\r\ndmesg:<4> WARNING: XSAVE consistency problem\r\n\
                dmesg:<4> ---[ end trace ]---\r\ndmesg:<3> PCI: System does not support PCI\r\n\
                dmesg:<4>[ 1.0] ---[ cut here ]---\r\ndmesg:<4> WARNING: other\r\n\
                dmesg:<4> ---[ end trace ]---\r\nnot dmesg\r\ndmesg:<3> bad\r\n";
    let expected = [
        "<4>[ 1.0] ---[ cut here ]---",
        "<4> WARNING: other",
        "<4> ---[ end trace ]---",
        "<3> bad",
    ];
    assert_eq!(complaints(text), expected);
}
