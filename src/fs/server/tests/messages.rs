//! Messages that are none, or that find no room for an answer.

use super::*;
use crate::fs::wire::WRITE_HEADER;
use crate::fs::wire::testing::Message;
use crate::random::Random;

#[test]
fn what_is_no_message_is_answered_with_an_error() {
    let guest = Guest::new();
    for len in 0..HEADER {
        // The tag is not known.
        assert_eq!(guest.raw(&vec![0; len], 100, 3), [11, 0, 0, 0, 7, 255, 255, 71, 0, 0, 0]);
    }
    let whole = encode(&Request::Getattr { fid: ROOT, mask: 0 }).finish(5);
    for size in [0, 1, 6, whole.len() as u32 + 1, u32::MAX] {
        let mut message = whole.clone();
        message[..4].copy_from_slice(&size.to_le_bytes());
        assert_eq!(guest.send(&message).unwrap_err(), EPROTO, "{size}");
    }
    for end in HEADER..whole.len() {
        let mut message = whole[..end].to_vec();
        message[..4].copy_from_slice(&(end as u32).to_le_bytes());
        assert_eq!(guest.send(&message).unwrap_err(), EPROTO, "cut off at {end}");
    }
    assert!(guest.send(&whole).is_ok());
}

#[test]
fn bytes_behind_a_message_are_none_of_it() {
    let guest = Guest::new();
    let mut message = encode(&Request::Getattr { fid: ROOT, mask: 0 }).finish(5);
    message.extend_from_slice(&[0xff; 300]);
    assert!(guest.send(&message).is_ok());
}

#[test]
fn messages_that_the_dialect_does_not_have_are_refused() {
    let guest = Guest::new();
    for kind in [102, 108, 112, 114, 124, 126, 0, 7, 255] {
        let message = Message::new(kind).u32(ROOT).raw(&[0; 40]).finish(1);
        assert_eq!(guest.send(&message).unwrap_err(), EOPNOTSUPP, "{kind}");
    }
}

#[test]
fn without_room_for_an_error_nothing_is_done_or_answered() {
    let guest = Guest::new();
    let message = encode(&Request::Clunk { fid: ROOT }).finish(1);
    for room in 0..11 {
        assert!(guest.raw(&message, room, 64).is_empty());
    }
    assert!(guest.getattr(ROOT).is_ok());
    assert_eq!(guest.raw(&message, 11, 64), [7, 0, 0, 0, 121, 1, 0]);
}

#[test]
fn without_room_for_its_answer_nothing_is_done() {
    let guest = Guest::new();
    fs::create_dir_all(guest.path("a/b")).unwrap();
    let bytes = encode_names(&[b"a", b"b"]);
    let walk = Request::Walk { fid: ROOT, new_fid: 1, names: names(2, &bytes) };
    let mkdir = Request::Mkdir { dir: ROOT, name: b"new", mode: 0o755, gid: gid() };
    let done = || (guest.getattr(1).is_ok(), guest.path("new").exists());
    for (request, needed, after) in [(walk, 9 + 26, (true, false)), (mkdir, 7 + 13, (true, true))] {
        let (message, before) = (encode(&request).finish(1), done());
        for room in 11..needed {
            assert_eq!(guest.raw(&message, room, 64), [11, 0, 0, 0, 7, 1, 0, 90, 0, 0, 0]);
        }
        assert_eq!(done(), before);
        assert_eq!(guest.raw(&message, needed, 64).len(), needed);
        assert_eq!(done(), after);
    }
}

#[test]
fn an_answer_of_any_length_stays_within_its_room() {
    let guest = Guest::new();
    std::os::unix::fs::symlink("x".repeat(200), guest.path("link")).unwrap();
    guest.walk(ROOT, 1, "link").unwrap();
    let message = encode(&Request::Readlink { fid: 1 }).finish(1);
    assert_eq!(guest.raw(&message, 208, 64), [11, 0, 0, 0, 7, 1, 0, 90, 0, 0, 0]);
    assert_eq!(guest.raw(&message, 209, 64).len(), 209);
}

#[test]
fn requests_are_no_longer_than_agreed_on() {
    let guest = Guest::new();
    guest.version(4096).unwrap();
    guest.attach(ROOT, b"").unwrap();
    guest.create(1, b"file", O_RDWR).unwrap();
    let most = 4096 - 23;
    assert_eq!(guest.write(1, 0, &vec![1; most]), Ok(most));
    assert_eq!(guest.write(1, 0, &vec![1; most + 1]), Err(EMSGSIZE));
    assert_eq!(guest.read(1, 0, u32::MAX).unwrap().len(), most);
    guest.version(1 << 20).unwrap();
    guest.attach(ROOT, b"").unwrap();
    // Nothing but data can be this long.
    let name = vec![b'x'; 20_000];
    assert_eq!(
        guest.ask(Request::Mkdir { dir: ROOT, name: &name, mode: 0, gid: 0 }),
        Err(ENAMETOOLONG)
    );
}

