use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

fn change(fid: u32, valid: u32) -> Request<'static> {
    Request::Setattr {
        fid,
        valid,
        mode: 0o100_640,
        uid: rustix::process::geteuid().as_raw(),
        gid: gid(),
        size: 3,
        accessed: (1_000_000_001, 123_456_789),
        modified: (-5_i64 as u64, 999_999_999),
    }
}

#[test]
fn what_a_file_is_can_be_asked() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "some text").unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    std::os::unix::fs::symlink("file", guest.path("link")).unwrap();
    for (fid, name, kind) in [(1, "file", 0), (2, "dir", Qid::DIRECTORY), (3, "link", Qid::SYMLINK)]
    {
        guest.walk(ROOT, fid, name).unwrap();
        let (ours, theirs) =
            (guest.getattr(fid).unwrap(), fs::symlink_metadata(guest.path(name)).unwrap());
        assert_eq!((ours.qid.kind, ours.mode), (kind, theirs.mode()), "{name}");
        assert_eq!((ours.uid, ours.gid), (theirs.uid(), theirs.gid()));
        assert_eq!(
            (ours.links, ours.size, ours.blocks),
            (theirs.nlink(), theirs.size(), theirs.blocks())
        );
        let modified = (theirs.mtime() as u64, theirs.mtime_nsec() as u64);
        assert_eq!((ours.modified, ours.device), (modified, 0));
    }
    assert_ne!(guest.getattr(1).unwrap().qid.path, guest.getattr(2).unwrap().qid.path);
    assert_eq!(guest.getattr(9), Err(EBADF));
}

#[test]
fn what_a_file_is_can_be_changed_bit_by_bit() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "some text").unwrap();
    guest.walk(ROOT, 1, "file").unwrap();
    let state = || {
        let known = guest.getattr(1).unwrap();
        (known.mode & 0o777, known.size, known.accessed, known.modified)
    };
    let before = state();
    guest.does(change(1, 0x40)).unwrap();
    assert_eq!(state(), before, "only the time of change, which the host sets");
    guest.does(change(1, 0x1)).unwrap();
    assert_eq!(state(), (0o640, before.1, before.2, before.3));
    guest.does(change(1, 0x6)).unwrap();
    guest.does(change(1, 0x20 | 0x100)).unwrap();
    assert_eq!(state(), (0o640, before.1, before.2, (-5_i64 as u64, 999_999_999)));
    guest.does(change(1, 0x10 | 0x80)).unwrap();
    assert_eq!(state().2, (1_000_000_001, 123_456_789));
    guest.does(change(1, 0x8)).unwrap();
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"som");
    guest.does(change(1, 0x30)).unwrap();
    let (.., accessed, modified) = state();
    assert!(accessed.0 > 1_500_000_000 && modified.0 > 1_500_000_000);
    assert_eq!(guest.does(change(1, 0x200)), Err(EINVAL));
    assert_eq!(guest.does(change(9, 1)), Err(EBADF));
}

#[test]
fn times_have_no_more_nanoseconds_than_a_second_has() {
    let guest = Guest::new();
    for (nanoseconds, answer) in
        [(999_999_999, Ok(())), (1_000_000_000, Err(EINVAL)), (u64::MAX, Err(EINVAL))]
    {
        let request = Request::Setattr {
            fid: ROOT,
            valid: 0x10 | 0x80,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            accessed: (1, nanoseconds),
            modified: (1, u64::MAX),
        };
        assert_eq!(guest.does(request), answer);
    }
}

#[test]
fn an_open_file_can_be_cut_whatever_its_mode_has_become() {
    let guest = Guest::new();
    guest.create(1, b"file", O_RDWR).unwrap();
    guest.write(1, 0, b"some text").unwrap();
    fs::set_permissions(guest.path("file"), fs::Permissions::from_mode(0o000)).unwrap();
    guest.does(Request::Unlinkat { dir: ROOT, name: b"file", flags: 0 }).unwrap();
    guest.does(change(1, 0x8)).unwrap();
    assert_eq!(guest.read(1, 0, 9).unwrap(), b"som");
}

#[test]
fn the_file_system_can_be_asked_for() {
    let guest = Guest::new();
    let body = guest.ask(Request::Statfs { fid: ROOT }).unwrap();
    let mut fields = Fields::new(&body);
    assert_eq!(fields.u32(), Ok(0x0102_1997));
    let host = rustix::fs::statvfs(guest.path("").as_path()).unwrap();
    assert_eq!(fields.u32(), Ok(host.f_frsize as u32));
    assert_eq!(fields.u64(), Ok(host.f_blocks));
    for _ in 0..5 {
        fields.u64().unwrap();
    }
    assert_eq!(fields.u32(), Ok(255));
    fields.end().unwrap();
    assert_eq!(guest.ask(Request::Statfs { fid: 9 }), Err(EBADF));
}

#[test]
fn nothing_belongs_to_the_user_or_group_that_is_none() {
    const NONE: u32 = u32::MAX;
    let guest = Guest::new();
    let (uid, gid, name) = (NONE, NONE, &b"new"[..]);
    guest.walk(ROOT, 1, "").unwrap();
    let (mode, size, accessed, modified) = (0, 0, (0, 0), (0, 0));
    let change =
        |valid| Request::Setattr { fid: 1, valid, mode, uid, gid, size, accessed, modified };
    for request in [
        change(0x2),
        change(0x4),
        Request::Mkdir { dir: ROOT, name, mode: 0o755, gid },
        Request::Symlink { dir: ROOT, name, target: b"x", gid },
        Request::Mknod { dir: ROOT, name, mode: 0o010_600, major: 0, minor: 0, gid },
        Request::Lcreate { fid: 1, name, flags: O_RDWR, mode: 0o644, gid },
    ] {
        assert_eq!(guest.ask(request), Err(EINVAL), "{request:?}");
    }
    assert!(!guest.path("new").exists());
    guest.does(change(0)).unwrap();
}
