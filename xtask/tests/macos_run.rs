//! How cargo runs programs on macOS (`.cargo/macos-run`), with a codesign that only pretends to sign.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

/// Signing adds a line to a program, and is noted in `signed`. With `REFUSE` it is refused.
const CODESIGN: &str = r#"#!/bin/sh
set -eu
for last; do :; done
case $1 in
--display)
    echo "Executable=$last" >&2
    sed -n 's/^# asks: //p' "$last"
    ;;
--sign)
    echo "$*" >> "${0%/*}/signed"
    echo "$last: replacing existing signature" >&2
    if [ -n "${REFUSE-}" ]; then
        echo "$last: refused" >&2
        exit 3
    fi
    test "$*" = "--sign - --force --entitlements $5 $last"
    # Half of it is there for a while.
    rest=$(cat "$last")
    echo 'exit 99' > "$last"
    sleep 0.1
    printf '%s\n# asks: %s\n' "$rest" "$(grep -o 'com[a-z.]*hypervisor' "$5")" > "$last"
    ;;
esac
"#;

/// A program that tells its arguments and where it runs.
const PROGRAM: &str = "#!/bin/sh\nfor word; do printf '<%s>' \"$word\"; done\npwd\nexit 7\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// One rig at a time: a program cannot be run while a process that another test starts still has the descriptor that
/// it was written through.
static ALONE: Mutex<()> = Mutex::new(());

struct Rig {
    dir: TempDir,
    program: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("some target's \"folder\"");
        fs::create_dir(&target).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        let program = target.join("program-0123");
        for (path, text) in [(&dir.path().join("bin/codesign"), CODESIGN), (&program, PROGRAM)] {
            fs::write(path, text).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { dir, program, _alone: alone }
    }

    fn start(&self, arguments: &[&str], refuse: &str) -> Child {
        let path = env::var("PATH").unwrap();
        Command::new(root().join(".cargo/macos-run"))
            .arg(&self.program)
            .args(arguments)
            .env("PATH", format!("{}:{path}", self.dir.path().join("bin").display()))
            .env("REFUSE", refuse)
            .current_dir("/")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.start(arguments, "").wait_with_output().unwrap()
    }

    /// How codesign was called to sign.
    fn signed(&self) -> Vec<String> {
        let signed = fs::read_to_string(self.dir.path().join("bin/signed")).unwrap_or_default();
        signed.lines().map(str::to_owned).collect()
    }

    /// Asserts that nothing lies beside the program, and that it is still one.
    fn alone(&self) {
        let files = fs::read_dir(self.program.parent().unwrap()).unwrap();
        let names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
        assert_eq!(names, ["program-0123"]);
        assert_eq!(fs::metadata(&self.program).unwrap().permissions().mode() & 0o777, 0o755);
    }
}

#[track_caller]
fn ran(output: &Output, said: &str) {
    assert_eq!(String::from_utf8_lossy(&output.stdout), said);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn a_program_is_signed_once_and_gets_its_arguments_as_they_are() {
    let rig = Rig::new();
    let words = ["--exact", "two words", "", "it's \"$HOME\" * \\", "-"];
    let said = "<--exact><two words><><it's \"$HOME\" * \\><->/\n";
    ran(&rig.run(&words), said);
    ran(&rig.run(&words), said);
    let signed = rig.signed();
    assert_eq!(signed.len(), 1, "{signed:?}");
    let entitlements = root().join(".cargo/macos.entitlements");
    assert!(
        signed[0].contains(&format!("--entitlements {} ", entitlements.display())),
        "{signed:?}"
    );
    rig.alone();
    // Built anew.
    fs::write(&rig.program, PROGRAM).unwrap();
    ran(&rig.run(&[]), "/\n");
    assert_eq!(rig.signed().len(), 2);
}

#[test]
fn many_at_once_run_a_program_that_is_whole() {
    let rig = Rig::new();
    let running: Vec<_> = (0..8).map(|_| rig.start(&["x"], "")).collect();
    for child in running {
        ran(&child.wait_with_output().unwrap(), "<x>/\n");
    }
    rig.alone();
    let before = rig.signed().len();
    assert!((1..=8).contains(&before));
    ran(&rig.run(&[]), "/\n");
    assert_eq!(rig.signed().len(), before);
}

#[test]
fn a_program_that_cannot_be_signed_is_not_run_and_codesign_says_why() {
    let rig = Rig::new();
    let output = rig.start(&["x"], "yes").wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(": refused\n"), "{said}");
    assert!(said.contains(&*rig.program.to_string_lossy()), "{said}");
    assert_eq!(fs::read_to_string(&rig.program).unwrap(), PROGRAM);
    rig.alone();
}

#[test]
fn cargo_is_told_of_it_and_of_what_programs_ask_for() {
    let config = fs::read_to_string(root().join(".cargo/config.toml")).unwrap();
    let wanted = "[target.'cfg(target_os = \"macos\")']\nrunner = \".cargo/macos-run\"\n";
    assert!(config.contains(wanted), "{config}");
    let asked = fs::read_to_string(root().join(".cargo/macos.entitlements")).unwrap();
    let asked: String = asked.split_whitespace().collect();
    assert!(
        asked.contains("<dict><key>com.apple.security.hypervisor</key><true/></dict>"),
        "{asked}"
    );
}
