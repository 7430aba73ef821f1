use super::*;

fn lock<'a>(kind: LockKind, start: u64, length: u64, process: u32) -> LockRequest<'a> {
    LockRequest { kind, start, length, process, client: b"guest", waits: false }
}

/// A file as two guests have it.
fn two_guests() -> (Share, OpenFile, OpenFile) {
    let share = Share::plain();
    let (_, mine) = create(&share.root(), "file", RDWR);
    let other = share.again(false, Owner::passthrough()).root().unwrap();
    let theirs = other.walk(b"file").unwrap().open(RDWR).unwrap();
    (share, mine, theirs)
}

#[test]
fn locks_hold_between_guests() {
    use LockKind::{None, Read, Write};
    let (_share, mine, theirs) = two_guests();
    assert_eq!(mine.lock(&lock(Write, 10, 10, 1)).unwrap(), LockStatus::Done);
    assert_eq!(theirs.lock(&lock(Read, 0, 0, 1)).unwrap(), LockStatus::Blocked);
    assert_eq!(theirs.lock(&lock(Write, 0, 10, 1)).unwrap(), LockStatus::Done);
    assert_eq!(
        theirs.get_lock(&lock(Read, 5, 100, 1)).unwrap(),
        Some(HeldLock { kind: Write, start: 10, length: 10 })
    );
    assert_eq!(mine.get_lock(&lock(Read, 10, 0, 1)).unwrap(), Option::None);
    assert_eq!(mine.lock(&lock(None, 15, 0, 1)).unwrap(), LockStatus::Done);
    assert_eq!(theirs.lock(&lock(Write, 15, 1, 1)).unwrap(), LockStatus::Done);
    assert_eq!(theirs.lock(&lock(Read, 14, 1, 1)).unwrap(), LockStatus::Blocked);
    assert_eq!(mine.lock(&lock(Read, 10, 5, 1)).unwrap(), LockStatus::Done);
    assert_eq!(theirs.lock(&lock(Read, 14, 1, 1)).unwrap(), LockStatus::Done);
    drop(mine);
    assert_eq!(theirs.lock(&lock(Write, 0, 0, 1)).unwrap(), LockStatus::Done);
}

#[test]
fn a_process_with_two_open_files_does_not_wait_for_itself() {
    use LockKind::{None, Read, Write};
    let (share, mine, theirs) = two_guests();
    let again = share.root().walk(b"file").unwrap().open(RDONLY).unwrap();
    assert_eq!(again.lock(&lock(Read, 0, 10, 1)).unwrap(), LockStatus::Done);
    assert_eq!(mine.lock(&lock(Write, 0, 10, 1)).unwrap(), LockStatus::Done);
    assert_eq!(theirs.lock(&lock(Read, 0, 10, 1)).unwrap(), LockStatus::Blocked);
    assert_eq!(again.lock(&lock(None, 0, 0, 1)).unwrap(), LockStatus::Done);
    assert_eq!(theirs.lock(&lock(Write, 0, 0, 1)).unwrap(), LockStatus::Done);
}

#[test]
fn what_one_process_gives_up_another_keeps() {
    use LockKind::{None, Read, Write};
    let (_share, mine, theirs) = two_guests();
    for process in [1, 2] {
        assert_eq!(mine.lock(&lock(Read, 0, 10, process)).unwrap(), LockStatus::Done);
    }
    mine.lock(&lock(None, 0, 0, 1)).unwrap();
    assert_eq!(theirs.lock(&lock(Write, 0, 0, 1)).unwrap(), LockStatus::Blocked);
    mine.lock(&lock(None, 0, 0, 2)).unwrap();
    assert_eq!(theirs.lock(&lock(Write, 0, 0, 1)).unwrap(), LockStatus::Done);
}

