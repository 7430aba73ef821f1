use super::*;

/// The image with zeros for all memory that it asks for, as it is in zboot images.
fn padded() -> Vec<u8> {
    let mut image = image();
    image.resize(SIZE as usize, 0);
    image
}

/// What comes out of these bytes at loading, on a fresh machine.
fn load_bytes(bytes: &[u8]) -> (GuestRam, Result<CpuState, Error>) {
    let ram = ram(RAM);
    let result = load(&open(&Files::new(), bytes).unwrap(), &ram);
    (ram, result)
}

#[test]
fn every_packing_unpacks_to_the_same() {
    let signed = [gzip(&image()), pattern(1000)].concat();
    for file in [
        gzip(&image()),
        zstd(&image()),
        gzip(&padded()),
        zstd(&padded()),
        signed,
        zboot("gzip", &gzip(&padded())),
        zboot("zstd", &zstd(&padded())),
        zboot("zstd22", &zstd(&padded())),
    ] {
        let (ram, result) = load_bytes(&file);
        assert_eq!(result.unwrap(), CpuState::entry(START, TREE));
        assert_loaded(&ram, START, &image(), &[]);
    }
}

#[test]
fn other_packings_are_called_by_their_names() {
    for name in ["xzkern", "lzma", "lz4", "lzo", "", "a\nb", "a-name-that-has-32-bytes-and-is-lon"]
    {
        let error = refusal(&zboot(&name[..name.len().min(32)], &gzip(&image())));
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        let text = error.to_string();
        let name = name[..name.len().min(32)].escape_default().to_string();
        assert!(text.contains(&format!("compressed by {name};")), "{text}");
    }
}

#[test]
fn what_ends_early_is_refused_when_it_is_noticed() {
    for (file, whole) in [
        (zboot("gzip", &gzip(&image())), 0x400 + gzip(&image()).len()),
        (zboot("zstd", &zstd(&image())), 0x400 + zstd(&image()).len()),
    ] {
        open(&Files::new(), &file[..whole]).unwrap();
        for len in [8, 0x37, 0x400, whole - 1] {
            let error = refusal(&file[..len]);
            assert!(matches!(error, Error::Truncated { .. }), "{len:#x}: {error}");
        }
    }
    for file in [gzip(&image()), zstd(&image())] {
        for len in [4, 12] {
            assert!(matches!(refusal(&file[..len]), Error::Corrupt { .. }), "{len}");
        }
        for len in [file.len() - 9, file.len() - 1] {
            let (_, result) = load_bytes(&file[..len]);
            assert!(matches!(result, Err(Error::Corrupt { .. })), "{len}: {result:?}");
        }
    }
}

#[test]
fn damage_is_noticed_at_the_end() {
    let bent = |mut file: Vec<u8>, from_end: usize| {
        let at = file.len() - from_end;
        file[at] ^= 1;
        file
    };
    // The checksum of gzip is followed by a length.
    for file in [bent(gzip(&image()), 8), bent(gzip(&padded()), 4), bent(zstd(&image()), 4)] {
        let (_, result) = load_bytes(&file);
        let Err(Error::Corrupt { why, .. }) = result else { panic!("{result:?}") };
        assert!(why.contains("unpacking it fails"), "{why}");
    }
}

#[test]
fn opening_unpacks_no_more_than_the_start() {
    // A block of the header, then one of a kind that there is not, to be held in a window of 128 MiB.
    let block =
        |last: u32, kind: u32, len: usize| (last | kind << 1 | (len as u32) << 3).to_le_bytes();
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3];
    frame.extend_from_slice(&block(0, 0, 0x200)[..3]);
    frame.extend_from_slice(&image()[..0x200]);
    frame.extend_from_slice(&block(1, 3, 1)[..3]);
    let linux = open(&Files::new(), &frame).unwrap();
    let error = load(&linux, &ram(RAM)).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

/// A frame of zstd with a kernel's header, then `count` blocks of 128 KiB of ones, and a window of 2^`window` bytes.
fn zstd_bomb(window: u8, count: usize) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window - 10) << 3];
    frame.extend_from_slice(&[0, 2, 0]);
    frame.extend_from_slice(&image()[..0x40]);
    // A raw block of 64 bytes was announced; now blocks of one byte that is repeated.
    for n in 0..count {
        let header = u32::from(n + 1 == count) | 1 << 1 | (128 << 10) << 3;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(1);
    }
    frame
}

#[test]
fn a_bomb_fills_no_more_memory_than_the_kernel_asked_for() {
    let mut expected = vec![1; SIZE as usize];
    put(&mut expected, 0, &image()[..0x40]);
    let mut gzipped = image()[..0x40].to_vec();
    gzipped.resize(8 << 20, 1);
    // The first two would be half a gigabyte and a quarter.
    for bomb in [zstd_bomb(17, 4096), zstd_bomb(27, 2048), gzip(&gzipped)] {
        let (ram, result) = load_bytes(&bomb);
        result.unwrap();
        assert_loaded(&ram, START, &expected, &[]);
    }
    let error = refusal(&zstd_bomb(28, 10));
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

#[test]
fn a_gzip_header_without_end_is_refused() {
    let mut file = vec![0x1f, 0x8b, 8, 0b1000, 0, 0, 0, 0, 0, 3];
    file.resize(8 << 20, b'n');
    assert!(matches!(refusal(&file), Error::Corrupt { .. }));
}
