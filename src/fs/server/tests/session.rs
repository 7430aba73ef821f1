use std::env;
use std::process::{Command, Stdio};

use rustix::process::{Resource, getrlimit, setrlimit};

use super::*;

#[test]
fn the_length_of_messages_is_the_smaller_of_both_sides() {
    let guest = Guest::new();
    for (asked, agreed) in [(4096, 4096), (8192, 8192), (1 << 20, 1 << 20), (u32::MAX, 1 << 20)] {
        let body = guest.version(asked).unwrap();
        let mut fields = Fields::new(&body);
        assert_eq!((fields.u32(), fields.string()), (Ok(agreed), Ok(&b"9P2000.L"[..])));
    }
    assert_eq!(guest.version(4095), Err(EMSGSIZE));
    assert_eq!(guest.attach(ROOT, b""), Err(EPROTO));
}

#[test]
fn other_dialects_are_unknown() {
    let guest = Guest::new();
    for version in [&b"9P2000"[..], b"9P2000.u", b"9P2000.Lx", b"9p2000.l", b""] {
        let body = guest.ask(Request::Version { msize: MSIZE, version }).unwrap();
        let mut fields = Fields::new(&body);
        assert_eq!((fields.u32(), fields.string()), (Ok(MSIZE), Ok(&b"unknown"[..])));
        assert_eq!(guest.attach(ROOT, b""), Err(EPROTO));
    }
    guest.begin();
}

#[test]
fn nothing_is_answered_before_a_version_was_agreed_on() {
    let host = TempDir::new().unwrap();
    fs::create_dir(host.path().join("share")).unwrap();
    let guest = Guest::of(host, false, 10);
    assert_eq!(guest.attach(ROOT, b""), Err(EPROTO));
    assert_eq!(guest.getattr(ROOT), Err(EPROTO));
    guest.begin();
    assert!(guest.getattr(ROOT).is_ok());
}

#[test]
fn a_new_version_and_a_reset_end_the_session() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "text").unwrap();
    guest.open(1, "file", O_RDONLY).unwrap();
    guest.version(MSIZE).unwrap();
    assert_eq!((guest.getattr(ROOT), guest.read(1, 0, 1)), (Err(EBADF), Err(EBADF)));
    guest.attach(ROOT, b"").unwrap();
    assert_eq!(guest.server.fids.count(), 1);
    guest.server.reset();
    assert_eq!(guest.server.fids.count(), 0);
    assert_eq!(guest.getattr(ROOT), Err(EPROTO));
    guest.begin();
}

#[test]
fn several_users_attach_themselves_side_by_side() {
    let guest = Guest::new();
    let attach = |fid, user, uid| {
        guest.ask(Request::Attach { fid, auth_fid: NO_FID, user, path: b"", uid }).map(drop)
    };
    assert_eq!(attach(1, b"", 1000), Ok(()));
    assert_eq!(attach(2, b"nobody", NO_FID), Ok(()));
    assert_eq!(attach(3, b"1001", NO_FID), Ok(()));
    assert_eq!(attach(5, b"4294967295", NO_FID), Ok(()));
    let uid = |fid| guest.server.fids.get(guest.server.fids.session().epoch, fid).unwrap().uid;
    assert_eq!([ROOT, 1, 2, 3, 5].map(uid), [0, 1000, 0, 1001, 0]);
    // What is found belongs to whom it was found for.
    guest.walk(1, 4, "").unwrap();
    assert_eq!(uid(4), 1000);
    assert_eq!(attach(1, b"", 1000), Err(EBUSY));
    assert_eq!(attach(NO_FID, b"", 1000), Err(EINVAL));
    guest.clunk(1).unwrap();
    assert_eq!(attach(1, b"", 1002), Ok(()));
}

