use super::*;

#[test]
fn kernels_of_other_processors_are_told_from_good_ones() {
    let mut arm = vec![0; 0x1000];
    put(&mut arm, 0x38, b"ARM\x64");
    let error = refusal(&arm);
    assert!(matches!(error, Error::NotAKernel { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("it is an arm64 Image; give a bzImage"), "{text}");
}

#[test]
fn a_file_that_changes_after_the_check_changes_no_address() {
    let files = Files::new();
    for original in [bzimage::image(), elf::linux(), elf::pvh()] {
        let payload = files.kernel(&original).open().unwrap();
        let expected = payload.load(&ram(32 << 20), &LoadParams::default()).unwrap();
        // Same length, every byte different: headers, notes and contents.
        files.write("kernel", &vec![0xff; original.len()]);
        let after = ram(32 << 20);
        assert_eq!(payload.load(&after, &LoadParams::default()).unwrap(), expected);
        assert_low_memory_is_untouched(&after);
    }
}

#[test]
fn a_file_that_shrinks_after_the_check_is_an_error() {
    let files = Files::new();
    let initrd = files.write("initrd", &pattern(0x3000));
    for original in [bzimage::image(), elf::linux()] {
        let payload = files.kernel(&original).initrd(&initrd).open().unwrap();
        files.write("kernel", &original[..0x1200]);
        let error = payload.load(&ram(32 << 20), &LoadParams::default()).unwrap_err();
        assert!(matches!(error, Error::Load { what: "kernel", .. }), "{error}");
        files.write("kernel", &original);
        files.write("initrd", &pattern(0x2fff));
        let error = payload.load(&ram(32 << 20), &LoadParams::default()).unwrap_err();
        assert!(matches!(error, Error::Load { what: "initrd", .. }), "{error}");
        files.write("initrd", &pattern(0x3000));
        payload.load(&ram(32 << 20), &LoadParams::default()).unwrap();
    }
}

#[test]
fn an_initrd_is_not_held_in_memory() {
    let files = Files::new();
    let initrd = files.write("initrd", &[1]);
    // With a hole, so that it takes no space on the disk either.
    std::fs::File::options().write(true).open(&initrd).unwrap().set_len(1 << 40).unwrap();
    let payload = files.kernel(&bzimage::image()).initrd(initrd).open().unwrap();
    let error = payload.check(2 << 30, "").unwrap_err();
    assert!(matches!(error, Error::InitrdDoesNotFit { size: 0x100_0000_0000, .. }), "{error}");
}

#[test]
fn two_loads_of_one_payload_do_not_disturb_each_other() {
    let files = Files::new();
    let initrd = files.write("initrd", &pattern(1 << 20));
    let payload = files.kernel(&bzimage::image()).initrd(initrd).open().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let ram = ram(8 << 20);
                    payload.load(&ram, &LoadParams::default()).unwrap();
                    assert!(bytes_at(&ram, 0x20_0000, 0x1800) == pattern(0x1800));
                    assert!(bytes_at(&ram, 7 << 20, 1 << 20) == pattern(1 << 20));
                }
            });
        }
    });
}
