//! Folders of the host under a stock kernel: what it does there is what it would do on a disk of its own, and nothing
//! outside the folder.

mod escapes;
mod files;
mod owners;
mod programs;
mod relays;
mod together;

use std::path::Path;

use hyperkit::fs::Share;
use hyperkit::vm::End;
use tempfile::TempDir;

use super::disks::{scratch, tools};
use super::session::*;

/// How the guest mounts a share; what else is said goes behind it.
const MOUNT: &str = r#"
share() { mkdir -p /mnt/$1; mount -t 9p -o trans=virtio,version=9p2000.L,msize=${3:-131072}${2:+,$2} $1 /mnt/$1 || exit 1; }
tool() { in-tools /dev/vda "$@"; }
"#;

/// Boots a guest with these shares, runs `script`, which has to succeed, and returns what was printed.
#[track_caller]
pub fn run(script: &str, shares: impl IntoIterator<Item = Share>) -> String {
    finish(&start(script, shares))
}

/// The same, while it runs.
pub fn start(script: &str, shares: impl IntoIterator<Item = Share>) -> Session {
    // The script may be longer than a command line: the guest finds it in a share of its own.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("run"), format!("{MOUNT}{script}")).unwrap();
    let bootstrap = "mkdir -p /script; mount -t 9p -o trans=virtio,version=9p2000.L script /script && sh /script/run";
    let kernel = Flavour::Generic.kernel(&scripted(QUIET, bootstrap));
    let session = Session::start(|builder| {
        let builder = builder.disk(tools()).memory(512 << 20).kernel(kernel);
        let script = Share::new("script", dir.path()).read_only();
        shares.into_iter().fold(builder.share(script), |builder, share| builder.share(share))
    });
    // The folder is open by now, but its files are still to be read.
    std::mem::forget(dir);
    session
}

/// Waits until the guest has powered off, its script having succeeded, and returns what was printed.
#[track_caller]
pub fn finish(session: &Session) -> String {
    let end = session.end();
    let text = session.screen.text().replace('\r', "");
    assert_eq!(end.unwrap(), End::PowerOff, "{text}");
    assert!(text.contains("hk-test: exit 0"), "{text}");
    text
}

/// A share of a folder that can be written.
fn share(dir: &TempDir) -> Share {
    Share::new("work", dir.path())
}

/// What is in a file of the host.
#[track_caller]
fn content(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
