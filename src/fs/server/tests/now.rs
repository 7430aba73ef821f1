//! What is answered without waiting, and what is given up then.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;
use crate::fs::tree::testing::{as_root, mount_for_this_thread, without_openat2};

/// The flag of Tlopen by which what is written goes to the disk at once (O_SYNC without O_DSYNC).
const O_SYNC: u32 = 0o4_000_000;

impl Guest {
    /// What a message is answered with that may not take longer than `wait`, if it is.
    fn within(&self, wait: Wait, request: &Request<'_>, data: &[u8]) -> Option<Answer> {
        let mut message = encode(request).raw(data).finish(1);
        let mut room = vec![0; 4096];
        let (message, reply) =
            (BufferList::from(&mut message[..]), BufferList::from(&mut room[..]));
        let scratch = &mut Scratch::default();
        let len = self.server.serve(message.all(), reply.all(), scratch, wait)?;
        room.truncate(len);
        let body = room[HEADER..].to_vec();
        Some(match room[4] {
            RLERROR => Err(u32::from_le_bytes(body.try_into().unwrap())),
            _ => Ok(body),
        })
    }

    /// Has a message answered that takes `wait` and no less.
    fn takes(&self, wait: Wait, request: Request<'_>) -> Answer {
        self.takes_with(wait, request, &[])
    }

    fn takes_with(&self, wait: Wait, request: Request<'_>, data: &[u8]) -> Answer {
        for less in [Wait::No, Wait::Brief].into_iter().filter(|less| *less < wait) {
            let answer = self.within(less, &request, data);
            assert_eq!(answer, None, "{request:?} within {less:?}");
        }
        let answer = self.within(wait, &request, data);
        answer.unwrap_or_else(|| panic!("{request:?} takes longer than {wait:?}"))
    }
}

fn setattr(fid: u32, valid: u32) -> Request<'static> {
    let (accessed, modified) = ((0, 0), (0, 0));
    Request::Setattr { fid, valid, mode: 0o600, uid: 0, gid: 0, size: 7, accessed, modified }
}

/// A Twalk of one name at most.
fn walk<'a>(fid: u32, new_fid: u32, bytes: &'a [u8]) -> Request<'a> {
    Request::Walk { fid, new_fid, names: names(usize::from(!bytes.is_empty()), bytes) }
}

#[test]
fn what_is_in_memory_is_told_without_waiting() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "text").unwrap();
    guest.takes(Wait::No, walk(ROOT, 1, b"")).unwrap();
    let name = encode_names(&[b"file"]);
    guest.takes(least_of_walk(&guest), walk(ROOT, 2, &name)).unwrap();
    for fid in [ROOT, 1, 2] {
        guest.takes(Wait::No, Request::Getattr { fid, mask: 0 }).unwrap();
    }
    assert_eq!(guest.takes(Wait::No, Request::Getattr { fid: 9, mask: 0 }), Err(EBADF));
    guest.takes(Wait::No, Request::Clunk { fid: 1 }).unwrap();
    guest.takes(Wait::No, Request::Clunk { fid: 2 }).unwrap();
    assert_eq!(guest.takes(Wait::No, Request::Clunk { fid: 2 }), Err(EBADF));
    // What was never looked for may be on the disk.
    let name = encode_names(&[b"nowhere"]);
    assert_eq!(guest.takes(Wait::Brief, walk(ROOT, 1, &name)), Err(ENOENT));
    let up = encode_names(&[b".."]);
    guest.takes(Wait::Long, walk(ROOT, 1, &up)).unwrap();
}

