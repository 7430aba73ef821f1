//! Sockets in the file system: whose they are, and whose they were.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use super::*;
use crate::sys::unix::{self, LONGEST_PATH};
use crate::vsock::bound::remove_dead;

fn everything(dir: &Path) -> Vsock {
    Vsock::new()
        .hyperkit(dir)
        .hyperkit_forward(2376)
        .hyperkit_forward(0xf3a5)
        .hybrid(dir.join("hybrid"))
        .guest_port(22, dir.join("ssh"))
        .host_port(514, dir.join("syslog"))
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

#[test]
fn sockets_are_for_their_owner_only_and_go_with_the_machine() {
    let dir = folder();
    let open = everything(dir.path()).open().unwrap();
    let expected = [
        "00000003.00000948",
        "00000003.0000f3a5",
        "connect",
        "guest.00000948",
        "guest.0000f3a5",
        "hybrid",
        "ssh",
    ];
    assert_eq!(names(dir.path()), expected);
    for name in expected {
        let file = fs::metadata(dir.path().join(name)).unwrap();
        assert!(file.file_type().is_socket(), "{name}");
        assert_eq!(file.permissions().mode() & 0o777, 0o600, "{name}");
    }
    drop(open);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_forward_is_found_by_a_link_that_moves_with_its_folder() {
    let dir = folder();
    let (before, after) = (dir.path().join("a"), dir.path().join("b"));
    fs::create_dir(&before).unwrap();
    // One of another machine, that is gone.
    symlink("00000009.00000948", before.join("guest.00000948")).unwrap();
    let mut rig = Rig::new(Vsock::new().hyperkit(&before).hyperkit_forward(2376));
    let link = fs::read_link(before.join("guest.00000948")).unwrap();
    assert_eq!(link, Path::new("00000003.00000948"));
    fs::rename(&before, &after).unwrap();
    let mut program = UnixStream::connect(after.join("guest.00000948")).unwrap();
    program.write_all(b"GET /").unwrap();
    let call = rig.call();
    assert_eq!((call.kind, call.port), (Kind::Stream, 2376));
    assert_eq!(read_now(&call.socket), b"GET /");
}

#[test]
fn a_file_is_not_removed_to_make_a_link() {
    let dir = folder();
    fs::write(dir.path().join("guest.00000001"), "mine").unwrap();
    let error = Vsock::new().hyperkit(dir.path()).hyperkit_forward(1).open().unwrap_err();
    assert!(error.to_string().contains("guest.00000001"), "{error}");
    assert_eq!(fs::read(dir.path().join("guest.00000001")).unwrap(), b"mine");
    assert_eq!(names(dir.path()), ["guest.00000001"]);
}

#[test]
fn there_can_be_any_number_of_forwards() {
    let dir = folder();
    let forward = |vsock: Vsock, port| vsock.hyperkit_forward(port);
    let mut rig = Rig::new((0..64).fold(Vsock::new().hyperkit(dir.path()), forward));
    for port in 0..64 {
        let _program = UnixStream::connect(dir.path().join(format!("guest.{port:08x}"))).unwrap();
        assert_eq!(rig.call().port, port);
    }
}

#[test]
fn what_others_put_in_the_place_of_a_socket_or_a_link_stays() {
    let dir = folder();
    let open = Vsock::new().hyperkit(dir.path()).hyperkit_forward(1).open().unwrap();
    for name in ["connect", "guest.00000001"] {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    let _theirs = UnixListener::bind(dir.path().join("connect")).unwrap();
    symlink("elsewhere", dir.path().join("guest.00000001")).unwrap();
    drop(open);
    assert_eq!(names(dir.path()), ["connect", "guest.00000001"]);
}

#[test]
fn a_socket_that_a_dead_process_has_left_is_taken_over() {
    let dir = folder();
    let stale = ["connect", "00000003.00000948", "00000003.0000f3a5", "hybrid", "ssh"];
    for name in stale {
        drop(UnixListener::bind(dir.path().join(name)).unwrap());
    }
    let mut rig = Rig::new(everything(dir.path()));
    let _program = UnixStream::connect(dir.path().join("ssh")).unwrap();
    assert_eq!(rig.call().port, 22);
    drop(rig);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_socket_that_somebody_listens_on_is_in_use_and_stays_theirs() {
    let dir = folder();
    let path = dir.path().join("ssh");
    let theirs = UnixListener::bind(&path).unwrap();
    let error = everything(dir.path()).open().unwrap_err();
    assert!(matches!(&error, Error::InUse { path: theirs } if *theirs == path), "{error}");
    // What was made before has gone again.
    assert_eq!(names(dir.path()), ["ssh"]);
    theirs.set_nonblocking(true).unwrap();
    assert_eq!(theirs.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let _program = UnixStream::connect(&path).unwrap();
    theirs.accept().unwrap();
}

#[test]
fn a_listener_that_takes_no_more_is_still_one() {
    let dir = folder();
    let path = dir.path().join("ssh");
    let address = SocketAddrUnix::new(&path).unwrap();
    let theirs = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&theirs, &address).unwrap();
    rustix::net::listen(&theirs, 1).unwrap();
    let mut waiting = Vec::new();
    while let Ok(program) = unix::connect(&path, SocketType::STREAM) {
        waiting.push(program);
        assert!(waiting.len() < 100);
    }
    let error = Vsock::new().guest_port(22, &path).open().unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert_eq!(names(dir.path()), ["ssh"]);
}

#[test]
fn two_machines_cannot_have_the_same_socket() {
    let dir = folder();
    let mut rig = Rig::new(Vsock::new().guest_port(22, dir.path().join("ssh")));
    let error = Vsock::new().guest_port(23, dir.path().join("ssh")).open().unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    rig.nothing();
    let _program = UnixStream::connect(dir.path().join("ssh")).unwrap();
    assert_eq!(rig.call().port, 22);
}

#[test]
fn a_datagram_socket_that_somebody_has_is_in_use() {
    let dir = folder();
    let path = dir.path().join("ssh");
    let _theirs = UnixDatagram::bind(&path).unwrap();
    let error = Vsock::new().guest_port(22, &path).open().unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert_eq!(names(dir.path()), ["ssh"]);
}

#[test]
fn anything_that_is_no_socket_is_never_removed() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("file"), "mine").unwrap();
    fs::create_dir(path("folder")).unwrap();
    symlink("nowhere", path("link")).unwrap();
    let fifo = CString::new(path("fifo").to_str().unwrap()).unwrap();
    // SAFETY: the name ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    for (name, what) in [
        ("file", "there is a file already"),
        ("folder", "there is a folder already"),
        ("link", "there is a symbolic link already"),
        ("fifo", "there is something that is no socket already"),
    ] {
        let error = Vsock::new().hybrid(path(name)).open().unwrap_err();
        assert!(matches!(error, Error::NotASocket { .. }), "{error}");
        assert!(error.to_string().ends_with(what), "{error}");
    }
    assert_eq!(names(dir.path()), ["fifo", "file", "folder", "link"]);
    assert_eq!(fs::read(path("file")).unwrap(), b"mine");
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let dir = folder();
    let error = Vsock::new().hyperkit(dir.path().join("none")).open().unwrap_err();
    assert!(error.to_string().contains("none/connect"), "{error}");
}

#[test]
fn a_dead_socket_that_another_took_over_first_is_the_others() {
    let dir = folder();
    let path = dir.path().join("v");
    let theirs = UnixListener::bind(&path).unwrap();
    let error = remove_dead(&path).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert_eq!(names(dir.path()), ["v"]);
    let _program = UnixStream::connect(&path).unwrap();
    theirs.accept().unwrap();
}

#[test]
fn a_socket_that_two_start_to_use_at_once_is_never_had_by_both() {
    for _ in 0..50 {
        let dir = folder();
        let path = dir.path().join("v");
        drop(UnixListener::bind(&path).unwrap());
        let open = || Vsock::new().guest_port(1, &path).open();
        let (one, other) = std::thread::scope(|scope| {
            let other = scope.spawn(open);
            (open(), other.join().unwrap())
        });
        assert!(one.is_err() || other.is_err());
        for error in [&one, &other].into_iter().filter_map(|result| result.as_ref().err()) {
            assert!(matches!(error, Error::InUse { .. }), "{error}");
        }
        if let Ok(open) = one.or(other) {
            let mut rig = Rig::of(open);
            let _program = UnixStream::connect(&path).unwrap();
            assert_eq!(rig.call().port, 1);
        }
        assert!(names(dir.path()).is_empty());
    }
}

/// A folder in `dir` whose path is so long that there is room for a name of `room` bytes in it.
fn long(dir: &TempDir, room: usize) -> PathBuf {
    let here = dir.path().as_os_str().len();
    let path = dir.path().join("x".repeat(LONGEST_PATH - here - 2 - room));
    fs::create_dir(&path).unwrap();
    assert_eq!(path.as_os_str().len() + 1 + room, LONGEST_PATH);
    path
}

#[test]
fn a_path_is_too_long_if_the_longest_that_is_made_of_it_is() {
    type Convention = (fn(&Path) -> Vsock, &'static str);
    let conventions: [Convention; 5] = [
        (|dir| Vsock::new().hyperkit(dir).hyperkit_forward(1), "00000002.ffffffff"),
        (|dir| Vsock::new().hybrid(dir.join("v")), "v_4294967295"),
        (|dir| Vsock::new().guest_port(1, dir.join("ssh.sock")), "ssh.sock"),
        // Before it has this name, it has one of eight bytes.
        (|dir| Vsock::new().guest_port(1, dir.join("ssh")), ".0123456"),
        (|dir| Vsock::new().host_port(1, dir.join("log")), "log"),
    ];
    for (vsock, longest) in conventions {
        let dir = folder();
        assert!(vsock(&long(&dir, longest.len())).open().is_ok(), "{longest}");
        let short = long(&dir, longest.len() - 1);
        let error = vsock(&short).open().unwrap_err();
        let Error::PathTooLong { path, limit } = &error else { panic!("{error}") };
        assert_eq!((path.as_os_str().len(), *limit), (LONGEST_PATH + 1, LONGEST_PATH));
        assert!(*path == short.join(longest) || longest.starts_with('.'), "{error}");
        assert!(error.to_string().contains(&format!("at most {LONGEST_PATH}")), "{error}");
        assert!(names(&short).is_empty());
    }
}

#[test]
fn the_limit_of_a_path_is_the_systems() {
    let dir = folder();
    let longest = long(&dir, 3).join("ssh");
    assert_eq!(longest.as_os_str().as_bytes().len(), LONGEST_PATH);
    assert!(UnixListener::bind(&longest).is_ok());
    assert!(UnixListener::bind(longest.with_file_name("sshd")).is_err());
}

#[test]
fn a_path_that_is_empty_is_no_path() {
    for (vsock, what) in [
        (Vsock::new().hybrid(""), "the path of `hybrid`"),
        (Vsock::new().guest_port(1, ""), "port 1 of the guest"),
        (Vsock::new().host_port(2, ""), "port 2 of the host"),
    ] {
        let error = vsock.open().unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn many_programs_that_come_at_once_are_all_let_in() {
    let dir = folder();
    let mut rig = Rig::new(Vsock::new().guest_port(1, dir.path().join("v")));
    let programs: Vec<_> =
        (0..200).map(|_| UnixStream::connect(dir.path().join("v")).unwrap()).collect();
    rig.settle();
    assert_eq!(rig.wants.len(), programs.len());
}
