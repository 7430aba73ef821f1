use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use super::*;

#[test]
fn a_file_is_made_written_and_read() {
    let guest = Guest::new();
    let (made, unit) = guest.create(1, b"new \xc3\xa4", O_RDWR).unwrap();
    // Whole pages, in what the message has room for.
    assert_eq!((made.kind, unit), (0, 4096));
    assert_eq!(guest.write(1, 0, b"hello world"), Ok(11));
    assert_eq!(guest.write(1, 6, b"there"), Ok(5));
    assert_eq!(guest.write(1, 20, b"!"), Ok(1));
    assert_eq!(guest.read(1, 0, 100).unwrap(), b"hello there\0\0\0\0\0\0\0\0\0!");
    assert_eq!(guest.read(1, 6, 3).unwrap(), b"the");
    assert_eq!(guest.read(1, 21, 3).unwrap(), b"");
    assert_eq!(guest.read(1, 1 << 40, 3).unwrap(), b"");
    assert_eq!(guest.read(1, 0, 0).unwrap(), b"");
    assert_eq!(guest.getattr(1).unwrap().qid.path, made.path);
    assert_eq!(fs::metadata(guest.path("new ä")).unwrap().size(), 21);
    guest.open(2, "new ä", O_RDONLY).unwrap();
    assert_eq!(guest.read(2, 0, 5).unwrap(), b"hello");
}

#[test]
fn data_is_the_same_however_memory_is_cut() {
    let guest = Guest::new();
    guest.version(1 << 20).unwrap();
    guest.attach(ROOT, b"").unwrap();
    guest.create(1, b"file", O_RDWR).unwrap();
    let data = crate::random::Random(1).bytes(300_000);
    let count = data.len() as u32;
    let write = encode(&Request::Write { fid: 1, offset: 5, count }).raw(&data).finish(1);
    let read = encode(&Request::Read { fid: 1, offset: 5, count }).finish(1);
    for piece in [1 << 20, 4096, 4099, 500] {
        assert_eq!(guest.raw(&write, 100, piece).split_off(HEADER), count.to_le_bytes());
        let answer = guest.raw(&read, data.len() + 11, piece);
        assert_eq!(answer[HEADER..HEADER + 4], count.to_le_bytes());
        assert!(answer[HEADER + 4..] == data, "{piece}");
    }
    // More pieces than a system call takes: some of it, and the guest asks for the rest.
    let answer = guest.raw(&read, data.len() + 11, 100);
    assert!(answer.len() > 50_000 && answer[HEADER + 4..] == data[..answer.len() - 11]);
    // As much as there is room for.
    assert_eq!(guest.raw(&read, 1000, 64).len(), 1000);
}

#[test]
fn what_is_open_is_open_for_what_was_asked() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "text").unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    guest.open(1, "file", O_RDONLY).unwrap();
    assert_eq!(guest.write(1, 0, b"x"), Err(EBADF));
    guest.open(2, "file", O_WRONLY).unwrap();
    assert_eq!(guest.read(2, 0, 1), Err(EBADF));
    assert_eq!(guest.write(2, 0, b"T"), Ok(1));
    guest.walk(ROOT, 3, "file").unwrap();
    assert_eq!((guest.read(3, 0, 1), guest.write(3, 0, b"x")), (Err(EBADF), Err(EBADF)));
    assert_eq!(guest.some_entries(3, 0, 100).unwrap_err(), EBADF);
    assert_eq!(guest.does(Request::Fsync { fid: 3, data_only: 0 }), Err(EBADF));
    assert_eq!(guest.lopen(1, O_RDONLY), Err(EBUSY));
    assert_eq!(guest.lopen(3, O_DIRECTORY), Err(ENOTDIR));
    assert_eq!(guest.open(4, "dir", O_RDWR), Err(EISDIR));
    guest.open(5, "dir", O_RDONLY | O_DIRECTORY).unwrap();
    assert_eq!(guest.read(5, 0, 1), Err(EISDIR));
    assert_eq!(guest.some_entries(1, 0, 100).unwrap_err(), ENOTDIR);
    assert_eq!(guest.read(99, 0, 1), Err(EBADF));
}

