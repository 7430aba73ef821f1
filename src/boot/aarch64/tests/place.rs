use super::*;

#[test]
fn memory_is_kept_free_for_kernel_and_device_tree() {
    let files = Files::new();
    let linux = open(&files, &image()).unwrap();
    let least = 2 * DEVICE_TREE_MAX;
    linux.check(least, "").unwrap();
    load(&linux, &ram(least)).unwrap();
    let small = ram(least - 0x1000);
    for error in [linux.check(small.size(), "").unwrap_err(), load(&linux, &small).unwrap_err()] {
        let end = START + SIZE;
        assert!(matches!(error, Error::KernelDoesNotFit { start: START, end: e, .. } if e == end));
        assert!(error.to_string().contains("give it more"), "{error}");
    }
    assert_eq!(bytes_at(&small, START, small.size() as usize), vec![0; small.size() as usize]);

    let large = with(0x10, &(1_u64 << 40).to_le_bytes());
    let linux = open(&files, &large).unwrap();
    linux.check((1 << 40) + DEVICE_TREE_MAX, "").unwrap();
    assert!(matches!(linux.check(1 << 40, ""), Err(Error::KernelDoesNotFit { .. })));
}

#[test]
fn the_initrd_has_what_is_left() {
    let files = Files::new();
    let kernel = files.write("kernel", &image());
    let linux = Linux::open(&kernel, Some(&files.write("initrd", &pattern(0x1800)))).unwrap();
    let least = 2 * DEVICE_TREE_MAX + 0x2000;
    load(&linux, &ram(least)).unwrap();
    let error = load(&linux, &ram(least - 0x1000)).unwrap_err();
    assert!(matches!(error, Error::InitrdDoesNotFit { size: 0x1800, room: 0x1000, .. }), "{error}");
}

#[test]
fn the_initrd_is_near_the_kernel() {
    let files = Files::new();
    let kernel = files.write("kernel", &image());
    let initrd = files.write("initrd", &[1]);
    let size = (32 << 30) - 2 * DEVICE_TREE_MAX;
    let check = |size: u64| {
        // With a hole, so that it takes no space on the disk.
        std::fs::File::options().write(true).open(&initrd).unwrap().set_len(size).unwrap();
        Linux::open(&kernel, Some(&initrd)).unwrap().check(64 << 30, "")
    };
    check(size).unwrap();
    let error = check(size + 1).unwrap_err();
    let limit = START + (32 << 30);
    assert!(matches!(error, Error::InitrdDoesNotFit { limit: l, .. } if l == limit), "{error}");
}

#[test]
fn a_kernel_is_not_loaded_without_a_device_tree_that_it_can_take() {
    let files = Files::new();
    let linux = open(&files, &image()).unwrap();
    let ram = ram(RAM);
    let refused = |params: &LoadParams<'_>, word| {
        let error = linux.load(&ram, params).unwrap_err();
        assert!(matches!(error, Error::Memory { what: "device tree", .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(&LoadParams::new(""), "none");
    refused(&LoadParams::new("").device_tree(&|_| Err("no such property".into())), "no such prop");
    let max = DEVICE_TREE_MAX as usize;
    refused(&LoadParams::new("").device_tree(&|_| Ok(vec![1; max + 1])), "has 2097153 bytes");
    linux.load(&ram, &LoadParams::new("").device_tree(&|_| Ok(vec![1; max]))).unwrap();
    assert_eq!(bytes_at(&ram, TREE, max + 1)[max - 1..], [1, 0]);
}

#[test]
fn the_command_line_fits_or_is_refused() {
    let files = Files::new();
    let linux = open(&files, &image()).unwrap();
    let check = |len: usize| linux.check(RAM, &"x".repeat(len));
    check(2047).unwrap();
    assert!(matches!(check(2048), Err(Error::CmdlineTooLong { len: 2048, max: 2047, .. })));
    let error = linux.load(&ram(RAM), &LoadParams::new("x".repeat(2048)).device_tree(&tree));
    assert!(matches!(error, Err(Error::CmdlineTooLong { .. })), "{error:?}");
    assert!(matches!(linux.check(RAM, "a\0b"), Err(Error::CmdlineNul { at: 1 })));
}
