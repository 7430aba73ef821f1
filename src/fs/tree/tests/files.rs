use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

#[test]
pub(super) fn a_file_is_made_written_read_and_found_again() {
    let share = Share::plain();
    let (node, file) = create(&share.root(), "file", RDWR | EXCL);
    assert_eq!(write(&file, 0, b"hello".into()).unwrap(), 5);
    assert_eq!(write(&file, 3, b"p me".into()).unwrap(), 4);
    assert_eq!(read(&file, 0, 100).unwrap(), b"help me");
    assert_eq!(read(&file, 7, 100).unwrap(), b"");
    assert_eq!(fs::read(share.host("file")).unwrap(), b"help me");
    file.sync(false).unwrap();
    file.sync(true).unwrap();

    let found = share.root().walk(b"file").unwrap();
    assert_eq!(found.qid().path, node.qid().path);
    assert_eq!(found.qid().kind, 0);
    let attributes = found.attributes().unwrap();
    let metadata = fs::metadata(share.host("file")).unwrap();
    assert_eq!(attributes.mode, 0o100_644);
    assert_eq!((attributes.uid, attributes.gid), me());
    assert_eq!(attributes.size, 7);
    assert_eq!(attributes.links, 1);
    assert_eq!(attributes.blocks, metadata.blocks());
    assert_eq!(attributes.block_size, metadata.blksize());
    assert_eq!(attributes.modified.seconds, metadata.mtime());
    assert_eq!(i64::from(attributes.changed.nanoseconds), metadata.ctime_nsec());
    assert_eq!(attributes.qid.path, metadata.ino());
    assert_ne!(attributes.qid.version, node.qid().version, "the content has changed");
}

#[test]
fn data_goes_to_and_from_several_pieces_of_memory() {
    let share = Share::plain();
    let (_, file) = create(&share.root(), "file", RDWR);
    let mut bytes = *b"0123456789";
    let (one, other) = bytes.split_at_mut(3);
    let pieces = BufferList::from_iter([other.into(), one.into()]);
    assert_eq!(file.write_at(pieces.all(), 0).unwrap(), 10);
    assert_eq!(read(&file, 0, 10).unwrap(), b"3456789012");
    assert_eq!(file.read_at(pieces.all(), 0).unwrap(), 10);
    drop(pieces);
    assert_eq!(&bytes, b"0123456789");
}

#[test]
fn what_is_there_is_opened_unless_it_must_be_new() {
    let share = Share::plain();
    let (first, file) = create(&share.root(), "file", WRONLY);
    write(&file, 0, b"abc".into()).unwrap();
    let (uid, gid) = me();
    let made = share.root().create(b"file", WRONLY | EXCL, 0o600, uid, gid);
    assert_eq!(errno(made), Errno::EXIST);
    let (again, file) = create(&share.root(), "file", RDWR);
    assert_eq!(again.qid().path, first.qid().path);
    assert_eq!(read(&file, 0, 3).unwrap(), b"abc");
    assert_eq!(again.attributes().unwrap().mode, 0o100_644);
}

#[test]
fn flags_of_opening_do_what_they_do_on_linux() {
    let share = Share::plain();
    fs::write(share.host("file"), "abc").unwrap();
    let node = share.root().walk(b"file").unwrap();
    let file = node.open(WRONLY | APPEND).unwrap();
    write(&file, 0, b"def".into()).unwrap();
    assert_eq!(fs::read(share.host("file")).unwrap(), b"abcdef");
    assert_eq!(errno(read(&file, 0, 1)), Errno::BADF);
    let file = node.open(RDONLY).unwrap();
    assert_eq!(errno(write(&file, 0, b"x".into())), Errno::BADF);
    let file = node.open(RDWR | TRUNC).unwrap();
    assert_eq!(read(&file, 0, 10).unwrap(), b"");
    assert_eq!(errno(node.open(3)), Errno::INVAL);
    assert_eq!(errno(node.open(0o200_000)), Errno::NOTDIR);
    // O_DIRECT, O_NOATIME and others that concern nobody here.
    let file = node.open(RDWR | 0o40_000 | 0o1_000_000 | 0o4_010_000).unwrap();
    assert_eq!(write(&file, 1, b"x".into()).unwrap(), 1);
    assert_eq!(errno(read(&file, u64::MAX, 1)), Errno::INVAL);
    assert_eq!(errno(share.root().open(RDWR)), Errno::ISDIR);
    assert_eq!(errno(read(&share.root().open(RDONLY).unwrap(), 0, 1)), Errno::ISDIR);
}

