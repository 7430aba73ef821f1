//! A stock Debian, systemd and all, on a disk.

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
    assert_eq!(session.end().unwrap(), End::PowerOff);
    drop(session);
    Image { path: top, format: Format::Qcow2 }.check();
}
