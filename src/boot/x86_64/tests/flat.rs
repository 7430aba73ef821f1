use super::*;

#[test]
fn bare_code_goes_where_it_is_told() {
    let code = pattern(100);
    let ram = ram(4 << 20);
    let state = CpuState::real_mode(0x1000);
    let payload = Kernel::flat(code.clone(), 0x1000, state).open().unwrap();
    payload.check(ram.size(), "not its business").unwrap();
    assert_eq!(payload.load(&ram, &LoadParams::default()).unwrap(), state);
    let mut expected = vec![0; layout::HIGH_RAM as usize];
    put(&mut expected, 0x1000, &code);
    assert!(bytes_at(&ram, 0, expected.len()) == expected, "and nothing else is written");
}

#[test]
fn it_gets_the_tables_that_its_state_refers_to() {
    for state in [CpuState::long_mode(0x10_0000), CpuState::protected_mode(0x10_0000)] {
        let ram = ram(4 << 20);
        let payload = Kernel::flat([0xf4], 0x10_0000, state).open().unwrap();
        payload.load(&ram, &LoadParams::default()).unwrap();
        assert_ne!(u64_at(&ram, layout::GDT + 0x10), 0);
        assert_ne!(u64_at(&ram, layout::PAGE_TABLES), 0);
    }
}

#[test]
fn code_that_does_not_fit_is_refused() {
    let check = |len: usize, address, state| {
        Kernel::flat(vec![0xf4; len], address, state).open().unwrap().check(5 << 30, "")
    };
    let (real, long) = (CpuState::real_mode(0), CpuState::long_mode(0));
    for (len, address, state) in [
        (1, 0xc000_0000, long),
        (2, 0xbfff_ffff, long),
        (1, 7 << 30, long),
        (2, u64::MAX, long),
        (1, u64::MAX, long),
        (1, 0x500, long),
        (1, 0xefff, long),
        (0x1_0000, 0, CpuState::protected_mode(0)),
        (1, 0x9_fc00, real),
        (1, 0xe_0000, real),
        (2, 0xf_ffff, real),
        (0x10_0000, 0, real),
    ] {
        let error = check(len, address, state);
        assert!(matches!(error, Err(Error::CodeDoesNotFit { .. })), "{address:#x}: {error:?}");
    }
    check(0x8000, 0x500, real).unwrap();
    check(1, 0xbfff_ffff, long).unwrap();
    check(1, 1 << 32, long).unwrap();
    check(0x500, 0, long).unwrap();
    check(0x9_0c00, 0xf000, long).unwrap();

    let payload = Kernel::flat([0xf4], 8 << 20, long).open().unwrap();
    let error = payload.load(&ram(4 << 20), &LoadParams::default()).unwrap_err();
    assert!(matches!(error, Error::CodeDoesNotFit { address: 0x80_0000, .. }), "{error}");
}

#[test]
fn it_takes_neither_initrd_nor_command_line() {
    let code = || Kernel::flat([0xf4], 0x1000, CpuState::real_mode(0x1000));
    for (kernel, word) in
        [(code().initrd("initrd.img"), "initrd"), (code().cmdline("quiet"), "command line")]
    {
        let error = kernel.open().unwrap_err();
        assert!(matches!(error, Error::CodeTakesNo { what } if what == word), "{error}");
    }
}
