//! Our devices under the drivers of the `virtio-drivers` crate, which bare-metal guests use: found, negotiated with,
//! worked and given up through registers and rings, as a guest does it.

#[path = "common/virtio_guest.rs"]
mod virtio_guest;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hyperkit::console::{Console as HostConsole, OpenConsole};
use hyperkit::disk::{Disk, Engine, MemoryDisk};
use hyperkit::fs::Share;
use hyperkit::memory::Buffers;
use hyperkit::net::{Header, MacAddr, NetBackend, Offloads, Properties, Wake};
use hyperkit::virtio::blk::{Block, DiskHandle};
use hyperkit::virtio::console::Console;
use hyperkit::virtio::net::{Card, CardHandle, Options};
use hyperkit::virtio::p9::P9;
use hyperkit::virtio::rng::{MAX_BYTES, Rng};
use hyperkit::virtio::{HostEvent, Sources};
use virtio_drivers::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
use virtio_drivers::device::console::{Size, VirtIOConsole};
use virtio_drivers::device::net::{TxBuffer, VirtIONet};
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::device::virtio_9p::VirtIO9p;
use virtio_guest::{Ram, Registers, Slot, guest, pages_in_use};

type BlkDriver = VirtIOBlk<Ram, Registers>;
type RngDriver = VirtIORng<Ram, Registers>;
type ConsoleDriver = VirtIOConsole<Ram, Registers>;
type ShareDriver = VirtIO9p<Ram, Registers>;
type NetDriver = VirtIONet<Ram, Registers, 16>;

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
    // A busy machine may leave the host side behind for once, but not again and again.
    guest(|| assert!((0..5).any(|_| console_losses() == 0), "something is lost each time"));
}

/// Sends bytes of every sort of length, which arrive if none were dropped; how many were.
fn console_losses() -> u64 {
    let (slot, host, mut ours) = console();
    let mut driver = ConsoleDriver::new(slot.transport()).unwrap();
    let sent = pattern(300_000);
    let (len, socket) = (sent.len(), ours.try_clone().unwrap());
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; len];
        ours.read_exact(&mut got).map(|()| got)
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
    let dropped = host.port().dropped();
    if dropped > 0 {
        // The reader has waited for nothing.
        socket.shutdown(Shutdown::Both).unwrap();
    }
    let got = reader.join().unwrap();
    assert!(dropped > 0 || got.unwrap() == sent);
    dropped
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

/// A disk in a machine of its own.
fn disk(disk: Disk) -> (Slot, DiskHandle) {
    let device = Block::new(disk.open().unwrap(), 1).unwrap();
    let handle = device.handle();
    (Slot::new(device), handle)
}

/// The same 1 MiB disk in every way there is to have one: in memory, and in a file through each engine.
fn disks() -> Vec<(Disk, Option<tempfile::NamedTempFile>)> {
    let mut disks = vec![(Disk::backend(MemoryDisk::new(1 << 20)).serial("the disk"), None)];
    for engine in [Engine::Auto, Engine::Threads] {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let disk = Disk::raw(file.path()).unwrap().engine(engine).serial("the disk");
        disks.push((disk, Some(file)));
    }
    disks
}

#[test]
fn disk_reads_what_was_written() {
    guest(|| {
        for (wanted, file) in disks() {
            let (slot, _handle) = disk(wanted);
            let mut driver = BlkDriver::new(slot.transport()).unwrap();
            assert_eq!((driver.capacity(), driver.readonly()), (2048, false));
            let mut id = [0xff; 20];
            let len = driver.device_id(&mut id).unwrap();
            assert_eq!(&id[..len], b"the disk");

            let mut model = vec![0; 1 << 20];
            for (block, len) in [(0, 512), (2047, 512), (1, 4096), (100, 300 << 10), (7, 1024)] {
                let bytes = pattern(len);
                driver.write_blocks(block, &bytes).unwrap();
                model[block * 512..][..len].copy_from_slice(&bytes);
            }
            driver.flush().unwrap();
            let mut all = vec![0xff; 1 << 20];
            driver.read_blocks(0, &mut all).unwrap();
            assert!(all == model);
            for block in [2048, usize::MAX] {
                assert_eq!(driver.write_blocks(block, &[1; 512]), Err(Error::IoError));
                assert_eq!(driver.read_blocks(block, &mut [1; 512]), Err(Error::IoError));
            }
            assert_eq!(driver.read_blocks(2047, &mut [1; 1024]), Err(Error::IoError));
            drop(driver);
            drop(slot);
            if let Some(file) = file {
                assert!(std::fs::read(file.path()).unwrap() == model);
            }
        }
        assert_eq!(pages_in_use(), 0, "the device keeps nothing that the driver waits for");
    });
}

