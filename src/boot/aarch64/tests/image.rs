use super::*;

#[test]
fn is_loaded_and_entered_by_the_boot_protocol() {
    let files = Files::new();
    let initrd = pattern(5000);
    let kernel = files.write("kernel", &image());
    let linux = Linux::open(&kernel, Some(&files.write("initrd", &initrd))).unwrap();
    let ram = ram(RAM);
    linux.check(ram.size(), "console=ttyAMA0").unwrap();
    let state = load(&linux, &ram).unwrap();
    assert_loaded(&ram, START, &image(), &initrd);
    // X0 is the device tree, X1 to X3 are zero; EL1, everything masked, on no stack.
    let mut expected = CpuState { pc: START, pstate: 0x3c5, ..CpuState::default() };
    expected.x[0] = TREE;
    assert_eq!(state, expected);
}

#[test]
fn is_loaded_so_far_behind_the_start_of_memory_as_its_header_says() {
    for (offset, tree) in [(0x8_0000, TREE), (0x1f_0000, TREE + DEVICE_TREE_MAX)] {
        let files = Files::new();
        let image = with(8, &u64::to_le_bytes(offset));
        let linux = open(&files, &image).unwrap();
        let ram = ram(RAM);
        let state = load(&linux, &ram).unwrap();
        assert_eq!((state.pc, state.x[0]), (START + offset, tree));
        assert_eq!(bytes_at(&ram, START + offset, FILE), image);
        assert_eq!(bytes_at(&ram, START, offset as usize), vec![0; offset as usize]);
    }
}

#[test]
fn a_reset_loads_it_again() {
    let files = Files::new();
    for image in [image(), gzip(&image()), zstd(&image())] {
        let linux = open(&files, &image).unwrap();
        let ram = ram(RAM);
        let first = load(&linux, &ram).unwrap();
        ram.clear().unwrap();
        assert_eq!(load(&linux, &ram).unwrap(), first);
        assert_loaded(&ram, START, &super::image(), &[]);
    }
}

#[test]
fn what_is_beyond_the_memory_it_asks_for_is_left_out() {
    let size = 0x2_0001;
    let image = with(0x10, &u64::to_le_bytes(size));
    for file in [image.clone(), gzip(&image), zstd(&image)] {
        let files = Files::new();
        let ram = ram(RAM);
        load(&open(&files, &file).unwrap(), &ram).unwrap();
        assert_loaded(&ram, START, &image[..size as usize], &[]);
    }
}

#[test]
fn kernels_of_other_processors_are_told_from_good_ones() {
    let mut pc = vec![0; 0x1000];
    put(&mut pc, 0x202, b"HdrS");
    let error = refusal(&pc);
    assert!(matches!(error, Error::NotAKernel { .. }), "{error}");
    assert!(error.to_string().contains("a bzImage, which is for x86; give an Image"), "{error}");

    let error = refusal(&gzip(&with(0x38, b"RSC\x05")));
    assert!(error.to_string().contains("unpacked it is a RISC-V Image"), "{error}");
}

#[test]
fn a_header_without_a_size_is_of_an_old_kernel() {
    let error = refusal(&with(0x10, &[0; 8]));
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("Linux 3.17"), "{error}");
}

#[test]
fn headers_that_ask_for_the_impossible_are_refused() {
    for (offset, size) in [
        (0, 63),
        (u64::MAX, SIZE),
        (0_u64.wrapping_sub(START), SIZE),
        (0, u64::MAX),
        (1 << 20, u64::MAX - (1 << 20) - START + 1),
    ] {
        let mut image = with(8, &offset.to_le_bytes());
        put(&mut image, 0x10, &size.to_le_bytes());
        for image in [gzip(&image), image] {
            let error = refusal(&image);
            assert!(matches!(error, Error::Corrupt { .. }), "{offset:#x} {size:#x}: {error}");
        }
    }
}

/// A PE header at 0x40, with two sections.
fn with_pe(sections: [(u32, u32); 2]) -> Vec<u8> {
    let mut image = with(0, b"MZ");
    put(&mut image, 0x3c, &0x40_u32.to_le_bytes());
    put(&mut image, 0x40, b"PE\0\0\x64\xaa\x02\0");
    put(&mut image, 0x54, &0xa0_u16.to_le_bytes());
    for (n, (offset, len)) in sections.into_iter().enumerate() {
        let at = 0x40 + 24 + 0xa0 + n * 40;
        put(&mut image, at + 16, &len.to_le_bytes());
        put(&mut image, at + 20, &offset.to_le_bytes());
    }
    image
}

#[test]
fn a_file_that_ends_early_is_truncated() {
    let whole = with_pe([(0x1000, 0x1_0000), (0x1_1000, FILE as u32 - 0x1_1000)]);
    let files = Files::new();
    let ram = ram(RAM);
    load(&open(&files, &whole).unwrap(), &ram).unwrap();
    assert_loaded(&ram, START, &whole, &[]);
    for len in [0x3c, 0x3f, 0x41, 0x57, 0x58, 0x147, 0x148, FILE - 1] {
        let error = refusal(&whole[..len]);
        assert!(matches!(error, Error::Truncated { .. }), "{len:#x}: {error}");
    }
    for sections in [[(0, FILE as u32 + 1), (0, 0)], [(0, 0), (u32::MAX, u32::MAX)]] {
        let error = refusal(&with_pe(sections));
        assert!(matches!(error, Error::Truncated { part: "a section", .. }), "{error}");
    }
}

#[test]
fn a_pe_header_that_is_none_is_corrupt() {
    let whole = with_pe([(0, 0); 2]);
    for (at, bytes) in [(0x40, b"NE".to_vec()), (0x46, vec![65, 0]), (0x3c, vec![0; 4])] {
        let mut image = whole.clone();
        put(&mut image, at, &bytes);
        let error = refusal(&image);
        assert!(matches!(error, Error::Corrupt { .. }), "{at:#x}: {error}");
    }
    // Without EFI's magic number the field means nothing.
    let mut plain = whole;
    put(&mut plain, 0, &[0, 0]);
    put(&mut plain, 0x3c, &[0xff; 4]);
    open(&Files::new(), &plain).unwrap();
}
