//! A stock Debian, systemd and all, on a disk.

use std::time::Duration;

use hyperkit::vm::{End, Vm};

use super::*;

#[test]
fn debian_boots_to_a_login_and_is_running() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let top = dir.path().join("root.qcow2");
    let (console, screen, keyboard) = console();
    let kernel = Flavour::Cloud.kernel(&format!("{QUIET} hk.root=/dev/vda"));
    let builder = Vm::builder().cpus(2).memory(512 << 20).kernel(kernel).serial(console);
    let vm = builder.disk(root(&top)).build().unwrap().start().unwrap();
    let mut session = Session::on(vm, screen, keyboard);
    session.wait_for("hk login: ");
    session.type_in("root\n");
    session.wait_for("root@hk:~# ");
    session.type_in("systemctl is-system-running --wait; echo that was \"\"all\n");
    session.wait_for("running\r\n");
    session.wait_for("that was all");
    session.type_in("findmnt -no SOURCE /; sync; echo and th\"\"en\n");
    session.wait_for("/dev/vda\r\n");
    session.wait_for("and then");
    session.vm.power_button();
    let end = session.vm.wait_timeout(Duration::from_secs(120));
    let end = end.unwrap_or_else(|| panic!("no end: {}", session.screen.text()));
    assert_eq!(end.unwrap(), End::PowerOff);
    drop(session);
    Image { path: top, format: Format::Qcow2 }.check();
}
