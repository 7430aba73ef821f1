//! Consoles as an embedder and a device see them.

mod endpoints;
mod process;
mod terminals;

use std::io::{self, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;

/// How long anything may take on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// A host side may be so far behind, and its thread may have taken so much more.
const BEHIND: usize = (64 << 10) + (16 << 10);

/// Waits for `done`.
pub(super) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reads `count` bytes from the device's end.
pub(super) fn read(port: &Port, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 1000];
    until("input", || {
        loop {
            let most = buffer.len().min(count - bytes.len());
            let got = port.read(&mut buffer[..most]);
            bytes.extend(&buffer[..got]);
            if got == 0 {
                return bytes.len() == count;
            }
        }
    });
    bytes
}

pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// A `Write` whose bytes can be looked at.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A `Read` or `Write` that is stuck until its [`Sender`] is dropped.
struct Stuck(Receiver<()>);

fn stuck() -> (Stuck, Sender<()>) {
    let (release, stuck) = channel();
    (Stuck(stuck), release)
}

impl Read for Stuck {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(0)
    }
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Broken;

impl Write for Broken {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn handles_can_be_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Port>();
    check::<OpenConsole>();
    check::<RingBuffer>();
}

#[test]
fn output_goes_to_all_and_input_comes_from_all() {
    let (written, ring) = (Written::default(), RingBuffer::new());
    let file = tempfile::NamedTempFile::new().unwrap();
    let console = Console::streams(&b"left"[..], written.clone())
        .and(Console::ring(ring.clone()))
        .and(Console::input(&b"right"[..]))
        .and(Console::file(file.path()))
        .and(Console::null());
    let console = console.open().unwrap();
    let port = console.port();
    port.write(b"hello, ");
    port.write(b"all");
    let mut input = read(&port, 9);
    input.sort_unstable();
    assert_eq!(input, b"efghilrtt");
    console.close();
    for (what, bytes) in [
        ("stream", written.bytes()),
        ("ring", ring.contents()),
        ("file", std::fs::read(file.path()).unwrap()),
    ] {
        assert_eq!(bytes, b"hello, all", "{what}");
    }
    assert_eq!(port.dropped(), 0);
}

#[test]
fn a_port_that_leads_nowhere_takes_everything() {
    let port = Port::default();
    port.write(b"anything");
    assert_eq!(port.read(&mut [0; 8]), 0);
    assert_eq!((port.dropped(), port.size()), (0, None));
}

