//! Our devices under the drivers of the `virtio-drivers` crate, which bare-metal guests use: found, negotiated with,
//! worked and given up through registers and rings, as a guest does it.

#[path = "common/virtio_guest.rs"]
mod virtio_guest;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hyperkit::console::{Console as HostConsole, OpenConsole};
use hyperkit::virtio::console::Console;
use hyperkit::virtio::rng::{MAX_BYTES, Rng};
use virtio_drivers::Error;
use virtio_drivers::device::console::{Size, VirtIOConsole};
use virtio_drivers::device::rng::VirtIORng;
use virtio_guest::{Ram, Registers, Slot, guest, pages_in_use};

type RngDriver = VirtIORng<Ram, Registers>;
type ConsoleDriver = VirtIOConsole<Ram, Registers>;

#[test]
fn entropy() {
    guest(|| {
        let slot = Slot::new(Rng::new());
        let mut rng = RngDriver::new(slot.transport()).unwrap();
        let mut before = [0; 64];
        for len in [1, 7, 64, 256, 257, 4096, 65536, 100_000] {
            let mut bytes = vec![0; len];
            assert_eq!(rng.request_entropy(&mut bytes).unwrap(), len.min(MAX_BYTES));
            let zeros = bytes[..len.min(MAX_BYTES)].iter().filter(|&&byte| byte == 0).count();
            // One in 256 on average; half of them has never been seen.
            assert!(len < 64 || zeros < len / 8, "{zeros} zeros in {len} bytes");
            if len >= 64 {
                assert_ne!(bytes[..64], before);
                before.copy_from_slice(&bytes[..64]);
            }
        }
        assert!(slot.line.edges() > 0);
    });
}

#[test]
fn drivers_come_and_go() {
    guest(|| {
        let slot = Slot::new(Rng::new());
        for _ in 0..200 {
            let mut rng = RngDriver::new(slot.transport()).unwrap();
            assert_eq!(rng.request_entropy(&mut [0; 32]).unwrap(), 32);
        }
        assert_eq!(pages_in_use(), 0, "the device keeps nothing that the driver waits for");
    });
}

/// A console device whose host side is a socket.
fn console() -> (Slot, OpenConsole, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let host = HostConsole::streams(theirs.try_clone().unwrap(), theirs).open().unwrap();
    let slot = Slot::new(Console::new(host.port().clone()));
    (slot, host, ours)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn console_output() {
    guest(|| {
        let (slot, host, mut ours) = console();
        let mut driver = ConsoleDriver::new(slot.transport()).unwrap();
        let sent = pattern(300_000);
        let expected = sent.clone();
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; expected.len()];
            ours.read_exact(&mut got).unwrap();
            assert!(got == expected);
        });
        let mut rest = &sent[..];
        // From one byte to several pages; 16 KiB at a time, so that the host side is never 64 KiB behind for long.
        for len in [1, 2, 3, 4095, 4096, 4097, 16384].into_iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(len));
            driver.send_bytes(now).unwrap();
            rest = later;
            if rest.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        reader.join().unwrap();
        assert_eq!(host.port().dropped(), 0);
    });
}

fn receive(driver: &mut ConsoleDriver, count: usize) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(20);
    let mut got = Vec::new();
    while got.len() < count {
        match driver.recv(true).unwrap() {
            Some(byte) => got.push(byte),
            None => assert!(Instant::now() < end, "{} of {count} bytes came", got.len()),
        }
    }
    got
}

#[test]
fn console_input() {
    guest(|| {
        let (slot, _host, mut ours) = console();
        let sent = pattern(300_000);
        // Some of it is there before the driver is, and more than all buffers between hold waits in the socket.
        ours.write_all(&sent[..1000]).unwrap();
        let mut driver = ConsoleDriver::new(slot.transport()).unwrap();
        assert_eq!(receive(&mut driver, 1000), sent[..1000]);
        let rest = sent[1000..].to_vec();
        let writer = std::thread::spawn(move || {
            ours.write_all(&rest).unwrap();
            ours
        });
        assert!(receive(&mut driver, sent.len() - 1000) == sent[1000..]);
        let mut ours = writer.join().unwrap();
        assert_eq!(driver.recv(true).unwrap(), None);

        // Keystrokes, each when the guest has seen the one before. It looks when it is told to; a driver that looks
        // earlier may find the byte, and is not told.
        for key in b"uname -r\n" {
            let edges = slot.line.edges();
            ours.write_all(&[*key]).unwrap();
            assert!(slot.line.wait(edges, Duration::from_secs(20)));
            assert_eq!(receive(&mut driver, 1), [*key]);
        }
    });
}

#[test]
fn console_both_ways_at_once() {
    guest(|| {
        let (slot, _host, mut ours) = console();
        let mut driver = ConsoleDriver::new(slot.transport()).unwrap();
        let echo = std::thread::spawn(move || {
            let mut bytes = [0; 100];
            for _ in 0..500 {
                ours.read_exact(&mut bytes).unwrap();
                ours.write_all(&bytes).unwrap();
            }
        });
        let sent = pattern(50_000);
        for chunk in sent.chunks(100) {
            driver.send_bytes(chunk).unwrap();
            assert_eq!(receive(&mut driver, 100), chunk);
        }
        echo.join().unwrap();
    });
}

#[test]
fn console_input_waits_for_a_driver() {
    guest(|| {
        let (slot, _host, mut ours) = console();
        let driver = ConsoleDriver::new(slot.transport()).unwrap();
        drop(driver);
        ours.write_all(b"typed while nobody was there").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let mut driver = ConsoleDriver::new(slot.transport()).unwrap();
        assert_eq!(receive(&mut driver, 28), b"typed while nobody was there");
    });
}

#[test]
fn console_size() {
    guest(|| {
        let (slot, host, _ours) = console();
        host.port().resize(100, 40);
        let mut driver = ConsoleDriver::new(slot.transport()).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        let wait = |driver: &ConsoleDriver, columns, rows| {
            while driver.size().unwrap() != Some(Size { columns, rows }) {
                assert!(Instant::now() < end, "still {:?}", driver.size());
            }
        };
        wait(&driver, 100, 40);
        for n in 1..50 {
            let (edges, generation) = (slot.line.edges(), slot.read(0x0fc));
            host.port().resize(80 + n, 25);
            wait(&driver, 80 + n, 25);
            assert!(slot.line.wait(edges, Duration::from_secs(20)), "the driver is not told");
            // VIRTIO_MMIO_INT_CONFIG; also when it comes together with a used buffer.
            assert_eq!(slot.read(0x060) & 2, 2);
            assert_ne!(slot.read(0x0fc), generation);
            driver.ack_interrupt().unwrap();
        }
        // Nothing new: nothing is said.
        let edges = slot.line.edges();
        host.port().resize(129, 25);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(slot.line.edges(), edges);
        assert_eq!(driver.emergency_write(b'!'), Err(Error::Unsupported));
    });
}

#[test]
fn a_console_lets_go_of_its_port() {
    guest(|| {
        let (slot, host, mut ours) = console();
        drop(slot);
        ours.write_all(b"for nobody").unwrap();
        host.port().resize(1, 1);
        let mut bytes = [0; 10];
        let end = Instant::now() + Duration::from_secs(20);
        while host.port().read(&mut bytes) == 0 {
            assert!(Instant::now() < end);
        }
        let slot = Slot::new(Console::new(host.port().clone()));
        let mut driver = ConsoleDriver::new(slot.transport()).unwrap();
        ours.write_all(b"for the next").unwrap();
        assert_eq!(receive(&mut driver, 12), b"for the next");
    });
}