#[test]
fn the_mode_is_the_one_asked_for_whatever_the_umask() {
    let share = Share::plain();
    let (uid, gid) = me();
    for mode in [0o777, 0o666, 0o4755, 0o1777, 0o002] {
        let name = format!("{mode:o}");
        let (node, _file) = share.root().create(name.as_bytes(), RDWR, mode, uid, gid).unwrap();
        assert_eq!(node.attributes().unwrap().mode, 0o100_000 | mode);
        let name = format!("dir {mode:o}");
        let node = share.root().mkdir(name.as_bytes(), mode, uid, gid).unwrap();
        assert_eq!(node.attributes().unwrap().mode, 0o040_000 | mode);
    }
}

#[test]
fn all_names_of_a_file_have_one_qid() {
    let share = Share::plain();
    let (node, _file) = create(&share.root(), "one", RDWR);
    let folder = mkdir(&share.root(), "folder");
    folder.link(&node, b"two").unwrap();
    let other = folder.walk(b"two").unwrap();
    assert_eq!(other.qid(), node.qid());
    assert_eq!(other.attributes().unwrap().links, 2);
    assert_eq!(errno(folder.link(&node, b"two")), Errno::EXIST);
    assert_eq!(errno(folder.link(&share.root(), b"three")), Errno::PERM);
    share.root().unlink(b"one", false).unwrap();
    assert_eq!(other.attributes().unwrap().links, 1);
}

#[test]
fn a_sparse_file_stays_sparse() {
    let share = Share::plain();
    let (node, file) = create(&share.root(), "file", RDWR);
    write(&file, 1 << 32, b"end".into()).unwrap();
    let attributes = node.attributes().unwrap();
    assert_eq!(attributes.size, (1 << 32) + 3);
    assert!(attributes.blocks < 1 << 10, "{} blocks", attributes.blocks);
    assert_eq!(read(&file, 1 << 20, 4).unwrap(), [0; 4]);
}

#[test]
pub(super) fn times_are_kept_to_the_nanosecond() {
    let share = Share::plain();
    let (node, _file) = create(&share.root(), "file", RDWR);
    let moment = |seconds, nanoseconds| SetTime::To(Time { seconds, nanoseconds });
    let (accessed, modified) = (moment(1_234_567_890, 987_654_321), moment(-2, 1));
    let set = |accessed, modified| {
        node.set_attributes(&SetAttributes { accessed, modified, ..Default::default() }, None)
    };
    set(Some(accessed), Some(modified)).unwrap();
    let now = node.attributes().unwrap();
    assert_eq!((SetTime::To(now.accessed), SetTime::To(now.modified)), (accessed, modified));
    set(None, Some(moment(7, 8))).unwrap();
    let now = node.attributes().unwrap();
    assert_eq!((SetTime::To(now.accessed), SetTime::To(now.modified)), (accessed, moment(7, 8)));
    set(Some(SetTime::Now), None).unwrap();
    assert!(node.attributes().unwrap().accessed.seconds > 1_500_000_000);
    // Not to be taken for the numbers that stand for the present time, and for none.
    for special in [1_000_000_000, (1 << 30) - 1, (1 << 30) - 2] {
        assert_eq!(errno(set(Some(moment(0, special)), None)), Errno::INVAL);
    }
    assert_eq!(node.attributes().unwrap().modified, Time { seconds: 7, nanoseconds: 8 });
}

#[test]
fn size_and_mode_are_set() {
    let share = Share::plain();
    fs::write(share.host("file"), "abcdef").unwrap();
    let node = share.root().walk(b"file").unwrap();
    let changes = SetAttributes { size: Some(3), mode: Some(0o100_400), ..Default::default() };
    node.set_attributes(&changes, None).unwrap();
    let now = node.attributes().unwrap();
    assert_eq!((now.size, now.mode), (3, 0o100_400));
    // A file that is open for writing stays writable.
    let size = |size| SetAttributes { size: Some(size), ..Default::default() };
    let (node, file) = create(&share.root(), "other", RDWR);
    let mode = SetAttributes { mode: Some(0), ..Default::default() };
    node.set_attributes(&mode, Some(&file)).unwrap();
    node.set_attributes(&size(5000), Some(&file)).unwrap();
    assert_eq!(node.attributes().unwrap().size, 5000);
    assert_eq!(errno(share.root().set_attributes(&size(1), None)), Errno::ISDIR);
    assert_eq!(errno(node.set_attributes(&size(u64::MAX), Some(&file))), Errno::INVAL);
}

