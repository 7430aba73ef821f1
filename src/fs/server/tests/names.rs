use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::*;

fn mkdir<'a>(dir: u32, name: &'a [u8]) -> Request<'a> {
    Request::Mkdir { dir, name, mode: 0o755, gid: gid() }
}

fn unlink(dir: u32, name: &[u8]) -> Request<'_> {
    Request::Unlinkat { dir, name, flags: 0 }
}

fn rmdir(dir: u32, name: &[u8]) -> Request<'_> {
    Request::Unlinkat { dir, name, flags: 0x200 }
}

#[test]
fn folders_links_and_nodes_are_made() {
    let guest = Guest::new();
    assert_eq!(one_qid(&guest.ask(mkdir(ROOT, b"dir")).unwrap()).kind, Qid::DIRECTORY);
    assert_eq!(guest.ask(mkdir(ROOT, b"dir")), Err(EEXIST));
    assert_eq!(guest.ask(mkdir(9, b"dir")), Err(EBADF));
    guest.walk(ROOT, 1, "dir").unwrap();

    let symlink = Request::Symlink { dir: 1, name: b"sym", target: b"/any/../where", gid: gid() };
    assert_eq!(one_qid(&guest.ask(symlink).unwrap()).kind, Qid::SYMLINK);
    assert_eq!(guest.ask(symlink), Err(EEXIST));
    assert_eq!(fs::read_link(guest.path("dir/sym")).unwrap().to_str(), Some("/any/../where"));
    guest.walk(1, 2, "sym").unwrap();
    assert_eq!(guest.ask(Request::Readlink { fid: 2 }).unwrap(), b"\x0d\0/any/../where");
    assert_eq!(guest.ask(Request::Readlink { fid: 1 }), Err(EINVAL));

    fs::write(guest.path("file"), "text").unwrap();
    guest.walk(ROOT, 3, "file").unwrap();
    guest.does(Request::Link { dir: 1, fid: 3, name: b"hard" }).unwrap();
    assert_eq!(guest.does(Request::Link { dir: 1, fid: 3, name: b"hard" }), Err(EEXIST));
    assert_eq!(fs::metadata(guest.path("file")).unwrap().nlink(), 2);
    assert_eq!(guest.getattr(3).unwrap().links, 2);

    let fifo =
        Request::Mknod { dir: 1, name: b"fifo", mode: 0o010_600, major: 0, minor: 0, gid: gid() };
    assert_eq!(one_qid(&guest.ask(fifo).unwrap()).kind, 0);
    assert!(fs::metadata(guest.path("dir/fifo")).unwrap().file_type().is_fifo());
    assert_eq!(guest.ask(fifo), Err(EEXIST));
    guest.walk(1, 4, "fifo").unwrap();
    assert_eq!(guest.lopen(4, O_RDONLY), Err(ENXIO), "it would block");
    assert_eq!(guest.lopen(2, O_RDONLY), Err(ELOOP), "links are the guest's to follow");
}

#[test]
fn names_are_taken_away_and_what_has_others_stays() {
    let guest = Guest::new();
    fs::create_dir(guest.path("dir")).unwrap();
    fs::write(guest.path("dir/file"), "text").unwrap();
    fs::hard_link(guest.path("dir/file"), guest.path("other")).unwrap();
    guest.walk(ROOT, 1, "dir").unwrap();
    assert_eq!(guest.does(rmdir(ROOT, b"dir")), Err(ENOTEMPTY));
    assert_eq!(guest.does(unlink(ROOT, b"dir")), Err(EISDIR));
    assert_eq!(guest.does(rmdir(1, b"file")), Err(ENOTDIR));
    assert_eq!(guest.does(Request::Unlinkat { dir: 1, name: b"file", flags: 1 }), Err(EINVAL));
    guest.does(unlink(1, b"file")).unwrap();
    assert_eq!(guest.does(unlink(1, b"file")), Err(ENOENT));
    guest.does(rmdir(ROOT, b"dir")).unwrap();
    assert_eq!(fs::read(guest.path("other")).unwrap(), b"text");
    assert!(!guest.path("dir").exists());
    // Its fid is left, and nothing can be made in it.
    assert_eq!(guest.getattr(1).unwrap().qid.kind, Qid::DIRECTORY);
    assert_eq!(guest.ask(mkdir(1, b"x")), Err(ENOENT));
}

