//! Disks under a stock kernel: what it writes is there, what it discards is gone, whatever happens to the machine.

mod contents;
mod crash;
mod debian;
mod options;
mod shape;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyperkit::disk::{Disk, Engine};
use hyperkit::vm::VmBuilder;
use tempfile::TempDir;

use super::session::*;

/// The Debian that guests take tools from, as `/dev/vda`: `in-tools /dev/vda COMMAND`.
pub fn tools() -> Disk {
    Disk::raw(std::env::var_os("HK_ROOT").expect("HK_ROOT")).unwrap().read_only()
}

/// The same to be booted from and written to: what is written goes to an image that is made at `top`.
pub fn root(top: &Path) -> Disk {
    let base = std::env::var("HK_ROOT").expect("HK_ROOT");
    qemu_img(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base], top, []);
    Disk::qcow2(top).unwrap().backing(Disk::raw(&base).unwrap())
}

/// A folder on a disk's file system.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in(std::env::var_os("HK_SCRATCH").expect("HK_SCRATCH")).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2,
}

/// A disk image in the making.
#[derive(Debug)]
pub struct Image {
    pub path: PathBuf,
    pub format: Format,
}

impl Image {
    /// An empty one of `size` bytes.
    pub fn new(dir: &TempDir, name: &str, format: Format, size: u64) -> Self {
        let path = dir.path().join(name);
        match format {
            Format::Raw => File::create(&path).unwrap().set_len(size).unwrap(),
            Format::Qcow2 => {
                qemu_img(["create", "-q", "-f", "qcow2"], &path, [&size.to_string()]);
            }
        }
        Self { path, format }
    }

    pub fn disk(&self, engine: Engine) -> Disk {
        let disk = match self.format {
            Format::Raw => Disk::raw(&self.path),
            Format::Qcow2 => Disk::qcow2(&self.path),
        };
        disk.unwrap().engine(engine)
    }

    /// Bytes that the file takes up on the host.
    pub fn taken(&self) -> u64 {
        std::fs::metadata(&self.path).unwrap().blocks() * 512
    }

    /// Asks QEMU whether the image is sound.
    #[track_caller]
    pub fn check(&self) {
        if self.format == Format::Qcow2 {
            qemu_img(["check", "-q", "-f", "qcow2"], &self.path, []);
        }
    }

    /// The disk's bytes, by QEMU's reading of the image.
    #[track_caller]
    pub fn bytes(&self) -> Vec<u8> {
        if self.format == Format::Raw {
            return std::fs::read(&self.path).unwrap();
        }
        let raw = self.path.with_extension("raw");
        let convert = ["convert", "-f", "qcow2", "-O", "raw"];
        qemu_img(convert, &self.path, [raw.to_str().unwrap()]);
        let bytes = std::fs::read(&raw).unwrap();
        std::fs::remove_file(raw).unwrap();
        bytes
    }
}

/// Runs qemu-img, which has to succeed.
#[track_caller]
pub fn qemu_img<const M: usize, const N: usize>(before: [&str; M], path: &Path, after: [&str; N]) {
    let mut command = Command::new("qemu-img");
    let output = command.args(before).arg(path).args(after).output().expect("qemu-img");
    let (out, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "qemu-img {before:?}: {}\n{out}{error}", output.status);
}

/// A machine with the tools as `vda` and `disks` from `vdb` on.
pub fn machine(builder: VmBuilder, disks: impl IntoIterator<Item = Disk>) -> VmBuilder {
    let builder = builder.disk(tools()).memory(384 << 20);
    disks.into_iter().fold(builder, VmBuilder::disk)
}

/// Boots a guest with `disks`, runs `script`, which has to succeed, and returns what was printed.
#[track_caller]
pub fn run(script: &str, disks: impl IntoIterator<Item = Disk>) -> String {
    let kernel = Flavour::Cloud.kernel(&scripted(QUIET, script));
    let session = Session::start(|builder| machine(builder, disks).kernel(kernel));
    let end = session.end();
    let text = session.screen.text();
    assert_eq!(end.unwrap(), hyperkit::vm::End::PowerOff, "{text}");
    assert!(text.contains("hk-test: exit 0"), "{text}");
    text
}

/// A session with a shell, and the same disks.
pub fn session(disks: impl IntoIterator<Item = Disk>) -> Session {
    let kernel = Flavour::Cloud.kernel(QUIET);
    let mut session = Session::start(|builder| machine(builder, disks).kernel(kernel));
    session.wait_for_shell();
    session
}