#[test]
fn what_locks_take_is_bounded_and_given_back() {
    use LockKind::{None, Read};
    let (share, mine, _theirs) = two_guests();
    let count = || share.tree.0.locks.count();
    for process in 0..16 {
        assert_eq!(mine.lock(&lock(Read, 0, 10, process)).unwrap(), LockStatus::Done);
    }
    assert_eq!(errno(mine.lock(&lock(Read, 0, 10, 16))), Errno::NOLCK);
    assert_eq!(count(), (16, 16));
    mine.lock(&lock(None, 0, 0, 3)).unwrap();
    assert_eq!(count(), (15, 15));
    assert_eq!(mine.lock(&lock(Read, 0, 10, 16)).unwrap(), LockStatus::Done);
    // To give up what one does not have takes nothing.
    mine.lock(&lock(None, 0, 0, 99)).unwrap();
    assert_eq!(count(), (16, 16));
    drop(mine);
    assert_eq!(count(), (0, 0));
}

#[test]
fn a_process_that_has_no_lock_takes_no_place() {
    use LockKind::{None, Read, Write};
    let (share, mine, theirs) = two_guests();
    assert_eq!(theirs.lock(&lock(Write, 50, 1, 1)).unwrap(), LockStatus::Done);
    for process in 0..100 {
        assert_eq!(mine.lock(&lock(Read, 50, 1, process)).unwrap(), LockStatus::Blocked);
        assert_eq!(mine.lock(&lock(Read, 0, 10, process)).unwrap(), LockStatus::Done);
        mine.lock(&lock(None, 0, 5, process)).unwrap();
        mine.lock(&lock(None, 5, 5, process)).unwrap();
    }
    assert_eq!(share.tree.0.locks.count(), (0, 0));
    // Not even if it was another open file by way of which it gave the last one up: that is known with the next lock.
    let again = share.root().walk(b"file").unwrap().open(RDWR).unwrap();
    for process in 0..100 {
        assert_eq!(mine.lock(&lock(Write, 0, 10, process)).unwrap(), LockStatus::Done);
        again.lock(&lock(None, 0, 10, process)).unwrap();
    }
}

#[test]
fn the_ranges_that_are_locked_have_an_end() {
    use LockKind::{None, Read, Write};
    let (share, mine, _theirs) = two_guests();
    let (_, other) = create(&share.root(), "other", RDWR);
    assert_eq!(other.lock(&lock(Read, 0, 0, 1)).unwrap(), LockStatus::Done);
    let all = (0..).take_while(|n| mine.lock(&lock(Read, 2 * n, 1, 1)).is_ok()).count();
    assert!((10_000..20_000).contains(&all), "{all}");
    assert_eq!(errno(mine.lock(&lock(Read, 1 << 40, 1, 1))), Errno::NOLCK);
    assert_eq!(errno(other.lock(&lock(None, 5, 1, 1))), Errno::NOLCK, "there would be two");
    for kind in [Read, Write] {
        assert_eq!(mine.lock(&lock(kind, 2, 1, 1)).unwrap(), LockStatus::Done, "no more than now");
    }
    other.lock(&lock(None, 0, 5, 1)).unwrap();
    mine.lock(&lock(None, 2, 1, 1)).unwrap();
    assert_eq!(mine.lock(&lock(Read, 1 << 40, 1, 1)).unwrap(), LockStatus::Done);
    mine.lock(&lock(None, 0, 0, 1)).unwrap();
    assert_eq!(share.tree.0.locks.count(), (1, 1));
}

#[test]
fn what_the_guest_gave_to_another_process_changes_hands() {
    use LockKind::{None, Read, Write};
    let (_share, mine, theirs) = two_guests();
    // As flock's locks do, which a child has from its parent.
    assert_eq!(mine.lock(&lock(Write, 0, 0, 1)).unwrap(), LockStatus::Done);
    assert_eq!(mine.lock(&lock(Read, 0, 0, 2)).unwrap(), LockStatus::Done);
    assert_eq!(theirs.lock(&lock(Read, 5, 1, 1)).unwrap(), LockStatus::Done);
    theirs.lock(&lock(None, 0, 0, 1)).unwrap();
    mine.lock(&lock(None, 0, 0, 1)).unwrap();
    assert_eq!(theirs.lock(&lock(Write, 0, 0, 1)).unwrap(), LockStatus::Blocked);
    mine.lock(&lock(None, 0, 0, 2)).unwrap();
    assert_eq!(theirs.lock(&lock(Write, 0, 0, 1)).unwrap(), LockStatus::Done);
}

