use super::*;

const START: u64 = 0x20_0000;
const KERNEL_LEN: usize = 0x1800;
const INIT_SIZE: u64 = 0x8000;
const SETUP_LEN: usize = 1024;

/// A bzImage of the newest protocol with nothing in it that a loader would not look at.
pub(super) fn image() -> Vec<u8> {
    let mut image = vec![0xcc; SETUP_LEN];
    image[0x1f1..0x26c].fill(0);
    image[0x1f1] = 1;
    put(&mut image, 0x1f4, &(KERNEL_LEN as u32 / 16).to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    put(&mut image, 0x214, &0x10_0000_u32.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000_u32.to_le_bytes());
    image[0x234] = 1;
    put(&mut image, 0x236, &0x7f_u16.to_le_bytes());
    put(&mut image, 0x238, &2047_u32.to_le_bytes());
    put(&mut image, 0x248, &0x300_u32.to_le_bytes());
    put(&mut image, 0x24c, &0x1000_u32.to_le_bytes());
    put(&mut image, 0x258, &START.to_le_bytes());
    put(&mut image, 0x260, &(INIT_SIZE as u32).to_le_bytes());
    image.extend_from_slice(&pattern(KERNEL_LEN));
    image
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image();
    put(&mut image, at, bytes);
    image
}

#[test]
fn is_loaded_and_entered_by_the_64_bit_protocol() {
    let files = Files::new();
    let initrd = pattern(5000);
    let kernel = files.kernel(&image()).initrd(files.write("initrd", &initrd)).cmdline("quiet");
    let payload = kernel.open().unwrap();
    assert_eq!(payload.cmdline(), "quiet");
    let ram = ram(16 << 20);
    let params = LoadParams::new("quiet panic=-1").rsdp(layout::ACPI);
    payload.check(ram.size(), &params.cmdline).unwrap();
    let state = payload.load(&ram, &params).unwrap();

    assert_eq!(bytes_at(&ram, START, KERNEL_LEN), pattern(KERNEL_LEN));
    assert_eq!(bytes_at(&ram, START + KERNEL_LEN as u64, 64), [0; 64]);
    assert_eq!(bytes_at(&ram, layout::CMDLINE, 15), b"quiet panic=-1\0");

    // The file's own header, and what the boot protocol says that a loader fills in.
    let page = layout::ZERO_PAGE;
    assert_eq!(bytes_at(&ram, page + 0x202, 4), b"HdrS");
    assert_eq!(u64_at(&ram, page + 0x258), START);
    assert_eq!(u8_at(&ram, page + 0x210), 0xff, "type_of_loader");
    assert_eq!(u8_at(&ram, page + 0x211), 1, "loadflags");
    assert_eq!(u32_at(&ram, page + 0x228), layout::CMDLINE as u32);
    assert_eq!(u64_at(&ram, page + 0x70), layout::ACPI, "acpi_rsdp_addr");
    assert_eq!(bytes_at(&ram, page, 0x40), [0; 0x40], "screen_info");
    assert_memory_map(&ram, page + 0x2d0, 20, u8_at(&ram, page + 0x1e8).into());
    // As high as it can be, at the start of a page.
    let end = 16 << 20;
    assert_eq!(u32_at(&ram, page + 0x218), end - 0x2000);
    assert_eq!(u32_at(&ram, page + 0x21c), 5000);
    assert_eq!(bytes_at(&ram, (end - 0x2000).into(), 5000), initrd);
    assert_eq!(bytes_at(&ram, page + 0xc0, 12), [0; 12], "upper halves");

    let mut expected = CpuState::long_mode(START + 0x200);
    expected.regs.rsi = page;
    assert_eq!(state, expected);
    assert_eq!(u64_at(&ram, state.system.cr3), layout::PAGE_TABLES + 0x1003);
    assert_low_memory_is_untouched(&ram);
}

#[test]
fn a_reset_loads_it_again() {
    let files = Files::new();
    let kernel = files.kernel(&image()).initrd(files.write("initrd", &pattern(100)));
    let payload = kernel.open().unwrap();
    let ram = ram(8 << 20);
    let first = payload.load(&ram, &LoadParams::default()).unwrap();
    ram.clear().unwrap();
    assert_eq!(payload.load(&ram, &LoadParams::default()).unwrap(), first);
    assert_eq!(bytes_at(&ram, START, KERNEL_LEN), pattern(KERNEL_LEN));
    assert_eq!(bytes_at(&ram, (8 << 20) - 0x1000, 100), pattern(100));
}

#[test]
fn what_follows_the_kernel_in_the_file_is_left_out() {
    let mut signed = image();
    signed.extend_from_slice(&[0xee; 1000]);
    let ram = ram(4 << 20);
    Files::new().kernel(&signed).open().unwrap().load(&ram, &LoadParams::default()).unwrap();
    assert_eq!(bytes_at(&ram, START + KERNEL_LEN as u64, 1000), [0; 1000]);
}

#[test]
fn what_a_shorter_header_does_not_define_is_zero() {
    // A header that ends at 0x264, and 0xcc behind it as everywhere in the setup code.
    let mut short = with(0x201, &[0x62]);
    put(&mut short, 0x264, &[0xcc; 8]);
    let ram = ram(4 << 20);
    Files::new().kernel(&short).open().unwrap().load(&ram, &LoadParams::default()).unwrap();
    assert_eq!(bytes_at(&ram, layout::ZERO_PAGE + 0x260, 16)[..4], 0x8000_u32.to_le_bytes());
    assert_eq!(bytes_at(&ram, layout::ZERO_PAGE + 0x264, 12), [0; 12]);
}

#[test]
fn pointers_in_the_file_are_not_passed_on() {
    let mut image = with(0x250, &[0xaa; 8]);
    put(&mut image, 0x218, &[0xbb; 8]);
    put(&mut image, 0x228, &[0xdd; 4]);
    let ram = ram(4 << 20);
    Files::new().kernel(&image).open().unwrap().load(&ram, &LoadParams::default()).unwrap();
    assert_eq!(u64_at(&ram, layout::ZERO_PAGE + 0x250), 0, "setup_data");
    assert_eq!(u64_at(&ram, layout::ZERO_PAGE + 0x218), 0, "initrd");
    assert_eq!(u32_at(&ram, layout::ZERO_PAGE + 0x228), layout::CMDLINE as u32);
}

#[test]
fn the_initrd_goes_no_higher_than_the_kernel_says() {
    let files = Files::new();
    let initrd = files.write("initrd", &pattern(0x2000));
    let kernel = files.kernel(&with(0x22c, &0x5f_ffff_u32.to_le_bytes())).initrd(initrd);
    let ram = ram(16 << 20);
    kernel.open().unwrap().load(&ram, &LoadParams::default()).unwrap();
    assert_eq!(u32_at(&ram, layout::ZERO_PAGE + 0x218), 0x60_0000 - 0x2000);
}

#[test]
fn the_initrd_stays_below_the_hole() {
    let files = Files::new();
    let initrd = files.write("initrd", &pattern(0x1000));
    let kernel = files.kernel(&with(0x22c, &u32::MAX.to_le_bytes())).initrd(initrd);
    let ram = ram(5 << 30);
    kernel.open().unwrap().load(&ram, &LoadParams::default()).unwrap();
    let address = u32_at(&ram, layout::ZERO_PAGE + 0x218);
    assert_eq!(u64::from(address), layout::HOLE_START - 0x1000);
    assert_memory_map(&ram, layout::ZERO_PAGE + 0x2d0, 20, 6);
}

#[test]
fn memory_is_kept_free_for_what_the_kernel_unpacks() {
    let files = Files::new();
    let payload = files.kernel(&image()).open().unwrap();
    payload.check(START + INIT_SIZE, "").unwrap();
    let error = payload.check(START + INIT_SIZE - 0x1000, "").unwrap_err();
    assert!(
        matches!(error, Error::KernelDoesNotFit { start: START, end, .. } if end == START + INIT_SIZE)
    );
    assert!(error.to_string().contains("give it more"), "{error}");

    // The initrd may come to its end, and no nearer.
    let initrd = files.write("initrd", &pattern(0x1000));
    let payload = files.kernel(&image()).initrd(initrd).open().unwrap();
    payload.check(START + INIT_SIZE + 0x1000, "").unwrap();
    let error = payload.check(START + INIT_SIZE + 0xfff, "").unwrap_err();
    assert!(matches!(error, Error::InitrdDoesNotFit { size: 0x1000, room: 0, .. }), "{error}");
    let too_small = ram(START + INIT_SIZE);
    let error = payload.load(&too_small, &LoadParams::default()).unwrap_err();
    assert!(matches!(error, Error::InitrdDoesNotFit { .. }));
    assert_eq!(
        bytes_at(&too_small, 0, too_small.size() as usize),
        vec![0; too_small.size() as usize]
    );
}

#[test]
fn a_kernel_needs_no_less_than_its_own_length() {
    let payload = Files::new().kernel(&with(0x260, &[0; 4])).open().unwrap();
    payload.check(START + KERNEL_LEN as u64, "").unwrap();
    assert!(payload.check(START + KERNEL_LEN as u64 - 1, "").is_err());
}

#[test]
fn a_kernel_that_asks_for_memory_no_machine_has_is_told_apart() {
    for start in [layout::HOLE_START, 1 << 32, 1 << 52] {
        let payload = Files::new().kernel(&with(0x258, &start.to_le_bytes())).open().unwrap();
        let error = payload.check(1 << 40, "").unwrap_err();
        assert!(error.to_string().contains("no machine has memory"), "{error}");
    }
}

#[test]
fn the_command_line_fits_or_is_refused() {
    let files = Files::new();
    let open = |max: u32, len: usize| {
        files.kernel(&with(0x238, &max.to_le_bytes())).cmdline("x".repeat(len)).open()
    };
    open(2047, 2047).unwrap();
    assert!(matches!(open(2047, 2048), Err(Error::CmdlineTooLong { len: 2048, max: 2047, .. })));
    // The place for it has an end too.
    let max = layout::CMDLINE_MAX as usize - 1;
    let ram = ram(4 << 20);
    let payload = open(u32::MAX, max).unwrap();
    payload.load(&ram, &LoadParams::new("x".repeat(max))).unwrap();
    assert_eq!(u8_at(&ram, layout::CMDLINE + max as u64), 0);
    assert!(matches!(open(u32::MAX, max + 1), Err(Error::CmdlineTooLong { .. })));

    // What the machine adds counts too.
    let payload = open(2047, 2040).unwrap();
    let longer = "y".repeat(2048);
    assert!(matches!(payload.check(4 << 20, &longer), Err(Error::CmdlineTooLong { .. })));
    assert!(matches!(
        payload.load(&ram, &LoadParams::new(longer)),
        Err(Error::CmdlineTooLong { .. })
    ));
    assert!(matches!(payload.check(4 << 20, "a\0b"), Err(Error::CmdlineNul { at: 1 })));
}

#[test]
fn kernels_that_cannot_be_entered_in_64_bit_mode_are_refused() {
    for (at, bytes, word) in [
        (0x206, &[0x0b, 2][..], "boot protocol 2.11"),
        (0x206, &[0, 0], "boot protocol 0.00"),
        (0x236, &[0x7e], "64-bit entry"),
        (0x211, &[0], "zImage"),
    ] {
        let error = refusal(&with(at, bytes));
        assert!(matches!(error, Error::Unsupported { .. }));
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    for (at, bytes, word) in [
        (0x1fe, &[0, 0][..], "boot flag"),
        (0x201, &[0x61], "ends at 0x263"),
        (0x1f4, &0x20_u32.to_le_bytes(), "512 of kernel"),
        (0x1f4, &0_u32.to_le_bytes(), "0 of kernel"),
        (0x248, &0x801_u32.to_le_bytes(), "payload ends at byte 6145"),
        (0x248, &u32::MAX.to_le_bytes(), "payload ends"),
        (0x230, &0_u32.to_le_bytes(), "aligned to 0x0"),
        (0x230, &0x30_0000_u32.to_le_bytes(), "aligned to 0x300000"),
        (0x258, &0_u64.to_le_bytes(), "address 0x0"),
        (0x258, &0x8_0000_u64.to_le_bytes(), "address 0x80000"),
        (0x258, &0x20_1000_u64.to_le_bytes(), "address 0x201000"),
        (0x258, &u64::MAX.to_le_bytes(), "address 0xffffffffffffffff"),
    ] {
        let error = refusal(&with(at, bytes));
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    // An end behind the end of the address space.
    let mut image = with(0x230, &0x1000_u32.to_le_bytes());
    put(&mut image, 0x258, &(u64::MAX - 0xfff).to_le_bytes());
    assert!(matches!(refusal(&image), Error::Corrupt { .. }));
}

#[test]
fn a_file_that_ends_early_is_truncated() {
    let image = image();
    for len in [0x206, 0x26b, 0x26c, SETUP_LEN, image.len() - 1] {
        let error = refusal(&image[..len]);
        assert!(matches!(error, Error::Truncated { .. }), "{len:#x}: {error}");
    }
    // Zero sectors of setup code are four, which are not there.
    let error = refusal(&with(0x1f1, &[0]));
    assert!(matches!(error, Error::Truncated { needs: 0x2200, .. }), "{error}");
    let error = refusal(&with(0x1f4, &u32::MAX.to_le_bytes()));
    assert!(matches!(error, Error::Truncated { needs: 0x10_0000_03f0, .. }), "{error}");
}