#[test]
fn opening_can_truncate_and_writing_append() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "text").unwrap();
    guest.open(1, "file", O_WRONLY | O_APPEND).unwrap();
    assert_eq!(guest.write(1, 0, b" and more"), Ok(9));
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"text and more");
    guest.open(2, "file", O_RDWR | O_TRUNC).unwrap();
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"");
}

#[test]
fn a_file_that_is_there_is_made_only_if_it_may_be() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "text").unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    assert_eq!(guest.create(1, b"file", O_RDWR | O_EXCL), Err(EEXIST));
    assert_eq!(guest.getattr(1).unwrap().qid.kind, Qid::DIRECTORY, "the fid is still the folder");
    guest.clunk(1).unwrap();
    guest.create(1, b"file", O_RDWR).unwrap();
    assert_eq!(guest.read(1, 0, 9).unwrap(), b"text");
    assert_eq!(guest.create(2, b"dir", O_RDWR), Err(EISDIR));
    assert_eq!(guest.create(3, b"", O_RDWR), Err(EINVAL));
    let request = Request::Lcreate { fid: 1, name: b"x", flags: O_RDWR, mode: 0, gid: gid() };
    assert_eq!(guest.ask(request), Err(EBUSY), "what is open is no folder to make files in");
}

#[test]
fn an_open_file_without_a_name_goes_on() {
    let guest = Guest::new();
    guest.create(1, b"file", O_RDWR).unwrap();
    guest.does(Request::Unlinkat { dir: ROOT, name: b"file", flags: 0 }).unwrap();
    assert!(!guest.path("file").exists());
    assert_eq!(guest.write(1, 0, b"still"), Ok(5));
    assert_eq!(guest.read(1, 0, 9).unwrap(), b"still");
    let attributes = guest.getattr(1).unwrap();
    assert_eq!((attributes.links, attributes.size), (0, 5));
    guest.does(Request::Fsync { fid: 1, data_only: 1 }).unwrap();
    guest.clunk(1).unwrap();
}

#[test]
fn a_folder_is_told_whole_in_answers_of_any_length() {
    let guest = Guest::new();
    let long = "n".repeat(255);
    let mut names: BTreeSet<String> = (0..500).map(|number| format!("name {number}")).collect();
    names.insert(long.clone());
    for name in &names {
        fs::write(guest.path(name), "").unwrap();
    }
    fs::create_dir(guest.path("dir")).unwrap();
    guest.walk(ROOT, 1, "").unwrap();
    guest.lopen(1, O_RDONLY | O_DIRECTORY).unwrap();
    names.extend(["dir".into(), ".".into(), "..".into()]);
    for count in [279, 300, 1000, 5000, u32::MAX] {
        let entries = guest.entries(1, count);
        assert_eq!(entries.len(), names.len(), "{count}");
        assert_eq!(entries.iter().map(|entry| entry.name.clone()).collect::<BTreeSet<_>>(), names);
    }
    for Entry { name, qid, kind, .. } in guest.entries(1, 1000) {
        let number = |path: &str| {
            guest.walk(ROOT, 2, path).unwrap();
            let found = guest.getattr(2).unwrap().qid;
            guest.clunk(2).unwrap();
            found
        };
        let (there, is_dir) = match &*name {
            "." | ".." => (number(""), true),
            "dir" => (number("dir"), true),
            _ => (number(&name), false),
        };
        assert_eq!((qid.path, qid.kind), (there.path, there.kind), "{name}");
        assert_eq!(kind, if is_dir { 4 } else { 8 }, "{name}");
    }
}

