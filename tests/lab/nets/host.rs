//! What is on the host's side of a card: interfaces, and passt.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::session::PATIENCE;

/// A tap, for as long as this lives.
pub struct Interface(&'static str);

impl Interface {
    /// Makes it, gives it an address, and brings it up.
    pub fn new(name: &'static str, address: &str) -> Self {
        ip(&format!("tuntap add {name} mode tap"));
        let interface = Self(name);
        ip(&format!("address add {address} dev {name}"));
        ip(&format!("link set {name} up"));
        interface
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        // The test may have deleted it already.
        let _ = Command::new("ip").args(["link", "delete", self.0]).stderr(Stdio::null()).status();
    }
}

#[track_caller]
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// passt, until this is dropped. It gives its guest the address of an interface that has the default route.
pub struct Passt(Child);

impl Passt {
    pub fn start(path: &Path, interface: &str) -> Self {
        let _ = std::fs::remove_file(path);
        let mut command = Command::new("passt");
        command.args(["--foreground", "--ipv4-only", "--runas", "0", "--quiet"]);
        command.args(["--interface", interface, "--socket"]).arg(path);
        let passt = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let limit = Instant::now() + PATIENCE;
        while !path.exists() {
            assert!(Instant::now() < limit, "passt has made no socket");
            std::thread::sleep(Duration::from_millis(20));
        }
        passt
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
