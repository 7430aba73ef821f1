//! Pseudo-terminals.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;

use rustix::termios::{Winsize, tcsetwinsize};

use super::*;

/// What `screen` does: open the terminal by its name.
fn user(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn take(user: &mut File, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    user.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_pty_passes_every_byte_both_ways() {
    let console = Console::pty().unwrap();
    let path = console.path().unwrap().to_owned();
    let console = console.open().unwrap();
    let port = console.port();
    port.write(b"before anybody looks\r\n");
    let mut screen = user(&path);
    assert_eq!(take(&mut screen, 22), b"before anybody looks\r\n");
    let all: Vec<u8> = (0..=255).collect();
    screen.write_all(&all).unwrap();
    assert_eq!(read(&port, 256), all);
    port.write(&all);
    assert_eq!(take(&mut screen, 256), all);
}

#[test]
fn users_of_a_pty_come_and_go() {
    let console = Console::pty().unwrap();
    let path = console.path().unwrap().to_owned();
    let console = console.open().unwrap();
    let port = console.port();
    for round in 0..3 {
        let mut screen = user(&path);
        screen.write_all(&[round]).unwrap();
        assert_eq!(read(&port, 1), [round]);
        port.write(b"ok");
        assert_eq!(take(&mut screen, 2), b"ok");
    }
}

#[test]
fn a_pty_that_nobody_reads_loses_output_and_closes_soon() {
    let console = Console::pty().unwrap().open().unwrap();
    let port = console.port();
    for _ in 0..64 {
        port.write(&[b'x'; 16 << 10]);
    }
    until("drops", || port.dropped() > 0);
    let start = Instant::now();
    console.close();
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
}

#[test]
fn the_size_of_a_pty_is_noticed_with_the_next_key() {
    let console = Console::pty().unwrap();
    let path = console.path().unwrap().to_owned();
    let console = console.open().unwrap();
    let port = console.port();
    assert_eq!(port.size(), None);
    let (resized, told) = channel();
    let resized = Mutex::new(resized);
    port.on_resize(move || resized.lock().unwrap().send(()).unwrap());
    let mut screen = user(&path);
    let size = Winsize { ws_col: 132, ws_row: 43, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&screen, size).unwrap();
    screen.write_all(b"k").unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(port.size(), Some((132, 43)));
    assert_eq!(read(&port, 1), b"k");
}

#[test]
fn the_link_to_a_pty_replaces_an_old_one_and_goes_with_the_console() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("tty");
    symlink("/dev/pts/of-a-crashed-process", &link).unwrap();
    let console = Console::pty().unwrap().link(&link);
    let path = console.path().unwrap().to_owned();
    let console = console.open().unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), path);
    console.close();
    assert!(fs::symlink_metadata(&link).is_err());

    // What is no link stays, and so does a link that somebody else has put there.
    fs::write(&link, "precious").unwrap();
    let error = Console::pty().unwrap().link(&link).open().err().unwrap();
    assert!(matches!(&error, Error::Link { path, .. } if *path == link), "{error}");
    assert_eq!(fs::read(&link).unwrap(), b"precious");
    fs::remove_file(&link).unwrap();
    let console = Console::pty().unwrap().link(&link).open().unwrap();
    fs::remove_file(&link).unwrap();
    symlink("/dev/null", &link).unwrap();
    console.close();
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("/dev/null"));
}

#[test]
fn a_link_needs_a_pty() {
    let error = Console::null().link("/nowhere").open().err().unwrap();
    assert!(matches!(error, Error::NoPty { .. }), "{error}");
}
