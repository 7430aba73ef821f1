//! The relay between a driver and a server that the test plays.

mod death;
mod lies;
mod support;

use std::io::Write;
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::fs::envelope::TWRITE;
use crate::virtio::p9::tests::driver::{ROOM, message};
use crate::virtio::testing::Buffer;
use support::{both, version};

const L: &str = "9P2000.L";
const MSIZE: u32 = 8192;
/// Some messages.
const TREAD: u8 = 116;
const RREAD: u8 = 117;
const TSTAT: u8 = 124;
const RSTAT: u8 = 125;

fn refused(tag: u16) -> Vec<u8> {
    Dialect::Linux.refusal(tag)
}

#[test]
fn streams_that_block_wait_beside_short_requests() {
    both(|place| {
        let mut driver = place.driver();
        let mut peer = place.session(&mut driver, L, MSIZE);
        let streams = [1, 2, 3].map(|tag| driver.send(TREAD, tag, b"a stream"));
        for tag in 1..=3 {
            assert_eq!(peer.take(), message(TREAD, tag, b"a stream"));
        }
        for tag in 10..60 {
            let sent = driver.send(TSTAT, tag, &[tag as u8; 50]);
            assert_eq!(peer.take(), message(TSTAT, tag, &[tag as u8; 50]));
            peer.send(RSTAT, tag, b"at once");
            assert_eq!(driver.reply(sent), message(RSTAT, tag, b"at once"));
        }
        driver.quiet();
        for (tag, stream) in [(2, streams[1]), (3, streams[2]), (1, streams[0])] {
            peer.send(RREAD, tag, b"an event");
            assert_eq!(driver.reply(stream), message(RREAD, tag, b"an event"));
        }
    });
}

/// 9P2000 and 9P2000.u, and one that is made up: nothing but errors differs.
#[test]
fn every_dialect_is_passed_on() {
    both(|place| {
        for dialect in ["9P2000", "9P2000.u", "9P2030.X"] {
            let mut driver = place.driver();
            let mut peer = place.session(&mut driver, dialect, MSIZE);
            let sent = driver.send(250, 1, b"whatever that is");
            assert_eq!(peer.take(), message(250, 1, b"whatever that is"));
            peer.send(3, 1, b"and what that is");
            assert_eq!(driver.reply(sent), message(3, 1, b"and what that is"));
        }
    });
}

#[test]
fn replies_come_in_any_pieces() {
    both(|place| {
        let mut driver = place.driver();
        let mut peer = place.session(&mut driver, L, MSIZE);
        let sent = [1, 2, 3].map(|tag| driver.send(TREAD, tag, &[]));
        let replies = [(1, &b""[..]), (2, b"some bytes"), (3, &[7; 1000])]
            .map(|(tag, body)| message(RREAD, tag, body));
        let stream = replies.concat();
        for byte in &stream[..60] {
            peer.0.write_all(&[*byte]).unwrap();
            thread::yield_now();
        }
        peer.0.write_all(&stream[60..]).unwrap();
        for (sent, reply) in sent.into_iter().zip(replies) {
            assert_eq!(driver.reply(sent), reply);
        }
    });
}

/// A server that does not read for a while has requests wait, none of which is lost or cut.
#[test]
fn a_server_that_does_not_read_has_requests_wait() {
    both(|place| {
        let mut driver = place.driver();
        let mut peer = place.session(&mut driver, L, 1 << 20);
        // The same 768 KiB in every message: together more than any socket holds.
        let memory = driver.guest.memory.clone();
        let body: Vec<u8> = (0..1_u32 << 18).map(|n| (n.wrapping_mul(40_503) >> 9) as u8).collect();
        memory.write_slice(&body, GuestAddress(16 << 20)).unwrap();
        let size = 7 + 3 * body.len() as u32;
        let mut heads = Vec::new();
        for tag in 0..20_u16 {
            let at = driver.pages + 0x2000 * u64::from(tag);
            let header = Header { size, kind: 150, tag }.encode();
            memory.write_slice(&header, GuestAddress(at)).unwrap();
            let data = Buffer::Out(16 << 20, body.len() as u32);
            let buffers =
                [Buffer::Out(at, 7), data, data, data, Buffer::In(at + ROOM as u64, ROOM as u32)];
            heads.push(driver.ring.request_indirect(at + 0x1000, &buffers));
            driver.kick();
        }
        driver.quiet();
        for tag in 0..20 {
            let request = peer.take();
            assert_eq!(request[..7], Header { size, kind: 150, tag }.encode());
            assert!(request[7..].chunks(body.len()).all(|chunk| chunk == body), "other bytes");
            peer.send(151, tag, &[]);
        }
        for head in heads {
            assert_eq!(driver.wait(), (head, 7));
        }
    });
}

