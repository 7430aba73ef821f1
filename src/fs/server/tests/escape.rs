//! What is outside the share, or must not be changed.

use std::os::unix::fs::symlink;

use super::*;

/// Names that lead somewhere else, or are none.
const BAD_NAMES: [&[u8]; 9] =
    [b"..", b".", b"", b"a/b", b"/", b"../secret", b"/etc/passwd", b"nul\0nul", b"\0"];

fn canary(guest: &Guest) {
    assert_eq!(fs::read(guest.host.path().join("secret")).unwrap(), b"not for the guest");
    let mut outside: Vec<_> =
        fs::read_dir(guest.host.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    outside.sort_unstable();
    assert_eq!(outside, ["secret", "share"]);
}

#[test]
pub(super) fn above_the_root_is_the_root() {
    let guest = Guest::new();
    fs::create_dir_all(guest.path("a/b")).unwrap();
    let root = guest.getattr(ROOT).unwrap().qid;
    for path in ["..", "../..", "../../../../..", "a/../..", "a/b/../../../.."] {
        guest.walk(ROOT, 1, path).unwrap();
        assert_eq!(guest.getattr(1).unwrap().qid, root, "{path}");
        guest.clunk(1).unwrap();
    }
    assert_eq!(guest.walk(ROOT, 1, "../secret"), Err(ENOENT));
    // Nor from a folder that was attached itself.
    guest.attach(1, b"/a/b").unwrap();
    guest.walk(1, 2, "../../..").unwrap();
    assert_eq!(guest.getattr(2).unwrap().qid, root);
    guest.walk(ROOT, 3, "").unwrap();
    guest.lopen(3, O_RDONLY).unwrap();
    let above = guest.entries(3, 4096).into_iter().find(|entry| entry.name == "..").unwrap();
    assert_eq!(above.qid.path, root.path);
    canary(&guest);
}

#[test]
pub(super) fn names_that_are_paths_or_none_are_refused_by_every_message() {
    let guest = Guest::new();
    fs::create_dir_all(guest.path("a/b")).unwrap();
    fs::write(guest.path("file"), "text").unwrap();
    guest.walk(ROOT, 1, "file").unwrap();
    guest.walk(ROOT, 2, "a").unwrap();
    let long = [b'x'; 256];
    for name in BAD_NAMES.into_iter().chain([&long[..]]) {
        if !matches!(name, b"." | b"..") {
            assert!(guest.walk_bytes(ROOT, 9, &[name]).is_err(), "{name:?}");
        }
        let gid = gid();
        for request in [
            Request::Lcreate { fid: 2, name, flags: O_RDWR | O_CREAT, mode: 0o644, gid },
            Request::Mkdir { dir: ROOT, name, mode: 0o755, gid },
            Request::Symlink { dir: ROOT, name, target: b"x", gid },
            Request::Mknod { dir: ROOT, name, mode: 0o010_600, major: 0, minor: 0, gid },
            Request::Link { dir: ROOT, fid: 1, name },
            Request::Rename { fid: 1, dir: ROOT, name },
            Request::Renameat { dir: ROOT, name: b"file", new_dir: ROOT, new_name: name },
            Request::Renameat { dir: ROOT, name, new_dir: ROOT, new_name: b"new" },
            Request::Unlinkat { dir: ROOT, name, flags: 0 },
            Request::Unlinkat { dir: 2, name, flags: 0x200 },
        ] {
            let errno = guest.ask(request).unwrap_err();
            assert!([EINVAL, ENAMETOOLONG].contains(&errno), "{request:?}: {errno}");
        }
    }
    canary(&guest);
    assert!(guest.path("file").exists() && guest.path("a/b").exists());
    // Nearly as bad, and fine.
    guest.ask(Request::Mkdir { dir: ROOT, name: &long[..255], mode: 0o755, gid: gid() }).unwrap();
    guest.ask(Request::Mkdir { dir: ROOT, name: b"...", mode: 0o755, gid: gid() }).unwrap();
    guest.ask(Request::Mkdir { dir: ROOT, name: b"\xff\xfe\\", mode: 0o755, gid: gid() }).unwrap();
}

#[test]
pub(super) fn symbolic_links_are_never_followed() {
    let guest = Guest::new();
    let outside = guest.host.path().to_owned();
    symlink(outside.join("secret"), guest.path("absolute")).unwrap();
    symlink("../secret", guest.path("relative")).unwrap();
    symlink(&outside, guest.path("folder")).unwrap();
    symlink("/proc/self/root", guest.path("magic")).unwrap();
    symlink("relative", guest.path("twice")).unwrap();
    for (fid, name) in (1..).zip(["absolute", "relative", "folder", "magic", "twice"]) {
        guest.walk(ROOT, fid, name).unwrap();
        assert_eq!(guest.getattr(fid).unwrap().qid.kind, Qid::SYMLINK);
        assert_eq!(guest.lopen(fid, O_RDONLY), Err(ELOOP), "{name}");
        assert_eq!(guest.walk(fid, 90, "secret"), Err(ENOTDIR), "{name}");
        assert_eq!(guest.walk(ROOT, 90, &format!("{name}/secret")), Err(ENOENT), "{name}");
        let name = name.as_bytes();
        assert!(guest.create(50 + fid, name, O_RDWR).is_err());
        assert!(guest.create(70 + fid, name, O_WRONLY | O_TRUNC).is_err());
        let mkdir = Request::Mkdir { dir: fid, name: b"x", mode: 0o755, gid: gid() };
        assert_eq!(guest.ask(mkdir), Err(ENOTDIR));
        let rename =
            Request::Renameat { dir: ROOT, name: b"absolute", new_dir: fid, new_name: b"x" };
        assert_eq!(guest.does(rename), Err(ENOTDIR));
        // Cutting a link short, or its mode, is not doing it to what is behind it.
        let size = Request::Setattr {
            fid,
            valid: 0x9,
            mode: 0o777,
            uid: 0,
            gid: 0,
            size: 0,
            accessed: (0, 0),
            modified: (0, 0),
        };
        assert!(guest.does(size).is_err());
    }
    // Another name for the link is one for the link.
    guest.does(Request::Link { dir: ROOT, fid: 1, name: b"hard" }).unwrap();
    assert!(fs::symlink_metadata(guest.path("hard")).unwrap().is_symlink());
    canary(&guest);
}

#[test]
pub(super) fn a_component_that_becomes_a_link_leads_nowhere() {
    let guest = Guest::new();
    fs::create_dir_all(guest.path("dir/sub")).unwrap();
    fs::write(guest.path("dir/file"), "text").unwrap();
    guest.walk(ROOT, 1, "dir").unwrap();
    fs::rename(guest.path("dir"), guest.path("elsewhere")).unwrap();
    symlink(guest.host.path(), guest.path("dir")).unwrap();
    // The fid is the folder, not its name.
    guest.walk(1, 2, "file").unwrap();
    assert_eq!(guest.walk(1, 3, "secret"), Err(ENOENT));
    assert_eq!(guest.walk(ROOT, 3, "dir/secret"), Err(ENOENT));
    guest.ask(Request::Mkdir { dir: 1, name: b"new", mode: 0o755, gid: gid() }).unwrap();
    assert!(guest.path("elsewhere/new").exists());
    canary(&guest);
}

#[test]
pub(super) fn parents_that_are_renamed_do_not_lead_out() {
    let guest = Guest::new();
    fs::create_dir_all(guest.path("a/b/c/d")).unwrap();
    guest.walk(ROOT, 1, "a/b/c/d").unwrap();
    // Up in the tree: three times `..` would have been a, and is the root now, or above it.
    fs::rename(guest.path("a/b/c"), guest.path("c")).unwrap();
    let root = guest.getattr(ROOT).unwrap().qid.path;
    guest.walk(1, 2, "../../..").unwrap();
    assert_eq!(guest.getattr(2).unwrap().qid.path, root);
    // Out of it: the guest keeps what it has, and no way leads from there to what is outside.
    fs::rename(guest.path("c/d"), guest.host.path().join("d")).unwrap();
    assert!(guest.walk(1, 3, "../secret").is_err());
    assert!(guest.walk(1, 3, "..").is_err());
    fs::remove_dir(guest.host.path().join("d")).unwrap();
    canary(&guest);
}

#[test]
pub(super) fn nothing_of_a_share_that_is_only_read_is_changed() {
    let host = TempDir::new().unwrap();
    let share = host.path().join("share");
    fs::create_dir_all(share.join("dir/sub")).unwrap();
    fs::write(share.join("file"), "text").unwrap();
    fs::write(host.path().join("secret"), "not for the guest").unwrap();
    let guest = Guest::of(host, true, 100);
    guest.begin();
    guest.walk(ROOT, 1, "file").unwrap();
    guest.walk(ROOT, 2, "dir").unwrap();
    let before = guest.getattr(1).unwrap();
    for flags in [O_WRONLY, O_RDWR, O_WRONLY | O_APPEND, O_RDONLY | O_TRUNC, O_RDWR | O_TRUNC] {
        assert_eq!(guest.lopen(1, flags), Err(EROFS), "{flags:#o}");
    }
    let gid = gid();
    let mut requests = vec![
        Request::Lcreate { fid: 2, name: b"new", flags: O_RDWR | O_CREAT, mode: 0o644, gid },
        Request::Mkdir { dir: ROOT, name: b"new", mode: 0o755, gid },
        Request::Symlink { dir: ROOT, name: b"new", target: b"x", gid },
        Request::Mknod { dir: ROOT, name: b"new", mode: 0o010_600, major: 0, minor: 0, gid },
        Request::Link { dir: ROOT, fid: 1, name: b"new" },
        Request::Rename { fid: 1, dir: ROOT, name: b"new" },
        Request::Renameat { dir: ROOT, name: b"file", new_dir: 2, new_name: b"new" },
        Request::Unlinkat { dir: ROOT, name: b"file", flags: 0 },
        Request::Unlinkat { dir: 2, name: b"sub", flags: 0x200 },
    ];
    for valid in [0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x90, 0x120] {
        let (accessed, modified) = ((1, 1), (1, 1));
        requests.push(Request::Setattr {
            fid: 1,
            valid,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            accessed,
            modified,
        });
    }
    for request in requests {
        assert_eq!(guest.ask(request), Err(EROFS), "{request:?}");
    }
    guest.walk(1, 3, "").unwrap();
    guest.does(Request::Xattrcreate { fid: 3, name: b"user.x", size: 1, flags: 0 }).unwrap();
    guest.write(3, 0, b"x").unwrap();
    assert_eq!(guest.clunk(3), Err(EROFS));
    guest.walk(1, 3, "").unwrap();
    assert_eq!(guest.does(Request::Remove { fid: 3 }), Err(EROFS));
    guest.lopen(1, O_RDONLY).unwrap();
    assert_eq!(guest.write(1, 0, b"x"), Err(EBADF));
    assert_eq!(guest.read(1, 0, 9).unwrap(), b"text");
    let after = guest.getattr(1).unwrap();
    assert_eq!(
        (after.mode, after.size, after.modified),
        (before.mode, before.size, before.modified)
    );
}
