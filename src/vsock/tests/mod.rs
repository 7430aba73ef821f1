//! The host side without a device: the tests are what a device would be.

mod api;
mod dial;
mod files;
mod lines;
mod options;
mod process;
#[cfg(target_os = "linux")]
mod system_linux;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use mio::{Events, Poll};
use tempfile::TempDir;

use super::*;
use crate::virtio::Sources;

/// Longer than anything takes that is to happen.
const LONG: Duration = Duration::from_secs(30);

/// The device's place.
struct Rig {
    poll: Poll,
    open: OpenVsock,
    wants: VecDeque<Want>,
}

impl Rig {
    fn new(vsock: Vsock) -> Self {
        Self::of(vsock.open().unwrap())
    }

    fn of(mut open: OpenVsock) -> Self {
        let poll = Poll::new().unwrap();
        open.start(&Sources::new(poll.registry())).unwrap();
        Self { poll, open, wants: VecDeque::new() }
    }

    /// One turn of the event loop; whether there was anything to do.
    fn turn(&mut self, wait: Duration) -> bool {
        let now = Instant::now();
        let until = self.open.deadline().map(|until| until.saturating_duration_since(now));
        let mut events = Events::with_capacity(64);
        self.poll.poll(&mut events, Some(until.map_or(wait, |until| until.min(wait)))).unwrap();
        let (sources, mut wants) = (Sources::new(self.poll.registry()), Vec::new());
        for event in &events {
            self.open.ready(event.into(), &sources, &mut wants);
        }
        let late = self.open.deadline().is_some_and(|until| until <= Instant::now());
        if late {
            self.open.timer(&sources, &mut wants);
        }
        self.wants.extend(wants);
        late || !events.is_empty()
    }

    /// Does what is to be done now.
    fn settle(&mut self) {
        while self.turn(Duration::ZERO) {}
    }

    /// The next thing that the host wants.
    fn want(&mut self) -> Want {
        let until = Instant::now() + LONG;
        loop {
            if let Some(want) = self.wants.pop_front() {
                return want;
            }
            assert!(Instant::now() < until, "nothing is wanted");
            self.turn(LONG);
        }
    }

    fn call(&mut self) -> Call {
        match self.want() {
            Want::Connect(call) => call,
            want => panic!("{want:?}"),
        }
    }

    /// Asserts that nothing is wanted, and all that was said has been heard.
    fn nothing(&mut self) {
        self.settle();
        assert!(self.wants.is_empty(), "{:?}", self.wants);
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// What there is to read now.
fn read_now(socket: &OwnedFd) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    match rustix::io::read(socket, &mut bytes) {
        Ok(count) => bytes.truncate(count),
        Err(error) => panic!("{error}"),
    }
    bytes
}

/// Whether the other side has closed: nothing will come any more.
fn is_closed(mut stream: &UnixStream) -> bool {
    stream.set_read_timeout(Some(LONG)).unwrap();
    match stream.read(&mut [0; 16]) {
        Ok(count) => count == 0,
        // What was said was not all read.
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// Whether the other side is there, and has said nothing.
fn is_open(mut stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let open = stream.read(&mut [0; 16]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    open
}