#[test]
fn removing_takes_the_name_away_that_was_walked_by_and_the_fid() {
    let guest = Guest::new();
    fs::create_dir(guest.path("dir")).unwrap();
    fs::write(guest.path("dir/file"), "text").unwrap();
    guest.walk(ROOT, 1, "dir").unwrap();
    guest.walk(1, 2, "file").unwrap();
    guest.walk(2, 3, "").unwrap();
    assert_eq!(guest.does(Request::Remove { fid: 1 }), Err(ENOTEMPTY));
    assert_eq!(guest.getattr(1), Err(EBADF), "gone, though the folder is not");
    guest.does(Request::Remove { fid: 3 }).unwrap();
    assert!(!guest.path("dir/file").exists());
    assert_eq!(guest.does(Request::Remove { fid: 2 }), Err(ENOENT));
    guest.walk(ROOT, 1, "dir").unwrap();
    guest.does(Request::Remove { fid: 1 }).unwrap();
    assert!(!guest.path("dir").exists());
    assert_eq!(guest.does(Request::Remove { fid: ROOT }), Err(EBUSY));
    assert!(guest.path("").exists());
}

#[test]
fn removing_takes_no_other_file_that_has_got_the_name() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "text").unwrap();
    guest.walk(ROOT, 1, "file").unwrap();
    guest.walk(ROOT, 2, "file").unwrap();
    fs::rename(guest.path("file"), guest.path("moved")).unwrap();
    fs::write(guest.path("file"), "another").unwrap();
    assert_eq!(guest.does(Request::Remove { fid: 1 }), Err(ENOENT));
    assert_eq!(guest.does(Request::Rename { fid: 2, dir: ROOT, name: b"x" }), Err(ENOENT));
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"another");
}

#[test]
fn renaming_goes_by_fid_or_by_name_and_fids_follow() {
    let guest = Guest::new();
    fs::create_dir_all(guest.path("a")).unwrap();
    fs::create_dir_all(guest.path("b")).unwrap();
    fs::write(guest.path("a/file"), "text").unwrap();
    guest.walk(ROOT, 1, "a").unwrap();
    guest.walk(ROOT, 2, "b").unwrap();
    guest.walk(ROOT, 3, "a/file").unwrap();
    guest.walk(1, 4, "file").unwrap();
    let move_it = |dir, name, new_dir, new_name| Request::Renameat { dir, name, new_dir, new_name };
    guest.does(move_it(1, b"file", 2, b"moved")).unwrap();
    assert_eq!(guest.does(move_it(1, b"file", 2, b"moved")), Err(ENOENT));
    assert_eq!(fs::read(guest.path("b/moved")).unwrap(), b"text");
    guest.does(Request::Rename { fid: 3, dir: ROOT, name: b"again" }).unwrap();
    assert_eq!(fs::read(guest.path("again")).unwrap(), b"text");
    // The other fid has learned of both, and its folder by way of its own name.
    guest.does(Request::Rename { fid: 1, dir: 2, name: b"c" }).unwrap();
    guest.does(Request::Rename { fid: 4, dir: 1, name: b"last" }).unwrap();
    assert_eq!(fs::read(guest.path("b/c/last")).unwrap(), b"text");
    guest.does(Request::Remove { fid: 3 }).unwrap();
    assert!(!guest.path("b/c/last").exists());
    // A folder cannot be moved into itself, and the share not at all.
    assert_eq!(guest.does(Request::Rename { fid: 2, dir: 1, name: b"x" }), Err(EINVAL));
    assert_eq!(guest.does(Request::Rename { fid: ROOT, dir: 1, name: b"x" }), Err(EBUSY));
}

#[test]
fn renaming_replaces_what_it_may() {
    let guest = Guest::new();
    for name in ["full/inside", "empty"] {
        fs::create_dir_all(guest.path(name)).unwrap();
    }
    fs::write(guest.path("one"), "1").unwrap();
    fs::write(guest.path("two"), "2").unwrap();
    let rename =
        |name, new_name| guest.does(Request::Renameat { dir: ROOT, name, new_dir: ROOT, new_name });
    guest.open(1, "two", O_RDONLY).unwrap();
    rename(b"one", b"two").unwrap();
    assert_eq!(fs::read(guest.path("two")).unwrap(), b"1");
    assert_eq!(guest.read(1, 0, 1).unwrap(), b"2", "what was open still is");
    assert_eq!(rename(b"two", b"empty"), Err(EISDIR));
    assert_eq!(rename(b"empty", b"two"), Err(ENOTDIR));
    assert_eq!(rename(b"empty", b"full"), Err(ENOTEMPTY));
    rename(b"full", b"empty").unwrap();
    assert!(guest.path("empty/inside").exists());
}