#[test]
fn disk_that_is_only_read() {
    guest(|| {
        let bytes = pattern(8192);
        let (slot, _handle) = disk(Disk::backend(MemoryDisk::from(bytes.clone())).read_only());
        let mut driver = BlkDriver::new(slot.transport()).unwrap();
        assert!(driver.readonly());
        assert_eq!(driver.write_blocks(0, &[0; 512]), Err(Error::IoError));
        driver.flush().unwrap();
        let mut all = [0; 8192];
        driver.read_blocks(0, &mut all).unwrap();
        assert!(all[..] == bytes);
    });
}

/// A request of the kind that does not wait.
struct Pending {
    token: u16,
    write: bool,
    block: usize,
    request: Box<BlkReq>,
    response: Box<BlkResp>,
    buffer: Vec<u8>,
}

#[test]
fn disk_with_many_requests_at_once() {
    guest(|| {
        for (wanted, _file) in disks() {
            let (slot, _handle) = disk(wanted);
            let mut driver = BlkDriver::new(slot.transport()).unwrap();
            let mut model = vec![0; 1 << 20];
            let mut pending: Vec<Pending> = Vec::new();
            let (mut begun, mut ended, mut most) = (0_usize, 0, 0);
            let end = Instant::now() + Duration::from_secs(30);
            while ended < 400 {
                // Every block is one request's at a time: those under way are 16 in a row.
                if begun < 400 && pending.len() < driver.virt_queue_size().into() {
                    let block = begun * 37 % 256 * 8;
                    let (mut request, mut response) = (Box::default(), Box::default());
                    let write = begun % 3 != 0;
                    let mut buffer = if write { pattern(4096) } else { vec![0; 4096] };
                    buffer.rotate_left(begun % 4096);
                    // SAFETY: nobody touches them before the request is complete.
                    let token = unsafe {
                        match write {
                            true => {
                                driver.write_blocks_nb(block, &mut request, &buffer, &mut response)
                            }
                            false => driver.read_blocks_nb(
                                block,
                                &mut request,
                                &mut buffer,
                                &mut response,
                            ),
                        }
                    };
                    if write {
                        model[block * 512..][..4096].copy_from_slice(&buffer);
                    }
                    let token = token.unwrap();
                    pending.push(Pending { token, write, block, request, response, buffer });
                    begun += 1;
                    most = most.max(pending.len());
                    continue;
                }
                let Some(token) = driver.peek_used() else {
                    assert!(Instant::now() < end, "{ended} requests of 400 have ended");
                    continue;
                };
                let at = pending.iter().position(|pending| pending.token == token).unwrap();
                let mut done = pending.swap_remove(at);
                let (request, response) = (&done.request, &mut done.response);
                // SAFETY: they are those that the request was begun with.
                let result = unsafe {
                    match done.write {
                        true => {
                            driver.complete_write_blocks(token, request, &done.buffer, response)
                        }
                        false => {
                            driver.complete_read_blocks(token, request, &mut done.buffer, response)
                        }
                    }
                };
                result.unwrap();
                assert!(done.buffer == model[done.block * 512..][..4096], "block {}", done.block);
                ended += 1;
            }
            assert_eq!(most, 16);
        }
        assert_eq!(pages_in_use(), 0);
    });
}