#[test]
pub(super) fn a_file_without_a_name_can_be_used() {
    let share = Share::plain();
    let (node, file) = create(&share.root(), "file", RDWR);
    share.root().unlink(b"file", false).unwrap();
    assert_eq!(errno(share.root().walk(b"file")), Errno::NOENT);
    write(&file, 0, b"still".into()).unwrap();
    assert_eq!(node.attributes().unwrap().links, 0);
    let changes = SetAttributes {
        size: Some(2),
        mode: Some(0o600),
        modified: Some(SetTime::To(Time { seconds: 5, nanoseconds: 6 })),
        ..Default::default()
    };
    node.set_attributes(&changes, None).unwrap();
    let now = node.attributes().unwrap();
    assert_eq!((now.size, now.mode, now.modified.seconds), (2, 0o100_600, 5));
    assert_eq!(read(&node.open(RDONLY).unwrap(), 0, 10).unwrap(), b"st");
    assert_eq!(errno(share.root().link(&node, b"back")), Errno::NOENT);
}

#[test]
pub(super) fn symbolic_links_are_made_and_read_and_not_followed() {
    let share = Share::plain();
    let (uid, gid) = me();
    let target = "somewhere/else/".repeat(200);
    let link = share.root().symlink(b"link", target.as_bytes(), uid, gid).unwrap();
    assert_eq!(link.qid().kind, Qid::SYMLINK);
    assert_eq!(link.readlink().unwrap(), target.as_bytes());
    let attributes = link.attributes().unwrap();
    assert_eq!((attributes.mode, attributes.size), (0o120_777, 3000));
    assert_eq!(errno(link.open(RDONLY)), Errno::LOOP);
    assert_eq!(errno(link.walk(b"x")), Errno::NOTDIR);
    assert_eq!(errno(share.root().readlink()), Errno::INVAL);
    let times = SetAttributes {
        modified: Some(SetTime::To(Time { seconds: 9, nanoseconds: 0 })),
        uid: Some(uid),
        ..Default::default()
    };
    link.set_attributes(&times, None).unwrap();
    assert_eq!(link.attributes().unwrap().modified.seconds, 9);
    let mode = SetAttributes { mode: Some(0o600), ..Default::default() };
    assert_eq!(errno(link.set_attributes(&mode, None)), Errno::OPNOTSUPP);
    // A link to a link is another name of the first.
    share.root().link(&link, b"again").unwrap();
    assert_eq!(share.root().walk(b"again").unwrap().qid().path, link.qid().path);
    assert_eq!(errno(share.root().symlink(b"x", b"", uid, gid)), Errno::NOENT);
    assert_eq!(errno(share.root().symlink(b"x", b"a\0b", uid, gid)), Errno::INVAL);
    assert_eq!(errno(share.root().symlink(b"x", &[b'a'; 4096], uid, gid)), Errno::NAMETOOLONG);
}