#[test]
fn more_data_than_there_is_cannot_be_written() {
    let guest = Guest::new();
    guest.create(1, b"file", O_RDWR).unwrap();
    let write = |count, data: &[u8]| {
        let message = encode(&Request::Write { fid: 1, offset: 0, count }).raw(data).finish(1);
        guest.send(&message)
    };
    assert_eq!(write(6, b"12345"), Err(EPROTO));
    assert_eq!(write(u32::MAX, b"12345"), Err(EPROTO));
    // Some versions of Linux send more than they count.
    assert_eq!(write(4, b"12345"), Ok(vec![4, 0, 0, 0]));
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"1234");
    let cut = encode(&Request::Write { fid: 1, offset: 0, count: 0 }).finish(1);
    for end in HEADER..cut.len() {
        let mut message = cut[..end].to_vec();
        message[..4].copy_from_slice(&(end as u32).to_le_bytes());
        assert_eq!(guest.send(&message), Err(EPROTO), "cut off at {end}");
    }
}

#[test]
fn random_messages_are_all_answered_within_the_room_there_is() {
    let guest = Guest::new();
    let mut random = Random(7);
    for name in ["a", "b", "c"] {
        fs::create_dir(guest.path(name)).unwrap();
        fs::write(guest.path(name).join("file"), name).unwrap();
    }
    let mut done = 0;
    // With strings of nothing they have so many bytes.
    let kinds = [
        (Kind::STATFS, 4),
        (Kind::LOPEN, 8),
        (Kind::LCREATE, 18),
        (Kind::SYMLINK, 12),
        (Kind::MKNOD, 22),
        (Kind::RENAME, 10),
        (Kind::READLINK, 4),
        (Kind::GETATTR, 12),
        (Kind::SETATTR, 60),
        (Kind::XATTRWALK, 10),
        (Kind::XATTRCREATE, 18),
        (Kind::READDIR, 16),
        (Kind::FSYNC, 8),
        (Kind::LOCK, 31),
        (Kind::GETLOCK, 27),
        (Kind::LINK, 10),
        (Kind::MKDIR, 14),
        (Kind::RENAMEAT, 12),
        (Kind::UNLINKAT, 10),
        (Kind::WALK, 10),
        (Kind::READ, 16),
        (Kind::WRITE, 16),
        (Kind::CLUNK, 4),
        (Kind::REMOVE, 4),
    ];
    for _ in 0..30_000 {
        let (kind, least) = kinds[random.below(kinds.len() as u64) as usize];
        let more = if random.below(3) == 0 { random.below(9) } else { 0 };
        let mut body = random.bytes(least + more as usize);
        // Fids and counts that mean something, more often than not.
        for four in body.chunks_mut(4) {
            if random.below(4) > 0 {
                four.fill(0);
                four[0] = random.below(6) as u8;
            }
        }
        let message = Message::new(kind).raw(&body).finish(3);
        // Without the root there would be no way to anything.
        let _ = guest.attach(ROOT, b"");
        let (room, piece) = (random.below(300) as usize, 1 + random.below(30) as usize);
        let answer = guest.raw(&message, room, piece);
        if room >= 11 {
            let header = Header::decode(answer[..HEADER].try_into().unwrap());
            assert_eq!((header.size as usize, header.tag), (answer.len(), 3));
            done += usize::from(header.kind != RLERROR);
        } else {
            assert!(answer.is_empty());
        }
    }
    assert!(done > 100, "{done}");
    assert_eq!(fs::read(guest.host.path().join("secret")).unwrap(), b"not for the guest");
}

#[test]
fn data_that_old_kernels_do_not_count_is_written() {
    let guest = Guest::new();
    guest.create(1, b"file", O_RDWR).unwrap();
    let write = |count, size: u32| {
        let message = encode(&Request::Write { fid: 1, offset: 0, count }).raw(b"bytes");
        let mut message = message.finish(guest.tag());
        message[..4].copy_from_slice(&size.to_le_bytes());
        guest.send(&message)
    };
    const COUNTED: u32 = WRITE_HEADER as u32 + 5;
    for size in [COUNTED, WRITE_HEADER as u32] {
        assert_eq!(write(5, size), Ok(5u32.to_le_bytes().to_vec()));
        assert_eq!(fs::read(guest.path("file")).unwrap(), b"bytes");
        fs::write(guest.path("file"), "").unwrap();
    }
    for (count, size) in [(4, COUNTED - 5), (6, COUNTED - 5), (6, COUNTED), (5, COUNTED - 4)] {
        assert_eq!(write(count, size), Err(EPROTO));
        assert_eq!(fs::read(guest.path("file")).unwrap(), b"");
    }
}
