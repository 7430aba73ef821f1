//! Machines leave nothing behind: no thread, no descriptor, no mapping.

use hyperkit::console::Console;
use hyperkit::vm::End;

use super::guest::*;

guest!(reports, "mov dx, 0x500", "out dx, al", "2: hlt", "jmp 2b");

fn count(of: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{of}")).unwrap().count()
}

/// Mappings of what machines are made of. The heap's and the thread stacks' come and go as the allocator likes.
fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("kvm") || line.contains("memfd")).count()
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Runs in a process of its own, where no other test's threads are counted.
fn alone(test: &str) -> bool {
    const MARK: &str = "HYPERKIT_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .status()
        .unwrap();
    assert!(status.success());
    false
}

#[test]
fn two_hundred_machines_leave_nothing_behind() {
    if !have_kvm() || !alone("leaks::two_hundred_machines_leave_nothing_behind") {
        return;
    }
    let run = |memfd: bool| {
        let (builder, _, received) = machine(reports());
        let backing = match memfd {
            true => hyperkit::memory::Backing::Memfd,
            false => hyperkit::memory::Backing::Anonymous,
        };
        let (input, _) = std::io::pipe().unwrap();
        let vm = builder
            .cpus(2)
            .memory_backing(backing)
            .rng(true)
            .serial(Console::streams(input, std::io::sink()))
            .console(Console::null())
            .build()
            .unwrap()
            .start()
            .unwrap();
        received.recv_timeout(SOON).unwrap();
        drop(vm);
    };
    // The first machines make what stays for good, such as the allocator's arenas.
    (0..10).for_each(|n| run(n % 2 == 0));
    let before = (count("task"), count("fd"), mappings());
    let resident_before = resident();
    (0..200).for_each(|n| run(n % 2 == 0));
    assert_eq!((count("task"), count("fd"), mappings()), before);
    let grown = resident().saturating_sub(resident_before);
    assert!(grown < 8 << 20, "200 machines left {grown} bytes behind");
}

#[test]
fn machines_that_were_built_and_not_started_leave_nothing_behind() {
    if !have_kvm() || !alone("leaks::machines_that_were_built_and_not_started_leave_nothing_behind")
    {
        return;
    }
    let build = || drop(machine(reports()).0.rng(true).serial(Console::null()).build().unwrap());
    build();
    let before = (count("task"), count("fd"), mappings());
    (0..50).for_each(|_| build());
    assert_eq!((count("task"), count("fd"), mappings()), before);
}

#[test]
fn two_machines_run_at_once() {
    if !have_kvm() {
        return;
    }
    let [first, second] = [0, 1].map(|_| {
        let (builder, _, received) = machine(reports());
        (builder.build().unwrap().start().unwrap(), received)
    });
    first.1.recv_timeout(SOON).unwrap();
    second.1.recv_timeout(SOON).unwrap();
    first.0.stop();
    assert_eq!(first.0.wait().unwrap(), End::Stopped);
    second.0.pause().unwrap();
    second.0.resume().unwrap();
    drop(second);
}
