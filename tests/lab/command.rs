//! The example command, as a person at a terminal or a script uses it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};

use hyperkit::arch::SERIAL_CONSOLE;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;

use super::common::example;
use super::session::*;

/// The command, with a kernel.
pub fn boot(flavour: Flavour, cmdline: &str) -> Command {
    let (kernel, initrd) = flavour.files();
    let mut command = Command::new(example("boot"));
    command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd).args(["--cmdline", cmdline]);
    command
}

/// What it printed and how it ended, once `begin` is done with it. One that does not end is killed, so that what it
/// printed can be seen.
fn output(mut child: Child, begin: impl FnOnce(&mut Child)) -> Output {
    let id = rustix::process::Pid::from_child(&child);
    let (ended, wait) = channel::<()>();
    let guard = std::thread::spawn(move || {
        if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
        }
    });
    begin(&mut child);
    let output = child.wait_with_output().unwrap();
    drop(ended);
    guard.join().unwrap();
    output
}

#[test]
fn commands_piped_in_are_run_by_the_guest() {
    if !in_lab() {
        return;
    }
    for (console, name) in [("serial", SERIAL_CONSOLE), ("virtio", "hvc0")] {
        let child = boot(Flavour::Cloud, &format!("console={name} quiet"))
            .args(["--cpus", "2", "--console", console])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // All at once, and for a serial port long before there is a shell; a virtio console is only there once its
        // driver is, and the guest has written to it. The end of the input is not the end of the guest's.
        let input = b"uname -r; nproc; echo en\"\"d; poweroff -f\n";
        let output = output(child, |child| {
            if console == "virtio" {
                child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            }
            child.stdin.take().unwrap().write_all(input).unwrap();
        });
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        assert!(output.status.success(), "{text}");
        let release = if ARM { "-cloud-arm64" } else { "-cloud-amd64" };
        assert!(text.contains(&format!("{release}\n2\nend\n")), "{text}");
    }
}

#[test]
#[ignore = "takes long"]
fn the_exit_status_tells_how_the_guest_ended() {
    if !in_lab() {
        return;
    }
    let crash = "panic=-1 reboot=triple";
    let ways = [("", "true", 0), ("", "reboot -f", 2), (crash, "echo c > /proc/sysrq-trigger", 3)];
    // A processor resets itself by a triple fault only on x86.
    for (more, script, expected) in ways.into_iter().take(if ARM { 2 } else { 3 }) {
        let cmdline = scripted(&format!("{QUIET} {more}"), script);
        let mut command = boot(Flavour::Cloud, &cmdline);
        command.arg("--no-reboot").stdin(Stdio::null()).stdout(Stdio::piped());
        let output = output(command.spawn().unwrap(), |_| ());
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(expected), "{script}: {text}");
    }
}

#[test]
fn a_terminal_is_raw_for_the_guest_and_as_before_afterwards() {
    if !in_lab() {
        return;
    }
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let open = || File::options().read(true).write(true).open(&name).unwrap();
    let terminal = open();
    let before = format!("{:?}", tcgetattr(&terminal).unwrap());
    let mut child = boot(Flavour::Cloud, QUIET)
        .stdin(OwnedFd::from(open()))
        .stdout(OwnedFd::from(open()))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();

    let screen = Screen::default();
    let mut copy = screen.clone();
    let mut from = File::from(master.try_clone().unwrap());
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            copy.write_all(&buffer[..count]).unwrap();
        }
    });
    let mut keyboard = File::from(master);
    let seen = screen.wait_for(PROMPT, 0);
    assert_ne!(format!("{:?}", tcgetattr(&terminal).unwrap()), before);
    // Ctrl-C is the guest's. Who says that it runs has the guest's terminal by then, and a shell that is about to start
    // something would not pass it on.
    keyboard.write_all(b"sh -c 'echo run\"\"ning; sleep 1000'\r").unwrap();
    let seen = screen.wait_for("running", seen);
    keyboard.write_all(b"\x03echo go\"\"on\r").unwrap();
    screen.wait_for("goon", seen);
    // Ctrl-] is not.
    keyboard.write_all(b"\x1d").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert_eq!(format!("{:?}", tcgetattr(&terminal).unwrap()), before);
    drop((terminal, keyboard));
    reader.join().unwrap();
}
