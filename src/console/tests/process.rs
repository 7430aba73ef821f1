//! What belongs to a whole process: standard input and output, threads, descriptors.
//!
//! Each test here starts this test program once more, as the process to be looked at, with one of the `child_*`
//! tests below as all it does.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::termios::{LocalModes, OutputModes, tcgetattr};

use super::*;
use crate::sys::terminal::PtyPair;

const ROLE: &str = "HYPERKIT_TEST_CONSOLE_CHILD";

/// Whether this process was started by [`child`] to be `role`.
fn is_child(role: &str) -> bool {
    env::var(ROLE).is_ok_and(|value| value == role)
}

fn child(role: &str, stdin: impl Into<Stdio>, stdout: impl Into<Stdio>) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", &format!("console::tests::process::child_{role}")])
        .args(["--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Sends what comes in back out, up to a `q`.
fn echo(port: &Port) {
    let mut last = 0;
    until("a q", || {
        let mut byte = [0];
        while port.read(&mut byte) == 1 {
            port.write(&byte);
            last = byte[0];
        }
        last == b'q'
    });
}

/// A child on a terminal.
struct OnTerminal {
    child: Child,
    pty: PtyPair,
    screen: Vec<u8>,
}

impl OnTerminal {
    fn new(role: &str) -> Self {
        let pty = PtyPair::open().unwrap();
        // A terminal as a shell leaves it: lines, echo, signals, line feeds that return the carriage.
        let mut cooked = tcgetattr(&pty.slave).unwrap();
        cooked.local_modes |= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        cooked.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        rustix::termios::tcsetattr(&pty.slave, rustix::termios::OptionalActions::Now, &cooked)
            .unwrap();
        let end = || pty.slave.try_clone().unwrap();
        let child = child(role, end(), end());
        Self { child, pty, screen: Vec::new() }
    }

    fn type_keys(&self, keys: &[u8]) {
        assert_eq!(rustix::io::write(&self.pty.master, keys), Ok(keys.len()));
    }

    fn wait_for(&mut self, text: &str) {
        until(text, || {
            let mut buffer = [0; 4096];
            if let Ok(count) = rustix::io::read(&self.pty.master, &mut buffer) {
                self.screen.extend(&buffer[..count]);
            }
            String::from_utf8_lossy(&self.screen).contains(text)
        });
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.pty.slave).unwrap().local_modes;
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        assert!(modes.contains(cooked) || !modes.intersects(cooked));
        !modes.contains(cooked)
    }
}

#[test]
fn child_terminal() {
    if !is_child("terminal") {
        return;
    }
    let console = Console::stdio().open().unwrap();
    let port = console.port();
    port.write(b"<ready>");
    echo(&port);
    console.close();
    println!("<closed>");
    until("the parent to look", || false);
}

#[test]
fn a_terminal_is_raw_while_the_console_is_open() {
    let mut process = OnTerminal::new("terminal");
    process.wait_for("<ready>");
    assert!(process.is_raw());
    // Ctrl-C, Ctrl-Z and Ctrl-D are the guest's.
    process.type_keys(b"\x03\x1a\x04!q");
    process.wait_for("\x03\x1a\x04!q");
    process.wait_for("<closed>");
    assert!(!process.is_raw());
    process.child.kill().unwrap();
    process.child.wait().unwrap();
}

#[test]
fn child_panic() {
    if !is_child("panic") {
        return;
    }
    let console = Console::stdio().open().unwrap();
    console.port().write(b"<ready>");
    echo(&console.port());
    panic!("on purpose");
}

#[test]
fn a_panic_restores_the_terminal() {
    let mut process = OnTerminal::new("panic");
    process.wait_for("<ready>");
    assert!(process.is_raw());
    process.type_keys(b"q");
    until("the end", || {
        process.wait_for("");
        process.child.try_wait().unwrap().is_some()
    });
    assert!(!process.is_raw());
}

#[test]
fn child_escape() {
    if !is_child("escape") {
        return;
    }
    let (stop, stopped) = channel();
    let console = Console::stdio().on_escape(0x1d, move || stop.send(()).unwrap());
    let console = console.and(Console::null()).open().unwrap();
    let port = console.port();
    let error = Console::stdio().open().err().unwrap();
    assert!(matches!(error, Error::StdioTaken));
    port.write(b"<ready>");
    stopped.recv_timeout(PATIENCE).unwrap();
    stopped.recv_timeout(PATIENCE).unwrap();
    port.write(b"<stopped>");
    let mut input = [0; 16];
    let count = port.read(&mut input);
    port.write(&input[..count]);
    console.close();
    assert!(Console::stdio().open().is_ok());
}

#[test]
fn the_escape_key_calls_and_is_not_passed_on() {
    let mut process = OnTerminal::new("escape");
    process.wait_for("<ready>");
    process.type_keys(b"ab\x1dcd\x1d");
    process.wait_for("<stopped>abcd");
    until("the end", || {
        process.wait_for("");
        process.child.try_wait().unwrap().is_some_and(|status| status.success())
    });
    assert!(!process.is_raw());
}

#[test]
fn child_copy() {
    if !is_child("copy") {
        return;
    }
    // An embedder that, unlike most Rust programs, has not told the system to spare it SIGPIPE.
    // SAFETY: sets a default disposition.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let escape = || panic!("an escape key in input that is no terminal");
    let console = Console::stdio().on_escape(0x1d, escape).open().unwrap();
    let port = console.port();
    let len: usize = env::var("HYPERKIT_TEST_LEN").map_or(1 << 20, |len| len.parse().unwrap());
    assert!(read(&port, len) == pattern(len));
    fs::write(env::var("HYPERKIT_TEST_DONE").unwrap(), "all of it").unwrap();
    port.write(b"<all of it>");
    port.write(&[b'.'; 4000]);
}

/// Runs `child_copy` with this input; its output is closed if `output` says so.
fn copy(stdin: Stdio, feed: bool, output: bool) {
    let done = tempfile::NamedTempFile::new().unwrap();
    let (ours, theirs) = rustix::pipe::pipe().unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    let mut child = command
        .args(["--exact", "console::tests::process::child_copy", "--nocapture"])
        .env(ROLE, "copy")
        .env("HYPERKIT_TEST_DONE", done.path())
        .stdin(stdin)
        .stdout(theirs)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(command);
    let mut ours = File::from(ours);
    let mut text = Vec::new();
    if output {
        // libtest's own lines come first; so a closed pipe has to be closed after these.
        if feed {
            let mut stdin = child.stdin.take().unwrap();
            std::thread::spawn(move || stdin.write_all(&pattern(1 << 20)).unwrap());
        }
        ours.read_to_end(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("<all of it>") && text.contains(&".".repeat(4000)), "{text}");
        assert!(child.wait().unwrap().success());
    } else {
        until("the child's first line", || {
            let mut buffer = [0; 64];
            let count = ours.read(&mut buffer).unwrap();
            text.extend(&buffer[..count]);
            text.windows(14).any(|window| window == b"running 1 test")
        });
        drop(ours);
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&pattern(1 << 20)).unwrap();
        drop(stdin);
        child.wait().unwrap();
    }
    assert_eq!(fs::read(done.path()).unwrap(), b"all of it");
}

