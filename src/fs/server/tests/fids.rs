//! Fids that become something else while a request has them.

use super::super::fids::{Fid, State};
use super::*;
use crate::fs::wire::Errno;

/// What a request would have looked up.
fn held(guest: &Guest, fid: u32) -> (u64, Arc<Fid>) {
    let epoch = guest.server.fids.session().epoch;
    (epoch, guest.server.fids.get(epoch, fid).unwrap())
}

#[test]
fn what_a_request_has_looked_up_stays_until_it_is_done() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "text").unwrap();
    guest.open(1, "file", O_RDONLY).unwrap();
    let (_, fid) = held(&guest, 1);
    let weak = Arc::downgrade(&fid);
    guest.clunk(1).unwrap();
    assert_eq!(guest.read(1, 0, 1), Err(EBADF));
    let mut data = [0; 4];
    let list = BufferList::from(&mut data[..]);
    assert_eq!(fid.open().unwrap().read_at(list.all(), 0).unwrap(), 4);
    drop((list, fid));
    assert!(weak.upgrade().is_none(), "nobody else has kept it");
    assert_eq!(&data, b"text");
}

#[test]
fn a_fid_becomes_something_else_only_if_it_is_what_it_was() {
    let guest = Guest::new();
    fs::create_dir(guest.path("dir")).unwrap();
    guest.walk(ROOT, 1, "dir").unwrap();
    let (epoch, fid) = held(&guest, 1);
    let fids = &guest.server.fids;
    let other = || fid.with(State::Found);
    assert_eq!(fids.replace(epoch, 1, &fid, other()), Ok(()));
    assert_eq!(fids.replace(epoch, 1, &fid, other()), Err(Errno::BUSY));
    guest.clunk(1).unwrap();
    assert_eq!(fids.replace(epoch, 1, &fid, other()), Err(Errno::BADF));
}

#[test]
fn what_belongs_to_an_earlier_session_changes_nothing_in_the_next() {
    let guest = Guest::new();
    let (epoch, fid) = held(&guest, ROOT);
    guest.begin();
    let fids = &guest.server.fids;
    let other = || fid.with(State::Found);
    assert_eq!(fids.insert(epoch, 5, other()), Err(Errno::BADF));
    assert_eq!(fids.replace(epoch, ROOT, &fid, other()), Err(Errno::BADF));
    assert_eq!(fids.remove(epoch, ROOT).map(drop), Err(Errno::BADF));
    assert_eq!(fids.get(epoch, ROOT).map(drop), Err(Errno::BADF));
    assert_eq!(fids.count(), 1);
}

#[test]
#[cfg(target_os = "linux")]
fn all_that_was_held_is_closed_in_the_end() {
    let guest = Guest::new();
    let share = fs::canonicalize(guest.path("")).unwrap();
    let held = || {
        let open = fs::read_dir("/proc/self/fd").unwrap();
        let paths = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        paths.filter(|path| path.starts_with(&share)).count()
    };
    let before = held();
    for round in 1..20 {
        guest.create(round, format!("file {round}").as_bytes(), O_RDWR).unwrap();
        guest.walk(round, 100 + round, "").unwrap();
        guest.ask(Request::Xattrwalk { fid: round, new_fid: 200 + round, name: b"" }).unwrap();
    }
    assert!(held() > before + 20);
    for round in 1..20 {
        for fid in [round, 100 + round, 200 + round] {
            guest.clunk(fid).unwrap();
        }
    }
    assert_eq!(held(), before);
    guest.create(1, b"last", O_RDWR).unwrap();
    guest.server.reset();
    assert_eq!(held(), before);
}
