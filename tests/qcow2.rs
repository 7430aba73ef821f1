//! qcow2 disks as a program that uses the crate sees them, held against `qemu-img`.

#![cfg(feature = "qcow2")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hyperkit::disk::{BlockBackend, BufferList, Disk, Error, Flush, Qcow2};

/// One test at a time: a program that is started has the files that are open here for a moment, with the locks on them.
static TURN: Mutex<()> = Mutex::new(());

struct Folder(tempfile::TempDir, #[expect(dead_code, reason = "kept")] MutexGuard<'static, ()>);

impl Folder {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A folder in which `qemu-img` runs; `None`, and a word on it, where there is none.
fn folder() -> Option<Folder> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match Command::new("qemu-img").arg("--version").output() {
        Ok(_) => Some(Folder(tempfile::tempdir().unwrap(), turn)),
        Err(error) => {
            eprintln!("skipped: qemu-img (package qemu-utils): {error}");
            None
        }
    }
}

fn qemu_img(folder: &Path, arguments: &str) -> String {
    let arguments: Vec<_> = arguments.split(' ').collect();
    let output = Command::new("qemu-img").args(&arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "qemu-img {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(disk: Result<Disk, Error>) -> String {
    disk.and_then(Disk::open).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn what_is_written_is_in_the_image() {
    let Some(folder) = folder() else { return };
    qemu_img(folder.path(), "create -q -f qcow2 disk 8M");
    let path = folder.path().join("disk");
    let disk = Qcow2::open_alone(&path, false, Flush::Fsync).unwrap();
    let mut bytes: Vec<u8> = (0..3 << 20).map(|at| (at >> 9) as u8).collect();
    disk.write(5 << 20, BufferList::from(&mut bytes[..]).all()).unwrap();
    disk.write_zeroes(6 << 20, 1 << 20, true).unwrap();
    disk.flush().unwrap();
    // While it is in use, nobody else has it.
    let other = Qcow2::open_alone(&path, true, Flush::None);
    assert!(matches!(other, Err(Error::Locked { .. })));
    assert!(refused(Disk::raw(&path)).contains("is in use as a disk"));
    let identity = disk.properties().identity;
    drop(disk);

    let mut expected = vec![0; 5 << 20];
    expected.extend(&bytes);
    expected[6 << 20..7 << 20].fill(0);
    std::fs::write(folder.path().join("expected"), expected).unwrap();
    qemu_img(folder.path(), "check -f qcow2 disk");
    qemu_img(folder.path(), "compare -f raw -F qcow2 expected disk");

    std::fs::rename(&path, folder.path().join("moved")).unwrap();
    let moved = Qcow2::open_alone(&folder.path().join("moved"), true, Flush::None).unwrap();
    assert_eq!(moved.properties().identity, identity);
    assert!(identity.is_some_and(|identity| identity.len() <= 20));
}

#[test]
fn nothing_is_opened_because_an_image_names_it() {
    let Some(folder) = folder() else { return };
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    std::fs::write(path("base"), [0x42; 1 << 20]).unwrap();
    qemu_img(folder.path(), "create -q -f qcow2 -b base -F raw disk 1M");

    let error = refused(Disk::qcow2(path("disk")));
    assert!(error.contains("\"base\" (raw)") && error.contains("`.backing("), "{error}");
    let disk = || Disk::qcow2(path("disk"));
    disk().unwrap().backing(Disk::raw(path("base")).unwrap()).open().unwrap();
    let error = refused(disk().map(|disk| disk.backing(Disk::qcow2(path("base")).unwrap())));
    assert!(error.contains("is raw by its word, not qcow2"), "{error}");
    let error = refused(Disk::qcow2(path("base")));
    assert!(error.contains("if it is a raw image, say so"), "{error}");

    // A disk's guest can write whatever it likes to a raw disk: it stays raw.
    std::fs::copy(path("disk"), path("guest")).unwrap();
    Disk::raw(path("guest")).unwrap().open().unwrap();

    qemu_img(folder.path(), "create -q -f qcow2 alone 1M");
    let alone = Disk::qcow2(path("alone")).map(|d| d.backing(Disk::raw(path("base")).unwrap()));
    let error = refused(alone);
    assert!(error.contains("but it has none"), "{error}");
}

#[test]
fn kinds_that_are_not_supported() {
    let Some(folder) = folder() else { return };
    for (options, why) in [
        ("-o extended_l2=on", "subclusters"),
        ("-o data_file=data", "external data file"),
        ("-o compression_type=zstd", "compressed in another way"),
    ] {
        qemu_img(folder.path(), &format!("create -q -f qcow2 {options} disk 1M"));
        let error = refused(Disk::qcow2(folder.path().join("disk")));
        assert!(error.contains(why), "{error}");
        assert!(error.contains("no usable qcow2 image"), "{error}");
    }
}