#[test]
fn a_flush_is_passed_on_and_what_it_names_is_given_back() {
    both(|place| {
        let mut driver = place.driver();
        let mut peer = place.session(&mut driver, L, MSIZE);
        // The server forgets the request.
        let stream = driver.send(TREAD, 1, &[]);
        assert_eq!(peer.take(), message(TREAD, 1, &[]));
        let [flush, second] = [2, 3].map(|tag| {
            let sent = driver.send(TFLUSH, tag, &[1, 0]);
            assert_eq!(peer.take(), message(TFLUSH, tag, &[1, 0]));
            sent
        });
        driver.quiet();
        peer.send(RFLUSH, 2, &[]);
        assert_eq!(driver.reply(stream), b"");
        assert_eq!(driver.reply(flush), message(RFLUSH, 2, &[]));
        // The tag is free again, and this is not the one that the second flush names.
        let next = driver.send(TREAD, 1, &[]);
        peer.take();
        peer.send(RFLUSH, 3, &[]);
        assert_eq!(driver.reply(second), message(RFLUSH, 3, &[]));
        driver.quiet();
        peer.send(RREAD, 1, b"news");
        assert_eq!(driver.reply(next), message(RREAD, 1, b"news"));

        // The reply was on its way.
        let stream = driver.send(TREAD, 1, &[]);
        peer.take();
        let flush = driver.send(TFLUSH, 2, &[1, 0]);
        peer.send(RREAD, 1, b"in time");
        peer.send(RFLUSH, 2, &[]);
        assert_eq!(driver.reply(stream), message(RREAD, 1, b"in time"));
        assert_eq!(driver.reply(flush), message(RFLUSH, 2, &[]));
    });
}

#[test]
fn the_size_of_a_write_is_repaired_as_old_kernels_need_it() {
    both(|place| {
        let mut driver = place.driver();
        let mut peer = place.session(&mut driver, L, MSIZE);
        let write = |count: u32, data: &[u8], size: u32| {
            let body = [&[0; 12][..], &count.to_le_bytes(), data].concat();
            let mut bytes = message(TWRITE, 1, &body);
            bytes[..4].copy_from_slice(&size.to_le_bytes());
            bytes
        };
        for (bytes, len) in [
            (write(5, b"bytes", 23), 28),
            // Right as it is; and others that are not the kernel's mistake.
            (write(5, b"bytes", 28), 28),
            (write(0, b"", 23), 23),
            (write(6, b"bytes", 23), 23),
            (write(5, b"bytes", 24), 24),
            (write(u32::MAX, b"bytes", 23), 23),
        ] {
            let sent = driver.send_bytes(&bytes, ROOM);
            let request = peer.take();
            assert_eq!(request.len(), len);
            assert_eq!(request[4..], bytes[4..len]);
            peer.send(TWRITE + 1, 1, &[5, 0, 0, 0]);
            assert_eq!(driver.reply(sent), message(TWRITE + 1, 1, &[5, 0, 0, 0]));
        }
    });
}

#[test]
fn a_pause_does_not_wait_for_the_server() {
    both(|place| {
        let mut driver = place.driver();
        let mut peer = place.session(&mut driver, L, MSIZE);
        let stream = driver.send(TREAD, 1, &[]);
        peer.take();
        driver.guest.transport.pause();
        peer.send(RREAD, 1, b"while paused");
        thread::sleep(Duration::from_millis(10));
        assert_eq!(driver.ring.used(), None);
        driver.guest.transport.resume();
        assert_eq!(driver.reply(stream), message(RREAD, 1, b"while paused"));
    });
}

#[test]
fn a_reset_ends_the_session() {
    both(|place| {
        let mut driver = place.driver();
        for _ in 0..3 {
            let mut peer = place.session(&mut driver, L, MSIZE);
            driver.send(TREAD, 1, &[]);
            peer.take();
            // Half a reply.
            peer.0.write_all(&message(RREAD, 1, b"too late")[..10]).unwrap();
            driver.restart();
            peer.wait_end();
            driver.quiet();
            let sent = driver.send(TREAD, 1, &[]);
            // What dialect it would be nobody has said since; the last one is as good as any.
            assert_eq!(driver.reply(sent), refused(1));
        }
        let peer = place.session(&mut driver, L, MSIZE);
        drop(driver);
        peer.wait_end();
    });
}

#[test]
fn a_second_version_ends_what_came_before_it() {
    both(|place| {
        let mut driver = place.driver();
        let mut peer = place.session(&mut driver, L, MSIZE);
        let old = [1, 2].map(|tag| driver.send(TREAD, tag, &[]));
        let again = driver.send(TVERSION, 0xffff, &version(4096, L));
        (0..3).for_each(|_| drop(peer.take()));
        // One is still answered.
        peer.send(RREAD, 2, b"last");
        assert_eq!(driver.reply(old[1]), message(RREAD, 2, b"last"));
        peer.send(RVERSION, 0xffff, &version(4096, L));
        assert_eq!(driver.reply(old[0]), refused(1));
        assert_eq!(driver.reply(again), message(RVERSION, 0xffff, &version(4096, L)));
        // Its tag is free, and means the new one.
        let new = driver.send(TREAD, 1, &[]);
        peer.take();
        peer.send(RREAD, 1, b"new");
        assert_eq!(driver.reply(new), message(RREAD, 1, b"new"));
    });
}
