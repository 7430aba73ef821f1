use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use super::*;

#[test]
fn what_is_no_kernel_is_called_by_its_name() {
    let arm = |magic: &[u8]| {
        let mut image = vec![0; 0x1000];
        put(&mut image, 0x38, magic);
        image
    };
    for (image, word) in [
        (arm(b"ARM\x64"), "an arm64 Image"),
        (arm(b"RSC\x05"), "a RISC-V Image"),
        (b"MZ\0\0zimg".to_vec(), "compressed EFI image"),
        (b"\x1f\x8b\x08\0".to_vec(), "gzip"),
        (b"\x28\xb5\x2f\xfd".to_vec(), "zstd"),
        (b"\xfd7zXZ\0".to_vec(), "xz"),
        (b"070701".to_vec(), "cpio"),
        (b"#!/bin/sh\n".to_vec(), "no format"),
        (b"H".to_vec(), "no format"),
        (vec![0; 0x1_0000], "no format"),
    ] {
        let error = refusal(&image);
        assert!(matches!(error, Error::NotAKernel { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_they_are_for() {
    let files = Files::new();
    let kernel = files.write("kernel", &bzimage::image());
    let missing = files.0.path().join("missing");
    let empty = files.write("empty", &[]);
    let folder = files.0.path().to_path_buf();
    let with_initrd = |path: &Path| Kernel::linux(&kernel).initrd(path).open().unwrap_err();
    let alone = |path: &Path| Kernel::linux(path).open().unwrap_err();
    type Check = fn(&Error) -> bool;
    let cases: [(&Path, Check); 3] = [
        (&missing, |error| matches!(error, Error::Open { .. })),
        (&empty, |error| matches!(error, Error::Empty { .. })),
        (&folder, |error| matches!(error, Error::NotAFile { .. })),
    ];
    for (path, is_right) in cases {
        for (what, error) in [("kernel", alone(path)), ("initrd", with_initrd(path))] {
            assert!(is_right(&error), "{error}");
            let text = error.to_string();
            assert!(text.contains(what) && text.contains(&*path.to_string_lossy()), "{text}");
        }
    }
}

#[test]
fn a_pipe_that_nobody_writes_to_is_refused_at_once() {
    let files = Files::new();
    let path = files.0.path().join("pipe");
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: `name` is a string that ends with a NUL.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let start = Instant::now();
    assert!(matches!(Kernel::linux(&path).open(), Err(Error::NotAFile { .. })));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_file_seen_through_checked_headers_has_their_length_and_no_more() {
    let files = Files::new();
    let source = Source::open("kernel", &files.write("file", b"..abcdefgh")).unwrap();
    let image = || file::Image { head: b"HEAD", source: &source, resume: 2, len: 8, at: 0 };
    let mut read = String::new();
    image().read_to_string(&mut read).unwrap();
    assert_eq!(read, "HEADabcd");

    let memory = ram(2 << 20);
    let load = |from, count| {
        let mut image = image();
        image.seek(from).unwrap();
        memory.memory().read_exact_volatile_from(GuestAddress(0), &mut image, count)
    };
    load(SeekFrom::Start(5), 3).unwrap();
    assert_eq!(bytes_at(&memory, 0, 4), b"bcd\0");
    load(SeekFrom::End(-2), 2).unwrap();
    assert_eq!(bytes_at(&memory, 0, 4), b"cdd\0");
    load(SeekFrom::Start(1), 3).unwrap();
    assert_eq!(bytes_at(&memory, 0, 4), b"EAD\0");
    load(SeekFrom::Start(2), 3).unwrap();
    assert_eq!(bytes_at(&memory, 0, 4), b"ADa\0", "from the one to the other");
    for beyond in [SeekFrom::Start(5), SeekFrom::Start(u64::MAX), SeekFrom::End(0)] {
        assert!(load(beyond, 4).is_err());
    }
    assert_eq!(bytes_at(&memory, 3, 1), [0], "nothing behind the end");
    assert!(image().seek(SeekFrom::Current(-1)).is_err());
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
