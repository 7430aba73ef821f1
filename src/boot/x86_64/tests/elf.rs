use super::*;

const ENTRY: u64 = 0x100_0040;
const PVH_ENTRY: u64 = 0x101_0010;
const TEXT: usize = 0x1000;
const DATA: usize = 0x2000;
pub(super) const NOTES: usize = 0x3000;
/// Where the program headers are, and how long one is.
const HEADERS: usize = 64;
const HEADER_LEN: usize = 56;

const LOAD: u32 = 1;
const NOTE: u32 = 4;

fn header(kind: u32, offset: usize, paddr: u64, filesz: u64, memsz: u64) -> Vec<u8> {
    let virt = paddr.wrapping_add(0xffff_ffff_8000_0000);
    let mut header = [kind.to_le_bytes(), 7_u32.to_le_bytes()].concat();
    for field in [offset as u64, virt, paddr, filesz, memsz, 0x1000] {
        header.extend_from_slice(&field.to_le_bytes());
    }
    header
}

fn note(name: &[u8], kind: u32, descriptor: &[u8], alignment: usize) -> Vec<u8> {
    let mut note = Vec::new();
    for field in [name.len() as u32, descriptor.len() as u32, kind] {
        note.extend_from_slice(&field.to_le_bytes());
    }
    for part in [name, descriptor] {
        note.extend_from_slice(part);
        note.resize(note.len() + part.len().next_multiple_of(alignment) - part.len(), 0);
    }
    note
}

/// A vmlinux with a segment of code, one of data with room behind it, and these notes.
fn image_with(notes: &[u8], alignment: u64) -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    for field in [2_u16, 62, 1, 0] {
        image.extend_from_slice(&field.to_le_bytes());
    }
    for field in [ENTRY, HEADERS as u64, 0] {
        image.extend_from_slice(&field.to_le_bytes());
    }
    for field in [0_u16, 0, 64, HEADER_LEN as u16, 3, 64, 0, 0] {
        image.extend_from_slice(&field.to_le_bytes());
    }
    image.extend(header(LOAD, TEXT, 0x100_0000, 0x1000, 0x1000));
    image.extend(header(LOAD, DATA, 0x101_0000, 0x800, 0x4000));
    image.extend(header(NOTE, NOTES, 0x100_0800, notes.len() as u64, notes.len() as u64));
    let at = image.len() - 8;
    put(&mut image, at, &alignment.to_le_bytes());
    image.resize(TEXT, 0xee);
    image.extend(pattern(0x2000));
    image.extend_from_slice(notes);
    image
}

pub(super) fn linux() -> Vec<u8> {
    image_with(&[], 4)
}

pub(super) fn pvh() -> Vec<u8> {
    let xen = |kind, descriptor: &[u8]| note(b"Xen\0", kind, descriptor, 4);
    let notes = [
        note(b"Linux\0", 0x102, &[1], 4),
        xen(6, b"linux\0"),
        xen(18, &PVH_ENTRY.to_le_bytes()),
        xen(5, b"2.6\0"),
    ];
    image_with(&notes.concat(), 4)
}

/// The image with a field of program header `n` changed.
fn with(mut image: Vec<u8>, n: usize, field: usize, value: u64) -> Vec<u8> {
    put(&mut image, HEADERS + n * HEADER_LEN + field, &value.to_le_bytes());
    image
}
const OFFSET: usize = 8;
const PADDR: usize = 24;
const FILESZ: usize = 32;
const MEMSZ: usize = 40;

fn assert_segments_are_loaded(ram: &GuestRam) {
    let file = pattern(0x2000);
    assert_eq!(bytes_at(ram, 0x100_0000, 0x1000), file[..0x1000]);
    assert_eq!(bytes_at(ram, 0x100_1000, 0xf000), [0; 0xf000]);
    assert_eq!(bytes_at(ram, 0x101_0000, 0x800), file[0x1000..0x1800]);
    assert_eq!(bytes_at(ram, 0x101_0800, 0x3800), [0; 0x3800], "without bytes in the file");
}

