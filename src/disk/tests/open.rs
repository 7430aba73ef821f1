//! What can be opened as a disk, by whom, and what is said if not.

use super::*;

fn text(result: Result<Disk, Error>) -> String {
    result.and_then(Disk::open).unwrap_err().to_string()
}

#[test]
fn what_is_no_disk_is_refused_when_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let fifo = std::ffi::CString::new(path("fifo").to_str().unwrap()).unwrap();
    // SAFETY: the name ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    for (path, what) in [
        (folder.path().to_owned(), "a folder"),
        (path("fifo"), "a FIFO"),
        (path("socket"), "a socket"),
        ("/dev/null".into(), "a character device"),
    ] {
        // Neither waits, as opening a FIFO would.
        let error = Disk::raw(&path).unwrap_err();
        assert!(matches!(error, Error::NotADisk { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(what) && text.contains(path.to_str().unwrap()), "{text}");
        assert!(RawFile::open(&path, true, Flush::None).is_err());
    }
    let text = text(Disk::raw(path("nothing")));
    assert!(text.contains("nothing") && text.contains("No such file"), "{text}");
}

#[test]
fn a_disk_that_is_written_has_one_owner() {
    for folder in folders() {
        let file = sparse(&folder, 4096);
        let open = |read_only| RawFile::open(file.path(), read_only, Flush::None);
        let refused = |read_only| match open(read_only).unwrap_err() {
            error @ Error::Locked { .. } => {
                let text = error.to_string();
                assert!(text.contains("in use") && text.contains("destroy"), "{text}");
            }
            error => panic!("{error}"),
        };
        let writer = open(false).unwrap();
        refused(false);
        refused(true);
        drop(writer);
        let readers = [open(true).unwrap(), open(true).unwrap()];
        refused(false);
        let [one, other] = readers;
        drop(one);
        refused(false);
        drop(other);
        // Whatever it is called.
        let link = file.path().with_extension("link");
        std::fs::hard_link(file.path(), &link).unwrap();
        let writer = RawFile::open(&link, false, Flush::None).unwrap();
        std::fs::remove_file(&link).unwrap();
        refused(false);
        drop(writer);
        open(false).unwrap();
    }
}

/// The lock is the open disk's: not kept by what was made of it and has ended, and kept as long as requests may come.
#[test]
fn the_lock_ends_with_the_device() {
    use crate::virtio::blk::Block;
    for engine in [Engine::Auto, Engine::Threads] {
        let file = sparse(&folders()[0], 4096);
        let disk = || Disk::raw(file.path()).unwrap().engine(engine).open();
        let device = Block::new(disk().unwrap(), 1).unwrap();
        let handle = device.handle();
        assert!(matches!(disk(), Err(Error::Locked { .. })));
        drop(device);
        drop(disk().unwrap());
        assert_eq!(handle.size(), 4096);
    }
}

/// Nothing is opened, or locked, before the machine is built.
#[test]
fn a_disk_that_is_only_named_is_not_open() {
    let file = sparse(&folders()[0], 4096);
    let named = [Disk::raw(file.path()).unwrap(), Disk::raw(file.path()).unwrap()];
    let [one, other] = named;
    let open = one.open().unwrap();
    let error = other.open().unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    drop(open);
}

/// A file that this process may only read: written to it is not a disk, and the error says what would be one.
#[test]
#[cfg(target_os = "linux")]
fn a_file_that_may_not_be_written_wants_read_only() {
    use std::os::unix::fs::PermissionsExt;
    let file = sparse(&folders()[0], 4096);
    file.as_file().set_permissions(PermissionsExt::from_mode(0o444)).unwrap();
    let path = file.path().to_owned();
    // What root may do does not go by permissions; file access of this one thread goes by the rights of nobody.
    let thread = std::thread::spawn(move || {
        // SAFETY: it takes a number, and concerns this thread alone.
        unsafe { libc::setfsuid(65534) };
        if std::fs::OpenOptions::new().write(true).open(&path).is_ok() {
            println!("skipped: the permissions of files do not count here");
            return;
        }
        let error = Disk::raw(&path).unwrap().open().unwrap_err();
        assert!(matches!(error, Error::NotWritable { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("Permission denied") && text.contains("`read_only`"), "{text}");
        let disk = Disk::raw(&path).unwrap().read_only().open().unwrap();
        assert!(disk.read_only);
        assert!(disk.target.backend().properties().read_only);
    });
    thread.join().unwrap();
}

#[test]
fn a_file_that_may_not_be_read_is_told_so() {
    use std::os::unix::fs::PermissionsExt;
    let file = sparse(&folders()[0], 4096);
    file.as_file().set_permissions(PermissionsExt::from_mode(0o000)).unwrap();
    let path = file.path().to_owned();
    let thread = std::thread::spawn(move || {
        #[cfg(target_os = "linux")]
        // SAFETY: as above.
        unsafe {
            libc::setfsuid(65534)
        };
        if File::open(&path).is_ok() {
            println!("skipped: the permissions of files do not count here");
            return;
        }
        let text = text(Disk::raw(&path).map(Disk::read_only));
        assert!(text.contains("cannot open") && text.contains("Permission denied"), "{text}");
        assert!(!text.contains("read_only"), "advice that would not help: {text}");
    });
    thread.join().unwrap();
}

#[test]
fn a_read_only_disk_is_not_written_by_its_backend() {
    let file = file_of(&folders()[0], &[3; 4096]);
    let disk = RawFile::open(file.path(), true, Flush::Fsync).unwrap();
    let Properties { read_only, discard, .. } = disk.properties();
    assert!(read_only && !discard);
    let mut bytes = [1; 512];
    assert!(disk.write(0, BufferList::from(&mut bytes[..]).all()).is_err());
    assert!(disk.write_zeroes(0, 4096, true).is_err());
    assert!(disk.write_zeroes(0, 512, false).is_err());
    assert!(disk.resize(512).is_err());
    assert_eq!(std::fs::read(file.path()).unwrap(), [3; 4096]);
}
