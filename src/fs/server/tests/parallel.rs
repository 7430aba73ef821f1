//! Requests side by side.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::thread;

use super::*;
use crate::fs::tree::testing::without_openat2;
use crate::random::Random;

/// Has whoever opens a file wait, as long as it lives.
struct Lease(File);

/// Linux's command that says which signal tells of events of a descriptor.
const F_SETSIG: libc::c_int = 10;

impl Lease {
    fn on(file: File) -> Self {
        // The kernel would say that somebody waits by SIGIO, which ends a process; SIGURG does nothing.
        for (command, value) in [(F_SETSIG, libc::SIGURG), (libc::F_SETLEASE, libc::F_WRLCK)] {
            // SAFETY: these commands take an int.
            let done = unsafe { libc::fcntl(file.as_raw_fd(), command, value) };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        }
        Self(file)
    }

    fn wait_until_somebody_waits(&self) {
        // SAFETY: the command takes nothing.
        while unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_GETLEASE) } == libc::F_WRLCK {
            thread::yield_now();
        }
    }
}

#[test]
fn a_request_that_takes_long_holds_up_no_other() {
    let guest = Guest::new();
    fs::write(guest.path("slow"), "text").unwrap();
    fs::write(guest.path("other"), "text").unwrap();
    guest.walk(ROOT, 1, "slow").unwrap();
    let lease = Lease::on(File::options().write(true).open(guest.path("slow")).unwrap());
    thread::scope(|scope| {
        let slow = scope.spawn(|| guest.lopen(1, O_RDONLY));
        lease.wait_until_somebody_waits();
        // The same fid, others, new ones.
        assert_eq!(guest.getattr(1).unwrap().size, 4);
        guest.walk(1, 2, "").unwrap();
        guest.open(3, "other", O_RDWR).unwrap();
        assert_eq!(guest.write(3, 0, b"TE"), Ok(2));
        guest.does(Request::Fsync { fid: 3, data_only: 0 }).unwrap();
        guest.does(Request::Rename { fid: 2, dir: ROOT, name: b"renamed" }).unwrap();
        assert!(!slow.is_finished());
        drop(lease);
        assert!(slow.join().unwrap().is_ok());
    });
    assert_eq!(guest.read(1, 0, 9).unwrap(), b"text");
}

#[test]
fn a_fid_in_use_is_clunked_at_once_and_nothing_is_left_of_it() {
    let guest = Guest::new();
    fs::write(guest.path("slow"), "text").unwrap();
    guest.walk(ROOT, 1, "slow").unwrap();
    let lease = Lease::on(File::options().write(true).open(guest.path("slow")).unwrap());
    thread::scope(|scope| {
        let slow = scope.spawn(|| guest.lopen(1, O_RDONLY));
        lease.wait_until_somebody_waits();
        guest.clunk(1).unwrap();
        // The number may be something else's before the request has ended.
        guest.walk(ROOT, 1, "").unwrap();
        assert!(!slow.is_finished());
        drop(lease);
        assert_eq!(slow.join().unwrap(), Err(EBUSY));
    });
    assert_eq!(guest.getattr(1).unwrap().qid.kind, Qid::DIRECTORY);
    // Nobody has it open: a lease for writing could not be had.
    drop(Lease::on(File::options().write(true).open(guest.path("slow")).unwrap()));
}

#[test]
fn a_session_ends_while_a_request_is_at_work() {
    let guest = Guest::new();
    fs::write(guest.path("slow"), "text").unwrap();
    guest.walk(ROOT, 1, "slow").unwrap();
    let lease = Lease::on(File::options().write(true).open(guest.path("slow")).unwrap());
    thread::scope(|scope| {
        let slow = scope.spawn(|| guest.lopen(1, O_RDONLY));
        lease.wait_until_somebody_waits();
        guest.server.reset();
        guest.begin();
        drop(lease);
        assert_eq!(slow.join().unwrap(), Err(EBADF));
    });
    assert_eq!(guest.server.fids.count(), 1);
}

#[test]
fn many_threads_do_all_there_is_to_do_on_the_same_fids() {
    let guest = Guest::new();
    for name in ["a", "b"] {
        fs::create_dir(guest.path(name)).unwrap();
    }
    let done = thread::scope(|scope| {
        let guest = &guest;
        let threads: Vec<_> = (1..=4)
            .map(|seed| {
                scope.spawn(move || {
                    let mut random = Random(seed);
                    (0..1500).filter(|_| step(guest, &mut random)).count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    assert!(done > 500, "{done}");
    canary(&guest);
}

/// Does something with one of a few fids, and tells whether it went well.
fn step(guest: &Guest, random: &mut Random) -> bool {
    let mut any = |end| random.below(end);
    let names: [&[u8]; 5] = [b"a", b"b", b"c", b"d", b".."];
    let (fid, other, name) = (any(6) as u32, any(6) as u32, names[any(5) as usize]);
    // The root stays, and so there is always a way.
    let fid_or_root = if any(2) == 0 { ROOT } else { fid };
    let gid = gid();
    match any(16) {
        0 | 1 => guest.walk_bytes(fid_or_root, other.max(1), &[name]).is_ok(),
        2 => guest.lopen(fid.max(1), O_RDWR).is_ok(),
        3 => {
            let flags = O_RDWR | O_CREAT;
            let create = Request::Lcreate { fid: fid.max(1), name, flags, mode: 0o644, gid };
            guest.ask(create).is_ok()
        }
        4 => guest.write(fid, any(5000), b"data").is_ok(),
        5 => guest.read(fid, any(5000), 100).is_ok(),
        6 => guest.some_entries(fid, 0, 1000).is_ok(),
        7 => guest.getattr(fid).is_ok(),
        8 | 9 => guest.clunk(fid.max(1)).is_ok(),
        10 => guest.ask(Request::Mkdir { dir: fid_or_root, name, mode: 0o755, gid }).is_ok(),
        11 => {
            let flags = if any(2) == 0 { 0 } else { 0x200 };
            guest.does(Request::Unlinkat { dir: fid_or_root, name, flags }).is_ok()
        }
        12 => {
            let new_name = names[any(4) as usize];
            let rename = Request::Renameat { dir: fid_or_root, name, new_dir: other, new_name };
            guest.does(rename).is_ok()
        }
        13 => guest.does(Request::Rename { fid, dir: ROOT, name }).is_ok(),
        14 => guest.ask(Request::Xattrwalk { fid, new_fid: other.max(1), name: b"" }).is_ok(),
        _ => guest.does(Request::Remove { fid: fid.max(1) }).is_ok(),
    }
}

fn canary(guest: &Guest) {
    assert_eq!(fs::read(guest.host.path().join("secret")).unwrap(), b"not for the guest");
    assert_eq!(fs::read_dir(guest.host.path()).unwrap().count(), 2);
}

#[test]
fn nothing_leads_out_where_there_is_no_openat2() {
    without_openat2(
        libc::ENOSYS,
        &[
            escape::above_the_root_is_the_root,
            escape::names_that_are_paths_or_none_are_refused_by_every_message,
            escape::symbolic_links_are_never_followed,
            escape::a_component_that_becomes_a_link_leads_nowhere,
            escape::parents_that_are_renamed_do_not_lead_out,
            escape::nothing_of_a_share_that_is_only_read_is_changed,
            many_threads_do_all_there_is_to_do_on_the_same_fids,
        ],
    );
}
