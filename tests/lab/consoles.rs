//! Consoles, both ways, as Linux drives them.

use std::io::Write;

use hyperkit::arch::SERIAL_CONSOLE;
use hyperkit::vm::{End, Vm};

use super::session::*;

/// Feeds `count` bytes to the guest, has it check them, and send them back.
fn there_and_back(session: &mut Session, count: usize) {
    const PATTERN: &str = "abcdefghijklmnopqrstuvwxyz";
    session.wait_for_shell();
    let text: String = PATTERN.chars().cycle().take(count).collect();
    session.type_in(&format!(
        "stty raw -echo; echo re\"\"ady; head -c {count} > /tmp/got; stty sane; \
         yes {PATTERN} | tr -d '\\n' | head -c {count} | cmp - /tmp/got && echo sa\"\"me\n"
    ));
    session.wait_for("ready");
    session.keyboard.write_all(text.as_bytes()).unwrap();
    session.wait_for("same");
    session.type_in("cat /tmp/got; echo; echo s\"\"ent\n");
    session.wait_for("sent");
    let screen = session.screen.text();
    let begun = screen.find(&text[..100]).expect("the text begins");
    let same = screen[begun..].bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
    let found = String::from_utf8_lossy(&screen.as_bytes()[begun + same..]);
    assert_eq!(same, count, "it goes on with {:?}", found.chars().take(200).collect::<String>());
}

#[test]
fn a_serial_port_loses_nothing() {
    if !in_lab() {
        return;
    }
    // On a slow machine this may take what the kernel calls a lockup; what it says to that would be among the bytes.
    let cmdline = format!("{QUIET} nosoftlockup");
    let mut session = Session::start(|builder| builder.kernel(Flavour::Cloud.kernel(&cmdline)));
    // Over the stand-in for Hypervisor.framework an exit takes many times as long.
    there_and_back(
        &mut session,
        if cfg!(hyperkit_hvf_standin) { 1_000 } else { long_or(20_000, 4_000) },
    );
    session.type_in("poweroff -f\n");
    assert_eq!(session.end().unwrap(), End::PowerOff);
}

#[test]
fn a_virtio_console_is_a_shell_and_loses_nothing() {
    if !in_lab() {
        return;
    }
    let (console, screen, keyboard) = console();
    let vm = Vm::builder()
        .console(console)
        .kernel(Flavour::Cloud.kernel("console=hvc0 quiet"))
        .build()
        .unwrap()
        .start()
        .unwrap();
    let mut session = Session::on(vm, screen, keyboard);
    there_and_back(&mut session, long_or(200_000, 60_000));
    session.type_in("poweroff -f\n");
    assert_eq!(session.end().unwrap(), End::PowerOff);
}

#[test]
fn four_serial_ports_work_side_by_side() {
    if !in_lab() {
        return;
    }
    let (others, screens): (Vec<_>, Vec<_>) = (0..3)
        .map(|_| console())
        .map(|(console, screen, keyboard)| (console, (screen, keyboard)))
        .unzip();
    let mut session = Session::start(|builder| {
        let builder = builder.kernel(Flavour::Generic.kernel(&format!("{QUIET} nosoftlockup")));
        others.into_iter().fold(builder, |builder, console| builder.serial(console))
    });
    session.wait_for_shell();
    let tty = SERIAL_CONSOLE.trim_end_matches('0');
    for (n, (screen, keyboard)) in (1..).zip(&screens) {
        // Kept open: what comes while nobody has the port open is thrown away, as on any serial port.
        session.type_in(&format!(
            "exec 3<>/dev/{tty}{n}; stty raw -echo <&3; echo here is {tty}{n} >&3; read -r line <&3; exec 3<&-; \
             echo \"{tty}{n} re\"\"ad $line.\"\n"
        ));
        screen.wait_for(&format!("here is {tty}{n}"), 0);
        (&*keyboard).write_all(format!("word{n}\n").as_bytes()).unwrap();
        session.wait_for(&format!("{tty}{n} read word{n}."));
    }
    session.type_in("poweroff -f\n");
    assert_eq!(session.end().unwrap(), End::PowerOff);
}