/// What it takes to find a file that has just been there: a kernel that can look into its memory only.
fn least_of_walk(guest: &Guest) -> Wait {
    let here = guest.host.path().join("share");
    let here = File::open(here).unwrap();
    let resolve = rustix::fs::ResolveFlags::CACHED;
    let (flags, mode) = (rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
    match rustix::fs::openat2(here, ".", flags, mode, resolve) {
        Ok(_) => Wait::No,
        Err(_) => Wait::Brief,
    }
}

#[test]
fn what_changes_something_is_done_if_it_most_likely_is_brief() {
    let guest = Guest::new();
    let gid = gid();
    let create = |fid, flags| Request::Lcreate { fid, name: b"file", flags, mode: 0o644, gid };
    guest.walk(ROOT, 1, "").unwrap();
    guest.takes(Wait::Brief, create(1, O_RDWR)).unwrap();
    let write = |count| Request::Write { fid: 1, offset: 0, count };
    guest.takes_with(Wait::Brief, write(4), b"text").unwrap();
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"text");
    guest.takes(Wait::Brief, setattr(1, 1)).unwrap();
    guest.takes(Wait::Brief, Request::Mkdir { dir: ROOT, name: b"dir", mode: 0o755, gid }).unwrap();
    let link = Request::Symlink { dir: ROOT, name: b"link", target: b"target", gid };
    guest.takes(Wait::Brief, link).unwrap();
    guest.walk(ROOT, 2, "link").unwrap();
    guest.takes(Wait::Brief, Request::Readlink { fid: 2 }).unwrap();
    let fifo =
        Request::Mknod { dir: ROOT, name: b"fifo", mode: 0o010_600, major: 0, minor: 0, gid };
    guest.takes(Wait::Brief, fifo).unwrap();
    guest.takes(Wait::Brief, Request::Link { dir: ROOT, fid: 1, name: b"hard" }).unwrap();
    let rename =
        Request::Renameat { dir: ROOT, name: b"hard", new_dir: ROOT, new_name: b"renamed" };
    guest.takes(Wait::Brief, rename).unwrap();
    guest.takes(Wait::Brief, Request::Unlinkat { dir: ROOT, name: b"renamed", flags: 0 }).unwrap();
    guest.takes(Wait::Brief, Request::Statfs { fid: 1 }).unwrap();
    let names = Request::Xattrwalk { fid: 1, new_fid: 3, name: b"" };
    guest.takes(Wait::Brief, names).unwrap();
    guest.takes(Wait::No, Request::Read { fid: 3, offset: 0, count: 100 }).unwrap();
    guest.walk(ROOT, 4, "").unwrap();
    guest.takes(Wait::Brief, Request::Lopen { fid: 4, flags: O_RDONLY }).unwrap();
    guest.takes(Wait::Brief, Request::Readdir { fid: 4, cookie: 0, count: 1000 }).unwrap();
    guest.takes(Wait::No, Request::Clunk { fid: 4 }).unwrap();
    // What was written may be sent to the disk now.
    guest.takes(Wait::Brief, Request::Clunk { fid: 1 }).unwrap();

    // A file that is there already: what opens it may have to wait, but not what only finds it.
    guest.walk(ROOT, 1, "").unwrap();
    assert_eq!(guest.takes(Wait::Brief, create(1, O_RDWR | O_EXCL)), Err(EEXIST));
    guest.takes(Wait::Long, create(1, O_RDWR)).unwrap();
}

#[test]
fn what_takes_time_is_not_begun() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "text").unwrap();
    guest.open(1, "file", O_RDWR).unwrap();
    guest.takes(Wait::Long, Request::Fsync { fid: 1, data_only: 0 }).unwrap();
    let lock = Lock { kind: 1, start: 0, length: 0, process: 1, client: b"guest" };
    guest.takes(Wait::Long, Request::Lock { fid: 1, flags: 0, lock }).unwrap();
    guest.takes(Wait::Long, Request::Getlock { fid: 1, lock }).unwrap();
    guest.takes(Wait::Long, setattr(1, 8 | 1)).unwrap();
    guest.walk(ROOT, 2, "file").unwrap();
    guest.takes(Wait::Long, Request::Lopen { fid: 2, flags: O_RDWR | O_TRUNC }).unwrap();
    guest.open(3, "file", O_WRONLY | O_SYNC).unwrap();
    let write = Request::Write { fid: 3, offset: 0, count: 4 };
    guest.takes_with(Wait::Long, write, b"text").unwrap();
    guest.walk(ROOT, 4, "file").unwrap();
    guest.takes(Wait::Long, Request::Rename { fid: 4, dir: ROOT, name: b"renamed" }).unwrap();
    guest.takes(Wait::Long, Request::Remove { fid: 4 }).unwrap();
    let attach = Request::Attach { fid: 5, auth_fid: NO_FID, user: b"root", path: b"", uid: 0 };
    guest.takes(Wait::Long, attach).unwrap();
    guest.takes(Wait::Long, Request::Version { msize: MSIZE, version: b"9P2000.L" }).unwrap();
}

