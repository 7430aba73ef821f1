use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

fn set_owner(node: &Node, uid: u32, gid: u32) -> io::Result<()> {
    let changes = SetAttributes { uid: Some(uid), gid: Some(gid), ..Default::default() };
    node.set_attributes(&changes, None)
}

fn set_mode(node: &Node, mode: u32) -> io::Result<()> {
    node.set_attributes(&SetAttributes { mode: Some(mode), ..Default::default() }, None)
}

/// Mode, owner and group.
fn seen(node: &Node) -> (u32, u32, u32) {
    let attributes = node.attributes().unwrap();
    (attributes.mode, attributes.uid, attributes.gid)
}

/// What squash does, whoever does it.
pub(super) fn check_squash() {
    let share = Share::new(Owner::squash(1000, 50));
    let root = share.root();
    let (node, _file) = root.create(b"file", RDWR, 0o6755, 7, 8).unwrap();
    assert_eq!(seen(&node), (0o100_755, 1000, 50));
    let host = fs::metadata(share.host("file")).unwrap();
    assert_eq!((host.uid(), host.mode()), (me().0, 0o100_755));
    set_mode(&node, 0o4711).unwrap();
    assert_eq!(seen(&node), (0o100_711, 1000, 50));
    set_owner(&node, 1000, 50).unwrap();
    assert_eq!(errno(set_owner(&node, 0, 50)), Errno::PERM);
    assert_eq!(errno(set_owner(&node, 1000, 0)), Errno::PERM);
    let folder = root.mkdir(b"folder", 0o1777, 7, 8).unwrap();
    assert_eq!(seen(&folder), (0o041_777, 1000, 50));
    let link = root.symlink(b"link", b"file", 7, 8).unwrap();
    assert_eq!(seen(&link), (0o120_777, 1000, 50));
    for kind in [kind::CHAR, kind::BLOCK] {
        assert_eq!(errno(root.mknod(b"node", kind | 0o644, (1, 3), 7, 8)), Errno::PERM);
    }
    for name in [&b"security.capability"[..], b"trusted.x", b"system.posix_acl_access"] {
        assert_eq!(errno(node.xattr_set(name, b"x", 0)), Errno::OPNOTSUPP);
        assert_eq!(errno(node.xattr_get(name)), Errno::OPNOTSUPP);
    }
    node.xattr_set(b"user.x", b"y", 0).unwrap();
    assert_eq!(node.xattr_list().unwrap(), b"user.x\0");
    assert_eq!(names(&root), ["file", "folder", "link"]);
}

