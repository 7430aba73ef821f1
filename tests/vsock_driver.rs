//! The socket device under the driver of the `virtio-drivers` crate, which bare-metal guests use.

#[path = "common/virtio_guest.rs"]
mod virtio_guest;

use std::io::{ErrorKind, Read, Write};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyperkit::virtio::vsock::SocketDevice;
use hyperkit::vsock::{Vsock, VsockHandle, VsockListener, VsockStream};
use virtio_drivers::Error;
use virtio_drivers::device::socket::{
    DisconnectReason, SocketError, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEvent,
    VsockEventType,
};
use virtio_guest::{Ram, Registers, Slot, guest, pages_in_use};

type Driver = VsockConnectionManager<Ram, Registers, 4096>;

/// The guest's buffer for a connection.
const ROOM: u32 = 16 << 10;
/// Receive buffers of a driver, a page each.
const RECEIVE_BUFFERS: usize = 8;
const HOST: u64 = 2;
const PATIENCE: Duration = Duration::from_secs(20);

fn sockets(vsock: Vsock) -> (Slot, VsockHandle) {
    let host = vsock.open().unwrap();
    let handle = host.handle();
    (Slot::new(SocketDevice::new(host)), handle)
}

fn driver(slot: &Slot) -> Driver {
    let driver = VirtIOSocket::new(slot.transport()).unwrap();
    VsockConnectionManager::new_with_capacity(driver, ROOM)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn event(driver: &mut Driver) -> VsockEvent {
    let end = Instant::now() + PATIENCE;
    loop {
        match driver.poll().unwrap() {
            Some(event) => return event,
            None => assert!(Instant::now() < end, "nothing happened"),
        }
    }
}

/// Connects to a listener.
fn connect(driver: &mut Driver, listener: &VsockListener, from: u32) -> (VsockAddr, VsockStream) {
    let there = VsockAddr { cid: HOST, port: listener.local_port() };
    driver.connect(there, from).unwrap();
    assert_eq!(event(driver).event_type, VsockEventType::Connected);
    let (stream, guest) = listener.accept().unwrap();
    assert_eq!(guest, from);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (there, stream)
}

/// Sends all of `bytes`, and waits for credit where there is none.
fn send(driver: &mut Driver, to: VsockAddr, from: u32, bytes: &[u8]) {
    for part in bytes.chunks(1500) {
        loop {
            match driver.send(to, from, part) {
                Ok(()) => break,
                Err(Error::SocketDeviceError(SocketError::InsufficientBufferSpaceInPeer)) => {
                    assert_eq!(event(driver).event_type, VsockEventType::CreditUpdate);
                }
                Err(error) => panic!("{error}"),
            }
        }
        while let Some(event) = driver.poll().unwrap() {
            assert_eq!(event.event_type, VsockEventType::CreditUpdate);
        }
    }
}

/// Receives so many bytes, and gives credit for them.
fn receive(driver: &mut Driver, from: VsockAddr, at: u32, count: usize) -> Vec<u8> {
    let mut got = vec![0; count];
    let mut done = 0;
    while done < count {
        let len = driver.recv(from, at, &mut got[done..]).unwrap();
        if len > 0 {
            driver.update_credit(from, at).unwrap();
            done += len;
            continue;
        }
        let event = event(driver);
        let of_data = matches!(event.event_type, VsockEventType::Received { .. });
        assert!(of_data || event.event_type == VsockEventType::CreditUpdate, "{event:?}");
    }
    got
}

#[test]
fn a_guest_connects_talks_and_closes() {
    guest(|| {
        let (slot, handle) = sockets(Vsock::new().cid(77));
        let mut driver = driver(&slot);
        assert_eq!(driver.guest_cid(), 77);
        let listener = handle.listen(1024).unwrap();
        for from in 1..20 {
            let (there, mut stream) = connect(&mut driver, &listener, from);
            send(&mut driver, there, from, b"hello from the guest");
            let mut bytes = [0; 20];
            stream.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"hello from the guest");
            stream.write_all(b"hello from the host").unwrap();
            assert_eq!(receive(&mut driver, there, from, 19), b"hello from the host");
            driver.shutdown(there, from).unwrap();
            let reason = DisconnectReason::Reset;
            assert_eq!(event(&mut driver).event_type, VsockEventType::Disconnected { reason });
            assert_eq!(stream.read(&mut bytes).unwrap(), 0);
            // Its ports are free again.
            let (there, _stream) = connect(&mut driver, &listener, from);
            driver.force_close(there, from).unwrap();
        }
        while handle.counters().open > 0 {
            std::thread::yield_now();
        }
        assert_eq!(handle.counters().from_guest, 38);
        assert!(slot.line.edges() > 0);
        drop(driver);
        // It leaves its receive buffers to whoever has the memory, and nothing else.
        assert_eq!(pages_in_use(), RECEIVE_BUFFERS);
    });
}

