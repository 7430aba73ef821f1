//! Opening a console, and closing it again.

use std::fs::{File, OpenOptions};
use std::io::{self, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::termios::isatty;

use super::endpoint::{Sink, Source};
use super::events::{EventLoop, FLUSH_TIME};
use super::port::{Output, Port, Shared, Waker};
use super::queue::Queue;
use super::stream::{Reader, Writer};
use super::{Console, Error, Part};
use crate::sys;
use crate::sys::Link;
use crate::sys::terminal::{self, RawTerminal};

/// Longest wait for the event loop: its last output, and a callback that may be under way.
pub(super) const CLOSE_TIME: Duration = FLUSH_TIME.saturating_add(Duration::from_secs(1));

/// A console at work. Closing or dropping it writes what the guest wrote last and ends its threads, in bounded time.
pub struct OpenConsole {
    port: Port,
    waker: Arc<Waker>,
    events: Option<JoinHandle<()>>,
    readers: Vec<Reader>,
    writers: Vec<Writer>,
    link: Option<Link>,
    raw: Option<RawTerminal>,
    stdio: Option<StdioClaim>,
    /// Held so that the line stays up while no user has it open.
    _slaves: Vec<OwnedFd>,
}

impl Console {
    /// Opens every host side and starts what moves bytes.
    pub fn open(self) -> Result<OpenConsole, Error> {
        if let (Some(path), None) = (&self.link, self.path()) {
            return Err(Error::NoPty { path: path.clone() });
        }
        let waker = Arc::new(Waker::new().map_err(Error::Thread)?);
        let mut open = OpenConsole::closed(waker.clone());
        let (mut outputs, mut sources, mut sinks) = (Vec::new(), Vec::new(), Vec::new());
        let (mut size, mut escape, mut link) = (None, self.escape, self.link);
        let queue = |outputs: &mut Vec<Output>| {
            let queue = Arc::new(Queue::for_loop(waker.clone()));
            outputs.push(Output::Queue(queue.clone()));
            queue
        };
        for part in self.parts {
            match part {
                Part::Stdio => {
                    let stdio = Stdio::claim()?;
                    let queue = queue(&mut outputs);
                    size = size.or(stdio.size());
                    sources.push(Source::new(Arc::new(stdio.input), escape.take()));
                    sinks.push(Sink::shared(stdio.output, queue).map_err(unusable_output)?);
                    open.stdio = Some(stdio.claim);
                    open.raw = stdio.raw;
                }
                Part::Pty(pty) => {
                    if let Some(path) = link.take() {
                        let link = Link::make(&path, &pty.path);
                        open.link = Some(link.map_err(|source| Error::Link { path, source })?);
                    }
                    let master = Arc::new(pty.master);
                    sources.push(Source::new(master.clone(), None));
                    sinks.push(Sink::owned(master, queue(&mut outputs)));
                    open._slaves.push(pty.slave);
                }
                Part::File(path) => {
                    let file = create(&path).map_err(|source| Error::File { path, source })?;
                    sinks.push(Sink::owned(Arc::new(file.into()), queue(&mut outputs)));
                }
                Part::Ring(ring) => outputs.push(Output::Ring(ring)),
                Part::Input(input) => {
                    let reader = Reader::start(input, waker.clone()).map_err(Error::Thread)?;
                    open.readers.push(reader);
                }
                Part::Output(output) => {
                    let queue = Arc::new(Queue::for_thread());
                    outputs.push(Output::Queue(queue.clone()));
                    open.writers.push(Writer::start(output, queue).map_err(Error::Thread)?);
                }
            }
        }
        open.port = Port(Arc::new(Shared::new(outputs, size, waker.clone())));
        let feeds: Vec<_> = open.readers.iter().map(Reader::feed).collect();
        if !(sources.is_empty() && sinks.is_empty() && feeds.is_empty()) {
            let events = EventLoop { shared: open.port.0.clone(), waker, sources, feeds, sinks };
            let thread = sys::spawn("hk-console", move || events.run()).map_err(Error::Thread)?;
            open.events = Some(thread);
        }
        Ok(open)
    }
}

impl OpenConsole {
    fn closed(waker: Arc<Waker>) -> Self {
        Self {
            port: Port::default(),
            waker,
            events: None,
            readers: Vec::new(),
            writers: Vec::new(),
            link: None,
            raw: None,
            stdio: None,
            _slaves: Vec::new(),
        }
    }

    /// The device's end. It may outlive the console: what is written then is dropped.
    pub fn port(&self) -> Port {
        self.port.clone()
    }

    /// What dropping does.
    ///
    /// A thread that is stuck in a caller's `read`, `write` or callback is left behind after two seconds at most. May
    /// be called from a callback of the console itself.
    pub fn close(self) {}
}

impl Drop for OpenConsole {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH_TIME;
        self.waker.close();
        for writer in &self.writers {
            writer.close();
        }
        self.readers.drain(..).for_each(Reader::close);
        if let Some(events) = self.events.take() {
            join_within(events, CLOSE_TIME);
        }
        self.writers.drain(..).for_each(|writer| writer.join(deadline));
        // Only now: the last output belongs on the screen as it is.
        self.raw = None;
    }
}

/// Joins `thread` if it ends in time, and is not the one that asks.
fn join_within(thread: JoinHandle<()>, time: Duration) {
    if thread.thread().id() == thread::current().id() {
        return;
    }
    let deadline = Instant::now() + time;
    while !thread.is_finished() {
        if Instant::now() > deadline {
            return;
        }
        thread::sleep(Duration::from_micros(200));
    }
    // A callback of the caller's that panicked has said so already.
    let _ = thread.join();
}

/// Standard input and output of this process, and the only right to them.
struct Stdio {
    claim: StdioClaim,
    raw: Option<RawTerminal>,
    input: OwnedFd,
    output: OwnedFd,
}

impl Stdio {
    fn claim() -> Result<Self, Error> {
        let claim = StdioClaim::new().ok_or(Error::StdioTaken)?;
        let input = stdin().as_fd().try_clone_to_owned();
        let input = input.map_err(|source| Error::Stdio { what: "standard input", source })?;
        let output = stdout().as_fd().try_clone_to_owned().map_err(unusable_output)?;
        let raw = isatty(&input).then(|| RawTerminal::enable(&input)).transpose();
        let what = "the terminal on standard input in raw mode";
        let raw = raw.map_err(|source| Error::Stdio { what, source })?;
        Ok(Self { claim, raw, input, output })
    }

    fn size(&self) -> Option<(u16, u16)> {
        terminal::size(&self.input).or_else(|| terminal::size(&self.output))
    }
}

fn unusable_output(source: io::Error) -> Error {
    Error::Stdio { what: "standard output", source }
}

/// Standard input belongs to the whole process, and so does this: two consoles that read it would each get half of
/// what is typed, and would put the terminal back into each other's raw mode.
static STDIO_TAKEN: AtomicBool = AtomicBool::new(false);

struct StdioClaim(());

impl StdioClaim {
    fn new() -> Option<Self> {
        (!STDIO_TAKEN.swap(true, Ordering::AcqRel)).then_some(Self(()))
    }
}

impl Drop for StdioClaim {
    fn drop(&mut self) {
        STDIO_TAKEN.store(false, Ordering::Release);
    }
}

/// A file for output only. Non-blocking: `path` may be a FIFO or a terminal, and opening or writing it must not hang.
fn create(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
}