/// What mapped does, whoever does it.
pub(super) fn check_mapped() {
    let share = Share::new(Owner::mapped());
    let root = share.root();
    let (node, file) = root.create(b"file", RDWR, 0o4711, 7, 8).unwrap();
    assert_eq!(seen(&node), (0o104_711, 7, 8));
    let host = |name| fs::symlink_metadata(share.host(name)).unwrap();
    assert_eq!((host("file").uid(), host("file").mode()), (me().0, 0o100_711));
    write(&file, 0, b"abc".into()).unwrap();

    set_owner(&node, 0, 0).unwrap();
    assert_eq!(seen(&node), (0o104_711, 0, 0));
    set_mode(&node, 0o000).unwrap();
    assert_eq!(seen(&node), (0o100_000, 0, 0));
    assert_eq!(host("file").mode(), 0o100_600);
    assert_eq!(read(&node.open(RDWR).unwrap(), 0, 9).unwrap(), b"abc");
    let only_group = SetAttributes { gid: Some(5), ..Default::default() };
    node.set_attributes(&only_group, None).unwrap();
    assert_eq!(seen(&node), (0o100_000, 0, 5));

    let folder = root.mkdir(b"folder", 0o1070, 7, 8).unwrap();
    assert_eq!(seen(&folder), (0o041_070, 7, 8));
    assert_eq!(host("folder").mode(), 0o040_770);
    folder.mkdir(b"inner", 0o755, 7, 8).unwrap();

    let link = root.symlink(b"link", b"../over/there", 7, 8).unwrap();
    assert_eq!((link.qid().kind, seen(&link)), (Qid::SYMLINK, (0o120_777, 7, 8)));
    assert_eq!(link.readlink().unwrap(), b"../over/there");
    assert_eq!(link.attributes().unwrap().size, 13);
    assert_eq!(host("link").mode(), 0o100_600, "no link for the host to follow");
    assert_eq!(errno(link.open(RDWR)), Errno::LOOP);
    set_owner(&link, 1, 2).unwrap();
    assert_eq!(seen(&link), (0o120_777, 1, 2));

    for (name, kind) in
        [("c", kind::CHAR), ("b", kind::BLOCK), ("f", kind::FIFO), ("s", kind::SOCKET)]
    {
        let made = root.mknod(name.as_bytes(), kind | 0o664, (259, 300), 7, 8).unwrap();
        let node = root.walk(name.as_bytes()).unwrap();
        assert_eq!(made.qid(), node.qid());
        assert_eq!(seen(&node), (kind | 0o664, 7, 8));
        let device = if matches!(name, "c" | "b") { 259 << 8 | 0x2c | 1 << 20 } else { 0 };
        assert_eq!(node.attributes().unwrap().device, device);
        assert_eq!(host(name).mode(), 0o100_600);
        for flags in [RDONLY, RDWR] {
            assert_eq!(errno(node.open(flags)), Errno::NXIO);
        }
        set_mode(&node, 0o600).unwrap();
        set_owner(&node, 3, 4).unwrap();
        assert_eq!(seen(&node), (kind | 0o600, 3, 4));
        assert_eq!(node.attributes().unwrap().device, device);
        assert_eq!(host(name).mode(), 0o100_600);
    }

    // What its owner cannot even read on the host is still what it was.
    fs::set_permissions(share.host("c"), fs::Permissions::from_mode(0o000)).unwrap();
    set_owner(&root.walk(b"c").unwrap(), 5, 6).unwrap();
    let node = root.walk(b"c").unwrap();
    assert_eq!(seen(&node), (kind::CHAR | 0o600, 5, 6));
    assert_ne!(node.attributes().unwrap().device, 0);

    folder.link(&node, b"second").unwrap();
    assert_eq!(seen(&folder.walk(b"second").unwrap()), seen(&node));
    folder.link(&link, b"second-link").unwrap();
    assert_eq!(folder.walk(b"second-link").unwrap().readlink().unwrap(), b"../over/there");

    // What the host makes is as the host has it, until it is changed; then only the record is.
    fs::write(share.host("theirs"), "x").unwrap();
    fs::set_permissions(share.host("theirs"), fs::Permissions::from_mode(0o640)).unwrap();
    let theirs = root.walk(b"theirs").unwrap();
    assert_eq!(seen(&theirs), (0o100_640, me().0, host("theirs").gid()));
    set_owner(&theirs, 33, 33).unwrap();
    assert_eq!(seen(&theirs), (0o100_640, 33, 33));
    assert_eq!(host("theirs").uid(), me().0);
    // Even if its owner has made it one that nobody writes.
    fs::create_dir(share.host("theirs-too")).unwrap();
    for (name, kind) in [("theirs", kind::FILE), ("theirs-too", kind::DIRECTORY)] {
        let mode = fs::Permissions::from_mode;
        for change in [
            SetAttributes { uid: Some(0), ..Default::default() },
            SetAttributes { mode: Some(0o755), ..Default::default() },
        ] {
            let theirs = root.walk(name.as_bytes()).unwrap();
            theirs.handle.remove_xattr(record::NAME).ok();
            fs::set_permissions(share.host(name), mode(0o555)).unwrap();
            theirs.set_attributes(&change, None).unwrap();
            let (uid, gid) = (change.uid.unwrap_or(me().0), host(name).gid());
            assert_eq!(seen(&theirs), (kind | change.mode.unwrap_or(0o555), uid, gid));
        }
    }
    std::os::unix::fs::symlink("x", share.host("their-link")).unwrap();
    let link = root.walk(b"their-link").unwrap();
    assert_eq!(link.readlink().unwrap(), b"x");
    assert_eq!(errno(set_owner(&link, 33, 33)), Errno::PERM);

    // A listing does not say that what is a plain file on the host is one.
    for (name, qid, kind) in list(&root.open(RDONLY).unwrap(), 4096) {
        let expected = match &name[..] {
            b"." | b".." | b"folder" | b"theirs-too" => (Qid::DIRECTORY, 4),
            b"their-link" => (Qid::SYMLINK, 10),
            _ => (0, 0),
        };
        assert_eq!((qid.kind, kind), expected, "{name:?}");
    }
}

