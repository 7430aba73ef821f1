//! Random operations on a file of the share, and the same on a file of the host: the two never differ.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;
use crate::random::Random;

/// Where operations are: within so many bytes, so that they meet.
const SIZE: u64 = 64 << 10;
/// Most bytes of one.
const MOST: u64 = 4000;

#[test]
fn a_hundred_thousand_operations_do_what_they_do_on_another_file() {
    let guest = Guest::new();
    guest.create(1, b"file", O_RDWR).unwrap();
    let path = guest.host.path().join("other");
    let other = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let mut random = Random(7);
    for step in 0..100_000 {
        let (at, len) = (random.below(SIZE), random.below(MOST) as usize);
        match random.below(16) {
            0..6 => {
                let data = random.bytes(len);
                assert_eq!(guest.write(1, at, &data), Ok(len), "step {step}");
                other.write_all_at(&data, at).unwrap();
            }
            6..12 => {
                let mut wanted = vec![0; len];
                let count = other.read_at(&mut wanted, at).unwrap();
                let got = guest.read(1, at, len as u32).unwrap();
                assert!(got == wanted[..count], "step {step}: {len} bytes at {at}");
            }
            12 => {
                guest.does(truncate(at)).unwrap();
                other.set_len(at).unwrap();
            }
            13 => {
                let size = other.metadata().unwrap().len();
                assert_eq!(guest.getattr(1).unwrap().size, size, "step {step}");
            }
            14 => {
                // Behind the end, wherever the guest says.
                let data = random.bytes(len);
                guest.open(2, "file", O_WRONLY | O_APPEND).unwrap();
                assert_eq!(guest.write(2, at, &data), Ok(len), "step {step}");
                guest.clunk(2).unwrap();
                let end = other.metadata().unwrap().len();
                other.write_all_at(&data, end).unwrap();
                if end > 4 * SIZE {
                    guest.does(truncate(SIZE)).unwrap();
                    other.set_len(SIZE).unwrap();
                }
            }
            _ => {
                guest.clunk(1).unwrap();
                let flags = if random.below(20) == 0 { O_RDWR | O_TRUNC } else { O_RDWR };
                guest.open(1, "file", flags).unwrap();
                if flags & O_TRUNC != 0 {
                    other.set_len(0).unwrap();
                }
            }
        }
    }
}

fn truncate(size: u64) -> Request<'static> {
    /// P9_SETATTR_SIZE.
    const SIZE: u32 = 1 << 3;
    Request::Setattr {
        fid: 1,
        valid: SIZE,
        mode: 0,
        uid: 0,
        gid: 0,
        size,
        accessed: (0, 0),
        modified: (0, 0),
    }
}
