//! Descriptors that others share, and that must not be made non-blocking.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::endpoint::Sink;
use super::super::port::Waker;
use super::super::queue::Queue;
use super::*;

/// Writes to `fd` until `poll` calls it full, on a thread that may get stuck; then reads `reader` and goes on, until
/// all of `bytes` is written and read.
fn there_and_through(fd: OwnedFd, mut reader: impl Read + Send + 'static, len: usize) {
    let bytes = pattern(len);
    let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
    let same = fd.try_clone().unwrap();
    let queue = Arc::new(Queue::for_loop(Arc::new(Waker::new().unwrap())));
    let sink = Sink::shared(fd, queue.clone()).unwrap();
    let (done, finished) = channel();
    let expected = bytes.clone();
    std::thread::spawn(move || {
        let (mut pushed, mut read) = (0, Vec::<u8>::new());
        let mut fills = 0;
        while read.len() < bytes.len() {
            pushed += (bytes.len() - pushed) - queue.push(&bytes[pushed..]);
            let ready = poll(&mut [PollFd::new(&sink, PollFlags::OUT)], Some(&Timespec::default()));
            if queue.len() > 0 && ready == Ok(1) {
                sink.pump();
            } else {
                // Full: make a little room, less than would be written at once.
                let mut some = [0; 5000];
                let count = reader.read(&mut some).unwrap();
                read.extend(&some[..count]);
                fills += 1;
            }
        }
        done.send((read, fills)).unwrap();
    });
    let (read, fills) = finished.recv_timeout(PATIENCE).expect("a write has blocked");
    assert!(read == expected);
    assert!(fills > 10, "it was never full");
    assert_eq!(rustix::fs::fcntl_getfl(&same).unwrap(), flags, "changed for everybody");
}

#[test]
fn a_shared_pipe_never_blocks() {
    let (reader, writer) = std::io::pipe().unwrap();
    there_and_through(writer.into(), reader, 1 << 20);
}

#[test]
fn a_shared_socket_never_blocks() {
    let (reader, writer) = UnixStream::pair().unwrap();
    there_and_through(writer.into(), reader, 2 << 20);
}

/// Writing to it goes through an open file of our own.
#[test]
fn a_shared_terminal_never_blocks() {
    let pty = crate::sys::terminal::PtyPair::open().unwrap();
    let flags = rustix::fs::fcntl_getfl(&pty.master).unwrap();
    rustix::fs::fcntl_setfl(&pty.master, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
    there_and_through(pty.slave, std::fs::File::from(pty.master), 1 << 19);
}
