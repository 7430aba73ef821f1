//! A Linux guest that a test talks to over its console.

use std::io::{PipeWriter, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use hyperkit::boot::Kernel;
use hyperkit::console::Console;
use hyperkit::vm::{End, Error, Running, Vm, VmBuilder};

/// Long enough for a guest to boot where every instruction is emulated twice.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// How much is done by `cargo xtask test --long`, or else.
pub fn long_or<T>(long: T, short: T) -> T {
    if std::env::var_os("HYPERKIT_LONG").is_some() { long } else { short }
}

/// What a guest boots with: its console is the first serial port …
pub const CONSOLE: &str = if ARM { "console=ttyAMA0" } else { "console=ttyS0" };

/// … and what its kernel says is mostly left out.
pub const QUIET: &str = if ARM { "console=ttyAMA0 quiet" } else { "console=ttyS0 quiet" };

/// Whether the processor is an Arm.
pub const ARM: bool = cfg!(target_arch = "aarch64");

/// What the shell of the initrd prompts with.
pub const PROMPT: &str = "# ";

/// Whether this is the lab; says that the test is skipped if not.
pub fn in_lab() -> bool {
    if std::env::var_os("HYPERKIT_LAB").is_some() {
        return true;
    }
    eprintln!("skipped: not in the lab (cargo xtask lab)");
    false
}

/// A kernel with the initrd that has its modules.
#[derive(Clone, Copy, Debug)]
pub enum Flavour {
    /// Debian's kernel for virtual machines.
    Cloud,
    /// The same, unpacked.
    #[cfg(target_arch = "x86_64")]
    CloudElf,
    /// Debian's kernel for everything.
    Generic,
}

impl Flavour {
    /// Where the kernel and the initrd are.
    pub fn files(self) -> (PathBuf, PathBuf) {
        let (kernel, initrd) = match self {
            Self::Cloud => ("HK_KERNEL", "HK_INITRD"),
            #[cfg(target_arch = "x86_64")]
            Self::CloudElf => ("HK_VMLINUX", "HK_INITRD"),
            Self::Generic => ("HK_KERNEL_GENERIC", "HK_INITRD_GENERIC"),
        };
        let path = |name| PathBuf::from(std::env::var_os(name).expect(name));
        (path(kernel), path(initrd))
    }

    pub fn kernel(self, cmdline: &str) -> Kernel {
        let (kernel, initrd) = self.files();
        Kernel::linux(kernel).initrd(initrd).cmdline(cmdline)
    }
}

/// Runs `script` in the guest instead of its shell, then powers off.
pub fn scripted(cmdline: &str, script: &str) -> String {
    let script = base64::engine::general_purpose::STANDARD.encode(script);
    format!("{cmdline} hk.run={script}")
}

/// Bytes of which no two pieces are the same, from a place in an endless row of them.
pub fn pattern(from: u64, len: usize) -> Vec<u8> {
    let word = |at: u64| (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (from..from + len as u64).map(|at| word(at)[(at % 8) as usize]).collect()
}

/// Brings eth0 up as udhcpc's script is told to, and leaves what it was told in /tmp/lease. In the end it is taken down
/// again: Linux's driver spins for ever if TCP wants to send when the device has been reset to power off.
pub const DHCP: &str = r#"
trap 'ip link set eth0 down' EXIT
cat > /tmp/udhcpc <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
env > /tmp/lease
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "$router"
echo "search $domain" > /etc/resolv.conf
for server in $dns; do echo "nameserver $server" >> /etc/resolv.conf; done
END
chmod +x /tmp/udhcpc
ip link set eth0 up
udhcpc -q -n -t 40 -T 3 -i eth0 -s /tmp/udhcpc >/tmp/udhcpc.log 2>&1 || { cat /tmp/udhcpc.log; exit 1; }
"#;

/// Everything that came out of a console, and a way to wait for more.
#[derive(Clone, Default)]
pub struct Screen(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Screen {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap()).into_owned()
    }

    /// Waits until `wanted` appears behind byte `from`, and returns where it ends.
    #[track_caller]
    pub fn wait_for(&self, wanted: &str, from: usize) -> usize {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = self.0.0.lock().unwrap();
        loop {
            let found = bytes[from..].windows(wanted.len()).position(|at| at == wanted.as_bytes());
            if let Some(at) = found {
                return from + at + wanted.len();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                left > Duration::ZERO,
                "no {wanted:?} behind byte {from} of:\n{}\n{}",
                String::from_utf8_lossy(&bytes),
                threads()
            );
            bytes = self.0.1.wait_timeout(bytes, left).unwrap().0;
        }
    }
}

/// What this process's threads are at, for whoever finds out why a guest hangs: name, state, processor time in user
/// space and kernel (in ticks, at two moments), and where in the kernel they wait.
fn threads() -> String {
    let look = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        tasks
            .map(|task| {
                let read =
                    |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
                let stat = read("stat");
                let (start, rest) = stat.rsplit_once(") ").unwrap_or_default();
                let words: Vec<_> = rest.split(' ').collect();
                let word = |at| words.get(at).copied().unwrap_or_default();
                let times = format!("{}+{}", word(11), word(12));
                (format!("{start}) {} {}", word(0), read("wchan")), times)
            })
            .collect::<Vec<_>>()
    };
    let before = look();
    std::thread::sleep(Duration::from_secs(1));
    let lines = before.iter().zip(look());
    lines.map(|((name, before), (_, after))| format!("{name} {before} {after}\n")).collect()
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.0.lock().unwrap().extend_from_slice(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A console that is read and written by the test.
pub fn console() -> (Console, Screen, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let screen = Screen::default();
    (Console::streams(reader, screen.clone()), screen, writer)
}

/// A running guest with a shell.
pub struct Session {
    pub vm: Running,
    pub screen: Screen,
    pub keyboard: PipeWriter,
    /// How much of the screen has been looked at.
    seen: usize,
}

impl Session {
    /// Starts what `change` makes of a machine whose COM1 the session has.
    pub fn start(change: impl FnOnce(VmBuilder) -> VmBuilder) -> Self {
        let (console, screen, keyboard) = console();
        let vm = change(Vm::builder().serial(console)).build().unwrap().start().unwrap();
        Self::on(vm, screen, keyboard)
    }

    /// A session on a console that the test made itself.
    pub fn on(vm: Running, screen: Screen, keyboard: PipeWriter) -> Self {
        Self { vm, screen, keyboard, seen: 0 }
    }

    #[track_caller]
    pub fn wait_for(&mut self, wanted: &str) {
        self.seen = self.screen.wait_for(wanted, self.seen);
    }

    pub fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for the shell that the guest boots to.
    #[track_caller]
    pub fn wait_for_shell(&mut self) {
        self.wait_for("built-in shell");
        self.wait_for(PROMPT);
    }

    /// Runs a command in the guest's shell and returns what it printed.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        // The quotes keep the marks out of the echo of what is typed.
        self.type_in(&format!("echo be\"\"gin; {command}; echo e\"\"nd\n"));
        self.wait_for("begin\r\n");
        let begin = self.seen;
        self.wait_for("end\r\n");
        let output = self.screen.text()[begin..self.seen - "end\r\n".len()].replace("\r\n", "\n");
        self.wait_for(PROMPT);
        output
    }

    /// Why the machine ended, with the screen in the message if it does not.
    #[track_caller]
    pub fn end(&self) -> Result<End, Error> {
        match self.vm.wait_timeout(long_or(12, 1) * PATIENCE) {
            Some(end) => end,
            None => panic!("the machine still runs; its console:\n{}", self.screen.text()),
        }
    }
}
