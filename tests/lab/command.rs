//! The example command, as a person at a terminal or a script uses it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;

use super::common::example;
use super::disks::{Format, Image, scratch};
use super::session::*;

fn boot(flavour: Flavour, cmdline: &str) -> Command {
    let (kernel, initrd) = flavour.files();
    let mut command = Command::new(example("boot"));
    command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd).args(["--cmdline", cmdline]);
    command
}

#[test]
fn commands_piped_in_are_run_by_the_guest() {
    if !in_lab() {
        return;
    }
    for (console, name) in [("serial", "ttyS0"), ("virtio", "hvc0")] {
        let mut child = boot(Flavour::Cloud, &format!("console={name} quiet"))
            .args(["--cpus", "2", "--console", console])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // All at once, long before there is a shell. The end of the input is not the end of the guest's.
        let input = b"uname -r; nproc; echo en\"\"d; poweroff -f\n";
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        assert!(output.status.success(), "{text}");
        assert!(text.contains("-cloud-amd64\n2\nend\n"), "{text}");
    }
}

#[test]
fn the_exit_status_tells_how_the_guest_ended() {
    if !in_lab() {
        return;
    }
    let crash = "panic=-1 reboot=triple";
    for (more, script, expected) in
        [("", "true", 0), ("", "reboot -f", 2), (crash, "echo c > /proc/sysrq-trigger", 3)]
    {
        let cmdline = scripted(&format!("console=ttyS0 quiet {more}"), script);
        let output = boot(Flavour::Cloud, &cmdline)
            .arg("--no-reboot")
            .stdin(Stdio::null())
            .output()
            .unwrap();
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
    let mut child = boot(Flavour::Cloud, "console=ttyS0 quiet")
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
    // Ctrl-C is the guest's.
    keyboard.write_all(b"sleep 1000\r").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    keyboard.write_all(b"\x03echo go\"\"on\r").unwrap();
    screen.wait_for("goon", seen);
    // Ctrl-] is not.
    keyboard.write_all(b"\x1d").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert_eq!(format!("{:?}", tcgetattr(&terminal).unwrap()), before);
    drop((terminal, keyboard));
    reader.join().unwrap();
}

#[test]
fn disks_of_every_sort_are_what_the_options_say() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let raw = Image::new(&dir, "with,comma", Format::Raw, 1 << 20);
    let qcow2 = Image::new(&dir, "top", Format::Qcow2, 2 << 20);
    let media = Image::new(&dir, "media.iso", Format::Raw, 4 << 20);
    let path = |image: &Image| image.path.to_str().unwrap().replace(',', ",,");
    let script = "cd /sys/block; for d in vda vdb vdc vdd; do \
                  echo $d $(cat $d/size $d/ro $d/serial) $(ls $d/mq | wc -l); done";
    let mut child = boot(Flavour::Cloud, &scripted("console=ttyS0 quiet", script))
        .args(["--disk", &format!("{},serial=first,queues=3,engine=threads", path(&raw))])
        .args(["--disk", &format!("{},format=qcow2,flush=none,serial=second", path(&qcow2))])
        .args(["--disk", &format!("{},ro,serial=third,iops=500,mbps=50", path(&media))])
        .args(["--cdrom", &path(&media), "--cpus", "2"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    // A queue that no vCPU would use is not set up.
    for line in
        ["vda 2048 0 first 2", "vdb 4096 0 second 2", "vdc 8192 1 third 2", "vdd 8192 1 hk-"]
    {
        assert!(text.contains(line), "no {line:?} in {text}");
    }

    // A second machine cannot have a disk that is being written.
    let _first = raw.disk(hyperkit::disk::Engine::Auto).open().unwrap();
    let output =
        boot(Flavour::Cloud, "").args(["--disk", &path(&raw)]).stdin(Stdio::null()).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(66), "{said}");
    assert!(said.contains("in use"), "{said}");
}
