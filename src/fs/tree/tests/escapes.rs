use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;

/// What is outside is what it was.
fn check_outside(share: &Share) {
    let mut names: Vec<_> = fs::read_dir(share.outside.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["secret", "share"]);
    assert_eq!(fs::read(share.outside.path().join("secret")).unwrap(), b"secret");
}

#[test]
pub(super) fn names_that_are_paths_are_refused_everywhere() {
    let share = Share::plain();
    let root = share.root();
    let (file, _open) = create(&root, "file", RDWR);
    let folder = mkdir(&root, "folder");
    let names: [&[u8]; 7] =
        [b"", b"../secret", b"/etc/passwd", b"folder/..", b"folder/", b"/", b"file\0"];
    for name in names {
        assert_eq!(errno(root.walk(name)), Errno::INVAL, "{name:?}");
    }
    for name in names.into_iter().chain([&b"."[..], b".."]) {
        let refused = [
            folder.create(name, RDWR, 0o644, 0, 0).map(drop),
            folder.mkdir(name, 0o755, 0, 0).map(drop),
            folder.symlink(name, b"x", 0, 0).map(drop),
            folder.mknod(name, 0o010_644, (0, 0), 0, 0).map(drop),
            folder.link(&file, name),
            folder.unlink(name, false),
            folder.unlink(name, true),
            folder.rename(name, &root, b"x"),
            root.rename(b"file", &folder, name),
        ];
        for (number, result) in refused.into_iter().enumerate() {
            assert_eq!(errno(result), Errno::INVAL, "call {number}, {name:?}");
        }
    }
    check_outside(&share);
}

#[test]
pub(super) fn the_root_is_its_own_parent() {
    let share = Share::plain();
    let root = share.root();
    let folder = mkdir(&mkdir(&root, "a"), "b");
    let up = folder.walk(b"..").unwrap().walk(b"..").unwrap();
    assert_eq!(up.qid().path, root.qid().path);
    let mut here = up;
    for _ in 0..10 {
        here = here.walk(b"..").unwrap().walk(b".").unwrap();
        assert_eq!(here.qid().path, root.qid().path);
    }
    assert_eq!(names(&here), ["a"]);
    for (name, qid, _) in list(&root.open(RDONLY).unwrap(), 4096) {
        if name == b".." {
            assert_eq!(qid.path, root.qid().path, "the number of what is outside is not told");
        }
    }
    let (file, _open) = create(&root, "file", RDWR);
    assert_eq!(errno(file.walk(b"..")), Errno::NOTDIR);
}

#[test]
pub(super) fn links_of_the_host_lead_nowhere() {
    let share = Share::plain();
    let root = share.root();
    fs::create_dir(share.host("folder")).unwrap();
    let outside = share.outside.path();
    for (name, target) in [
        ("absolute", outside.join("secret")),
        ("folder-out", outside.to_path_buf()),
        ("relative", "../secret".into()),
        ("up", "..".into()),
        ("new", outside.join("new")),
        ("inside", "folder".into()),
    ] {
        symlink(&target, share.host(name)).unwrap();
        let link = root.walk(name.as_bytes()).unwrap();
        assert_eq!(link.qid().kind, Qid::SYMLINK);
        assert_eq!(link.readlink().unwrap(), target.as_os_str().as_encoded_bytes());
        assert_eq!(errno(link.walk(b"secret")), Errno::NOTDIR);
        assert_eq!(errno(link.walk(b"..")), Errno::NOTDIR);
        for flags in [RDONLY, WRONLY, RDWR | TRUNC] {
            assert_eq!(errno(link.open(flags)), Errno::LOOP, "{name}");
            assert_eq!(errno(root.create(name.as_bytes(), flags, 0o644, 0, 0)), Errno::LOOP);
        }
        assert_eq!(errno(link.create(b"x", RDWR, 0o644, 0, 0)), Errno::NOTDIR);
        assert_eq!(errno(link.mkdir(b"x", 0o755, 0, 0)), Errno::NOTDIR);
        assert_eq!(errno(link.unlink(b"secret", false)), Errno::NOTDIR);
        assert_eq!(errno(root.rename(name.as_bytes(), &link, b"x")), Errno::NOTDIR);
        assert_eq!(errno(root.mkdir(name.as_bytes(), 0o755, 0, 0)), Errno::EXIST);
        let size = SetAttributes { size: Some(0), ..Default::default() };
        assert_eq!(errno(link.set_attributes(&size, None)), Errno::INVAL);
        let mode = SetAttributes { mode: Some(0o777), ..Default::default() };
        assert_eq!(errno(link.set_attributes(&mode, None)), Errno::OPNOTSUPP);
        // Times, owners and extended attributes are the link's own, if it can have them.
        let _ = link.xattr_set(b"user.x", b"y", 0);
        let times = SetAttributes {
            modified: Some(SetTime::To(Time { seconds: 1, nanoseconds: 2 })),
            ..Default::default()
        };
        link.set_attributes(&times, None).unwrap();
        root.link(&link, b"another").unwrap();
        root.unlink(b"another", false).unwrap();
    }
    let secret = share.tree.0.root.parent().unwrap().child(b"secret").unwrap();
    assert_ne!(secret.facts().unwrap().modified.seconds, 1);
    assert_ne!(secret.xattr(b"user.x", &mut [0; 9]).ok(), Some(1));
    check_outside(&share);
}

