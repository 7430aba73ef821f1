//! The options of the example command that are about disks.

use std::io::Read;
use std::process::Stdio;

use super::super::command::boot;
use super::*;

#[test]
fn disks_of_every_sort_are_what_the_options_say() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let raw = Image::new(&dir, "with,comma", Format::Raw, 1 << 20);
    let qcow2 = Image::new(&dir, "top", Format::Qcow2, 2 << 20);
    let media = Image::new(&dir, "media.iso", Format::Raw, 4 << 20);
    let path = |image: &Image| image.path.to_str().unwrap().replace(',', ",,");
    let script = "cd /sys/block; for d in vda vdb vdc vdd; do \
                  echo $d $(cat $d/size $d/ro $d/serial) $(ls $d/mq | wc -l); done";
    let mut child = boot(Flavour::Cloud, &scripted(QUIET, script))
        .args(["--disk", &format!("{},serial=first,queues=3,engine=threads", path(&raw))])
        .args(["--disk", &format!("{},format=qcow2,flush=none,serial=second", path(&qcow2))])
        .args(["--disk", &format!("{},ro,serial=third,iops=500,mbps=50", path(&media))])
        .args(["--cdrom", &path(&media), "--cpus", "2"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    // A queue that no vCPU would use is not set up.
    for line in
        ["vda 2048 0 first 2", "vdb 4096 0 second 2", "vdc 8192 1 third 2", "vdd 8192 1 hk-"]
    {
        assert!(text.contains(line), "no {line:?} in {text}");
    }

    // A second machine cannot have a disk that is being written.
    let _first = raw.disk(hyperkit::disk::Engine::Auto).open().unwrap();
    let output =
        boot(Flavour::Cloud, "").args(["--disk", &path(&raw)]).stdin(Stdio::null()).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(66), "{said}");
    assert!(said.contains("in use"), "{said}");
}
