//! What is outside the folder, or must not be changed, or would hang whoever opens it.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use super::*;

#[test]
fn nothing_leads_out_of_the_folder() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let inside = dir.path().join("inside");
    std::fs::create_dir_all(inside.join("folder/deep")).unwrap();
    let canary = dir.path().join("canary");
    std::fs::write(&canary, "secret").unwrap();
    // Whatever the links say, the guest's kernel follows them in the guest.
    symlink(&canary, inside.join("absolute")).unwrap();
    symlink("../canary", inside.join("relative")).unwrap();
    symlink("/proc/self/root", inside.join("magic")).unwrap();
    symlink("..", inside.join("folder/up")).unwrap();
    let _socket = UnixListener::bind(inside.join("socket")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        inside.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let script = r#"
        share work
        cd /mnt/work
        for name in absolute relative ../canary folder/../../canary folder/up/../canary magic/etc/hostname; do
            if cat $name 2>/dev/null | grep secret; then echo "LEAK by $name"; fi
            echo overwritten > $name
        done 2>/dev/null
        mkdir -p /canary.d; ln -s ../../canary new; echo overwritten > new
        ln new linked; echo overwritten > linked
        mv folder/deep/.. /mnt/work/../moved 2>/dev/null
        [ "$(stat -c %i /mnt/work)" = "$(stat -c %i /mnt/work/folder/..)" ] && echo "parent is the root"
        # The kernel's FIFO is not the host's: nobody on the host hangs. A socket of the host is nobody's here.
        (sleep 1; echo through > fifo) & read word < fifo; echo "fifo $word"
        tool socat -u OPEN:/dev/null UNIX-CONNECT:/mnt/work/socket 2>&1 | grep -c 'refused'
        ls
    "#;
    let text = run(script, [Share::new("work", &inside)]);
    assert!(!text.contains("LEAK"), "{text}");
    assert!(text.contains("parent is the root") && text.contains("fifo through"), "{text}");
    assert_eq!(content(&canary), "secret");
    let mut outside: Vec<_> =
        dir.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    outside.sort();
    assert_eq!(outside, ["canary", "inside"]);
}

#[test]
fn a_read_only_folder_is_not_changed_whatever_the_guest_tries() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    std::fs::write(dir.path().join("file"), "as it was").unwrap();
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    let before = std::fs::metadata(dir.path().join("file")).unwrap();
    let script = r#"
        share work
        cd /mnt/work
        cat file; echo
        try() { "$@" 2>/dev/null && echo "DONE: $*"; }
        for option in rw,remount; do mount -o $option /mnt/work; done
        try sh -c 'echo new > file'; try sh -c 'echo new >> file'; try sh -c 'echo new > other'
        try rm file; try rmdir folder; try mkdir made; try mv file moved; try ln file linked; try ln -s file soft
        try chmod 777 file; try chown 1:1 file; try touch file; try mkfifo fifo; try mknod node c 1 3
        try tool truncate -s 1 /mnt/work/file
        try tool setfattr -n user.x -v y /mnt/work/file
        ls | wc -l
    "#;
    let text = run(script, [share(&dir).read_only()]);
    assert!(text.contains("as it was\n2\n"), "{text}");
    assert!(!text.contains("DONE"), "{text}");
    assert_eq!(content(dir.path().join("file")), "as it was");
    let after = std::fs::metadata(dir.path().join("file")).unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    assert_eq!(before.permissions(), after.permissions());
    assert_eq!(dir.path().read_dir().unwrap().count(), 2);
}
