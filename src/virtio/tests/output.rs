//! What a driver writes to a console: in turns, however much that is and however slow the host.

use std::io::Write;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::console::{Console as Host, OpenConsole, RingBuffer};
use crate::random::Random;
use crate::virtio::console::Console;

/// transmitq(port0).
const TRANSMIT: u16 = 1;
/// Where what is written is.
const FROM: u64 = RAM[1].0;
/// Most bytes of a turn, but for what is left of a page.
const TURN: u64 = 512 << 10;
const PAGE: u64 = 4096;

/// A console device without a thread, and the last of what it has written.
struct Bare {
    device: Console,
    written: RingBuffer,
    ring: Ring,
    queues: [Option<Queue>; 2],
    memory: Arc<GuestMemoryMmap>,
    poll: mio::Poll,
    _host: OpenConsole,
}

impl Bare {
    fn new() -> Self {
        let written = RingBuffer::new();
        let host = Host::ring(written.clone()).open().unwrap();
        let memory = memory();
        let layout = Layout { size: 64, descriptors: 0x1000, driver: 0x2000, device: 0x3000 };
        let ring = Ring::new(memory.clone(), TRANSMIT.into(), layout);
        let memory = Arc::new(memory);
        let queue = Queue::new(layout, 64, 0, memory.clone()).unwrap();
        Self {
            device: Console::new(host.port()),
            written,
            ring,
            queues: [None, Some(queue)],
            memory,
            poll: mio::Poll::new().unwrap(),
            _host: host,
        }
    }

    /// Calls the device, and tells whether the queue wants another turn.
    fn call(
        &mut self,
        call: impl FnOnce(&mut Console, &mut Context<'_>) -> Result<(), Error>,
    ) -> bool {
        let mut cx = Context {
            queues: &mut self.queues,
            memory: &self.memory,
            interrupt: &Nobody,
            registry: self.poll.registry(),
        };
        call(&mut self.device, &mut cx).unwrap();
        self.queues[1].as_mut().is_some_and(|queue| queue.settle().again)
    }

    fn turn(&mut self) -> bool {
        self.call(|device, cx| device.queue_ready(TRANSMIT, cx))
    }
}

#[test]
fn output_goes_on_in_the_next_turn_where_the_last_one_ended() {
    let mut bare = Bare::new();
    let bytes = Random(1).bytes(3 << 20);
    bare.memory.write_slice(&bytes, GuestAddress(FROM)).unwrap();
    let mut all = 0;
    let mut heads = Vec::new();
    for lens in [&[1_000_003, 1, 400_000][..], &[3], &[512 << 10], &[700_001, 77]] {
        let mut buffers = Vec::new();
        for &len in lens {
            buffers.push(Buffer::Out(FROM + all, len));
            all += u64::from(len);
        }
        heads.push(bare.ring.request(&buffers));
    }
    let mut before = 0;
    loop {
        let again = bare.turn();
        let now = bare.written.total();
        assert!((1..TURN + PAGE).contains(&(now - before)), "from {before} to {now}");
        let gone = &bytes[..now as usize];
        let last = &gone[gone.len().saturating_sub(RingBuffer::CAPACITY)..];
        assert!(bare.written.contents() == last, "other bytes before {now}");
        if !again {
            assert_eq!(now, all);
            break;
        }
        // What is left waits while the machine does.
        bare.call(|device, cx| device.pause(cx));
        bare.call(|device, cx| device.resume(cx));
        assert_eq!(bare.written.total(), now);
        before = now;
    }
    for head in heads {
        assert_eq!(bare.ring.used(), Some((head, 0)));
    }
    assert_eq!(bare.ring.used(), None);
}

#[test]
fn output_that_is_left_goes_with_its_queue() {
    let mut bare = Bare::new();
    bare.ring.request(&[Buffer::Out(FROM, 4 << 20)]);
    assert!(bare.turn(), "all of it at once");
    // The driver has given the queue up.
    bare.queues = [None, None];
    bare.call(|device, cx| device.resume(cx));
    assert_eq!(Arc::strong_count(&bare.memory), 1, "the chain is still there");

    let mut bare = Bare::new();
    bare.ring.request(&[Buffer::Out(FROM, 4 << 20)]);
    assert!(bare.turn(), "all of it at once");
    bare.device.reset();
    bare.queues = [None, None];
    assert_eq!(Arc::strong_count(&bare.memory), 1, "the chain is still there");
}

#[test]
fn a_driver_that_writes_much_does_not_keep_the_device_from_pausing() {
    const ALL: u64 = 64 * 64 * (4 << 20);
    let written = RingBuffer::new();
    let host = Host::ring(written.clone()).open().unwrap();
    let mut guest = Guest::new(Console::new(host.port()));
    let ring = &mut guest.start(feature::INDIRECT_DESC, 64)[1];
    let table = guest.alloc(0x1000);
    // The same bytes again and again: a guest of any size can do that.
    let buffers = [Buffer::Out(FROM, 4 << 20); 64];
    for _ in 0..64 {
        ring.request_indirect(table, &buffers);
    }
    guest.kick(ring);
    eventually("nothing is written", || written.total() > 0);
    guest.transport.pause();
    let now = written.total();
    assert!(now < ALL, "paused when all was written");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(written.total(), now);
    guest.transport.resume();
    eventually("it does not go on", || written.total() > now);
    guest.reset();
    assert!(written.total() < ALL, "reset when all was written");
}

/// Takes a little at a time.
struct Slow(Arc<AtomicU64>);

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::thread::sleep(Duration::from_millis(30));
        let count = bytes.len().min(4096);
        self.0.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_host_that_is_slow_does_not_keep_the_device_from_pausing() {
    let taken = Arc::new(AtomicU64::new(0));
    let host = Host::output(Slow(taken.clone())).open().unwrap();
    let mut guest = Guest::new(Console::new(host.port()));
    let ring = &mut guest.start(0, 64)[1];
    ring.request(&[Buffer::Out(FROM, 4 << 20)]);
    guest.kick(ring);
    let taken = || taken.load(Ordering::SeqCst);
    eventually("nothing is taken", || taken() > 0);
    let before = taken();
    guest.transport.pause();
    let meanwhile = taken() - before;
    assert!(meanwhile < 2 << 20, "paused after {meanwhile} bytes");
}
