//! What a file that is no kernel for this machine seems to be, by its first bytes.

/// So many bytes are enough to tell.
pub(super) const START: usize = 0x210;

pub(super) fn describe(start: &[u8]) -> String {
    let has = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let what = if has(0x202, b"HdrS") {
        "a bzImage, which is for x86"
    } else if has(0, b"\x7fELF") {
        return describe_elf(start);
    } else if has(0x38, b"ARM\x64") {
        "an arm64 Image"
    } else if has(0x38, b"RSC\x05") {
        "a RISC-V Image"
    } else if has(4, b"zimg") {
        "a compressed EFI image for another processor"
    } else if has(0, b"\x1f\x8b") {
        "compressed by gzip, so unpack it first"
    } else if has(0, b"\x28\xb5\x2f\xfd") {
        "compressed by zstd, so unpack it first"
    } else if has(0, b"\xfd7zXZ\0") {
        "compressed by xz, so unpack it first"
    } else if has(0, b"BZh") {
        "compressed by bzip2, so unpack it first"
    } else if has(0, b"\x02\x21\x4c\x18") || has(0, b"\x04\x22\x4d\x18") {
        "compressed by lz4, so unpack it first"
    } else if has(0, b"\x89LZO") {
        "compressed by lzop, so unpack it first"
    } else if has(0, b"\x5d\0\0") {
        "compressed by lzma, so unpack it first"
    } else if has(0, b"070701") {
        "a cpio archive, perhaps the initrd"
    } else {
        "no format that is known here"
    };
    what.into()
}

/// An ELF file for a processor that this machine has not, or where it takes no ELF file at all.
fn describe_elf(start: &[u8]) -> String {
    match (start.get(18), start.get(19)) {
        (Some(&low), Some(&high)) => {
            format!("an ELF file for {}", elf_machine(u16::from_le_bytes([low, high])))
        }
        _ => "an ELF file".into(),
    }
}

/// The name of an ELF machine that somebody may have a kernel for.
pub(super) fn elf_machine(machine: u16) -> String {
    match machine {
        3 => "32-bit x86".into(),
        40 => "32-bit Arm".into(),
        62 => "x86-64".into(),
        183 => "64-bit Arm".into(),
        243 => "RISC-V".into(),
        other => format!("another processor (machine {other})"),
    }
}