#[test]
fn a_folder_in_the_share_can_be_attached() {
    let guest = Guest::new();
    fs::create_dir_all(guest.path("a/b")).unwrap();
    fs::write(guest.path("a/b/file"), "text").unwrap();
    guest.attach(1, b"/a/b").unwrap();
    guest.attach(2, b"a//b/").unwrap();
    assert_eq!(guest.getattr(1).unwrap().qid, guest.getattr(2).unwrap().qid);
    guest.walk(1, 3, "file").unwrap();
    assert_eq!(guest.attach(4, b"a/c"), Err(ENOENT));
    assert_eq!(guest.attach(4, b"a/b/file/x"), Err(ENOTDIR));
    assert_eq!(guest.attach(4, b"../secret"), Err(ENOENT));
}

#[test]
fn there_is_no_authentication() {
    let guest = Guest::new();
    let request = Request::Attach { fid: 1, auth_fid: 2, user: b"", path: b"", uid: 0 };
    assert_eq!(guest.ask(request), Err(EBADF));
    let auth = crate::fs::wire::testing::Message::new(102).u32(1).string(b"").string(b"").u32(0);
    assert_eq!(guest.send(&auth.finish(1)), Err(EOPNOTSUPP));
}

#[test]
fn a_walk_goes_as_far_as_it_gets() {
    let guest = Guest::new();
    fs::create_dir_all(guest.path("a/b/c")).unwrap();
    fs::write(guest.path("a/file"), "text").unwrap();
    let found = |path: &[&[u8]]| guest.walk_bytes(ROOT, 1, path).map(|qids| qids.len());
    assert_eq!(found(&[b"none"]), Err(ENOENT));
    assert_eq!(found(&[b"a", b"none", b"c"]), Ok(1));
    assert_eq!(found(&[b"a", b"b", b"none"]), Ok(2));
    assert_eq!(found(&[b"a", b"file", b"x"]), Ok(2));
    assert_eq!(guest.getattr(1), Err(EBADF), "no walk came to its end");
    assert_eq!(found(&[b"a", b"b", b"c"]), Ok(3));
    let qid = |fid| guest.getattr(fid).unwrap().qid.path;
    let there = guest.walk_bytes(ROOT, 2, &[b"a", b"b", b"c"]).unwrap()[2];
    assert_eq!((there.path, there.kind), (qid(1), Qid::DIRECTORY));
    // Sixteen at a time.
    let around: Vec<&[u8]> = [&b"a"[..], b".."].repeat(8);
    assert_eq!(guest.walk_bytes(ROOT, 3, &around).unwrap().len(), 16);
    assert_eq!(qid(3), qid(ROOT));
}

#[test]
fn a_walk_can_stay_or_leave_or_do_both() {
    let guest = Guest::new();
    fs::create_dir_all(guest.path("a/b")).unwrap();
    let qid = |fid| guest.getattr(fid).map(|attributes| attributes.qid.path);
    assert_eq!(guest.walk_bytes(ROOT, 1, &[]), Ok(vec![]));
    assert_eq!(qid(1), qid(ROOT));
    guest.walk(1, 1, "a/b").unwrap();
    guest.walk(ROOT, 2, "a/b").unwrap();
    assert_eq!(qid(1), qid(2));
    guest.walk(1, 1, "").unwrap();
    // In place, and not to the end: it stays.
    assert_eq!(guest.walk(1, 1, "../none"), Err(ENOENT));
    assert_eq!(qid(1), qid(2));
    guest.walk(1, 1, "./..").unwrap();
    guest.walk(1, 3, "b").unwrap();
    assert_eq!(qid(3), qid(2));
}

#[test]
fn a_walk_needs_a_fid_and_a_free_number() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "text").unwrap();
    assert_eq!(guest.walk(9, 1, ""), Err(EBADF));
    guest.walk(ROOT, 1, "file").unwrap();
    assert_eq!(guest.walk(ROOT, 1, ""), Err(EBUSY));
    assert_eq!(guest.walk(ROOT, NO_FID, ""), Err(EINVAL));
    guest.lopen(1, O_RDONLY).unwrap();
    assert_eq!(guest.walk(1, 1, ""), Err(EBUSY), "an open file stays what it is");
    // Linux looks at unlinked files through what it has open.
    fs::remove_file(guest.path("file")).unwrap();
    guest.walk(1, 2, "").unwrap();
    assert_eq!(guest.getattr(2).unwrap().links, 0);
    assert_eq!(guest.read(2, 0, 1), Err(EBADF), "it is not open");
}