#[test]
fn extended_attributes_are_set_read_listed_and_removed() {
    let share = Share::plain();
    let (node, file) = create(&share.root(), "file", RDWR);
    // The file need not be readable, nor have a name.
    drop(file);
    node.xattr_set(b"user.one", b"1", 0).unwrap();
    node.xattr_set(b"user.two", b"", 1).unwrap();
    node.xattr_set(b"user.long", &[7; 1000], 0).unwrap();
    assert_eq!(node.xattr_get(b"user.one").unwrap(), b"1");
    assert_eq!(node.xattr_get(b"user.two").unwrap(), b"");
    assert_eq!(node.xattr_get(b"user.long").unwrap(), [7; 1000]);
    let names = node.xattr_list().unwrap();
    let mut names: Vec<_> = names.split_inclusive(|&byte| byte == 0).collect();
    names.retain(|name| name.starts_with(b"user."));
    names.sort();
    assert_eq!(names, [&b"user.long\0"[..], b"user.one\0", b"user.two\0"]);
    assert_eq!(errno(node.xattr_set(b"user.one", b"2", 1)), Errno::EXIST);
    node.xattr_set(b"user.one", b"2", 2).unwrap();
    node.xattr_remove(b"user.one").unwrap();
    let none = [
        node.xattr_get(b"user.one").map(drop),
        node.xattr_remove(b"user.one"),
        node.xattr_set(b"user.one", b"3", 2),
    ];
    for result in none {
        assert_eq!(linux_errno(&result.unwrap_err()), 61);
    }
    assert_eq!(errno(node.xattr_set(b"user.x", &vec![0; 65_537], 0)), Errno::TOOBIG);
    assert_eq!(errno(node.xattr_set(b"user.x", b"", 3)), Errno::INVAL);
    for name in [&b""[..], b"user.\0x"] {
        assert_eq!(errno(node.xattr_get(name)), Errno::INVAL);
    }
    assert_eq!(errno(node.xattr_get(&[b'u'; 256])), Errno::RANGE);
    let folder = mkdir(&share.root(), "folder");
    folder.xattr_set(b"user.x", b"y", 0).unwrap();
    assert_eq!(folder.xattr_get(b"user.x").unwrap(), b"y");
}

#[test]
fn the_file_system_is_described() {
    let share = Share::plain();
    let stat = share.root().statfs().unwrap();
    assert!(stat.block_size >= 512 && stat.blocks > 0, "{stat:?}");
    assert!(stat.free <= stat.blocks && stat.available <= stat.free, "{stat:?}");
    assert_eq!(stat.name_length, 255);
}

#[test]
fn errors_have_linux_numbers() {
    let share = Share::plain();
    assert_eq!(linux_errno(&share.root().walk(b"none").unwrap_err()), 2);
    assert_eq!(linux_errno(&io::Error::other("of no kind")), 5);
    mkdir(&share.root(), "folder");
    fs::write(share.host("folder/x"), "").unwrap();
    assert_eq!(linux_errno(&share.root().unlink(b"folder", true).unwrap_err()), 39);
}

#[test]
fn a_read_only_share_is_never_changed() {
    let share = Share::plain();
    fs::write(share.host("file"), "abc").unwrap();
    fs::create_dir(share.host("folder")).unwrap();
    fs::set_permissions(share.host("file"), fs::Permissions::from_mode(0o666)).unwrap();
    let tree = share.again(true, Owner::passthrough());
    let root = tree.root().unwrap();
    let file = root.walk(b"file").unwrap();
    let before = (file.attributes().unwrap(), root.attributes().unwrap());
    let set = |changes: SetAttributes| file.set_attributes(&changes, None);
    let none = SetAttributes::default();
    let refused = [
        file.open(WRONLY).map(drop),
        file.open(RDWR).map(drop),
        file.open(RDONLY | TRUNC).map(drop),
        root.create(b"new", RDONLY, 0o644, 0, 0).map(drop),
        root.create(b"file", RDWR, 0o644, 0, 0).map(drop),
        root.mkdir(b"new", 0o755, 0, 0).map(drop),
        root.symlink(b"new", b"x", 0, 0).map(drop),
        root.mknod(b"new", 0o010_644, (0, 0), 0, 0).map(drop),
        root.mknod(b"new", 0o100_644, (0, 0), 0, 0).map(drop),
        root.link(&file, b"new"),
        root.unlink(b"file", false),
        root.unlink(b"folder", true),
        root.rename(b"file", &root, b"new"),
        set(SetAttributes { size: Some(0), ..none }),
        set(SetAttributes { mode: Some(0), ..none }),
        set(SetAttributes { uid: Some(1), ..none }),
        set(SetAttributes { gid: Some(1), ..none }),
        set(SetAttributes { accessed: Some(SetTime::Now), ..none }),
        set(SetAttributes { modified: Some(SetTime::Now), ..none }),
        file.xattr_set(b"user.x", b"y", 0),
        file.xattr_remove(b"user.x"),
    ];
    for (number, result) in refused.into_iter().enumerate() {
        assert_eq!(errno(result), Errno::ROFS, "call {number}");
    }
    assert_eq!((file.attributes().unwrap(), root.attributes().unwrap()), before);
    assert_eq!(read(&file.open(RDONLY).unwrap(), 0, 10).unwrap(), b"abc");
    assert_eq!(names(&root), ["file", "folder"]);
}