#[test]
pub(super) fn a_folder_that_is_moved_out_has_no_parent() {
    let share = Share::plain();
    let inner = mkdir(&mkdir(&share.root(), "folder"), "inner");
    fs::rename(share.host("folder"), share.outside.path().join("moved")).unwrap();
    assert_eq!(errno(inner.walk(b"..")), Errno::STALE);
    fs::rename(share.outside.path().join("moved"), share.host("back")).unwrap();
    let folder = inner.walk(b"..").unwrap();
    assert_eq!(folder.qid().path, share.root().walk(b"back").unwrap().qid().path);
    check_outside(&share);
}

#[test]
pub(super) fn what_is_swapped_for_a_link_between_two_looks_does_not_lead_out() {
    let share = Share::plain();
    let root = share.root();
    fs::create_dir(share.host("real")).unwrap();
    fs::write(share.host("real/secret"), "decoy").unwrap();
    fs::write(share.host("file"), "decoy").unwrap();
    let done = AtomicBool::new(false);
    let mut seen = [0_usize; 2];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (place, away) = (share.host("place"), share.host("away"));
            let outside = share.outside.path();
            while !done.load(Ordering::Relaxed) {
                // In turns the folder, a link out of the share, a file and a link to a file outside.
                fs::rename(share.host("real"), &place).unwrap();
                fs::rename(&place, share.host("real")).unwrap();
                symlink(outside, &place).unwrap();
                fs::rename(&place, &away).unwrap();
                fs::rename(share.host("file"), &place).unwrap();
                fs::rename(&place, share.host("file")).unwrap();
                fs::remove_file(&away).unwrap();
                symlink(outside.join("secret"), &place).unwrap();
                fs::remove_file(&place).unwrap();
            }
        });
        let start = Instant::now();
        // For a second, and until both have been met, unless that takes forever.
        while start.elapsed() < Duration::from_secs(1)
            || (seen.contains(&0) && start.elapsed() < Duration::from_secs(60))
        {
            let Ok(node) = root.walk(b"place") else { continue };
            if let Ok(found) = node.walk(b"secret") {
                let file = found.open(RDWR).unwrap();
                assert_eq!(read(&file, 0, 9).unwrap(), b"decoy");
                seen[0] += 1;
            }
            if let Ok(file) = node.open(RDONLY)
                && node.qid().kind == 0
            {
                assert_eq!(read(&file, 0, 9).unwrap(), b"decoy");
                seen[1] += 1;
            }
            let _ = node.unlink(b"none", false);
            if let Ok(inner) = node.mkdir(b"made", 0o755, 0, 0) {
                assert_eq!(inner.walk(b"..").unwrap().qid().path, node.qid().path);
                node.unlink(b"made", true).unwrap();
            }
            // Whatever is there, what is outside is neither opened nor cut.
            let _ = root.walk(b"place").and_then(|node| node.open(RDWR | TRUNC)).map(|file| {
                let _ = write(&file, 0, b"decoy".into());
            });
        }
        done.store(true, Ordering::Relaxed);
    });
    check_outside(&share);
    assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
}

#[test]
pub(super) fn what_is_no_plain_file_is_not_opened_and_nobody_waits() {
    let share = Share::plain();
    let root = share.root();
    let _listener = UnixListener::bind(share.host("socket")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(share.host("fifo")).status().unwrap();
    assert!(fifo.success());
    for (name, kind, entry) in [("fifo", kind::FIFO, 1), ("socket", kind::SOCKET, 12)] {
        let node = root.walk(name.as_bytes()).unwrap();
        assert_eq!(node.attributes().unwrap().mode & kind::MASK, kind);
        assert_eq!(node.qid().kind, 0);
        for flags in [RDONLY, WRONLY, RDWR, RDONLY | TRUNC] {
            assert_eq!(errno(node.open(flags)), Errno::NXIO);
            assert_eq!(errno(root.create(name.as_bytes(), flags, 0o644, 0, 0)), Errno::NXIO);
        }
        let size = SetAttributes { size: Some(0), ..Default::default() };
        assert_eq!(errno(node.set_attributes(&size, None)), Errno::INVAL);
        let listed = list(&root.open(RDONLY).unwrap(), 4096);
        assert!(listed.iter().any(|(listed, _, kind)| listed == name.as_bytes() && *kind == entry));
        root.unlink(name.as_bytes(), false).unwrap();
    }
}
