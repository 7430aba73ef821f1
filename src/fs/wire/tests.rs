use super::testing::{Message, encode, encode_names, names};
use super::*;
use crate::random::Random;

/// Any bytes, `most` at most.
fn some_bytes(random: &mut Random, most: u64) -> Vec<u8> {
    let len = random.below(most + 1) as usize;
    random.bytes(len)
}

/// Calls `each` with requests of every kind, whose fields are anything.
fn every_request(random: &mut Random, mut each: impl FnMut(Request<'_>)) {
    let strings: Vec<Vec<u8>> = (0..16).map(|_| some_bytes(random, 40)).collect();
    let strings: Vec<&[u8]> = strings.iter().map(Vec::as_slice).collect();
    let count = random.below(17) as usize;
    let encoded = encode_names(&strings[..count]);
    let (name, other) = (strings[0], strings[1]);
    let lock = Lock {
        kind: random.next() as u8,
        start: random.next(),
        length: random.next(),
        process: (random.next() as u32),
        client: strings[2],
    };
    let mut n = || random.next() as u32;
    let (fid, dir, new_fid, flags, mode, gid, uid) = (n(), n(), n(), n(), n(), n(), n());
    let (msize, auth_fid, count, major, minor) = (n(), n(), n(), n(), n());
    let mut n = || random.next();
    let (offset, cookie, mask, size) = (n(), n(), n(), n());
    let (accessed, modified) = ((n(), n()), (n(), n()));
    let names = names(encoded_count(&encoded), &encoded);
    for request in [
        Request::Version { msize, version: name },
        Request::Attach { fid, auth_fid, user: name, path: other, uid },
        Request::Walk { fid, new_fid, names },
        Request::Lopen { fid, flags },
        Request::Lcreate { fid, name, flags, mode, gid },
        Request::Read { fid, offset, count },
        Request::Write { fid, offset, count },
        Request::Readdir { fid, cookie, count },
        Request::Getattr { fid, mask },
        Request::Setattr { fid, valid: flags, mode, uid, gid, size, accessed, modified },
        Request::Fsync { fid, data_only: flags },
        Request::Clunk { fid },
        Request::Remove { fid },
        Request::Rename { fid, dir, name },
        Request::Renameat { dir, name, new_dir: new_fid, new_name: other },
        Request::Unlinkat { dir, name, flags },
        Request::Link { dir, fid, name },
        Request::Symlink { dir, name, target: other, gid },
        Request::Readlink { fid },
        Request::Mknod { dir, name, mode, major, minor, gid },
        Request::Mkdir { dir, name, mode, gid },
        Request::Statfs { fid },
        Request::Xattrwalk { fid, new_fid, name },
        Request::Xattrcreate { fid, name, size, flags },
        Request::Lock { fid, flags, lock },
        Request::Getlock { fid, lock },
    ] {
        each(request);
    }
}

fn encoded_count(mut names: &[u8]) -> usize {
    let mut count = 0;
    while let [low, high, rest @ ..] = names {
        names = &rest[usize::from(u16::from_le_bytes([*low, *high]))..];
        count += 1;
    }
    count
}

#[test]
fn what_is_encoded_is_what_is_decoded() {
    let mut random = Random(1);
    let mut kinds = std::collections::BTreeSet::new();
    for _ in 0..200 {
        every_request(&mut random, |request| {
            let bytes = encode(&request).finish(0x1234);
            let header = Header::decode(bytes[..HEADER].try_into().unwrap());
            assert_eq!((header.size as usize, header.tag), (bytes.len(), 0x1234));
            assert_eq!(Request::decode(header.kind, &bytes[HEADER..]), Ok(request));
            kinds.insert(header.kind);
        });
    }
    assert_eq!(kinds.len(), 26);
}

#[test]
fn a_request_that_ends_early_or_late_is_none() {
    every_request(&mut Random(2), |request| {
        let mut bytes = encode(&request).finish(1);
        for end in HEADER..bytes.len() {
            let cut = Request::decode(bytes[4], &bytes[HEADER..end]);
            assert_eq!(cut, Err(Errno::PROTO), "{request:?} cut off at {end}");
        }
        bytes.push(0);
        assert_eq!(Request::decode(bytes[4], &bytes[HEADER..]), Err(Errno::PROTO), "{request:?}");
    });
}

#[test]
fn any_bytes_at_all_can_be_decoded() {
    let mut random = Random(3);
    let mut decoded = 0;
    for round in 0..200_000 {
        let body = some_bytes(&mut random, 90);
        // All the types there are, and then those of a request with anything in it.
        let kind = round as u8;
        match Request::decode(kind, &body) {
            Ok(request) => {
                assert_eq!(encode(&request).finish(0)[HEADER..], body, "{request:?}");
                decoded += 1;
            }
            Err(errno) => assert!(
                [Errno::PROTO, Errno::OPNOTSUPP, Errno::INVAL].contains(&errno),
                "{errno:?}"
            ),
        }
    }
    assert!(decoded > 100, "{decoded}");
}

#[test]
fn a_request_with_bytes_changed_is_another_one_or_none() {
    let mut random = Random(4);
    for seed in 1..40 {
        every_request(&mut Random(seed), |request| {
            let bytes = encode(&request).finish(0);
            for _ in 0..20 {
                let mut body = bytes[HEADER..].to_vec();
                let at = random.below(body.len() as u64) as usize;
                body[at] = random.next() as u8;
                if let Ok(other) = Request::decode(bytes[4], &body) {
                    assert_eq!(encode(&other).finish(0)[HEADER..], body, "{other:?}");
                }
            }
        });
    }
}

#[test]
fn types_that_9p2000_l_does_not_have_are_refused() {
    // Tauth, Tflush, Topen, Tcreate, Tstat, Twstat; Rlerror and Rversion; and none at all.
    for kind in [102, 108, 112, 114, 124, 126, 7, 101, 0, 255] {
        assert_eq!(Request::decode(kind, &[0; 64]), Err(Errno::OPNOTSUPP), "{kind}");
    }
}

#[test]
fn names_are_told_one_by_one_and_sixteen_at_most() {
    let many: Vec<String> = (0..17).map(|number| format!("name {number}")).collect();
    let many: Vec<&[u8]> = many.iter().map(String::as_bytes).collect();
    for count in 0..=17 {
        let message = Message::new(Kind::WALK).u32(1).u32(2).u16(count as u16);
        let bytes = message.raw(&encode_names(&many[..count])).finish(0);
        match Request::decode(Kind::WALK, &bytes[HEADER..]) {
            Ok(Request::Walk { names, .. }) => {
                assert_eq!(names.iter().collect::<Vec<_>>(), many[..count]);
                assert!(count <= MOST_NAMES);
            }
            other => assert_eq!((other, count), (Err(Errno::INVAL), 17)),
        }
    }
}

#[test]
fn an_answer_has_its_size_its_type_and_the_tag_of_the_request() {
    let mut bytes = vec![0xff; 100];
    let request = Header { size: 0xffff_ffff, kind: Kind::WALK, tag: 0xabcd };
    let mut reply = Reply::new(&mut bytes, request);
    reply.u8(1).u16(2).u32(3).u64(4).string(b"five").qid(6, 7, 8);
    reply.put(10, &9_u32.to_le_bytes());
    reply.put(usize::MAX, &[1]);
    reply.put(reply.len() - 1, &[1; 2]);
    let len = reply.len();
    let answer = reply.finish(0, len).unwrap();
    assert_eq!(answer.len(), len);
    let header = Header::decode(answer[..HEADER].try_into().unwrap());
    assert_eq!(header, Header { size: len as u32, kind: Kind::WALK + 1, tag: 0xabcd });
    let mut fields = Fields::new(&answer[HEADER..]);
    assert_eq!((fields.u8(), fields.u16(), fields.u32()), (Ok(1), Ok(2), Ok(9)));
    assert_eq!((fields.u64(), fields.string()), (Ok(4), Ok(&b"five"[..])));
    assert_eq!((fields.u8(), fields.u32(), fields.u64()), (Ok(6), Ok(7), Ok(8)));
    assert_eq!(fields.end(), Ok(()));
}

#[test]
fn an_answer_that_is_too_long_is_none() {
    let mut bytes = Vec::new();
    let request = Header { size: 0, kind: Kind::READ, tag: 1 };
    let mut answer = |data, most| {
        let mut reply = Reply::new(&mut bytes, request);
        reply.u32(data as u32);
        reply.finish(data, most).map(<[u8]>::to_vec)
    };
    assert_eq!(answer(5, 15), None);
    assert_eq!(answer(5, 16).unwrap(), [16, 0, 0, 0, Kind::READ + 1, 1, 0, 5, 0, 0, 0]);
    assert_eq!(answer(usize::MAX, usize::MAX), None);
}

#[test]
fn strings_that_no_message_can_hold_are_cut_off() {
    let mut bytes = Vec::new();
    let mut reply = Reply::new(&mut bytes, Header { size: 0, kind: 0, tag: 0 });
    reply.string(&[1; 70_000]);
    assert_eq!(reply.len(), HEADER + 2 + 65_535);
}

#[test]
fn rlerror_has_the_number_of_the_error() {
    assert_eq!(rlerror(0x0102, Errno::OPNOTSUPP.0), [11, 0, 0, 0, 7, 2, 1, 95, 0, 0, 0]);
}
