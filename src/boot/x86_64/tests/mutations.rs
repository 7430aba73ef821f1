//! Thousands of headers that are almost right.

use std::os::unix::fs::FileExt;

use super::*;

/// Opens, checks and loads mutants of `original`; returns how many could be loaded. All go to the same memory, which
/// is not cleared between them: where nothing may be written, nothing was.
fn run(original: &[u8], ranges: &[Range<usize>], rounds: u32, size: u64) -> u32 {
    let files = Files::new();
    let initrd_bytes = pattern(0x2345);
    let initrd = files.write("initrd", &initrd_bytes);
    let path = files.write("kernel", original);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let kernel = Kernel::linux(path).initrd(initrd);
    let ram = ram(size);
    let params = LoadParams::new("console=ttyS0").rsdp(layout::ACPI);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut loaded = 0;
    for _ in 0..rounds {
        let mut image = original.to_vec();
        random.mutate(&mut image, ranges);
        file.write_all_at(&image, 0).unwrap();
        let Ok(payload) = kernel.open() else { continue };
        let checked = payload.check(ram.size(), &params.cmdline).is_ok();
        let result = payload.load(&ram, &params);
        assert_eq!(
            checked,
            result.is_ok(),
            "what is checked can be loaded, and nothing else: {result:?}"
        );
        let Ok(state) = result else { continue };
        loaded += 1;
        assert_low_memory_is_untouched(&ram);
        let initrd = match state.regs.rbx {
            0 => u32_at(&ram, layout::ZERO_PAGE + 0x218).into(),
            info => u64_at(&ram, u64_at(&ram, info + 16)),
        };
        assert!(bytes_at(&ram, initrd, initrd_bytes.len()) == initrd_bytes, "overwritten");
        assert!(state.regs.rip >= layout::HIGH_RAM && state.regs.rip < initrd);
    }
    loaded
}

#[test]
fn no_bzimage_breaks_the_loader() {
    let loaded = run(&bzimage::image(), &[0x1f1..0x210, 0x210..0x26c], 4000, 4 << 20);
    assert!((500..3900).contains(&loaded), "{loaded} of 4000 is no fair sample");
}

#[test]
fn no_elf_file_breaks_the_loader() {
    let loaded = run(&elf::linux(), &[0..64, 64..64 + 2 * 56], 3000, 20 << 20);
    assert!((300..2900).contains(&loaded), "{loaded} of 3000 is no fair sample");
    let image = elf::pvh();
    let loaded = run(&image, &[64 + 56..64 + 3 * 56, elf::NOTES..image.len()], 3000, 20 << 20);
    assert!((300..2900).contains(&loaded), "{loaded} of 3000 is no fair sample");
}
