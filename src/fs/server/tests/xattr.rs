use super::*;

const E2BIG: u32 = 7;
const ENOMEM: u32 = 12;
const ERANGE: u32 = 34;
const ENODATA: u32 = 61;

impl Guest {
    fn set(&self, name: &[u8], value: &[u8], flags: u32) -> Result<(), u32> {
        self.walk(1, 2, "")?;
        self.does(Request::Xattrcreate { fid: 2, name, size: value.len() as u64, flags })?;
        for (part, bytes) in value.chunks(3000).enumerate() {
            assert_eq!(self.write(2, part as u64 * 3000, bytes)?, bytes.len());
        }
        self.clunk(2)
    }

    fn get(&self, name: &[u8]) -> Answer {
        let body = self.ask(Request::Xattrwalk { fid: 1, new_fid: 2, name })?;
        let size = Fields::new(&body).u64().unwrap();
        let mut value = Vec::new();
        loop {
            let some = self.read(2, value.len() as u64, 3000)?;
            if some.is_empty() {
                break;
            }
            value.extend(some);
        }
        assert_eq!(value.len() as u64, size);
        self.clunk(2)?;
        Ok(value)
    }
}

fn guest() -> Guest {
    let guest = Guest::new();
    fs::write(guest.path("file"), "text").unwrap();
    guest.walk(ROOT, 1, "file").unwrap();
    guest
}

#[test]
fn attributes_are_set_read_listed_and_taken_away() {
    let guest = guest();
    assert_eq!(guest.get(b"user.one"), Err(ENODATA));
    guest.set(b"user.one", b"value", 0).unwrap();
    guest.set(b"user.two", b"", 0).unwrap();
    assert_eq!(guest.get(b"user.one").unwrap(), b"value");
    assert_eq!(guest.get(b"user.two").unwrap(), b"");
    let names = guest.get(b"").unwrap();
    let mut names: Vec<&[u8]> = names.split(|byte| *byte == 0).collect();
    names.sort_unstable();
    names.retain(|name| name.starts_with(b"user."));
    assert_eq!(names, [b"user.one", b"user.two"]);
    guest.set(b"user.one", b"", 2).unwrap();
    assert_eq!(guest.get(b"user.one"), Err(ENODATA));
}

#[test]
fn an_attribute_is_new_or_replaced_as_asked() {
    let guest = guest();
    assert_eq!(guest.set(b"user.one", b"value", 2), Err(ENODATA));
    guest.set(b"user.one", b"value", 1).unwrap();
    assert_eq!(guest.set(b"user.one", b"other", 1), Err(EEXIST));
    guest.set(b"user.one", b"other", 2).unwrap();
    assert_eq!(guest.get(b"user.one").unwrap(), b"other");
    assert_eq!(guest.set(b"user.one", b"other", 4), Err(EINVAL));
    assert_eq!(guest.getattr(2).map(drop), Ok(()), "refused before it became one");
}

#[test]
fn a_value_is_set_only_if_all_of_it_was_written() {
    let guest = guest();
    let create = |size| {
        guest.walk(1, 2, "").unwrap();
        guest.does(Request::Xattrcreate { fid: 2, name: b"user.one", size, flags: 0 })
    };
    create(5).unwrap();
    assert_eq!(guest.write(2, 0, b"123456"), Err(EINVAL), "too much");
    assert_eq!(guest.write(2, 1, b"1"), Err(EINVAL), "a hole");
    assert_eq!(guest.write(2, u64::MAX, b"1"), Err(EINVAL));
    assert_eq!(guest.write(2, 0, b"1234"), Ok(4));
    assert_eq!(guest.read(2, 0, 4), Err(EBADF));
    assert_eq!(guest.clunk(2), Err(EINVAL));
    assert_eq!(guest.get(b"user.one"), Err(ENODATA));
    create(5).unwrap();
    assert_eq!(guest.write(2, 0, b"1234"), Ok(4));
    assert_eq!(guest.write(2, 3, b"xy"), Ok(2));
    guest.clunk(2).unwrap();
    assert_eq!(guest.get(b"user.one").unwrap(), b"123xy");
}

