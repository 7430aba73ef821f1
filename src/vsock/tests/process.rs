//! What belongs to a whole process: its umask, and how many descriptors it may have.
//!
//! Each test here starts this test program once more, as the process to be looked at, with one of the `child_*`
//! tests below as all it does.

use std::env;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use rustix::fs::Mode;
use rustix::process::{Resource, getrlimit, setrlimit, umask};

use super::*;

const ROLE: &str = "HYPERKIT_TEST_VSOCK_CHILD";

/// Whether this process was started by [`child`] to be `role`.
fn is_child(role: &str) -> bool {
    env::var(ROLE).is_ok_and(|value| value == role)
}

#[track_caller]
fn child(role: &str) {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", &format!("vsock::tests::process::child_{role}")])
        .args(["--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "there is no such test");
}

#[test]
fn sockets_are_for_their_owner_whatever_the_umask() {
    child("umask");
}

#[test]
fn child_umask() {
    if !is_child("umask") {
        return;
    }
    let dir = folder();
    for mask in [0, 0o022, 0o177, 0o277, 0o777] {
        umask(Mode::from_bits_truncate(mask));
        let mut rig = Rig::new(Vsock::new().guest_port(1, dir.path().join("v")));
        let file = fs::metadata(dir.path().join("v")).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600, "umask {mask:o}");
        let _program = UnixStream::connect(dir.path().join("v")).unwrap();
        assert_eq!(rig.call().port, 1);
        assert_eq!(umask(Mode::empty()), Mode::from_bits_truncate(mask));
    }
}

#[test]
fn programs_that_come_when_there_is_no_descriptor_left_are_let_in_later() {
    child("descriptors");
}

#[test]
fn child_descriptors() {
    if !is_child("descriptors") {
        return;
    }
    let dir = folder();
    let mut rig = Rig::new(Vsock::new().guest_port(1, dir.path().join("v")));
    let listener = rig.open.handle().listen(2).unwrap();
    let programs: Vec<_> =
        (0..8).map(|_| UnixStream::connect(dir.path().join("v")).unwrap()).collect();
    let before = getrlimit(Resource::Nofile);
    let next = programs[0].try_clone().unwrap().as_raw_fd();
    let mut none = before;
    none.current = Some(u64::try_from(next).unwrap());
    setrlimit(Resource::Nofile, none).unwrap();

    let start = Instant::now();
    for _ in 0..2 {
        while !rig.turn(LONG) {}
        assert!(rig.wants.is_empty());
        let again = rig.open.deadline().expect("nobody looks again");
        assert!(again > start && again <= Instant::now() + Duration::from_millis(100));
    }
    assert!(matches!(rig.open.dial(Kind::Stream, 2, 1), Dial::Refused));

    setrlimit(Resource::Nofile, before).unwrap();
    let _calls: Vec<_> = programs.iter().map(|_| rig.call()).collect();
    assert_eq!(rig.open.deadline(), None);
    assert!(matches!(rig.open.dial(Kind::Stream, 2, 1), Dial::Connected(_)));
    listener.accept().unwrap();
}

#[test]
fn a_guest_that_connects_without_end_leaves_descriptors_to_others() {
    child("much");
}

#[test]
fn child_much() {
    if !is_child("much") {
        return;
    }
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(400);
    setrlimit(Resource::Nofile, limit).unwrap();
    let dir = folder();
    let rig = Rig::new(Vsock::new().host_port(1, dir.path().join("v")));
    let other = UnixListener::bind(dir.path().join("v")).unwrap();
    let listener = rig.open.handle().listen(2).unwrap();
    let mut connections = Vec::new();
    loop {
        match rig.open.dial(Kind::Stream, 2, 1) {
            Dial::Connected(socket) => connections.push((socket, listener.accept().unwrap())),
            Dial::Refused => break,
            Dial::Busy => panic!("a listener of this program is busy"),
        }
    }
    assert!(connections.len() > 100, "{}", connections.len());
    assert!(matches!(rig.open.dial(Kind::Stream, 1, 1), Dial::Refused));
    // An eighth is left.
    let others: Vec<_> = (0..45).map(|_| fs::File::open("/dev/null").unwrap()).collect();
    drop(others);
    connections.truncate(50);
    let dialled = rig.open.dial(Kind::Stream, 1, 1);
    assert!(matches!(dialled, Dial::Connected(_)), "{dialled:?}");
    other.accept().unwrap();
    assert!(matches!(rig.open.dial(Kind::Stream, 2, 1), Dial::Connected(_)));
}