/// A driver hears of a new size, and goes by it.
#[test]
fn disk_that_grows() {
    guest(|| {
        for (wanted, _file) in disks() {
            let (slot, handle) = disk(wanted);
            let mut driver = BlkDriver::new(slot.transport()).unwrap();
            assert_eq!(driver.write_blocks(3000, &[5; 512]), Err(Error::IoError));
            driver.ack_interrupt();
            let edges = slot.line.edges();
            handle.resize(2 << 20).unwrap();
            assert!(slot.line.wait(edges, Duration::from_secs(20)));
            assert_eq!(slot.read(0x060) & 2, 2);
            assert_eq!(slot.read(0x100), 4096);
            driver.write_blocks(3000, &[5; 512]).unwrap();
            drop(driver);
            assert_eq!(BlkDriver::new(slot.transport()).unwrap().capacity(), 4096);
        }
    });
}

#[test]
fn disk_drivers_come_and_go() {
    guest(|| {
        for (wanted, _file) in disks() {
            let (slot, _handle) = disk(wanted);
            for n in 0..50 {
                let mut driver = BlkDriver::new(slot.transport()).unwrap();
                let mut bytes = [0xff; 512];
                driver.read_blocks(n, &mut bytes).unwrap();
                assert_eq!(bytes, [n as u8; 512], "what the driver before this one wrote");
                driver.write_blocks(n + 1, &[n as u8 + 1; 512]).unwrap();
            }
        }
        assert_eq!(pages_in_use(), 0);
    });
}

/// A host side that sends everything back to where it comes from, 8 frames behind at most.
#[derive(Default)]
struct Mirror(VecDeque<Vec<u8>>);

impl NetBackend for Mirror {
    fn name(&self) -> &str {
        "mirror"
    }

    fn properties(&self) -> Properties {
        Properties { mac: None, mtu: 1500, offloads: Offloads::all(), queues: 1 }
    }

    fn start(&mut self, _sources: Sources<'_>) -> io::Result<()> {
        Ok(())
    }

    fn send(
        &mut self,
        _queue: u16,
        _header: &Header,
        frame: Buffers<'_>,
        _sources: Sources<'_>,
    ) -> io::Result<()> {
        if self.0.len() == 8 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut bytes = vec![0; frame.total()];
        frame.copy_to(&mut bytes);
        // To the sender.
        bytes.copy_within(6..12, 0);
        self.0.push_back(bytes);
        Ok(())
    }

    fn receive(
        &mut self,
        _queue: u16,
        _header: &mut Header,
        space: Buffers<'_>,
        _sources: Sources<'_>,
    ) -> io::Result<usize> {
        let frame = self.0.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        Ok(space.fill_from(&frame))
    }

    fn host_ready(&mut self, _event: HostEvent, _sources: Sources<'_>) -> Wake {
        Wake::default()
    }
}

const ADDRESS: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

fn card() -> (Slot, CardHandle) {
    let card = Card::new(Box::<Mirror>::default(), MacAddr(ADDRESS), Options::default()).unwrap();
    let handle = card.handle();
    (Slot::new(card), handle)
}

/// A frame from us.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = pattern(len);
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&ADDRESS);
    frame
}

/// Waits for a frame and gives its buffer back.
fn receive_frame(driver: &mut NetDriver) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(buffer) = driver.receive() {
            let frame = buffer.packet().to_vec();
            driver.recycle_rx_buffer(buffer).unwrap();
            return frame;
        }
        assert!(Instant::now() < end, "no frame came");
    }
}

