//! Lists of memory, as backends of one's own see them.

use super::*;

/// `bytes` in pieces of these lengths, and the rest.
fn list<'a>(mut bytes: &'a mut [u8], cut: &[usize]) -> BufferList<'a> {
    let mut list = BufferList::default();
    for &len in cut {
        let (piece, rest) = bytes.split_at_mut(len);
        list.push(piece.into());
        bytes = rest;
    }
    list.push(bytes.into());
    list
}

fn contents(list: &BufferList<'_>) -> Vec<u8> {
    let mut bytes = vec![0; list.all().total()];
    assert_eq!(list.all().copy_to(&mut bytes), bytes.len());
    bytes
}

#[test]
fn bytes_go_through_pieces_in_order() {
    let mut memory = [0; 100];
    let list = list(&mut memory, &[1, 30, 7]);
    let buffers = list.all();
    assert_eq!(buffers.total(), 100);
    assert_eq!(buffers.slices().map(|slice| slice.len()).collect::<Vec<_>>(), [1, 30, 7, 62]);
    assert_eq!(buffers.iovecs().len(), 4);
    let bytes: Vec<u8> = (0..100).collect();
    assert_eq!(buffers.fill_from(&bytes), 100);
    assert_eq!(contents(&list), bytes);
    // Fewer and more bytes than there is memory.
    assert_eq!(buffers.fill_from(&[9; 40]), 40);
    assert_eq!(contents(&list), [&[9; 40][..], &bytes[40..]].concat());
    assert_eq!(buffers.fill_from(&[8; 150]), 100);
    let mut out = [0; 150];
    assert_eq!(buffers.copy_to(&mut out), 100);
    assert_eq!(out, *[&[8; 100][..], &[0; 50]].concat());
    assert_eq!(buffers.copy_to(&mut out[..33]), 33);
    assert_eq!(buffers.copy_to(&mut []), 0);
}

#[test]
fn lists_are_cut_anywhere() {
    let bytes: Vec<u8> = (0..100).collect();
    for at in 0..=100 {
        let mut memory = bytes.clone();
        let mut list = list(&mut memory, &[1, 30, 7]);
        list.advance(at);
        assert_eq!(contents(&list), bytes[at..]);
        for count in [0, 1, 29, 62, 100] {
            let mut rest = list.all().slices().collect::<BufferList<'_>>();
            let front = rest.take_front(count);
            let middle = (at + count).min(100);
            assert_eq!(contents(&front), bytes[at..middle]);
            assert_eq!(contents(&rest), bytes[middle..]);
            let part = front.refill(list.all(), count, 31);
            assert_eq!(contents(&part), bytes[middle..(middle + 31).min(100)]);
        }
    }
}

#[test]
fn memory_is_zeroed_whole_and_nothing_else_is() {
    for len in [0, 1, 4095, 4096, 4097, 10_000] {
        let mut memory = vec![1; len + 20];
        let mut list = list(&mut memory, &[3, 0, len]);
        list.advance(2);
        list.take_front(1 + len).all().zero();
        assert_eq!(memory, [&[1; 2][..], &vec![0; 1 + len], &[1; 17]].concat());
    }
}

#[test]
fn room_is_used_again() {
    let mut memory = [0; 64];
    let list = list(&mut memory, &[1; 40]);
    let room = list.recycle();
    assert_eq!((room.all().total(), room.all().iovecs().len()), (0, 0));
    let mut other = [5; 3];
    let mut room = room;
    room.push((&mut other[..]).into());
    assert_eq!(contents(&room), [5; 3]);
}

/// Zeros are written in steps that together are the whole.
#[test]
fn storage_without_a_way_to_zero_is_written_to() {
    struct Plain(MemoryDisk);
    impl BlockBackend for Plain {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read(&self, offset: u64, into: Buffers<'_>) -> std::io::Result<()> {
            self.0.read(offset, into)
        }
        fn write(&self, offset: u64, from: Buffers<'_>) -> std::io::Result<()> {
            assert!(from.total() <= 1 << 20);
            self.0.write(offset, from)
        }
        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let disk = Plain(MemoryDisk::from(vec![1; 2 << 20]));
    for (offset, len) in [(512, 0), (512, 512), (4096, 1 << 20), ((2 << 20) - 512, 512)] {
        disk.write_zeroes(offset, len, false).unwrap();
    }
    let mut expected = vec![1; 2 << 20];
    expected[512..1024].fill(0);
    expected[4096..][..1 << 20].fill(0);
    expected[(2 << 20) - 512..].fill(0);
    assert!(disk.0.contents() == expected);
    assert!(disk.resize(4096).is_err());
    disk.discard(0, 4096).unwrap();
}

#[test]
fn memory_behind_its_end_is_an_error() {
    let disk = MemoryDisk::new(1024);
    let mut bytes = [1; 1024];
    let list = BufferList::from(&mut bytes[..]);
    for offset in [512, 1024, 2048, u64::MAX - 511, u64::MAX] {
        assert!(disk.read(offset, list.all()).is_err());
        assert!(disk.write(offset, list.all()).is_err());
        assert!(disk.write_zeroes(offset, 1024, true).is_err());
    }
    assert_eq!(disk.contents(), [0; 1024]);
    disk.resize(2048).unwrap();
    disk.write(1024, list.all()).unwrap();
    disk.resize(1536).unwrap();
    assert_eq!(disk.contents(), [[0; 512], [0; 512], [1; 512]].concat());
}