/// A program of the host that connects, and what comes of it.
fn call(handle: &VsockHandle, port: u32) -> JoinHandle<std::io::Result<VsockStream>> {
    let handle = handle.clone();
    std::thread::spawn(move || handle.connect(port))
}

#[test]
fn the_host_connects_talks_and_closes() {
    guest(|| {
        let (slot, handle) = sockets(Vsock::new());
        let mut driver = driver(&slot);
        driver.listen(80);
        for _ in 0..20 {
            let caller = call(&handle, 80);
            let asked = event(&mut driver);
            assert_eq!(asked.event_type, VsockEventType::ConnectionRequest);
            assert_eq!((asked.source.cid, asked.destination.port), (HOST, 80));
            let mut stream = caller.join().unwrap().unwrap();
            assert_eq!(stream.local_port(), asked.source.port);
            stream.write_all(&pattern(5000)).unwrap();
            assert_eq!(receive(&mut driver, asked.source, 80, 5000), pattern(5000));
            send(&mut driver, asked.source, 80, b"got it");
            let mut bytes = [0; 6];
            stream.read_exact(&mut bytes).unwrap();
            drop(stream);
            let reason = DisconnectReason::Shutdown;
            let end = event(&mut driver).event_type;
            assert_eq!(end, VsockEventType::Disconnected { reason });
        }
        while handle.counters().open > 0 {
            std::thread::yield_now();
        }
        assert_eq!((handle.counters().to_guest, handle.counters().resets), (20, 0));
    });
}

#[test]
fn ports_that_nobody_listens_on_are_refused_both_ways() {
    guest(|| {
        let (slot, handle) = sockets(Vsock::new());
        let mut driver = driver(&slot);
        driver.connect(VsockAddr { cid: HOST, port: 9 }, 9).unwrap();
        let reason = DisconnectReason::Reset;
        assert_eq!(event(&mut driver).event_type, VsockEventType::Disconnected { reason });
        let caller = call(&handle, 9);
        while !caller.is_finished() {
            assert_eq!(driver.poll().unwrap(), None);
        }
        let error = caller.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!((handle.counters().refused, handle.counters().open), (2, 0));
    });
}

#[test]
fn a_mebibyte_each_way_keeps_to_the_credit() {
    guest(|| {
        let (slot, handle) = sockets(Vsock::new().buffer(8192));
        let mut driver = driver(&slot);
        let listener = handle.listen(1024).unwrap();
        let (there, stream) = connect(&mut driver, &listener, 5);
        let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
        let host = std::thread::spawn(move || {
            let mut got = vec![0; 1 << 20];
            reader.read_exact(&mut got).unwrap();
            assert!(got == pattern(1 << 20));
        });
        send(&mut driver, there, 5, &pattern(1 << 20));
        host.join().unwrap();
        let host = std::thread::spawn(move || {
            writer.write_all(&pattern(1 << 20)).unwrap();
            writer
        });
        assert!(receive(&mut driver, there, 5, 1 << 20) == pattern(1 << 20));
        drop(host.join().unwrap());
    });
}

/// The host does not read, until the guest has no credit left; and goes on.
#[test]
fn a_host_that_does_not_read_costs_the_guest_its_credit() {
    guest(|| {
        let (slot, handle) = sockets(Vsock::new().buffer(8192));
        let mut driver = driver(&slot);
        let listener = handle.listen(1024).unwrap();
        let (there, mut stream) = connect(&mut driver, &listener, 5);
        let mut sent = 0;
        let mut asked = 0;
        // Updates come as long as the socket takes something; then they say that there is no room.
        while asked < 3 {
            match driver.send(there, 5, &[7; 1000]) {
                Ok(()) => (sent, asked) = (sent + 1000, 0),
                Err(_) => {
                    assert_eq!(event(&mut driver).event_type, VsockEventType::CreditUpdate);
                    asked += 1;
                }
            }
        }
        let mut bytes = vec![0; sent];
        stream.read_exact(&mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 7));
        send(&mut driver, there, 5, b"and on");
        let mut bytes = [0; 6];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"and on");
    });
}

#[test]
fn drivers_come_and_go() {
    guest(|| {
        let (slot, handle) = sockets(Vsock::new());
        let listener = handle.listen(1024).unwrap();
        for _ in 0..50 {
            let mut driver = driver(&slot);
            let (there, mut stream) = connect(&mut driver, &listener, 5);
            send(&mut driver, there, 5, b"x");
            stream.read_exact(&mut [0]).unwrap();
            drop(driver);
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
        assert_eq!((handle.counters().open, pages_in_use()), (0, 50 * RECEIVE_BUFFERS));
    });
}
