//! A tag whose requests go to another process's server: diod, Debian's own.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyperkit::fs::RelayTo;

use super::*;

/// A server of `dir`, which ends with this.
struct Diod(Child);

impl Diod {
    #[track_caller]
    fn start(port: u16, dir: &TempDir) -> Self {
        let child = Command::new("/usr/sbin/diod")
            .args(["--foreground", "--no-auth", "--logdest", "stderr"])
            .args(["--listen", &format!("127.0.0.1:{port}"), "--export"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let diod = Self(child);
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(Instant::now() < end, "diod does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        diod
    }
}

impl Drop for Diod {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn another_processs_server_is_mounted_killed_and_mounted_again() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    std::fs::write(dir.path().join("file"), "by diod\n").unwrap();
    // A port that was free a moment ago.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let diod = Diod::start(port, &dir);
    let script = format!(
        r#"
        mount_it() {{ mount -t 9p -o trans=virtio,version=9p2000.L,uname=root,aname={dir} relayed /mnt/r; }}
        mkdir -p /mnt/r
        mount_it || exit 1
        cat /mnt/r/file
        dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null
        cp /tmp/data /mnt/r/data && cmp /tmp/data /mnt/r/data && echo "same bytes"
        echo "kill it"
        while cat /mnt/r/file >/dev/null 2>&1; do sleep 0.2; done
        cat /mnt/r/file 2>&1 | grep -o "Input/output error"
        umount /mnt/r
        echo "start it"
        for _ in $(seq 50); do mount_it 2>/dev/null && break; sleep 0.2; done
        cmp /tmp/data /mnt/r/data && echo "same again"
        umount /mnt/r
        "#,
        dir = dir.path().display()
    );
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let session = start(&script, [Share::relay("relayed", RelayTo::tcp(address))]);
    session.screen.wait_for("kill it", 0);
    drop(diod);
    session.screen.wait_for("start it", 0);
    let _diod = Diod::start(port, &dir);
    let text = finish(&session);
    for line in ["by diod\nsame bytes\n", "Input/output error\n", "same again\n"] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
}