#[test]
fn one_byte_at_a_time_arrives_without_closing() {
    let written = Written::default();
    let console = Console::output(written.clone()).open().unwrap();
    let bytes = pattern(20_000);
    for (count, &byte) in bytes.iter().enumerate() {
        console.port().write(&[byte]);
        if count % 5000 == 0 {
            // Long enough for the consumer to fall asleep.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    until("output", || written.bytes().len() == bytes.len());
    assert_eq!(written.bytes(), bytes);
}

#[test]
fn a_stuck_sink_loses_only_its_own_output() {
    let (sink, release) = stuck();
    let written = Written::default();
    let console = Console::output(sink).and(Console::output(written.clone())).open().unwrap();
    let port = console.port();
    let bytes = pattern(1 << 20);
    for (count, piece) in bytes.chunks(1000).enumerate() {
        port.write(piece);
        until("the sink that works", || count * 1000 < written.bytes().len() + (32 << 10));
    }
    until("all of it", || written.bytes().len() == bytes.len());
    assert!(written.bytes() == bytes);
    let dropped = port.dropped() as usize;
    assert!((bytes.len() - BEHIND..=bytes.len() - (64 << 10)).contains(&dropped), "{dropped}");
    let start = Instant::now();
    console.close();
    assert!(start.elapsed() < Duration::from_secs(20), "closing took {:?}", start.elapsed());
    drop(release);
}

/// Takes what it is given, after a while.
struct Slow(Written);

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::thread::sleep(Duration::from_millis(2));
        let taken = &bytes[..bytes.len().min(4096)];
        self.0.write(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_patient_device_loses_nothing_to_a_sink_that_is_slow() {
    let bytes = pattern(300_000);
    let losses = || {
        let written = Written::default();
        let console = Console::output(Slow(written.clone())).open().unwrap();
        for chunk in bytes.chunks(4096) {
            console.port().write_patiently(chunk);
        }
        let dropped = console.port().dropped();
        if dropped == 0 {
            until("output", || written.bytes().len() == bytes.len());
            assert!(written.bytes() == bytes);
        }
        dropped
    };
    // A busy machine may hold up the sink's thread for longer than the device waits, but not again and again.
    assert!((0..5).any(|_| losses() == 0), "something is lost each time");
}

#[test]
fn a_patient_device_does_not_wait_long_for_a_sink_that_is_stuck_broken_or_closed() {
    let closed = || {
        let (stuck, release) = stuck();
        let console = Console::output(stuck).and(Console::output(Broken)).open().unwrap();
        let port = console.port().clone();
        let begun = Instant::now();
        for _ in 0..1000 {
            port.write_patiently(&[0; 4096]);
        }
        // A hundred, if it waited each time.
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert!(port.dropped() >= 1000 * 4096 - BEHIND as u64);
        drop(release);
        drop(console);
        let begun = Instant::now();
        port.write_patiently(&[0; 4096]);
        begun.elapsed()
    };
    // Less than it waits, if nothing else takes the processor: the best of ten consoles.
    let best = (0..10).map(|_| closed()).min().unwrap();
    assert!(best < Duration::from_millis(90), "{best:?}");
}

#[test]
fn a_broken_sink_costs_nothing_but_its_output() {
    let written = Written::default();
    let console = Console::output(Broken).and(Console::output(written.clone())).open().unwrap();
    let port = console.port();
    port.write(b"one");
    until("the broken sink to be noticed", || {
        port.write(b".");
        port.dropped() > 0
    });
    port.write(b"two");
    console.close();
    let bytes = written.bytes();
    assert!(bytes.starts_with(b"one.") && bytes.ends_with(b".two"));
}

/// A sink that takes its time gets the last words as well.
#[test]
fn closing_writes_the_last_words() {
    struct Slow(Written);
    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            std::thread::sleep(Duration::from_millis(20));
            self.0.write(&bytes[..bytes.len().min(700)])
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (written, file) = (Written::default(), tempfile::NamedTempFile::new().unwrap());
    let slow = Console::output(Slow(written.clone()));
    let console = slow.and(Console::file(file.path())).open().unwrap();
    let bytes = pattern(2000);
    console.port().write(&bytes);
    console.close();
    assert!(written.bytes() == bytes);
    assert!(std::fs::read(file.path()).unwrap() == bytes);
}

#[test]
fn closing_gives_the_writer_back() {
    struct Held {
        _by: Arc<()>,
    }
    impl Write for Held {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let held = Arc::new(());
    let console = Console::output(Held { _by: held.clone() }).open().unwrap();
    console.port().write(b"something");
    assert_eq!(Arc::strong_count(&held), 2);
    console.close();
    assert_eq!(Arc::strong_count(&held), 1);
}

#[test]
fn after_closing_a_port_only_drops() {
    let (written, file) = (Written::default(), tempfile::NamedTempFile::new().unwrap());
    let console = Console::output(written.clone()).and(Console::file(file.path())).open().unwrap();
    let port = console.port();
    console.close();
    port.write(b"late");
    assert_eq!(port.dropped(), 8);
    assert_eq!(written.bytes(), b"");
}

#[test]
fn input_waits_for_the_guest_and_none_is_lost() {
    struct Counted(io::Cursor<Vec<u8>>, Arc<AtomicUsize>);
    impl Read for Counted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read(buffer)?;
            self.1.fetch_add(count, Ordering::Relaxed);
            Ok(count)
        }
    }
    let (bytes, taken) = (pattern(1 << 20), Arc::new(AtomicUsize::new(0)));
    let input = Counted(io::Cursor::new(bytes.clone()), taken.clone());
    let console = Console::input(input).open().unwrap();
    let port = console.port();
    until("a full buffer", || port.waiting() == 64 << 10);
    std::thread::sleep(Duration::from_millis(20));
    assert!(taken.load(Ordering::Relaxed) < BEHIND, "read ahead without bound");
    assert!(read(&port, bytes.len()) == bytes);
}

/// A device that takes a few bytes at a time, all the time: there is room again between any two looks of the event
/// loop, also when it has just found none.
#[test]
fn a_device_that_nibbles_gets_all_input() {
    let bytes = pattern(8 << 20);
    let console = Console::input(io::Cursor::new(bytes.clone())).open().unwrap();
    let port = console.port();
    let (mut got, mut last) = (Vec::<u8>::new(), Instant::now());
    until("a full buffer", || port.waiting() == 64 << 10);
    while got.len() < bytes.len() {
        let mut some = [0; 61];
        let count = port.read(&mut some);
        got.extend(&some[..count]);
        match count {
            0 => assert!(last.elapsed() < PATIENCE, "stuck after {} bytes", got.len()),
            _ => last = Instant::now(),
        }
    }
    assert!(got == bytes);
}

#[test]
fn the_device_is_called_for_input_that_is_there_and_for_input_that_comes() {
    let (keys, typed) = channel::<u8>();
    struct Keys(Receiver<u8>);
    impl Read for Keys {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Ok(key) = self.0.recv() else { return Ok(0) };
            buffer[0] = key;
            Ok(1)
        }
    }
    let console = Console::input(Keys(typed)).open().unwrap();
    let port = console.port();
    keys.send(b'a').unwrap();
    until("a key", || port.waiting() == 1);
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    port.on_input(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    keys.send(b'b').unwrap();
    until("the second call", || calls.load(Ordering::SeqCst) == 2);
    // Asked for, and due later.
    let start = Instant::now();
    port.call_again(Duration::from_millis(30));
    until("the third call", || calls.load(Ordering::SeqCst) == 3);
    assert!(start.elapsed() >= Duration::from_millis(30));
    // Nothing left to call for.
    assert_eq!(read(&port, 2), b"ab");
    port.call_again(Duration::ZERO);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[test]
fn a_console_can_be_closed_while_its_input_never_comes() {
    let (input, release) = stuck();
    let console = Console::streams(input, io::sink()).open().unwrap();
    let start = Instant::now();
    drop(console);
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
    drop(release);
}

#[test]
fn a_callback_may_close_its_console() {
    let console = Console::input(&b"stop"[..]).open().unwrap();
    let port = console.port();
    let (slot, closed) = (Arc::new(Mutex::new(Some(console))), Arc::new(AtomicBool::new(false)));
    let done = closed.clone();
    until("input", || port.waiting() == 4);
    port.on_input(|| {});
    let console = slot.clone();
    port.on_input(move || {
        if std::thread::current().name() == Some("hk-console") {
            let start = Instant::now();
            drop(console.lock().unwrap().take());
            // It does not wait for itself.
            done.store(start.elapsed() < open::CLOSE_TIME, Ordering::SeqCst);
        }
    });
    port.call_again(Duration::ZERO);
    until("the console to close", || closed.load(Ordering::SeqCst));
    assert!(slot.lock().unwrap().is_none());
}

#[test]
fn a_resize_is_told_once() {
    let port = Console::null().open().unwrap().port();
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    port.on_resize(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    for (columns, rows) in [(80, 25), (80, 25), (132, 43)] {
        port.resize(columns, rows);
        assert_eq!(port.size(), Some((columns, rows)));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[test]
fn files_that_cannot_be_written_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("absent/log")] {
        let error = Console::file(&path).open().err().unwrap().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let error = Console::file(&fifo).open().err().unwrap();
    assert!(matches!(error, Error::File { .. }), "a FIFO without a reader: {error}");
}

#[test]
fn a_file_is_emptied_first() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "an older and longer log").unwrap();
    let console = Console::file(file.path()).open().unwrap();
    console.port().write(b"new");
    console.close();
    assert_eq!(std::fs::read(file.path()).unwrap(), b"new");
}