#[test]
fn a_clunked_fid_is_gone() {
    let guest = Guest::new();
    guest.walk(ROOT, 1, "").unwrap();
    guest.clunk(1).unwrap();
    assert_eq!(guest.clunk(1), Err(EBADF));
    assert_eq!(guest.getattr(1), Err(EBADF));
    assert_eq!(guest.lopen(1, O_RDONLY), Err(EBADF));
    guest.walk(ROOT, 1, "").unwrap();
}

#[test]
fn there_are_as_many_fids_as_allowed_and_no_more() {
    let guest = Guest::with(false, 3);
    guest.walk(ROOT, 1, "").unwrap();
    guest.walk(ROOT, 2, "").unwrap();
    assert_eq!(guest.walk(ROOT, 3, ""), Err(ENFILE));
    assert_eq!(guest.attach(3, b""), Err(ENFILE));
    assert_eq!(guest.ask(Request::Xattrwalk { fid: 1, new_fid: 3, name: b"" }), Err(ENFILE));
    // In place there is no more of them.
    guest.walk(1, 1, "").unwrap();
    guest.clunk(2).unwrap();
    guest.walk(ROOT, 3, "").unwrap();
}

#[test]
fn a_guest_that_holds_much_leaves_descriptors_to_others() {
    const CHILD: &str = "HYPERKIT_TEST_FS_ALONE";
    const NAME: &str = "a_guest_that_holds_much_leaves_descriptors_to_others";
    const EMFILE: u32 = 24;
    // How many there are is the whole process's.
    if env::var_os(CHILD).is_none() {
        let name = format!("fs::server::tests::session::{NAME}");
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--exact", &name, "--test-threads=1", "--nocapture"]).env(CHILD, "1");
        let output = child.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        return;
    }
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(400);
    setrlimit(Resource::Nofile, limit).unwrap();
    let guest = Guest::with(false, 1000);
    fs::write(guest.path("file"), "text").unwrap();
    let mut last = 0;
    let errno = loop {
        match guest.open(last + 1, "file", O_RDONLY) {
            Ok(()) => last += 1,
            Err(errno) => break errno,
        }
    };
    assert_eq!(errno, EMFILE);
    // An eighth is left.
    let others: Vec<_> = (0..45).map(|_| fs::File::open("/dev/null").unwrap()).collect();
    assert!(last > 100, "{last}");
    let mkdir = Request::Mkdir { dir: ROOT, name: b"dir", mode: 0o755, gid: gid() };
    let create =
        Request::Lcreate { fid: ROOT, name: b"new", flags: O_RDWR, mode: 0o644, gid: gid() };
    assert_eq!(guest.ask(create), Err(EMFILE));
    assert!(!guest.path("new").exists(), "refused before it was made");
    assert_eq!(guest.read(last, 0, 9).unwrap(), b"text");
    drop(others);
    assert!(guest.ask(mkdir).is_ok());
    let _ = guest.clunk(last + 1);
    for fid in last - 9..=last {
        guest.clunk(fid).unwrap();
    }
    guest.open(last, "file", O_RDONLY).unwrap();

    // A process of the guest that has a lock takes one too.
    for fid in 1..=last / 2 {
        guest.clunk(fid).unwrap();
    }
    let by_whom = (last / 2 + 1..=last).flat_map(|fid| (0..16).map(move |process| (fid, process)));
    let mut locks = by_whom.map(|(fid, process)| {
        let lock = Lock { kind: 0, start: 0, length: 0, process: 100 * fid + process, client: b"" };
        guest.ask(Request::Lock { fid, flags: 0, lock })
    });
    let made = locks.by_ref().position(|answer| answer == Err(EMFILE));
    assert!(made.is_some_and(|made| made > 50), "{made:?}");
    let others = (0..45).map(|_| fs::File::open("/dev/null"));
    assert!(others.collect::<Result<Vec<_>, _>>().is_ok());
}
