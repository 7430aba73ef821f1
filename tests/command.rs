//! The example command where it cannot boot anything: what it says, and its exit status.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(missing_docs)]

mod common;

use std::io::Write;
use std::process::Command;

use common::example;

/// Exit status and what was said on standard error.
fn run(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn boot(args: &[&str]) -> (i32, String) {
    run(Command::new(example("boot")).args(args))
}

#[test]
fn wrong_usage_is_64_and_says_what_is_wrong() {
    for (args, word) in [
        (&[][..], "--kernel is missing"),
        (&["--kernel"], "kernel"),
        (&["--frobnicate"], "--frobnicate"),
        (&["--kernel", "k", "--memory", "lots"], "\"lots\""),
        (&["--kernel", "k", "--memory", "99999999999G"], "64 bits"),
        (&["--kernel", "k", "--console", "vga"], "serial or a virtio"),
        (&["--kernel", "k", "--uuid", "1"], "invalid length"),
        (&["--disk", "/nonexistent/disk.img"], "/nonexistent/disk.img"),
        (&["--disk", "/dev/null"], "a character device"),
        (&["--disk", "/etc/passwd,format=vhd"], "not \"vhd\""),
        (&["--disk", "/etc/passwd,rw"], "no option \"rw\""),
        (&["--disk", "/etc/passwd,iops=many"], "\"many\" is no number"),
        (&["--disk", "/no,,such,ro"], "/no,such"),
        (&["--cdrom", "/"], "a folder"),
        (&["--net", "vmnet"], "vmnet is for macos only"),
        (&["--net", "vmnet=host"], "vmnet is for macos only"),
        (&["--net", "vpnkit=/none,mtu=small"], "\"small\": invalid digit"),
    ] {
        let (status, said) = boot(args);
        assert_eq!(status, 64, "{args:?}: {said}");
        assert!(said.to_lowercase().contains(word) && said.contains("--help"), "{args:?}: {said}");
    }
}

#[test]
fn the_help_text_goes_to_standard_output() {
    let output = Command::new(example("boot")).arg("--help").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("--kernel") && text.contains("Exit status"));
}

#[test]
fn a_kernel_or_initrd_that_cannot_be_booted_is_65_and_named() {
    let mut text = tempfile::NamedTempFile::new().unwrap();
    text.write_all(b"#!/bin/sh\necho this is no kernel\n").unwrap();
    let text = text.path().to_str().unwrap();
    for args in [&["--kernel", "/nonexistent/vmlinuz"][..], &["--kernel", text], &["--kernel", "/"]]
    {
        let (status, said) = boot(args);
        assert_eq!(status, 65, "{args:?}: {said}");
        assert!(said.contains(args[1]), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn no_kvm_is_69_and_says_what_to_do() {
    // Something else in its place, in a mount namespace of the command's own.
    let script = "mount --bind /dev/null /dev/kvm && exec \"$0\" --probe";
    let hidden = Command::new("unshare")
        .args(["--mount", "sh", "-c", "mount --bind /dev/null /dev/kvm"])
        .output();
    if !hidden.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: cannot put anything in the place of /dev/kvm here");
        return;
    }
    let boot = example("boot");
    let (status, said) =
        run(Command::new("unshare").args(["--mount", "sh", "-c", script]).arg(boot));
    assert_eq!(status, 69, "{said}");
    assert!(said.contains("/dev/kvm") && said.contains(';'), "{said}");
}
