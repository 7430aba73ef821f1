//! Files that are almost right, and files that do not stay as they were.

use std::ops::Range;

use super::*;

fn packings() -> [Vec<u8>; 4] {
    [image(), gzip(&image()), zstd(&image()), zboot("gzip", &gzip(&image()))]
}

#[test]
fn a_file_that_changes_after_the_check_changes_no_address() {
    let other = {
        let mut image = with(8, &0x1000_u64.to_le_bytes());
        put(&mut image, 0x10, &u64::to_le_bytes(1 << 30));
        image.resize(1 << 20, 0xee);
        image
    };
    let mut expected = other[..SIZE as usize].to_vec();
    put(&mut expected, 0, &image()[..64]);
    for (original, changed) in [
        (gzip(&image()), gzip(&other)),
        (zstd(&image()), zstd(&other)),
        (zboot("gzip", &gzip(&image())), zboot("gzip", &gzip(&other))),
    ] {
        let files = Files::new();
        let linux = open(&files, &original).unwrap();
        let changed: Vec<u8> = changed.into_iter().take(original.len()).collect();
        files.write("kernel", &changed);
        let ram = ram(RAM);
        // It may end early.
        if let Ok(state) = load(&linux, &ram) {
            assert_eq!(state, CpuState::entry(START, TREE));
            assert_loaded(&ram, START, &expected, &[]);
        }
        assert_eq!(bytes_at(&ram, START + SIZE, 0x1000), [0; 0x1000], "beyond what was checked");
    }

    let files = Files::new();
    let linux = open(&files, &image()).unwrap();
    files.write("kernel", &other);
    let ram = ram(RAM);
    assert_eq!(load(&linux, &ram).unwrap(), CpuState::entry(START, TREE));
    expected.truncate(FILE);
    assert_loaded(&ram, START, &expected, &[]);
}

#[test]
fn a_file_that_shrinks_after_the_check_is_an_error() {
    for original in packings() {
        let files = Files::new();
        let kernel = files.write("kernel", &original);
        let initrd = files.write("initrd", &pattern(0x3000));
        let linux = Linux::open(&kernel, Some(&initrd)).unwrap();
        files.write("kernel", &original[..original.len() / 2]);
        let error = load(&linux, &ram(RAM)).unwrap_err();
        assert!(matches!(error, Error::Load { .. } | Error::Corrupt { .. }), "{error}");
        files.write("kernel", &original);
        files.write("initrd", &pattern(0x2fff));
        let error = load(&linux, &ram(RAM)).unwrap_err();
        assert!(matches!(error, Error::Load { what: "initrd", .. }), "{error}");
        files.write("initrd", &pattern(0x3000));
        load(&linux, &ram(RAM)).unwrap();
    }
}

/// Opens, checks and loads mutants of `original`; returns how many could be loaded.
fn run(original: &[u8], range: Range<usize>, rounds: u32) -> u32 {
    let files = Files::new();
    let initrd_bytes = pattern(0x2345);
    let initrd = files.write("initrd", &initrd_bytes);
    let ram = ram(RAM);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut loaded = 0;
    for _ in 0..rounds {
        let mut image = original.to_vec();
        random.mutate(&mut image, std::slice::from_ref(&range));
        let Ok(linux) = Linux::open(&files.write("kernel", &image), Some(&initrd)) else {
            continue;
        };
        let checked = linux.check(ram.size(), "").is_ok();
        let state = match load(&linux, &ram) {
            Ok(state) => state,
            // That it cannot be unpacked comes to light only then.
            Err(Error::Corrupt { .. }) => continue,
            Err(error) => {
                assert!(!checked, "what is checked can be loaded: {error}");
                continue;
            }
        };
        assert!(checked, "what is loaded was checked");
        loaded += 1;
        let place = state.x[0] + DEVICE_TREE_MAX;
        assert!(bytes_at(&ram, place, initrd_bytes.len()) == initrd_bytes, "overwritten");
        assert!(state.pc >= START && state.pc < state.x[0]);
        let tree = tree(Some((place, initrd_bytes.len() as u64))).unwrap();
        assert!(bytes_at(&ram, state.x[0], tree.len()) == tree);
    }
    loaded
}

#[test]
fn no_image_breaks_the_loader() {
    for (original, range) in [
        (image(), 0..0x40),
        (gzip(&image()), 0..0x60),
        (zstd(&image()), 0..0x60),
        (zboot("gzip", &gzip(&image())), 0..0x38),
        (zboot("zstd", &zstd(&image())), 0..0x38),
    ] {
        let loaded = run(&original, range.clone(), 150);
        assert!((3..147).contains(&loaded), "{loaded} of 150 is no fair sample: {range:x?}");
    }
}