#[test]
fn more_bytes_than_others_can_wait_for_are_not_moved_at_once() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "text").unwrap();
    guest.version(1 << 20).unwrap();
    guest.attach(ROOT, b"").unwrap();
    guest.open(1, "file", O_RDWR).unwrap();
    for (count, wait) in [(256 << 10, Wait::Brief), ((256 << 10) + 1, Wait::Long)] {
        let write = Request::Write { fid: 1, offset: 0, count };
        guest.takes_with(wait, write, &vec![7; count as usize]).unwrap();
    }
}

#[test]
fn the_end_of_a_file_that_is_large_takes_time() {
    let guest = Guest::new();
    for (name, size, wait) in [("small", 100_000, Wait::Brief), ("large", 3 << 20, Wait::Long)] {
        fs::write(guest.path(name), vec![7; size]).unwrap();
        guest.walk(ROOT, 1, name).unwrap();
        guest.open(2, name, O_RDONLY).unwrap();
        fs::hard_link(guest.path(name), guest.path("other")).unwrap();
        fs::remove_file(guest.path(name)).unwrap();
        guest.takes(Wait::No, Request::Clunk { fid: 1 }).unwrap();
        fs::remove_file(guest.path("other")).unwrap();
        guest.takes(wait, Request::Clunk { fid: 2 }).unwrap();
    }
}

#[test]
fn of_a_file_is_read_what_is_in_memory_and_all_of_that() {
    const PAGE: usize = 4096;
    let guest = Guest::new();
    let data: Vec<u8> = (0..40 * PAGE).map(|at| (at / PAGE) as u8).collect();
    fs::write(guest.path("file"), &data).unwrap();
    guest.open(1, "file", O_RDONLY).unwrap();
    let read = |offset: usize, count: u32| Request::Read { fid: 1, offset: offset as u64, count };
    let known = guest.within(Wait::No, &read(0, 100), &[]);
    let Some(known) = known else {
        eprintln!("not tested: this file system cannot read without waiting");
        return;
    };
    assert_eq!(&known.unwrap()[4..], &data[..100]);
    // Up to the end and behind it.
    let near_end = 40 * PAGE - 50;
    assert_eq!(guest.takes(Wait::No, read(near_end, 1000)).unwrap()[4..], data[near_end..]);
    assert!(guest.takes(Wait::No, read(41 * PAGE, 1000)).unwrap()[4..].is_empty());
    assert_eq!(guest.takes(Wait::No, read(usize::MAX / 2 + 1, 1000)), Err(EINVAL));

    let file = File::options().read(true).write(true).open(guest.path("file")).unwrap();
    file.sync_all().unwrap();
    let advice = rustix::fs::Advice::DontNeed;
    rustix::fs::fadvise(&file, 0, None, advice).unwrap();
    if guest.within(Wait::No, &read(20 * PAGE, 100), &[]).is_some() {
        eprintln!("not tested: this file system keeps everything in memory");
        return;
    }
    // Two pages are, and what is behind them is not.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    file.read_exact_at(&mut [0; 2 * PAGE], 0).unwrap();
    assert_eq!(guest.takes(Wait::No, read(PAGE, 4000)).unwrap()[4..], data[PAGE..PAGE + 4000]);
    let whole = 4096 - 11;
    let over = 2 * PAGE - 100;
    let answer = guest.takes(Wait::Long, read(over, whole)).unwrap();
    assert_eq!(answer[4..], data[over..over + whole as usize]);
}

