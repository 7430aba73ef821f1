//! Thousands of headers that are almost right.

use std::os::unix::fs::FileExt;

use super::*;

/// xorshift64*, from a fixed start: what fails once fails again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Changes a few fields, anywhere in these ranges, to values that tend to be at the edge of something.
    fn mutate(&mut self, image: &mut [u8], ranges: &[Range<usize>]) {
        for _ in 0..1 + self.below(3) {
            let range = &ranges[self.below(ranges.len())];
            let at = range.start + self.below(range.len());
            let bits = self.below(64) as u32;
            let value = match self.below(6) {
                0 => 0,
                1 => u64::MAX,
                2 => 1_u64.wrapping_shl(bits),
                3 => 1_u64.wrapping_shl(bits).wrapping_sub(1),
                4 => self.next() & 0xff_ffff,
                _ => self.next(),
            };
            let len = [1, 2, 4, 8][self.below(4)].min(image.len() - at);
            put(image, at, &value.to_le_bytes()[..len]);
        }
    }
}

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