/// What passthrough does for who is not root.
pub(super) fn check_passthrough_of_a_user() {
    let share = Share::plain();
    let root = share.root();
    let (uid, gid) = me();
    let (node, _file) = root.create(b"file", RDWR, 0o640, 0, 0).unwrap();
    assert_eq!(seen(&node), (0o100_640, uid, gid));
    assert_eq!(errno(set_owner(&node, 0, 0)), Errno::PERM);
    set_owner(&node, uid, gid).unwrap();
    root.mkdir(b"folder", 0o755, 0, 0).unwrap();
    let link = root.symlink(b"link", b"x", 0, 0).unwrap();
    root.link(&node, b"second").unwrap();
    // Whether a link can have another name for its owner is the host's to say.
    let _ = root.link(&link, b"second-link").map(|()| root.unlink(b"second-link", false).unwrap());
    root.rename(b"second", &root, b"file-2").unwrap();
    assert_eq!(errno(root.mknod(b"node", kind::CHAR | 0o644, (1, 3), 0, 0)), Errno::PERM);
    assert_eq!(names(&root), ["file", "file-2", "folder", "link"]);
}

#[test]
fn a_user_who_is_not_root_owns_what_the_guest_makes() {
    match me().0 {
        0 => eprintln!("not tested: that takes a user who is not root"),
        _ => check_passthrough_of_a_user(),
    }
}

#[test]
fn squashed_files_are_one_users() {
    check_squash();
}

#[test]
fn mapped_files_are_whose_the_guest_says() {
    check_mapped();
}

#[test]
fn only_the_host_users_files_are_squashed() {
    let share = Share::new(Owner::squash(1000, 50));
    fs::write(share.host("mine"), "").unwrap();
    assert_eq!(seen(&share.root().walk(b"mine").unwrap()).1, 1000);
    if me().0 != 0 {
        return;
    }
    fs::write(share.host("other"), "").unwrap();
    std::os::unix::fs::chown(share.host("other"), Some(77), Some(78)).unwrap();
    let other = share.root().walk(b"other").unwrap();
    assert_eq!((seen(&other).1, seen(&other).2), (77, 78));
}

#[test]
fn what_is_kept_beside_a_file_is_hidden_from_every_guest() {
    let mapped = Share::new(Owner::mapped());
    let (uid, gid) = me();
    mapped.root().create(b"file", RDWR, 0o600, 7, 8).unwrap();
    for owner in [Owner::mapped(), Owner::passthrough(), Owner::squash(uid, gid)] {
        let tree = mapped.again(false, owner);
        let node = tree.root().unwrap().walk(b"file").unwrap();
        node.xattr_set(b"user.seen", b"", 0).unwrap();
        let shown = node.xattr_list().unwrap();
        assert!(!shown.windows(8).any(|part| part == b"hyperkit"), "{shown:?}");
        assert!(shown.windows(10).any(|part| part == b"user.seen\0"), "{shown:?}");
        for name in [&b"user.hyperkit.owner"[..], b"user.hyperkit.", b"user.hyperkit.else"] {
            assert_eq!(linux_errno(&node.xattr_get(name).unwrap_err()), 61);
            assert_eq!(linux_errno(&node.xattr_remove(name).unwrap_err()), 61);
            assert_eq!(errno(node.xattr_set(name, b"0:0:104755:0:0", 0)), Errno::PERM);
        }
    }
    let node = mapped.root().walk(b"file").unwrap();
    assert_eq!(seen(&node), (0o100_600, 7, 8));
}

#[test]
fn what_is_no_record_is_as_if_there_were_none() {
    let share = Share::new(Owner::mapped());
    let (node, _file) = share.root().create(b"file", RDWR, 0o600, 7, 8).unwrap();
    for text in [&b""[..], b"nonsense", &[b'1'; 1000]] {
        node.handle.set_xattr(record::NAME, text, 0).unwrap();
        assert_eq!(seen(&node).1, me().0);
        assert_eq!(seen(&share.root().walk(b"file").unwrap()).0, 0o100_600);
    }
    set_owner(&node, 9, 10).unwrap();
    assert_eq!(seen(&node), (0o100_600, 9, 10));
}