#[test]
fn what_is_kept_beside_a_file_may_be_on_the_disk() {
    let host = TempDir::new().unwrap();
    fs::create_dir(host.path().join("share")).unwrap();
    fs::write(host.path().join("share/file"), "text").unwrap();
    let Ok(tree) = Tree::open(&host.path().join("share"), false, Owner::mapped()) else {
        eprintln!("not tested: there are no extended attributes");
        return;
    };
    let server = Arc::new(Server::new(&tree, 100).unwrap());
    let guest = Guest { server, host, tag: AtomicU16::new(0) };
    guest.begin();
    let name = encode_names(&[b"file"]);
    guest.takes(Wait::Brief, walk(ROOT, 1, &name)).unwrap();
    guest.takes(Wait::Brief, Request::Getattr { fid: 1, mask: 0 }).unwrap();
    let link = Request::Symlink { dir: ROOT, name: b"link", target: b"file", gid: gid() };
    guest.takes(Wait::Brief, link).unwrap();
    guest.walk(ROOT, 2, "link").unwrap();
    guest.takes(Wait::Long, Request::Readlink { fid: 2 }).unwrap();
}

#[test]
fn what_is_on_no_disk_of_this_host_always_takes_time() {
    let tree = Tree::open(std::path::Path::new("/proc"), true, Owner::passthrough()).unwrap();
    let server = Arc::new(Server::new(&tree, 100).unwrap());
    let guest = Guest { server, host: TempDir::new().unwrap(), tag: AtomicU16::new(0) };
    guest.begin();
    let name = encode_names(&[b"version"]);
    guest.takes(Wait::Long, walk(ROOT, 1, &name)).unwrap();
    guest.takes(Wait::Long, Request::Getattr { fid: 1, mask: 0 }).unwrap();
    guest.takes(Wait::Long, Request::Lopen { fid: 1, flags: O_RDONLY }).unwrap();
    guest.takes(Wait::Long, Request::Read { fid: 1, offset: 0, count: 100 }).unwrap();
    guest.takes(Wait::Long, Request::Clunk { fid: 1 }).unwrap();
}

#[test]
fn what_is_mounted_below_always_takes_time() {
    as_root(|| {
        let host = TempDir::new().unwrap();
        let folder = host.path().join("share");
        fs::create_dir_all(folder.join("mounted")).unwrap();
        if let Err(error) = mount_for_this_thread(&folder.join("mounted")) {
            eprintln!("not tested: nothing can be mounted here: {error}");
            return;
        }
        let guest = Guest::of(host, false, 100);
        guest.begin();
        guest.takes(Wait::No, Request::Getattr { fid: ROOT, mask: 0 }).unwrap();
        let name = encode_names(&[b"mounted"]);
        guest.takes(Wait::Long, walk(ROOT, 1, &name)).unwrap();
        guest.takes(Wait::Long, Request::Getattr { fid: 1, mask: 0 }).unwrap();
        let mkdir = Request::Mkdir { dir: 1, name: b"dir", mode: 0o755, gid: gid() };
        guest.takes(Wait::Long, mkdir).unwrap();
        guest.takes(Wait::Long, walk(1, 2, &encode_names(&[b"dir"]))).unwrap();
        guest.takes(Wait::Long, Request::Clunk { fid: 2 }).unwrap();
    });
}

#[test]
fn without_openat2_a_walk_is_brief_all_the_same() {
    without_openat2(
        libc::ENOSYS,
        &[what_is_mounted_below_always_takes_time, || {
            let guest = Guest::new();
            fs::write(guest.path("file"), "text").unwrap();
            let name = encode_names(&[b"file"]);
            guest.takes(Wait::Brief, walk(ROOT, 1, &name)).unwrap();
        }],
    );
}