#[test]
fn a_vmlinux_is_loaded_and_entered_by_the_64_bit_protocol() {
    let files = Files::new();
    let initrd = files.write("initrd", &pattern(777));
    let payload = files.kernel(&linux()).initrd(initrd).open().unwrap();
    let ram = ram(32 << 20);
    let state = payload.load(&ram, &LoadParams::new("quiet").rsdp(layout::ACPI)).unwrap();
    assert_segments_are_loaded(&ram);

    let page = layout::ZERO_PAGE;
    assert_eq!(bytes_at(&ram, page + 0x1fe, 2), [0x55, 0xaa]);
    assert_eq!(bytes_at(&ram, page + 0x202, 6), b"HdrS\x0f\x02");
    assert_eq!(u8_at(&ram, page + 0x210), 0xff, "type_of_loader");
    assert_eq!(u32_at(&ram, page + 0x228), layout::CMDLINE as u32);
    assert_eq!(u32_at(&ram, page + 0x238), 2047);
    assert_eq!(bytes_at(&ram, layout::CMDLINE, 6), b"quiet\0");
    let address = u32_at(&ram, page + 0x218);
    assert_eq!(address, (32 << 20) - 0x1000);
    assert_eq!(u32_at(&ram, page + 0x21c), 777);
    assert_eq!(bytes_at(&ram, address.into(), 777), pattern(777));
    assert_eq!(u64_at(&ram, page + 0x70), layout::ACPI);
    assert_memory_map(&ram, page + 0x2d0, 20, u8_at(&ram, page + 0x1e8).into());

    let mut expected = CpuState::long_mode(ENTRY);
    expected.regs.rsi = page;
    assert_eq!(state, expected);
    assert_low_memory_is_untouched(&ram);
}

#[test]
fn a_kernel_with_the_note_is_entered_by_pvh() {
    let files = Files::new();
    let initrd = files.write("initrd", &pattern(777));
    let payload = files.kernel(&pvh()).initrd(initrd).open().unwrap();
    let ram = ram(5 << 30);
    let state = payload.load(&ram, &LoadParams::new("quiet").rsdp(layout::ACPI)).unwrap();
    assert_segments_are_loaded(&ram);

    let info = layout::PVH_INFO;
    assert_eq!(
        [u32_at(&ram, info), u32_at(&ram, info + 4), u32_at(&ram, info + 8)],
        [0x336e_c578, 1, 0]
    );
    assert_eq!(u64_at(&ram, info + 24), layout::CMDLINE);
    assert_eq!(bytes_at(&ram, layout::CMDLINE, 6), b"quiet\0");
    assert_eq!(u64_at(&ram, info + 32), layout::ACPI);
    assert_eq!(u32_at(&ram, info + 12), 1, "one module");
    let module = u64_at(&ram, info + 16);
    let (address, size) = (u64_at(&ram, module), u64_at(&ram, module + 8));
    assert_eq!((address, size), (0x7fff_f000, 777));
    assert_eq!(bytes_at(&ram, address, 777), pattern(777));
    assert_memory_map(&ram, u64_at(&ram, info + 40), 24, u32_at(&ram, info + 48).into());

    let mut expected = CpuState::protected_mode(PVH_ENTRY);
    expected.regs.rbx = info;
    assert_eq!(state, expected);
    assert_low_memory_is_untouched(&ram);
}

#[test]
fn without_an_initrd_pvh_has_no_modules() {
    let ram = ram(32 << 20);
    Files::new().kernel(&pvh()).open().unwrap().load(&ram, &LoadParams::default()).unwrap();
    assert_eq!(u32_at(&ram, layout::PVH_INFO + 12), 0);
    assert_eq!(u64_at(&ram, layout::PVH_INFO + 16), 0);
    assert_eq!(u64_at(&ram, layout::PVH_INFO + 32), 0, "no RSDP");
}

#[test]
fn the_note_is_found_among_others_and_only_as_it_is_defined() {
    let entry = |notes: &[u8], alignment| {
        let files = Files::new();
        let payload = files.kernel(&image_with(notes, alignment)).open().unwrap();
        let state = payload.load(&ram(32 << 20), &LoadParams::default()).unwrap();
        state.regs.rip
    };
    let short = (PVH_ENTRY as u32).to_le_bytes();
    let xen = |alignment| note(b"Xen\0", 18, &short, alignment);
    assert_eq!(entry(&xen(4), 4), PVH_ENTRY, "four bytes are enough");
    for alignment in [4, 8] {
        let notes = [note(b"GNU\0", 5, &[0; 12], alignment), xen(alignment)].concat();
        assert_eq!(entry(&notes, alignment as u64), PVH_ENTRY);
    }
    assert_eq!(entry(&note(b"Xen\0", 17, &short, 4), 4), ENTRY, "another kind");
    assert_eq!(entry(&note(b"Zen\0", 18, &short, 4), 4), ENTRY, "another name");
    assert_eq!(entry(&note(b"", 18, &short, 4), 4), ENTRY, "no name");
    assert_eq!(entry(&[0; 11], 4), ENTRY, "too short for a note");
    assert_eq!(entry(&[0; 120], 4), ENTRY, "notes of nothing");
}

