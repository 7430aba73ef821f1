//! What takes root: other users, device nodes and mounts. And hosts without openat2.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use super::*;
use crate::fs::tree::testing::{as_root, mount_for_this_thread, without_openat2};

/// Anyone but root.
const SOMEBODY: u32 = 12_345;

/// Makes this thread, and no other, somebody's.
fn become_somebody() {
    // SAFETY: the calls take numbers only, and an empty list. The bare system calls concern one thread.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()), 0);
        assert_eq!(libc::syscall(libc::SYS_setresgid, SOMEBODY, SOMEBODY, SOMEBODY), 0);
        assert_eq!(libc::syscall(libc::SYS_setresuid, SOMEBODY, SOMEBODY, SOMEBODY), 0);
    }
    assert_eq!(me(), (SOMEBODY, SOMEBODY));
}

#[test]
fn every_kind_of_ownership_works_for_who_is_not_root() {
    as_root(|| {
        become_somebody();
        owners::check_passthrough_of_a_user();
        owners::check_squash();
        owners::check_mapped();
    });
}

#[test]
fn what_this_process_may_not_do_the_guest_may_not() {
    as_root(|| {
        let share = Share::plain();
        let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(share.outside.path(), Clone::clone(&everyone)).unwrap();
        fs::set_permissions(share.host(""), everyone).unwrap();
        fs::write(share.host("roots"), "x").unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(share.host("roots"), private).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                become_somebody();
                let node = share.again(false, Owner::passthrough()).root().unwrap();
                let node = node.walk(b"roots").unwrap();
                assert_eq!(node.attributes().unwrap().size, 1);
                assert_eq!(errno(node.open(RDONLY)), Errno::ACCESS);
                let size = SetAttributes { size: Some(0), ..Default::default() };
                assert_eq!(errno(node.set_attributes(&size, None)), Errno::ACCESS);
                let mode = SetAttributes { mode: Some(0o666), ..Default::default() };
                assert_eq!(errno(node.set_attributes(&mode, None)), Errno::PERM);
            });
        });
    });
}

#[test]
fn who_may_write_a_file_may_cut_it_short() {
    as_root(|| {
        let share = Share::plain();
        let everyone =
            |mode| <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(mode);
        fs::set_permissions(share.outside.path(), everyone(0o777)).unwrap();
        fs::write(share.host("everyones"), "text").unwrap();
        fs::set_permissions(share.host("everyones"), everyone(0o666)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                become_somebody();
                let node = share.again(false, Owner::passthrough()).root().unwrap();
                let node = node.walk(b"everyones").unwrap();
                // As Linux does for O_TRUNC.
                let cut = SetAttributes {
                    size: Some(1),
                    modified: Some(SetTime::Now),
                    ..Default::default()
                };
                node.set_attributes(&cut, None).unwrap();
                assert_eq!(node.attributes().unwrap().size, 1);
                let touch = SetAttributes { size: None, ..cut };
                assert_eq!(errno(node.set_attributes(&touch, None)), Errno::PERM);
                let other = SetAttributes { accessed: Some(SetTime::Now), modified: None, ..cut };
                assert_eq!(errno(node.set_attributes(&other, None)), Errno::PERM);
            });
        });
    });
}

#[test]
fn root_gives_files_to_whom_the_guest_says() {
    as_root(|| {
        let share = Share::plain();
        let root = share.root();
        let (node, _file) = root.create(b"file", RDWR, 0o4755, 7, 8).unwrap();
        let host = |name| fs::symlink_metadata(share.host(name)).unwrap();
        let owner = |name| (host(name).mode(), host(name).uid(), host(name).gid());
        assert_eq!(owner("file"), (0o104_755, 7, 8));
        root.mkdir(b"folder", 0o2750, 7, 8).unwrap();
        assert_eq!(owner("folder"), (0o042_750, 7, 8));
        root.symlink(b"link", b"file", 7, 8).unwrap();
        assert_eq!(owner("link"), (0o120_777, 7, 8));
        root.mknod(b"fifo", kind::FIFO | 0o622, (0, 0), 7, 8).unwrap();
        assert_eq!(owner("fifo"), (0o010_622, 7, 8));
        let both =
            SetAttributes { uid: Some(1), gid: Some(2), mode: Some(0o6711), ..Default::default() };
        node.set_attributes(&both, None).unwrap();
        assert_eq!(owner("file"), (0o106_711, 1, 2));
        node.xattr_set(b"trusted.x", b"y", 0).unwrap();
        assert_eq!(node.xattr_get(b"trusted.x").unwrap(), b"y");
        // An owner of a link is the link's, and not its target's.
        let link = root.walk(b"link").unwrap();
        let owned = SetAttributes { uid: Some(33), ..Default::default() };
        link.set_attributes(&owned, None).unwrap();
        assert_eq!((owner("link").1, owner("file").1), (33, 1));
        chown(share.host("file"), Some(0), Some(0)).unwrap();
    });
}

