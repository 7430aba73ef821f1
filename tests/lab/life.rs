//! How a Linux guest's life ends and begins again.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyperkit::vm::{End, OnReset};

use super::session::*;

#[test]
fn a_guest_reboots_in_place_every_way_it_knows() {
    if !in_lab() {
        return;
    }
    // On arm64 there is PSCI, and nothing else.
    let ways: &[_] =
        if ARM { &[""] } else { long_or(&["", "reboot=pci", "reboot=kbd"], &["reboot=pci"]) };
    for way in ways {
        let mut session = Session::start(|builder| {
            builder.cpus(2).kernel(Flavour::Cloud.kernel(&format!("{QUIET} {way}")))
        });
        let mut begun = Instant::now();
        for _ in 0..long_or(2, 1) {
            session.wait_for_shell();
            assert_eq!(session.run("nproc"), "2\n");
            begun = Instant::now();
            session.type_in("reboot -f\n");
        }
        session.wait_for_shell();
        let uptime = session.run("cut -d. -f1 /proc/uptime");
        // It began anew with the last of them.
        let (uptime, most) = (uptime.trim().parse::<u64>().unwrap(), begun.elapsed().as_secs() + 1);
        assert!(uptime <= most, "up for {uptime} s, at most {most} s after the reboot");
        session.type_in("poweroff -f\n");
        assert_eq!(session.end().unwrap(), End::PowerOff, "with {way:?}");
    }
}

#[test]
fn a_processor_goes_offline_and_comes_back() {
    if !in_lab() {
        return;
    }
    let mut session =
        Session::start(|builder| builder.cpus(2).kernel(Flavour::Cloud.kernel(QUIET)));
    session.wait_for_shell();
    for _ in 0..3 {
        for (online, processors) in [("0", "1\n"), ("1", "2\n")] {
            let command = format!("echo {online} > /sys/devices/system/cpu/cpu1/online; nproc");
            assert_eq!(session.run(&command), processors);
        }
        // It does what a processor does.
        assert_eq!(session.run("taskset 2 grep -c processor /proc/cpuinfo"), "2\n");
    }
    session.type_in("poweroff -f\n");
    assert_eq!(session.end().unwrap(), End::PowerOff);
}

#[test]
fn a_reset_ends_the_machine_when_asked_to() {
    if !in_lab() {
        return;
    }
    let kernel = Flavour::Cloud.kernel(&scripted(QUIET, "reboot -f"));
    let session = Session::start(|builder| builder.kernel(kernel).on_reset(OnReset::End));
    assert_eq!(session.end().unwrap(), End::Reset);
}

#[test]
fn a_panic_ends_as_the_kernel_was_told() {
    if !in_lab() {
        return;
    }
    let ways = [("panic=-1", End::Reset), ("panic=-1 reboot=triple", End::Crashed)];
    for (how, end) in ways.into_iter().take(if ARM { 1 } else { 2 }) {
        let cmdline = format!("{QUIET} {how}");
        let kernel = Flavour::Cloud.kernel(&scripted(&cmdline, "echo c > /proc/sysrq-trigger"));
        let session = Session::start(|builder| builder.kernel(kernel).on_reset(OnReset::End));
        assert_eq!(session.end().unwrap(), end, "with {how:?}");
        assert!(session.screen.text().contains("Kernel panic"), "{}", session.screen.text());
    }
}

#[test]
fn the_power_button_shuts_the_guest_down() {
    if !in_lab() {
        return;
    }
    // Debian's cloud kernel for arm64 has no driver for keys.
    for flavour in [Flavour::Generic, Flavour::Cloud].into_iter().take(if ARM { 1 } else { 2 }) {
        let mut session = Session::start(|builder| builder.kernel(flavour.kernel(QUIET)));
        session.wait_for_shell();
        // There may be a shell before acpid, which was started ahead of it, has opened the button.
        session.run(
            "until ls -l /proc/$(pidof acpid)/fd 2>/dev/null | grep -q event0; do sleep 0.1; done",
        );
        session.vm.power_button();
        assert_eq!(session.end().unwrap(), End::PowerOff);
    }
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_without_complaint() {
    if !in_lab() {
        return;
    }
    let mut session =
        Session::start(|builder| builder.cpus(2).kernel(Flavour::Cloud.kernel(QUIET)));
    session.wait_for_shell();
    let complaints = "dmesg -r | grep '^<[0-4]>' | grep -iE 'lockup|stall|hung|unstable'";
    let before = session.run(complaints);
    session.type_in("while sleep 0.1; do echo tick; done\n");
    for _ in 0..3 {
        session.wait_for("tick\r\n");
        session.vm.pause().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let seen = session.screen.text().len();
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(session.screen.text().len(), seen);
        session.vm.resume().unwrap();
        session.wait_for("tick\r\n");
    }
    session.type_in("\x03");
    session.wait_for(PROMPT);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let from = now();
    let guest: f64 = session.run("date +%s").trim().parse().unwrap();
    let to = now();
    assert!(
        guest > from - 3.0 && guest < to + 1.0,
        "the guest's clock is {} to {} s behind",
        from - guest,
        to - guest
    );
    assert_eq!(session.run(complaints), before);
    session.type_in("poweroff -f\n");
    assert_eq!(session.end().unwrap(), End::PowerOff);
}

#[test]
fn a_guest_is_stopped_at_any_moment_of_its_boot() {
    if !in_lab() {
        return;
    }
    for moment in [0, 50, 200, 500, 1000, 2000, 4000] {
        let session =
            Session::start(|builder| builder.cpus(2).kernel(Flavour::Cloud.kernel(CONSOLE)));
        std::thread::sleep(Duration::from_millis(moment));
        let begun = Instant::now();
        session.vm.stop();
        assert!(begun.elapsed() < Duration::from_secs(60), "after {moment} ms");
        assert_eq!(session.end().unwrap(), End::Stopped);
    }
}
