//! Whose files are, on both sides.

use std::os::unix::fs::{MetadataExt, chown};

use hyperkit::fs::Owner;

use super::*;

const LOOK: &str = r#"
    share work
    cd /mnt/work
    stat -c 'host %u:%g' host
    echo new > new; chown 12:34 new && echo changed; chmod 4751 new
    stat -c 'new %u:%g %a' new
    mknod node c 1 3 && stat -c 'node %F %t:%T' node
    ln -s somewhere link; readlink link; chown -h 7:8 link && stat -c 'link %u:%g' link
    umount /mnt/work 2>/dev/null; cd /; umount /mnt/work; share work; cd /mnt/work
    stat -c 'again %u:%g %a' new; readlink link
    ls | grep -v '^[a-z]*$'
    true
"#;

#[test]
#[ignore = "takes long"]
fn passthrough_is_as_on_the_host() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    std::fs::write(dir.path().join("host"), "").unwrap();
    chown(dir.path().join("host"), Some(1234), Some(5678)).unwrap();
    let text = run(LOOK, [share(&dir)]);
    for line in [
        "host 1234:5678",
        "changed\n",
        "new 12:34 4751\n",
        "node character special file 1:3",
        "link 7:8",
    ] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
    let new = dir.path().join("new").metadata().unwrap();
    assert_eq!((new.uid(), new.gid()), (12, 34));
}

#[test]
fn squash_makes_the_host_users_files_one_guest_users() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    std::fs::write(dir.path().join("host"), "").unwrap();
    let text = run(LOOK, [share(&dir).owner(Owner::squash(1000, 1001))]);
    for line in ["host 1000:1001", "new 1000:1001 751", "again 1000:1001 751"] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
    assert!(!text.contains("changed") && !text.contains("node character"), "{text}");
    let new = dir.path().join("new").metadata().unwrap();
    assert_eq!(new.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(new.mode() & 0o6000, 0);
}

#[test]
fn mapped_holds_a_linux_tree_in_plain_files() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    std::fs::write(dir.path().join("host"), "").unwrap();
    let text = run(LOOK, [share(&dir).owner(Owner::mapped())]);
    let host = rustix::process::geteuid().as_raw();
    for line in [
        &format!("host {host}:"),
        "changed\n",
        "new 12:34 4751\n",
        "node character special file 1:3",
        "link 7:8",
        "again 12:34 4751\nsomewhere\n",
    ] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
    for name in ["new", "node", "link"] {
        let file = dir.path().join(name).symlink_metadata().unwrap();
        assert!(file.is_file(), "{name} is {:?} on the host", file.file_type());
        assert_eq!((file.uid(), file.mode() & 0o6000), (host, 0), "{name}");
    }
    assert_eq!(content(dir.path().join("link")), "somewhere");
}