#[test]
fn what_stands_for_an_attribute_is_no_file() {
    let guest = guest();
    guest.set(b"user.one", b"value", 0).unwrap();
    guest.ask(Request::Xattrwalk { fid: 1, new_fid: 2, name: b"user.one" }).unwrap();
    guest.walk(1, 3, "").unwrap();
    guest.does(Request::Xattrcreate { fid: 3, name: b"user.two", size: 1, flags: 0 }).unwrap();
    for fid in [2, 3] {
        assert_eq!(guest.getattr(fid), Err(EBADF));
        assert_eq!(guest.walk(fid, 4, ""), Err(EBADF));
        assert_eq!(guest.lopen(fid, O_RDONLY), Err(EBADF));
        assert_eq!(guest.does(Request::Fsync { fid, data_only: 0 }), Err(EBADF));
        assert_eq!(guest.some_entries(fid, 0, 100).unwrap_err(), EBADF);
        let create = Request::Xattrcreate { fid, name: b"user.x", size: 1, flags: 0 };
        assert_eq!(guest.does(create), Err(EBADF));
        let rename = Request::Rename { fid, dir: ROOT, name: b"x" };
        assert_eq!(guest.does(rename), Err(EBADF));
    }
    assert_eq!(guest.write(2, 0, b"x"), Err(EBADF));
    assert_eq!(guest.does(Request::Remove { fid: 2 }), Err(EBADF));
    assert!(guest.path("file").exists());
    assert_eq!(guest.ask(Request::Xattrwalk { fid: 1, new_fid: 1, name: b"" }), Err(EBUSY));
    assert_eq!(guest.ask(Request::Xattrwalk { fid: 9, new_fid: 4, name: b"" }), Err(EBADF));
    let create = Request::Xattrcreate { fid: 9, name: b"user.x", size: 1, flags: 0 };
    assert_eq!(guest.does(create), Err(EBADF));
}

#[test]
fn what_is_held_of_values_has_an_end() {
    let guest = guest();
    let create = |fid, size| {
        guest.walk(1, fid, "").unwrap();
        guest.does(Request::Xattrcreate { fid, name: b"user.one", size, flags: 0 })
    };
    assert_eq!(create(2, (64 << 10) + 1), Err(E2BIG));
    assert_eq!(create(3, u64::MAX), Err(E2BIG));
    // One less than would do without the names.
    for fid in 100..163 {
        create(fid, 64 << 10).unwrap();
    }
    assert_eq!(create(164, 64 << 10), Err(ENOMEM));
    assert_eq!(guest.clunk(100), Err(EINVAL));
    create(165, 64 << 10).unwrap();
    guest.begin();
    guest.walk(ROOT, 1, "file").unwrap();
    create(2, 64 << 10).unwrap();
}

#[test]
fn names_count_and_are_no_longer_than_linux_has_them() {
    let guest = guest();
    let create = |fid, name: &[u8], size| {
        guest.walk(1, fid, "").unwrap();
        guest.does(Request::Xattrcreate { fid, name, size, flags: 0 })
    };
    assert_eq!(create(2, &[b'n'; 256], 0), Err(ERANGE));
    for fid in 100..163 {
        create(fid, &[b'n'; 100], 64 << 10).unwrap();
    }
    create(163, &[b'n'; 100], (64 << 10) - 64 * 100 - 200).unwrap();
    assert_eq!(create(3, &[b'n'; 201], 0), Err(ENOMEM));
    create(164, &[b'n'; 200], 0).unwrap();
}

#[test]
fn a_value_that_is_held_has_no_room_that_nobody_counts() {
    let guest = guest();
    guest.set(b"user.one", &[b'v'; 300], 0).unwrap();
    let node = guest.server.root.find(b"file", Wait::Long).unwrap();
    for value in [node.xattr_get(b"user.one").unwrap(), node.xattr_list().unwrap()] {
        assert!(value.capacity() < 2 * value.len().max(256), "{}", value.capacity());
    }
}
