//! Servers that are not there, go, and come back.

use super::*;

/// Requests that a server dies with fail, and so do all others, until the guest mounts again.
#[test]
fn a_server_that_dies_takes_its_session_with_it_and_nothing_else() {
    both(|place| {
        for (dialect, number) in [(L, 7), ("9P2000.u", 107), ("9P2000", 107)] {
            let mut driver = place.driver();
            let mut peer = place.session(&mut driver, dialect, MSIZE);
            let sent = [1, 2, 3].map(|tag| driver.send(TREAD, tag, &[]));
            (0..3).for_each(|_| drop(peer.take()));
            // In the middle of a reply.
            peer.0.write_all(&message(RREAD, 2, b"half")[..9]).unwrap();
            drop(peer);
            for index in [1, 0, 2] {
                let reply = driver.reply(sent[index]);
                assert_eq!(reply[4..7], [number, index as u8 + 1, 0]);
                let dialect = dialect::version(&[&[0; 7], &version(0, dialect)[..]].concat());
                assert_eq!(reply, dialect.unwrap().1.refusal(index as u16 + 1));
            }
            // A server is there, but knows nothing of the session.
            let late = driver.send(TREAD, 4, &[]);
            assert_eq!(driver.reply(late)[4], number);
            let flush = driver.send(TFLUSH, 5, &4_u16.to_le_bytes());
            assert_eq!(driver.reply(flush), message(RFLUSH, 5, &[]));
            let mut peer = place.session(&mut driver, dialect, MSIZE);
            let sent = driver.send(TREAD, 1, &[]);
            peer.take();
            peer.send(RREAD, 1, b"back");
            assert_eq!(driver.reply(sent), message(RREAD, 1, b"back"));
        }
    });
}

#[test]
fn a_mount_waits_for_a_server_that_comes_later() {
    both(|place| {
        place.close();
        let mut driver = place.driver();
        let early = driver.send(TREAD, 1, &[]);
        assert_eq!(driver.reply(early), Dialect::Plain.refusal(1));
        let sent = driver.send(TVERSION, 0xffff, &version(MSIZE, L));
        driver.quiet();
        thread::sleep(Duration::from_millis(150));
        place.listen();
        let mut peer = place.accept();
        peer.take();
        peer.send(RVERSION, 0xffff, &version(MSIZE, L));
        assert_eq!(driver.reply(sent), message(RVERSION, 0xffff, &version(MSIZE, L)));
    });
}

/// A mount that is interrupted while nobody is there.
#[test]
fn a_version_that_waits_is_given_back_by_a_flush() {
    both(|place| {
        place.close();
        let mut driver = place.driver();
        let sent = driver.send(TVERSION, 0xffff, &version(MSIZE, L));
        driver.quiet();
        let flush = driver.send(TFLUSH, 0, &0xffff_u16.to_le_bytes());
        assert_eq!(driver.reply(sent), b"");
        assert_eq!(driver.reply(flush), message(RFLUSH, 0, &[]));
        place.listen();
        place.session(&mut driver, L, MSIZE);
    });
}

/// A relay without a device, and a request for it.
fn alone(to: RelayTo, bytes: &[u8]) -> (Relay, mio::Poll, Chain) {
    use crate::virtio::testing::Ring;
    use crate::virtio::{Layout, Queue};
    use std::sync::Arc;
    let memory = vm_memory::GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let layout = Layout { size: 128, descriptors: 0x1000, driver: 0x2000, device: 0x3000 };
    let mut ring = Ring::new(memory.clone(), 0, layout);
    memory.write_slice(bytes, GuestAddress(0x5000)).unwrap();
    ring.request(&[Buffer::Out(0x5000, bytes.len() as u32), Buffer::In(0x6000, 0x1000)]);
    let mut queue = Queue::new(layout, 128, 0, Arc::new(memory)).unwrap();
    let chain = queue.pop().unwrap().unwrap();
    (Relay::new(to), mio::Poll::new().unwrap(), chain)
}

#[test]
fn a_mount_waits_for_ten_seconds_and_nothing_is_tried_when_nobody_waits() {
    let nowhere = tempfile::tempdir().unwrap().path().join("9p");
    let bytes = message(TVERSION, 0xffff, &version(MSIZE, L));
    let (mut relay, poll, chain) = alone(RelayTo::unix(nowhere), &bytes);
    let sources = Sources::new(poll.registry());
    let mut answers = Vec::new();
    assert_eq!(relay.deadline(), None);
    let header = Header::read(&chain).unwrap();
    relay.request(chain, header, &mut answers);
    relay.send(sources, &mut answers);
    for _ in 0..5 {
        let at = relay.deadline().unwrap();
        assert!(at > Instant::now(), "it is tried without a pause");
        relay.at = Some(Instant::now());
        relay.timer(sources, &mut answers);
    }
    assert!(answers.is_empty());
    relay.flights[0].since = Instant::now().checked_sub(PATIENCE);
    assert!(relay.deadline().unwrap() <= Instant::now());
    relay.timer(sources, &mut answers);
    assert_eq!((answers.len(), answers[0].written), (1, 11));
    assert_eq!(relay.deadline(), None);
}

/// Somebody whose backlog is full, or a port whose packets get lost.
#[test]
fn a_server_that_does_not_take_the_connection_is_given_up_after_ten_seconds() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let bytes = message(TVERSION, 0xffff, &version(MSIZE, L));
    let (mut relay, poll, chain) = alone(RelayTo::tcp(address), &bytes);
    let sources = Sources::new(poll.registry());
    let mut answers = Vec::new();
    let header = Header::read(&chain).unwrap();
    relay.request(chain, header, &mut answers);
    relay.send(sources, &mut answers);
    assert!(matches!(relay.link, Link::Connecting(_)), "connecting was waited for");
    relay.at = Some(Instant::now());
    relay.timer(sources, &mut answers);
    assert!(matches!(relay.link, Link::Down));
    assert!(answers.is_empty() && relay.deadline().is_some_and(|at| at > Instant::now()));
}
