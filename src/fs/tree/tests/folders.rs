use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[test]
pub(super) fn folders_are_made_listed_and_removed() {
    let share = Share::plain();
    let folder = mkdir(&share.root(), "folder");
    assert_eq!(folder.qid().kind, Qid::DIRECTORY);
    mkdir(&folder, "inner");
    create(&folder, "file", WRONLY);
    assert_eq!(names(&folder), ["file", "inner"]);
    let entries = list(&folder.open(RDONLY).unwrap(), 4096);
    assert_eq!(entries.len(), 4);
    for (name, qid, kind) in entries {
        let found = folder.walk(&name).unwrap().qid();
        assert_eq!((qid.path, qid.kind), (found.path, found.kind), "{name:?}");
        assert_eq!(kind, if qid.kind == Qid::DIRECTORY { 4 } else { 8 });
    }
    assert_eq!(errno(share.root().unlink(b"folder", true)), Errno::NOTEMPTY);
    assert_eq!(errno(folder.unlink(b"file", true)), Errno::NOTDIR);
    assert!(folder.unlink(b"inner", false).is_err());
    folder.unlink(b"inner", true).unwrap();
    folder.unlink(b"file", false).unwrap();
    share.root().unlink(b"folder", true).unwrap();
    assert_eq!(errno(create_in(&folder)), Errno::NOENT);
    assert_eq!(names(&share.root()), [""; 0]);
}

fn create_in(folder: &Node) -> io::Result<()> {
    folder.create(b"x", RDWR, 0o600, 0, 0).map(drop)
}

#[test]
pub(super) fn names_are_any_bytes_but_two_and_up_to_255_of_them() {
    let share = Share::plain();
    let (uid, gid) = me();
    let long = [b'n'; 255];
    let all: [&[u8]; 6] =
        [&long, b"\xff\xfe\x80", "ein Ordner äöü 目录".as_bytes(), b"\\", b"a\nb", b"..."];
    for name in all {
        share.root().mkdir(name, 0o755, uid, gid).unwrap();
        assert!(share.host("").join(OsStr::from_bytes(name)).is_dir());
        assert!(share.root().walk(name).is_ok());
    }
    let listed = list(&share.root().open(RDONLY).unwrap(), 300);
    for name in all {
        assert_eq!(listed.iter().filter(|(listed, ..)| listed == name).count(), 1, "{name:?}");
    }
    assert_eq!(errno(share.root().mkdir(&[b'n'; 256], 0o755, uid, gid)), Errno::NAMETOOLONG);
    assert_eq!(errno(share.root().walk(&[b'n'; 256])), Errno::NAMETOOLONG);
    for name in all {
        share.root().unlink(name, true).unwrap();
    }
}

#[test]
pub(super) fn renames_move_and_replace() {
    let share = Share::plain();
    let (from, to) = (mkdir(&share.root(), "from"), mkdir(&share.root(), "to"));
    fs::write(share.host("from/a"), "a").unwrap();
    fs::write(share.host("to/b"), "b").unwrap();
    let a = from.walk(b"a").unwrap();
    let open = to.walk(b"b").unwrap().open(RDONLY).unwrap();
    from.rename(b"a", &to, b"b").unwrap();
    assert_eq!(names(&from), [""; 0]);
    assert_eq!(to.walk(b"b").unwrap().qid(), a.qid());
    assert_eq!(read(&open, 0, 9).unwrap(), b"b", "what was replaced is still open");
    // A folder replaces an empty one only.
    assert_eq!(errno(share.root().rename(b"from", &share.root(), b"to")), Errno::NOTEMPTY);
    share.root().rename(b"to", &share.root(), b"from").unwrap();
    assert_eq!(names(&share.root()), ["from"]);
    assert_eq!(names(&to), ["b"]);
    let inside = mkdir(&to, "inside");
    assert_eq!(errno(share.root().rename(b"from", &inside, b"x")), Errno::INVAL);
    assert_eq!(errno(share.root().rename(b"none", &inside, b"x")), Errno::NOENT);
    assert_eq!(errno(share.root().rename(b"from", &a, b"x")), Errno::NOTDIR);
}