#[test]
fn notes_that_pass_their_end_are_refused() {
    for (name, descriptor, word) in [
        (u32::MAX, 0, "longer than all"),
        (4, u32::MAX, "longer than all"),
        (4, 0x100, "longer than all"),
        (0x40, 0, "longer than all"),
    ] {
        let mut notes = note(b"Xen\0", 18, &[0; 8], 4);
        put(&mut notes, 0, &name.to_le_bytes());
        put(&mut notes, 4, &descriptor.to_le_bytes());
        let error = refusal(&image_with(&notes, 4));
        assert!(
            matches!(error, Error::Corrupt { .. }) && error.to_string().contains(word),
            "{error}"
        );
    }
    let error = refusal(&image_with(&note(b"Xen\0", 18, &[1, 2, 3], 4), 4));
    assert!(error.to_string().contains("no address"), "{error}");
    // The file may have holes, so that it is long enough for any number of notes.
    let mut image = with(linux(), 2, FILESZ, 0x10_0000);
    image.resize(NOTES + 0x10_0000, 0);
    let error = refusal(&image);
    assert!(error.to_string().contains("1048576 bytes of notes"), "{error}");
}

#[test]
fn files_for_other_machines_are_told_apart() {
    for (at, bytes, word) in [
        (4, &[1][..], "32-bit ELF"),
        (5, &[2], "big-endian"),
        (18, &[183, 0], "64-bit Arm"),
        (18, &[3, 0], "32-bit x86"),
        (18, &[0xff, 0xff], "machine 65535"),
        (16, &[1, 0], "type 1"),
        (16, &[4, 0], "type 4"),
    ] {
        let mut image = linux();
        put(&mut image, at, bytes);
        let error = refusal(&image);
        assert!(matches!(error, Error::NotAKernel { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    let patched = |at: usize, bytes: &[u8]| {
        let mut image = linux();
        put(&mut image, at, bytes);
        image
    };
    for (image, word) in [
        (patched(4, &[0]), "class 0"),
        (patched(5, &[3]), "encoding 3"),
        (patched(54, &[55, 0]), "of 55 bytes"),
        (patched(56, &[0, 0]), "0 program headers"),
        (patched(56, &[65, 0]), "65 program headers"),
        (patched(56, &[0xff, 0xff]), "65535 program headers"),
        (patched(24, &0x100_1000_u64.to_le_bytes()), "entry point 0x1001000"),
        (patched(24, &0xffff_ffff_8100_0000_u64.to_le_bytes()), "entry point 0xffffffff81000000"),
        (with(linux(), 1, PADDR, 0xf_ffff), "loaded at 0xfffff"),
        (with(linux(), 1, PADDR, 0), "loaded at 0x0"),
        (with(linux(), 1, PADDR, u64::MAX - 0x1000), "loaded at 0xffffffffffffefff"),
        (with(linux(), 1, MEMSZ, 0x7ff), "2048 bytes in the file and 2047 in memory"),
        (with(linux(), 1, MEMSZ, u64::MAX), "loaded at 0x1010000"),
        (with(with(linux(), 0, MEMSZ, 0), 1, MEMSZ, 0), "no segment"),
        (with(with(linux(), 0, FILESZ, 0), 1, FILESZ, 0), "no segment"),
    ] {
        let error = refusal(&image);
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    // The address of a PVH entry point is as bad as another.
    let notes = note(b"Xen\0", 18, &0x200_0000_u32.to_le_bytes(), 4);
    assert!(refusal(&image_with(&notes, 4)).to_string().contains("entry point 0x2000000"));
}

#[test]
fn a_file_that_ends_early_is_truncated() {
    let image = pvh();
    for len in [5, 63, 64, HEADERS + 3 * HEADER_LEN - 1, TEXT, DATA, DATA + 0x7ff, image.len() - 1]
    {
        let error = refusal(&image[..len]);
        assert!(matches!(error, Error::Truncated { .. }), "{len:#x}: {error}");
    }
    for image in [
        with(linux(), 0, OFFSET, u64::MAX),
        with(linux(), 0, OFFSET, 1 << 40),
        with(with(linux(), 1, FILESZ, 1 << 40), 1, MEMSZ, 1 << 40),
        with(linux(), 2, OFFSET, 1 << 40),
    ] {
        assert!(matches!(refusal(&image), Error::Truncated { .. }));
    }
    let mut image = linux();
    put(&mut image, 32, &(u64::MAX - 63).to_le_bytes());
    assert!(matches!(refusal(&image), Error::Truncated { .. }));
}

#[test]
fn segments_count_with_what_they_have_in_memory_only() {
    let payload = Files::new().kernel(&linux()).open().unwrap();
    payload.check(0x101_4000, "").unwrap();
    let error = payload.check(0x101_3fff, "").unwrap_err();
    assert!(matches!(error, Error::KernelDoesNotFit { start: 0x100_0000, end: 0x101_4000, .. }));
    let high = with(linux(), 1, PADDR, 1 << 32);
    let error = Files::new().kernel(&high).open().unwrap().check(8 << 30, "").unwrap_err();
    assert!(error.to_string().contains("no machine has memory from 0xc0000000"), "{error}");
}
