//! [`Reader`] and [`Writer`] over chains that are cut in every way.

use super::*;

const LAYOUT: Layout = Layout { size: 64, descriptors: 0x1000, driver: 0x2000, device: 0x3000 };

/// A chain whose readable part holds 0, 1, 2, … and is cut into `cuts`, and whose writable part is cut the same way.
fn chain(cuts: &[u32]) -> (GuestMemoryMmap, Chain) {
    let memory = memory();
    let mut queue = Queue::new(LAYOUT, 64, 0, Arc::new(memory.clone())).unwrap();
    let mut ring = Ring::new(memory.clone(), 0, LAYOUT);
    let mut next = 0_u8;
    let mut buffers = Vec::new();
    for (n, &len) in cuts.iter().enumerate() {
        let at = 0x1_0000 + 0x1000 * n as u64;
        for byte in 0..u64::from(len) {
            memory.write_obj(next, GuestAddress(at + byte)).unwrap();
            next = next.wrapping_add(1);
        }
        buffers.push(Buffer::Out(at, len));
    }
    for (n, &len) in cuts.iter().enumerate() {
        buffers.push(Buffer::In(0x8_0000 + 0x1000 * n as u64, len));
    }
    ring.request(&buffers);
    let chain = queue.pop().unwrap().unwrap();
    (memory, chain)
}

/// What is in the writable part of a [`chain`].
fn written(memory: &GuestMemoryMmap, cuts: &[u32]) -> Vec<u8> {
    let mut all = Vec::new();
    for (n, &len) in cuts.iter().enumerate() {
        let mut part = vec![0; len as usize];
        memory.read_slice(&mut part, GuestAddress(0x8_0000 + 0x1000 * n as u64)).unwrap();
        all.extend(part);
    }
    all
}

const CUTS: [&[u32]; 5] =
    [&[40], &[1, 39], &[0, 13, 0, 0, 14, 13, 0], &[20, 20], &[1, 1, 1, 1, 1, 1, 1, 1, 32]];

#[test]
fn bytes_are_the_same_wherever_they_are_cut() {
    for cuts in CUTS {
        let (memory, chain) = chain(cuts);
        let expected: Vec<u8> = (0..40).collect();
        for step in [1, 3, 8, 39, 40, 41, 100] {
            let (mut reader, mut writer) = (chain.reader(), chain.writer());
            let mut got: Vec<u8> = Vec::new();
            loop {
                let mut bytes = vec![0; step];
                assert_eq!(reader.remaining(), 40 - got.len());
                let count = reader.read(&mut bytes);
                assert_eq!(count, step.min(40 - got.len()));
                if count == 0 {
                    break;
                }
                got.extend(&bytes[..count]);
                assert_eq!(writer.write(&bytes[..count]), count);
                assert_eq!(writer.written() as usize, got.len());
            }
            assert_eq!(got, expected);
            assert_eq!(writer.write(&[1]), 0);
            assert_eq!(written(&memory, cuts), expected);
        }
    }
}

#[test]
fn structures_are_read_and_written_whole_or_not_at_all() {
    for cuts in CUTS {
        let (memory, chain) = chain(cuts);
        let (mut reader, mut writer) = (chain.reader(), chain.writer());
        for n in 0..5_u64 {
            let value: u64 = reader.read_obj().unwrap();
            assert_eq!(
                value,
                u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|b| b + 8 * n as u8))
            );
            if n < 4 {
                writer.write_obj(value).unwrap();
            }
        }
        assert_eq!(reader.read_obj::<u8>(), None);
        assert_eq!(writer.skip_to_last(), 7);
        assert!(writer.write_obj(0_u16).is_none());
        assert_eq!(writer.remaining(), 1);
        assert!(writer.write_obj(0xaa_u8).is_some());
        assert_eq!(writer.written(), 40);
        assert_eq!(written(&memory, cuts)[39], 0xaa);
    }
}

/// For the test above.
trait SkipToLast {
    fn skip_to_last(&mut self) -> usize;
}

impl SkipToLast for Writer<'_> {
    fn skip_to_last(&mut self) -> usize {
        let mut skipped = 0;
        while self.remaining() > 1 {
            skipped += self.next_slice(self.remaining() - 1).map_or(0, |slice| slice.len());
        }
        skipped
    }
}

#[test]
fn parts_can_be_split_off_anywhere() {
    for cuts in CUTS {
        for at in [0, 1, 13, 20, 39, 40] {
            let (memory, chain) = chain(cuts);
            let (mut head, mut header) = (chain.reader(), chain.writer());
            assert!(head.split_off(41).is_none());
            assert!(header.split_off(41).is_none());
            let (mut tail, mut rest) = (head.split_off(at).unwrap(), header.split_off(at).unwrap());
            assert_eq!((head.remaining(), tail.remaining()), (at, 40 - at));
            let mut bytes = [0xff; 41];
            // The tail first: the two do not depend on each other.
            assert_eq!(tail.read(&mut bytes[at..]), 40 - at);
            assert_eq!(head.read(&mut bytes[..at]), at);
            assert!(bytes[..40].iter().copied().eq(0..40));
            assert_eq!(rest.write(&bytes[at..]), 40 - at);
            assert_eq!(header.write(&bytes), at);
            assert_eq!((header.written() as usize, rest.written() as usize), (at, 40 - at));
            assert!(written(&memory, cuts).into_iter().eq(0..40));
        }
    }
}

#[test]
fn slices_cover_every_byte_once_without_copying() {
    for cuts in CUTS {
        let (_, chain) = chain(cuts);
        for max in [1, 7, 40, usize::MAX] {
            let mut reader = chain.reader();
            let mut got = Vec::new();
            while let Some(slice) = reader.next_slice(max) {
                assert!((1..=max).contains(&slice.len()));
                let mut bytes = vec![0_u8; slice.len()];
                slice.copy_to(&mut bytes[..]);
                got.extend(bytes);
            }
            assert!(got.into_iter().eq(0..40));
        }
        let mut reader = chain.reader();
        assert_eq!((reader.skip(15), reader.skip(100), reader.skip(1)), (15, 25, 0));
    }
}