#[test]
fn flocks_are_given_up_by_whatever_process_does() {
    use LockKind::{None, Read, Write};
    let (_share, mine, theirs) = two_guests();
    let flock = |kind, process| LockRequest { waits: true, ..lock(kind, 0, 0, process) };
    for kinds in [&[Write][..], &[Read, Read]] {
        for (process, &kind) in kinds.iter().enumerate() {
            assert_eq!(mine.lock(&flock(kind, process as u32)).unwrap(), LockStatus::Done);
        }
        // Not at the end of some other process that has the file.
        mine.lock(&lock(None, 0, 0, 9)).unwrap();
        assert_eq!(theirs.lock(&lock(Write, 0, 0, 1)).unwrap(), LockStatus::Blocked);
        mine.lock(&flock(None, 9)).unwrap();
        assert_eq!(theirs.lock(&lock(Write, 0, 0, 1)).unwrap(), LockStatus::Done);
        theirs.lock(&lock(None, 0, 0, 1)).unwrap();
    }
    // What is not all of a file is no flock.
    assert_eq!(mine.lock(&lock(Write, 5, 0, 1)).unwrap(), LockStatus::Done);
    mine.lock(&flock(None, 2)).unwrap();
    assert_eq!(theirs.lock(&lock(Write, 0, 0, 1)).unwrap(), LockStatus::Blocked);
}

#[test]
fn a_lock_that_others_do_not_allow_takes_nothing_from_anybody() {
    use LockKind::{Read, Write};
    let (_share, mine, theirs) = two_guests();
    assert_eq!(mine.lock(&lock(Read, 0, 10, 1)).unwrap(), LockStatus::Done);
    assert_eq!(theirs.lock(&lock(Write, 10, 10, 1)).unwrap(), LockStatus::Done);
    assert_eq!(mine.lock(&lock(Read, 0, 20, 2)).unwrap(), LockStatus::Blocked);
    assert_eq!(theirs.lock(&lock(Write, 0, 1, 1)).unwrap(), LockStatus::Blocked);
}

#[test]
fn impossible_ranges_are_refused() {
    use LockKind::{None, Read};
    let (_share, mine, _theirs) = two_guests();
    for (start, length) in [(u64::MAX, 0), (0, u64::MAX), (1 << 63, 1)] {
        assert_eq!(errno(mine.lock(&lock(Read, start, length, 1))), Errno::INVAL);
        assert_eq!(errno(mine.get_lock(&lock(Read, start, length, 1))), Errno::INVAL);
    }
    assert!(mine.lock(&lock(Read, i64::MAX as u64, 2, 1)).is_err());
    assert_eq!(errno(mine.get_lock(&lock(None, 0, 0, 1))), Errno::INVAL);
}

#[test]
fn a_read_only_share_can_be_locked_for_reading() {
    use LockKind::{Read, Write};
    let (share, mine, _theirs) = two_guests();
    let tree = share.again(true, Owner::passthrough());
    let theirs = tree.root().unwrap().walk(b"file").unwrap().open(RDONLY).unwrap();
    assert_eq!(theirs.lock(&lock(Read, 0, 10, 1)).unwrap(), LockStatus::Done);
    assert_eq!(errno(theirs.lock(&lock(Write, 0, 10, 1))), Errno::NOLCK);
    assert_eq!(mine.lock(&lock(Write, 5, 1, 1)).unwrap(), LockStatus::Blocked);
}
