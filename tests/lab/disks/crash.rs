//! The machine's process is killed in the middle of writing; what the guest had synced is there.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::common::example;
use super::*;

/// Records on each disk, which the guest writes over and over.
const RECORDS: u64 = 64;
const RECORD: usize = 8192;

/// Writes record after record to both disks, each with its number all over, and says so once it is synced.
const LOAD: &str = r#"
    n=0
    while true; do
        n=$((n + 1))
        yes "record $n" | head -c 8192 > /tmp/record
        for disk in vda vdb; do
            dd if=/tmp/record of=/dev/$disk bs=8192 seek=$(((n * 37) % 64)) conv=notrunc,fsync 2>/dev/null
        done
        echo "synced $n."
    done
"#;

/// The record with number `n`.
fn record(n: u64) -> Vec<u8> {
    let line = format!("record {n}\n");
    line.bytes().cycle().take(RECORD).collect()
}

/// Boots a guest that writes, kills its process some time after it has begun, and returns the last number that the
/// guest saw synced.
fn write_until_killed(disks: [String; 2], after: u64, pause: Duration) -> u64 {
    let (kernel, initrd) = Flavour::Cloud.files();
    let mut child = Command::new(example("boot"))
        .arg("--kernel")
        .arg(kernel)
        .arg("--initrd")
        .arg(initrd)
        .args(["--memory", "160M", "--cmdline", &scripted(QUIET, LOAD)])
        .args(disks.iter().flat_map(|disk| ["--disk", disk]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    let mut bytes = [0; 256];
    let mut output = child.stdout.take().unwrap();
    let last = |text: &str| {
        let numbers = text.split("synced ").skip(1).filter_map(|rest| rest.split_once('.'));
        numbers.filter_map(|(number, _)| number.parse::<u64>().ok()).last().unwrap_or(0)
    };
    while last(&text) < after {
        let count = output.read(&mut bytes).unwrap();
        assert!(count > 0, "the machine ended by itself: {text}");
        text += &String::from_utf8_lossy(&bytes[..count]);
    }
    std::thread::sleep(pause);
    // SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();
    output.read_to_end(&mut Vec::new()).map(drop).unwrap();
    last(&text)
}

/// Everything up to `synced` is there; at each place, what came later may be there instead.
#[track_caller]
fn verify(image: &Image, synced: u64) {
    let bytes = image.bytes();
    for place in 0..RECORDS {
        let newest = (1..=synced).rev().find(|n| (n * 37) % RECORDS == place);
        let found = &bytes[place as usize * RECORD..][..RECORD];
        let Some(newest) = newest else { continue };
        let as_synced = found == record(newest);
        // A write that was under way may be there in part: but only of a later record.
        let later = || {
            let later = newest + RECORDS;
            later > synced
                && found
                    .iter()
                    .zip(record(newest))
                    .zip(record(later))
                    .all(|((&found, old), new)| found == old || found == new)
        };
        assert!(as_synced || later(), "record {newest} of {synced} is lost in {image:?}");
    }
}

/// Twenty-five of the fifty with `cargo xtask test --long`, so that two machines share them.
fn crash(ring: Format, seed: u64) {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let threads = if ring == Format::Raw { Format::Qcow2 } else { Format::Raw };
    let images = [
        (Image::new(&dir, "ring", ring, RECORDS * RECORD as u64), "io_uring"),
        (Image::new(&dir, "threads", threads, RECORDS * RECORD as u64), "threads"),
    ];
    let mut random = seed;
    for round in 0..long_or(25, 4) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let after = 1 + (random >> 40) % 30;
        let pause = Duration::from_micros((random >> 20) % 60_000);
        for (image, _) in &images {
            // From nothing, so that clusters are allocated all the time.
            std::fs::remove_file(&image.path).unwrap();
            let name = image.path.file_name().unwrap().to_str().unwrap();
            Image::new(&dir, name, image.format, RECORDS * RECORD as u64);
        }
        let disk = |(image, engine): &(Image, &str)| {
            let format = format!("{:?}", image.format).to_lowercase();
            format!("{},format={format},engine={engine}", image.path.display())
        };
        let synced = write_until_killed([disk(&images[0]), disk(&images[1])], after, pause);
        for (image, _) in &images {
            sound(image, round);
            verify(image, synced);
        }
    }
}

/// No corruption. Clusters that were allocated and not yet used are what a kill may leave behind; they are taken
/// back, and then the image is spotless.
#[track_caller]
fn sound(image: &Image, round: u32) {
    if image.format != Format::Qcow2 {
        return;
    }
    let check = ["check", "-f", "qcow2"];
    let output = Command::new("qemu-img").args(check).arg(&image.path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // 3: leaked clusters, and nothing else.
    let clean = matches!(output.status.code(), Some(0 | 3));
    assert!(clean, "round {round}: {text}{}", String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(3) {
        qemu_img(["check", "-q", "-f", "qcow2", "-r", "leaks"], &image.path, []);
        image.check();
    }
}

#[test]
#[ignore = "takes long"]
fn what_was_synced_survives_a_kill_raw_through_io_uring_and_qcow2_through_threads() {
    crash(Format::Raw, 1);
}

#[test]
fn what_was_synced_survives_a_kill_qcow2_through_io_uring_and_raw_through_threads() {
    crash(Format::Qcow2, 2);
}