#[test]
fn device_nodes_are_made_and_shown_and_never_opened() {
    as_root(|| {
        let share = Share::plain();
        let root = share.root();
        // A terminal, whose opening could block, and a device that is not there.
        for (name, kind, device) in [
            ("tty", kind::CHAR, (5, 0)),
            ("null", kind::CHAR, (1, 3)),
            ("b", kind::BLOCK, (259, 300)),
        ] {
            match root.mknod(name.as_bytes(), kind | 0o666, device, 0, 0) {
                Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
                    eprintln!("not tested: no device nodes can be made here");
                    continue;
                }
                made => drop(made.unwrap()),
            }
            let node = root.walk(name.as_bytes()).unwrap();
            let attributes = node.attributes().unwrap();
            assert_eq!(attributes.mode, kind | 0o666);
            assert_eq!(attributes.device, super::node::linux_device(device));
            assert_eq!(attributes.device, fs::metadata(share.host(name)).unwrap().rdev());
            for flags in [RDONLY, WRONLY, RDWR | TRUNC] {
                assert_eq!(errno(node.open(flags)), Errno::NXIO);
                assert_eq!(errno(root.create(name.as_bytes(), flags, 0o644, 0, 0)), Errno::NXIO);
            }
        }
    });
}

#[test]
fn the_links_in_proc_lead_nowhere() {
    let tree = Tree::open(Path::new("/proc/self"), true, Owner::passthrough()).unwrap();
    let root = tree.root().unwrap();
    for name in [&b"cwd"[..], b"root", b"exe"] {
        let link = root.walk(name).unwrap();
        assert_eq!(link.qid().kind, Qid::SYMLINK);
        assert_eq!(errno(link.walk(b"etc")), Errno::NOTDIR);
        assert_eq!(errno(link.walk(b"..")), Errno::NOTDIR);
        assert_eq!(errno(link.open(RDONLY)), Errno::LOOP);
    }
    let open = fs::File::open("/proc/self/status").unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&open).to_string();
    let link = root.walk(b"fd").unwrap().walk(number.as_bytes()).unwrap();
    assert_eq!(errno(link.open(RDONLY)), Errno::LOOP);
}

#[test]
fn files_of_another_device_below_the_share_have_other_numbers() {
    as_root(|| {
        let share = Share::plain();
        let root = share.root();
        let folder = mkdir(&root, "mounted");
        let below = folder.qid();
        if let Err(error) = mount_for_this_thread(&share.host("mounted")) {
            eprintln!("not tested: nothing can be mounted here: {error}");
            return;
        }
        // This thread is in a new name space, in which the tree has to be opened again.
        let tree = share.again(false, Owner::passthrough());
        let root = tree.root().unwrap();
        let there = root.walk(b"mounted").unwrap();
        assert_ne!(there.qid().path, below.path);
        let mut seen = std::collections::HashMap::new();
        for n in 0..200 {
            for folder in [&root, &there] {
                let (node, _file) = create(folder, &format!("file-{n}"), RDWR);
                assert!(seen.insert(node.qid().path, node.id).is_none());
                assert_eq!(node.walk(b"x").map(drop).map_err(|_| ()), Err(()));
            }
        }
        for folder in [&root, &there] {
            for (name, qid, _) in list(&folder.open(RDONLY).unwrap(), 4096) {
                if name.starts_with(b"file-") {
                    assert_eq!(folder.walk(&name).unwrap().qid().path, qid.path);
                }
            }
        }
        assert_eq!(there.walk(b"..").unwrap().qid().path, root.qid().path);
        assert_eq!(errno(root.rename(b"file-1", &there, b"moved")), Errno::XDEV);
        let file = there.walk(b"file-1").unwrap();
        assert_eq!(errno(root.link(&file, b"linked")), Errno::XDEV);
        assert_eq!(errno(root.unlink(b"mounted", true)), Errno::BUSY);
    });
}

#[test]
fn everything_holds_where_there_is_no_openat2() {
    without_openat2(
        libc::ENOSYS,
        &[
            escapes::names_that_are_paths_are_refused_everywhere,
            escapes::the_root_is_its_own_parent,
            escapes::links_of_the_host_lead_nowhere,
            escapes::a_folder_that_is_moved_out_has_no_parent,
            escapes::what_is_swapped_for_a_link_between_two_looks_does_not_lead_out,
            escapes::what_is_no_plain_file_is_not_opened_and_nobody_waits,
            files::a_file_is_made_written_read_and_found_again,
            files::a_file_without_a_name_can_be_used,
            files::symbolic_links_are_made_and_read_and_not_followed,
            files::times_are_kept_to_the_nanosecond,
            folders::folders_are_made_listed_and_removed,
            folders::names_are_any_bytes_but_two_and_up_to_255_of_them,
            folders::nodes_below_a_renamed_folder_go_on_working,
            folders::renames_move_and_replace,
            a_lookup_ends_in_the_folder_that_it_begins_in,
            device_nodes_are_made_and_shown_and_never_opened,
            every_kind_of_ownership_works_for_who_is_not_root,
            files_of_another_device_below_the_share_have_other_numbers,
            root_gives_files_to_whom_the_guest_says,
            the_links_in_proc_lead_nowhere,
        ],
    );
    without_openat2(libc::EPERM, &[escapes::the_root_is_its_own_parent]);
}

#[test]
fn a_lookup_ends_in_the_folder_that_it_begins_in() {
    let share = Share::plain();
    let folder = mkdir(&share.root(), "folder");
    mkdir(&folder, "inner");
    // Where nobody has looked at the name before.
    for name in [&b".."[..], b"../folder", b"/", b"inner/../..", b"../../secret"] {
        assert_eq!(errno(folder.handle.child(name, Wait::Long)), Errno::XDEV, "{name:?}");
    }
}
