use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use super::*;

#[test]
fn what_is_no_kernel_is_called_by_its_name() {
    let at = |at: usize, magic: &[u8]| {
        let mut image = vec![0; 0x1000];
        put(&mut image, at, magic);
        image
    };
    let elf = |machine: u8| {
        let mut image = at(0, b"\x7fELF");
        image[18] = machine;
        image
    };
    for (image, word) in [
        (at(0x38, b"ARM\x64"), "an arm64 Image"),
        (at(0x38, b"RSC\x05"), "a RISC-V Image"),
        (at(0x202, b"HdrS"), "a bzImage"),
        (elf(62), "an ELF file for x86-64"),
        (elf(183), "an ELF file for 64-bit Arm"),
        (b"\x7fELF".to_vec(), "an ELF file"),
        (b"MZ\0\0zimg".to_vec(), "compressed EFI image"),
        (b"\x1f\x8b\x08\0".to_vec(), "gzip"),
        (b"\x28\xb5\x2f\xfd".to_vec(), "zstd"),
        (b"\xfd7zXZ\0".to_vec(), "xz"),
        (b"BZh9".to_vec(), "bzip2"),
        (b"\x02\x21\x4c\x18".to_vec(), "lz4"),
        (b"\x04\x22\x4d\x18".to_vec(), "lz4"),
        (b"\x89LZO".to_vec(), "lzop"),
        (b"\x5d\0\0\x80".to_vec(), "lzma"),
        (b"070701".to_vec(), "cpio"),
        (b"#!/bin/sh\n".to_vec(), "no format"),
        (b"H".to_vec(), "no format"),
        (vec![0; 0x1_0000], "no format"),
    ] {
        let said = describe::describe(&image);
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_they_are_for() {
    let files = Files::new();
    let kernel = files.write("kernel", &native::tests::image());
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

    let memory = GuestRam::new(&[(0, 2 << 20)], Backing::Anonymous, false).unwrap();
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