#[test]
fn frames_there_and_back() {
    guest(|| {
        let (slot, handle) = card();
        let mut driver = NetDriver::new(slot.transport(), 2048).unwrap();
        assert_eq!(driver.mac_address(), ADDRESS);
        let mut sent = 0;
        for len in (14..1514).step_by(13).chain([1514, 1518]) {
            driver.send(TxBuffer::from(&frame(len))).unwrap();
            let got = receive_frame(&mut driver);
            assert_eq!(got[..6], ADDRESS);
            assert!(got[6..] == frame(len)[6..], "{len} bytes");
            sent += 1;
        }
        // More than the MTU allows is taken, and goes nowhere.
        driver.send(TxBuffer::from(&frame(1519))).unwrap();
        driver.send(TxBuffer::from(&frame(13))).unwrap();
        let counters = handle.counters();
        assert_eq!((counters.sent.frames, counters.received.frames), (sent, sent));
        assert_eq!((counters.send_drops.too_large, counters.send_drops.malformed), (1, 1));
    });
}

/// The driver's buffers are full and so is the host side: everything waits, and goes on when there is room.
#[test]
fn frames_wait_for_room_on_both_sides() {
    guest(|| {
        let (slot, handle) = card();
        let mut driver = NetDriver::new(slot.transport(), 2048).unwrap();
        for round in 0..20 {
            // 16 in the driver's buffers, 8 in between.
            for n in 0..24 {
                driver.send(TxBuffer::from(&frame(60 + n + round))).unwrap();
            }
            for n in 0..24 {
                assert_eq!(receive_frame(&mut driver).len(), 60 + n + round);
            }
        }
        assert_eq!(handle.counters().received.frames, 480);
        assert_eq!(handle.counters().receive_drops, Default::default());
    });
}

#[test]
fn net_drivers_come_and_go() {
    guest(|| {
        let (slot, handle) = card();
        for n in 0..100 {
            let mut driver = NetDriver::new(slot.transport(), 2048).unwrap();
            driver.send(TxBuffer::from(&frame(60 + n))).unwrap();
            assert_eq!(receive_frame(&mut driver).len(), 60 + n);
        }
        assert_eq!(handle.counters().received.frames, 100);
    });
}

/// A message of 9P2000.L.
fn message(kind: u8, tag: u16, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let size = 7 + body.len() as u32;
    [&size.to_le_bytes()[..], &[kind], &tag.to_le_bytes(), &body].concat()
}

#[test]
fn a_file_of_a_share() {
    guest(|| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), b"from the host").unwrap();
        let share = Share::new("share", folder.path()).open().unwrap();
        let slot = Slot::new(P9::new(share).unwrap());
        for _ in 0..3 {
            let mut driver = ShareDriver::new(slot.transport()).unwrap();
            assert_eq!(driver.mount_tag(), "share");
            let mut ask = |kind: u8, body: &[&[u8]]| {
                let mut reply = vec![0; 4096];
                let len = driver.request(&message(kind, 7, body), &mut reply).unwrap();
                reply.truncate(len as usize);
                assert_eq!(reply[4..7], [kind + 1, 7, 0], "an error, or another request's");
                reply.split_off(7)
            };
            let [root, file, none] = [0, 1, u32::MAX].map(u32::to_le_bytes);
            let version = [&[0, 16, 0, 0][..], b"\x08\09P2000.L"].concat();
            assert_eq!(ask(100, &[&version]), version);
            ask(104, &[&root, &none, &[0; 4], &root]);
            assert_eq!(ask(110, &[&root, &file, b"\x01\0\x04\0file"])[..2], [1, 0]);
            ask(12, &[&file, &2_u32.to_le_bytes()]);
            let read = ask(116, &[&file, &[0; 8], &4000_u32.to_le_bytes()]);
            assert_eq!(read, [&13_u32.to_le_bytes()[..], b"from the host"].concat());
            let guest = b"from the guest";
            ask(118, &[&file, &[13, 0, 0, 0, 0, 0, 0, 0], &14_u32.to_le_bytes(), guest]);
            // A Tflush of nothing.
            assert_eq!(ask(108, &[&[9, 0]]), []);
            ask(120, &[&file]);
            let bytes = std::fs::read(folder.path().join("file")).unwrap();
            assert_eq!(bytes, b"from the hostfrom the guest");
            std::fs::write(folder.path().join("file"), b"from the host").unwrap();
        }
        assert_eq!(pages_in_use(), 0, "the device keeps nothing that the driver waits for");
    });
}