#[test]
fn piped_input_arrives_whole() {
    copy(Stdio::piped(), true, true);
}

#[test]
fn input_from_a_file_arrives_whole() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pattern(1 << 20)).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    copy(file.into(), false, true);
}

#[test]
fn closed_output_is_no_reason_to_stop() {
    copy(Stdio::piped(), true, false);
}

#[test]
fn child_leaks() {
    if !is_child("leaks") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let each = || {
        let written = Written::default();
        let console = Console::stdio()
            .and(Console::pty().unwrap().link(dir.path().join("tty")))
            .and(Console::file(dir.path().join("log")))
            .and(Console::ring(RingBuffer::new()))
            .and(Console::streams(std::io::Cursor::new(pattern(1 << 20)), written.clone()));
        let console = console.open().unwrap();
        console.port().write(b"output");
        read(&console.port(), 1);
        // Closing does not wait for ever for a thread that a busy machine holds up.
        until("output", || written.bytes() == b"output");
        console.close();
        assert_eq!(written.bytes(), b"output");
    };
    each();
    let count =
        || ["task", "fd"].map(|what| fs::read_dir(format!("/proc/self/{what}")).unwrap().count());
    let before = count();
    for _ in 0..50 {
        each();
    }
    // A reader's thread that was in `read` ends right after it; all others have ended.
    until("threads and descriptors to go", || count() == before);

    // Idle is silent: nobody wakes up.
    let log = dir.path().join("log");
    let console = Console::stdio().and(Console::file(log)).open().unwrap();
    console.port().write(b"something");
    let threads = || {
        let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        tasks
            .filter(|task| fs::read_to_string(task.join("comm")).unwrap().trim() == "hk-console")
            .collect::<Vec<_>>()
    };
    // It gives itself its name.
    until("the console's thread", || !threads().is_empty());
    let [task] = threads().try_into().unwrap();
    let switches = || {
        let status = fs::read_to_string(task.join("status")).unwrap();
        status.lines().filter(|line| line.contains("ctxt_switches")).collect::<String>()
    };
    let sleeps = || {
        let before = switches();
        std::thread::sleep(Duration::from_millis(300));
        switches() == before
    };
    // On a busy machine the thread may be late with what it still has to do.
    assert!((0..20).any(|_| sleeps()), "it wakes again and again");
    drop(console);
    println!("<no leaks>");
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "looks into /proc")]
fn nothing_is_left_of_a_closed_console() {
    let (unused, stdin): (OwnedFd, OwnedFd) = {
        let (read, write) = rustix::pipe::pipe().unwrap();
        (write, read)
    };
    let output = child("leaks", stdin, Stdio::piped()).wait_with_output().unwrap();
    drop(unused);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("<no leaks>"), "{text}");
}
