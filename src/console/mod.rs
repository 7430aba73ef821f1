//! Host sides of a console: where a serial port's or a virtio console's bytes come from and go to.
//!
//! A [`Console`] is a description: this process's terminal, a pseudo-terminal, a file, memory, any `Read` and
//! `Write`, or several of these together. Opening it gives an [`OpenConsole`], which owns whatever runs on the host,
//! and a [`Port`], which a device writes to and reads from.
//!
//! ```
//! use hyperkit::console::{Console, RingBuffer};
//!
//! let log = RingBuffer::new();
//! let console = Console::streams(&b"uname -r\n"[..], std::io::sink()).and(Console::ring(log.clone()));
//! let open = console.open()?;
//! open.port().write(b"a device wrote this");
//! assert_eq!(log.contents(), b"a device wrote this");
//! # Ok::<_, hyperkit::console::Error>(())
//! ```
//!
//! What holds for all of them:
//!
//! * The guest hardly waits for the host: a virtio console a tenth of a second at most, a serial port not at all. Each
//!   host side may be 64 KiB behind; what comes after that is lost to it, and counted for whoever opens a console by
//!   itself ([`Port::dropped`]). A host side that is slow, blocked or gone takes nothing away from the others.
//! * The host waits for the guest. Input is read as the guest takes it, and no byte is lost.
//! * Closing a console writes the guest's last words first: up to a second to a host side that takes them.
//! * Idle is silent: without input or output nothing runs.
//! * No signal handler is installed, and no terminal is changed but for [`Console::stdio`].

mod endpoint;
mod events;
mod open;
mod port;
mod queue;
mod ring;
mod stream;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use endpoint::Escape;
pub use open::OpenConsole;
pub use port::Port;
pub use ring::RingBuffer;

use crate::sys::terminal::PtyPair;

/// The host side of a console, or several: what it will be once it is opened.
pub struct Console {
    parts: Vec<Part>,
    escape: Option<Escape>,
    link: Option<PathBuf>,
}

enum Part {
    Stdio,
    Pty(PtyPair),
    File(PathBuf),
    Ring(RingBuffer),
    Input(Box<dyn Read + Send>),
    Output(Box<dyn Write + Send>),
}

impl Console {
    /// Nothing: output goes nowhere, and there is no input.
    pub fn null() -> Self {
        Self { parts: Vec::new(), escape: None, link: None }
    }

    /// Standard input and output of this process.
    ///
    /// If standard input is a terminal, it is put into raw mode while the console is open: every key goes to the
    /// guest, Ctrl-C too. So a program that does this should keep one key for itself, see
    /// [`on_escape`](Self::on_escape). The terminal is put back when the console is closed or dropped, also by a
    /// panic that unwinds; a program that ends by [`std::process::exit`] or a signal has to drop it first.
    ///
    /// Input may as well be a pipe or a file; where it ends, the guest just gets no more. One console of a process
    /// can have standard input and output at a time.
    pub fn stdio() -> Self {
        Self::of(Part::Stdio)
    }

    /// A new pseudo-terminal, for a terminal program such as `screen` to open. Its name is [`path`](Self::path).
    ///
    /// It is there from now on, so the name can be told before the machine starts. What the guest writes before
    /// anybody has opened it is kept, up to a limit.
    pub fn pty() -> Result<Self, Error> {
        PtyPair::open().map(|pty| Self::of(Part::Pty(pty))).map_err(Error::Pty)
    }

    /// A file that output goes to. It is created, or emptied if it exists, when the console is opened.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::of(Part::File(path.into()))
    }

    /// The last 64 KiB of output, in memory.
    pub fn ring(buffer: RingBuffer) -> Self {
        Self::of(Part::Ring(buffer))
    }

    /// Input from `input`, output to `output`; both may block.
    ///
    /// Each gets a thread, which ends when the console is closed; but a thread whose `read` or `write` never returns
    /// cannot be ended. Such a thread is left behind with nothing but the caller's own object (and for a `write` its 64 KiB
    /// of output).
    pub fn streams(input: impl Read + Send + 'static, output: impl Write + Send + 'static) -> Self {
        Self::input(input).and(Self::output(output))
    }

    /// Input from `input`, as with [`streams`](Self::streams).
    pub fn input(input: impl Read + Send + 'static) -> Self {
        Self::of(Part::Input(Box::new(input)))
    }

    /// Output to `output`, as with [`streams`](Self::streams).
    pub fn output(output: impl Write + Send + 'static) -> Self {
        Self::of(Part::Output(Box::new(output)))
    }

    /// This and `other` together: output goes to all, input comes from all that have any.
    pub fn and(mut self, other: Self) -> Self {
        self.parts.extend(other.parts);
        self.escape = other.escape.or(self.escape);
        self.link = other.link.or(self.link);
        self
    }

    /// Calls `call` instead of passing `key` on to the guest, each time it is typed on the terminal of
    /// [`stdio`](Self::stdio). Input that is no terminal is passed on whole.
    ///
    /// The key is a byte: Ctrl-] is 0x1d, Ctrl-A is 1. `call` runs on the console's thread and should do no more than
    /// tell others: the console rests until it returns.
    pub fn on_escape(mut self, key: u8, call: impl FnMut() + Send + 'static) -> Self {
        self.escape = Some(Escape { key, call: Box::new(call) });
        self
    }

    /// Makes a symbolic link at `path` to the pseudo-terminal of [`pty`](Self::pty) when the console is opened, in
    /// place of an old link if there is one, and removes it when the console is closed.
    pub fn link(mut self, path: impl Into<PathBuf>) -> Self {
        self.link = Some(path.into());
        self
    }

    /// The name of the pseudo-terminal of [`pty`](Self::pty).
    pub fn path(&self) -> Option<&Path> {
        self.parts.iter().find_map(|part| match part {
            Part::Pty(pty) => Some(pty.path.as_path()),
            _ => None,
        })
    }

    fn of(part: Part) -> Self {
        Self { parts: vec![part], ..Self::null() }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.parts).finish()
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => write!(f, "stdio"),
            Self::Pty(pty) => write!(f, "pty {:?}", pty.path),
            Self::File(path) => write!(f, "file {path:?}"),
            Self::Ring(_) => write!(f, "ring"),
            Self::Input(_) => write!(f, "input"),
            Self::Output(_) => write!(f, "output"),
        }
    }
}

/// Why a console could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two consoles want the same keyboard.
    #[error(
        "cannot use standard input and output for a console: another console of this process has them; \
         use a pty for one of the two"
    )]
    StdioTaken,
    /// Standard input or output is not usable.
    #[error("cannot use {what} for a console: {source}")]
    Stdio {
        /// Which, and what was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// No pseudo-terminal could be had.
    #[error(
        "cannot open a pseudo-terminal for a console: {0}; check /dev/ptmx and that /dev/pts is mounted"
    )]
    Pty(#[source] io::Error),
    /// The file that output was to go to.
    #[error("cannot write console output to {path:?}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A link to a pseudo-terminal that there is none of.
    #[error(
        "cannot make {path:?} a link to the console's pseudo-terminal: the console has none; add Console::pty"
    )]
    NoPty {
        /// Where the link was to be.
        path: PathBuf,
    },
    /// The link to the pseudo-terminal.
    #[error("cannot make {path:?} a link to the console's pseudo-terminal: {source}")]
    Link {
        /// Where the link was to be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A thread, or what wakes it.
    #[error("cannot start a console's thread: {0}; check the limits on processes and open files")]
    Thread(#[source] io::Error),
}
