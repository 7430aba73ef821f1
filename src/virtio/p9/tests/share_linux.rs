//! The device with a folder, and a file whose opening takes as long as a test wants.

use std::fs::{self, File};

use super::*;
use crate::fs::Share;
use crate::fs::testing::Lease;

const TLOPEN: u8 = 12;
const TGETATTR: u8 = 24;
const TVERSION: u8 = 100;
const TATTACH: u8 = 104;
const TWALK: u8 = 110;

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat()
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Sends a message that is answered as it should be.
fn ask(driver: &mut Driver, kind: u8, body: &[u8]) -> Vec<u8> {
    let sent = driver.send(kind, 1, body);
    let reply = driver.reply(sent);
    assert_eq!(reply[4], kind + 1);
    reply
}

/// A driver that has the fid 0 for the folder, and for each file one from 1 on.
fn mounted(dir: &tempfile::TempDir, files: &[&str]) -> Driver {
    let device = P9::new(Share::new("share", dir.path()).open().unwrap()).unwrap();
    let mut driver = Driver::new(device);
    ask(&mut driver, TVERSION, &[numbers(&[8192]), text("9P2000.L")].concat());
    let names = [text("root"), text("")].concat();
    let attach = [numbers(&[0, u32::MAX]), names, numbers(&[0])].concat();
    ask(&mut driver, TATTACH, &attach);
    for (fid, name) in (1..).zip(files) {
        fs::write(dir.path().join(name), name).unwrap();
        let walk = [numbers(&[0, fid]), vec![1, 0], text(name)].concat();
        ask(&mut driver, TWALK, &walk);
    }
    driver
}

#[test]
fn a_file_that_takes_long_to_open_holds_up_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = mounted(&dir, &["slow", "other"]);
    for _ in 0..3 {
        let file = File::options().write(true).open(dir.path().join("slow")).unwrap();
        let lease = Lease::on(file);
        ask(&mut driver, TWALK, &[numbers(&[1, 3]), vec![0, 0]].concat());
        let slow = driver.send(TLOPEN, 9, &numbers(&[3, 0]));
        lease.wait_until_somebody_waits();
        for fid in [0, 1, 2, 3] {
            let body = [numbers(&[fid]), vec![0xff; 8]].concat();
            assert_eq!(ask(&mut driver, TGETATTR, &body).len(), 7 + 153);
        }
        ask(&mut driver, TWALK, &[numbers(&[2, 4]), vec![0, 0]].concat());
        ask(&mut driver, TLOPEN, &numbers(&[4, 1]));
        ask(&mut driver, 120, &numbers(&[4]));
        assert_eq!(driver.ring.used(), None, "it has been opened");
        drop(lease);
        assert_eq!(driver.reply(slow)[4], TLOPEN + 1);
        ask(&mut driver, 120, &numbers(&[3]));
    }
}
