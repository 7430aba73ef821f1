//! What is no message ends the connection, not the machine; and no guest gets to the server with it.

use super::*;

#[test]
fn a_server_that_lies_loses_the_connection() {
    both(|place| {
        let whole = |size: u32, kind, tag| Header { size, kind, tag }.encode();
        for lie in [
            whole(0, RREAD, 1),
            whole(6, RREAD, 1),
            // More than there is room for, than was agreed to, and than there is.
            whole(ROOM as u32 + 1, RREAD, 1),
            whole(u32::MAX, RREAD, 1),
            whole(7, RREAD, 2),
            whole(7, RVERSION, 0xffff),
            *b"HTTP/1.",
        ] {
            // Another one each time: the same would wait longer and longer.
            let mut driver = place.driver();
            let mut peer = place.session(&mut driver, L, MSIZE);
            let sent = driver.send(TREAD, 1, &[]);
            peer.take();
            peer.0.write_all(&lie).unwrap();
            assert_eq!(driver.reply(sent), refused(1));
            peer.wait_end();
        }
        let mut driver = place.driver();
        let mut peer = place.session(&mut driver, L, 1000);
        let sent = [1, 2].map(|tag| driver.send(TREAD, tag, &[]));
        (0..2).for_each(|_| drop(peer.take()));
        peer.send(RREAD, 1, &[3; 993]);
        assert_eq!(driver.reply(sent[0]).len(), 1000);
        peer.0.write_all(&whole(1001, RREAD, 2)).unwrap();
        assert_eq!(driver.reply(sent[1]), refused(2));
        peer.wait_end();
    });
}

#[test]
fn a_reply_to_what_was_answered_already_is_a_lie() {
    both(|place| {
        let mut driver = place.driver();
        let mut peer = place.session(&mut driver, L, MSIZE);
        let sent = driver.send(TREAD, 1, &[]);
        peer.take();
        peer.send(RREAD, 1, &[]);
        peer.send(RREAD, 1, &[]);
        assert_eq!(driver.reply(sent), message(RREAD, 1, &[]));
        peer.wait_end();
        driver.quiet();
    });
}

#[test]
fn requests_that_are_no_messages_do_not_reach_the_server() {
    both(|place| {
        let mut driver = place.driver();
        let mut peer = place.session(&mut driver, L, 1000);
        let sized = |size: u32, len: usize| {
            let mut bytes = message(TREAD, 1, &vec![9; len]);
            bytes[..4].copy_from_slice(&size.to_le_bytes());
            bytes
        };
        for bytes in [
            sized(0, 10),
            sized(6, 10),
            sized(18, 10),
            sized(u32::MAX, 10),
            // Longer than was agreed to.
            sized(1001, 994),
        ] {
            let sent = driver.send_bytes(&bytes, ROOM);
            assert_eq!(driver.reply(sent), refused(1));
        }
        // What lies behind the message is no part of it.
        let sent = driver.send_bytes(&sized(10, 500), ROOM);
        assert_eq!(peer.take(), sized(10, 3));
        // Its tag is in use.
        let twin = driver.send(TSTAT, 1, &[]);
        assert_eq!(driver.reply(twin), refused(1));
        peer.send(RREAD, 1, &[]);
        assert_eq!(driver.reply(sent), message(RREAD, 1, &[]));
        // An error that there is no room for is none.
        let sent = driver.send_bytes(&sized(0, 10), 10);
        assert_eq!(driver.reply(sent), b"");
    });
}