#[test]
pub(super) fn nodes_below_a_renamed_folder_go_on_working() {
    let share = Share::plain();
    let folder = mkdir(&share.root(), "folder");
    let inner = mkdir(&folder, "inner");
    let (node, file) = create(&inner, "file", RDWR);
    share.root().rename(b"folder", &share.root(), b"elsewhere").unwrap();
    write(&file, 0, b"moved".into()).unwrap();
    assert_eq!(node.attributes().unwrap().size, 5);
    create(&inner, "more", WRONLY);
    assert_eq!(names(&inner), ["file", "more"]);
    assert_eq!(fs::read(share.host("elsewhere/inner/file")).unwrap(), b"moved");
    assert_eq!(inner.walk(b"..").unwrap().qid().path, folder.qid().path);
    // Into another folder: the parent is the present one.
    let other = mkdir(&share.root(), "other");
    folder.rename(b"inner", &other, b"inner").unwrap();
    assert_eq!(inner.walk(b"..").unwrap().qid().path, other.qid().path);
}

#[test]
fn a_reply_is_filled_and_the_next_goes_on_behind_it() {
    let share = Share::plain();
    for n in 0..500 {
        fs::write(share.host(&format!("{n}{}", "x".repeat(n / 2))), "").unwrap();
    }
    let open = share.root().open(RDONLY).unwrap();
    for room in [279, 300, 1000, 4096, 100_000, 1 << 20] {
        let mut listed = list(&open, room);
        assert_eq!(listed.len(), 502, "with room for {room}");
        listed.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        listed.dedup_by(|(a, ..), (b, ..)| a == b);
        assert_eq!(listed.len(), 502, "with room for {room}");
    }
    // From any cookie on.
    let mut cookies = Vec::new();
    let mut take = |entry: Entry<'_>| {
        cookies.push((entry.cookie, entry.name.to_vec()));
        true
    };
    open.read_dir(0, 1 << 20, &mut take).unwrap();
    for at in [400, 3, 100] {
        let mut next = None;
        let mut stop = |entry: Entry<'_>| {
            next = Some(entry.name.to_vec());
            false
        };
        open.read_dir(cookies[at].0, 4096, &mut stop).unwrap();
        assert_eq!(next.as_ref(), Some(&cookies[at + 1].1));
    }
    // Whatever a guest makes up does no harm.
    for made_up in [1, 12_345, u64::MAX, i64::MAX as u64, 1 << 63] {
        let _ = open.read_dir(made_up, 4096, &mut |_| true);
    }
    assert_eq!(list(&open, 4096).len(), 502);
}

#[test]
fn what_stays_in_a_large_folder_is_met_once_while_others_come_and_go() {
    const STAY: usize = 100_000;
    let share = Share::plain();
    for n in 0..STAY {
        fs::hard_link(share.outside.path().join("secret"), share.host(&format!("stays-{n}")))
            .or_else(|_| fs::write(share.host(&format!("stays-{n}")), ""))
            .unwrap();
    }
    let done = AtomicBool::new(false);
    let met = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !done.load(Ordering::Relaxed) {
                for n in 0..200 {
                    let _ = fs::write(share.host(&format!("comes-{round}-{n}")), "");
                }
                for n in 0..200 {
                    let _ = fs::remove_file(share.host(&format!("comes-{round}-{n}")));
                }
                round += 1;
            }
        });
        // As Linux does with an msize of 8 KiB, then with 128 KiB.
        let met = [8 << 10, 128 << 10].map(|room| list(&share.root().open(RDONLY).unwrap(), room));
        done.store(true, Ordering::Relaxed);
        met
    });
    for listed in met {
        let mut times = HashMap::new();
        for (name, ..) in listed {
            if name.starts_with(b"stays-") {
                *times.entry(name).or_insert(0) += 1;
            }
        }
        assert_eq!(times.len(), STAY);
        assert!(times.values().all(|&count| count == 1));
    }
}
