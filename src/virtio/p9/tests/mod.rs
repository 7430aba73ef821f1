//! The device with a server that does what a test says, under a driver that does what no kernel would.

mod at_once;
pub(crate) mod driver;
mod flush;
mod hostile;
mod life;
mod requests;
#[cfg(target_os = "linux")]
mod share_linux;
mod support;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::pool::THREADS;
use super::{Host, Local, P9};
use crate::fs::{TFLUSH, rlerror};
use crate::virtio::testing::Buffer;
use driver::{Driver, ROOM, Sent, message};
use support::{ECHO, FAULT, LIKELY, LONG, SURE, SURE_FAULT, Script};

/// A machine with nothing but the device.
struct Machine {
    driver: Driver,
    script: Arc<Script>,
}

impl Machine {
    fn new() -> Self {
        let script = Arc::new(Script::default());
        let local = Local::new(script.clone()).unwrap();
        Self { driver: Driver::new(P9::with("share", Host::Local(local))), script }
    }

    fn flush(&mut self, tag: u16, names: u16) -> Sent {
        self.send(TFLUSH, tag, &names.to_le_bytes())
    }

    /// The device works.
    fn check(&mut self) {
        let sent = self.send(ECHO, 0x7777, b"still here");
        assert_eq!(self.reply(sent), message(ECHO + 1, 0x7777, b"still here"));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A test that has failed is to end.
        if thread::panicking() {
            self.script.release_all();
        }
    }
}

impl Deref for Machine {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        &self.driver
    }
}

impl DerefMut for Machine {
    fn deref_mut(&mut self) -> &mut Driver {
        &mut self.driver
    }
}

fn flushed(tag: u16) -> Vec<u8> {
    message(TFLUSH + 1, tag, &[])
}