#[test]
fn an_entry_that_fits_into_no_answer_is_an_error() {
    let guest = Guest::new();
    fs::write(guest.path(&"n".repeat(255)), "").unwrap();
    guest.walk(ROOT, 1, "").unwrap();
    guest.lopen(1, O_RDONLY).unwrap();
    let mut cookie = 0;
    let error = loop {
        match guest.some_entries(1, cookie, 100) {
            Ok(some) => cookie = some.last().unwrap().cookie,
            Err(error) => break error,
        }
    };
    assert_eq!(error, EINVAL);
    assert_eq!(guest.some_entries(1, 0, 0).unwrap_err(), EINVAL);
}

#[test]
fn a_folder_that_changes_is_told_without_what_stays_being_lost() {
    let guest = Guest::new();
    for number in 0..300 {
        fs::write(guest.path(&format!("stays {number}")), "").unwrap();
        fs::write(guest.path(&format!("goes {number}")), "").unwrap();
    }
    guest.walk(ROOT, 1, "").unwrap();
    guest.lopen(1, O_RDONLY).unwrap();
    let (mut cookie, mut seen, mut round) = (0, Vec::new(), 0);
    loop {
        let some = guest.some_entries(1, cookie, 600).unwrap();
        let Some(last) = some.last() else { break };
        cookie = last.cookie;
        seen.extend(some.into_iter().map(|entry| entry.name).filter(|n| n.starts_with("stays")));
        let _ = fs::remove_file(guest.path(&format!("goes {round}")));
        fs::write(guest.path(&format!("comes {round}")), "").unwrap();
        round += 1;
    }
    assert_eq!(seen.len(), 300);
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>().len(), 300);
}

#[test]
fn locks_of_two_guests_keep_each_other_out() {
    const READ: u8 = 0;
    const WRITE: u8 = 1;
    const NONE: u8 = 2;
    let guest = Guest::new();
    fs::write(guest.path("file"), "text").unwrap();
    let share = guest.host.path().join("share");
    let tree = Tree::open(&share, false, Owner::passthrough()).unwrap();
    let server = Arc::new(Server::new(&tree, 10).unwrap());
    let other = Guest { server, host: TempDir::new().unwrap(), tag: AtomicU16::new(0) };
    other.begin();
    for guest in [&guest, &other] {
        guest.open(1, "file", O_RDWR).unwrap();
    }
    let ask = |guest: &Guest, kind| {
        let lock = Lock { kind, start: 0, length: 0, process: 1, client: b"guest" };
        let body = guest.ask(Request::Getlock { fid: 1, lock }).unwrap();
        let mut f = Fields::new(&body);
        let held = (f.u8().unwrap(), f.u64().unwrap(), f.u64().unwrap());
        assert!(f.u32().is_ok() && f.string().is_ok() && f.end().is_ok());
        held
    };
    assert_eq!(guest.lock(1, READ, 10, 5), Ok(0));
    assert_eq!(other.lock(1, READ, 10, 5), Ok(0));
    assert_eq!(other.lock(1, WRITE, 14, 1), Ok(1));
    assert_eq!(other.lock(1, WRITE, 15, 0), Ok(0));
    assert_eq!(ask(&guest, READ), (WRITE, 15, 0));
    assert_eq!(ask(&other, READ), (NONE, 0, 0));
    // As Linux asks: with a kind that says nothing.
    assert_eq!(ask(&other, NONE), (READ, 10, 5));
    assert_eq!(guest.lock(1, NONE, 0, 0), Ok(0));
    assert_eq!(other.lock(1, WRITE, 14, 1), Ok(0));
    assert_eq!(guest.lock(1, WRITE, 0, 0), Ok(1));
    other.clunk(1).unwrap();
    assert_eq!(guest.lock(1, WRITE, 0, 0), Ok(0));
    assert_eq!(guest.lock(1, 3, 0, 0), Err(EINVAL));
    assert_eq!(guest.lock(ROOT, READ, 0, 0), Err(EBADF));
}
