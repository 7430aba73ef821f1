//! What a program of the host says before its connection is one: to which port of the guest it wants to go.
//!
//! Not a byte more than that is read. What is right behind belongs to the guest.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// How to say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Convention {
    /// The guest's CID and port, eight hexadecimal digits each: `00000003.0000f3a5\n`.
    HyperKit,
    /// `CONNECT 62373\n`.
    Hybrid,
}

/// Bytes of HyperKit's line.
const HYPERKIT: usize = 18;
/// Bytes that a hybrid line may have at most.
const HYBRID: usize = 32;

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing that would be all.
    Part,
    /// The port.
    Port(u32),
    /// Something else, or the end.
    Wrong(Wrong),
}

/// Why a connection is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    #[error("it was closed")]
    End,
    #[error("it said \"{0}\"")]
    Line(String),
    #[error("it wants the guest with CID {0}")]
    Cid(u32),
    #[error("{0}")]
    Host(Errno),
}

/// A connection that has not said yet where to.
#[derive(Debug)]
pub(super) struct Handshake {
    pub socket: OwnedFd,
    pub until: Instant,
    convention: Convention,
    line: [u8; HYBRID],
    len: usize,
}

impl Handshake {
    pub fn new(socket: OwnedFd, convention: Convention, until: Instant) -> Self {
        Self { socket, until, convention, line: [0; HYBRID], len: 0 }
    }

    /// How the guest's answer is to be said.
    pub fn convention(&self) -> Convention {
        self.convention
    }

    /// Reads until the line is whole, or there is no more of it for now. `cid` is the guest's.
    pub fn hear(&mut self, cid: u64) -> Heard {
        let all = match self.convention {
            Convention::HyperKit => HYPERKIT,
            Convention::Hybrid => HYBRID,
        };
        loop {
            let space = self.line.get_mut(self.len..all).unwrap_or_default();
            if space.is_empty() {
                return Heard::Wrong(self.wrong_line());
            }
            let heard = match self.convention {
                Convention::HyperKit => recv(&self.socket, space, RecvFlags::empty()),
                Convention::Hybrid => take_line(&self.socket, space),
            };
            match heard.map(|(count, _)| count) {
                Ok(0) => return Heard::Wrong(Wrong::End),
                Ok(count) => self.len += count,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Heard::Part,
                Err(error) => return Heard::Wrong(Wrong::Host(error)),
            }
            match (self.convention, self.line()) {
                (Convention::HyperKit, line) if line.len() == HYPERKIT => {
                    return match hyperkit(line) {
                        Some((theirs, port)) if u64::from(theirs) == cid => Heard::Port(port),
                        Some((theirs, _)) => Heard::Wrong(Wrong::Cid(theirs)),
                        None => Heard::Wrong(self.wrong_line()),
                    };
                }
                (Convention::Hybrid, line) if line.ends_with(b"\n") => {
                    let wrong = || Heard::Wrong(self.wrong_line());
                    return hybrid(line).map_or_else(wrong, Heard::Port);
                }
                _ => {}
            }
        }
    }

    fn line(&self) -> &[u8] {
        self.line.get(..self.len).unwrap_or_default()
    }

    fn wrong_line(&self) -> Wrong {
        Wrong::Line(self.line().escape_ascii().to_string())
    }
}

/// Receives up to the end of the line, if there is one.
fn take_line(socket: &OwnedFd, space: &mut [u8]) -> rustix::io::Result<(usize, usize)> {
    let (count, _) = recv(socket, &mut *space, RecvFlags::PEEK)?;
    let seen = space.get(..count).unwrap_or_default();
    let end = seen.iter().position(|&byte| byte == b'\n').map_or(count, |place| place + 1);
    if end == 0 {
        return Ok((0, 0));
    }
    recv(socket, space.get_mut(..end).unwrap_or_default(), RecvFlags::empty())
}

/// CID and port.
fn hyperkit(line: &[u8]) -> Option<(u32, u32)> {
    let (cid, rest) = line.split_at_checked(8)?;
    let port = rest.strip_prefix(b".")?.strip_suffix(b"\n")?;
    Some((number(cid, 16)?, number(port, 16)?))
}

/// The port.
fn hybrid(line: &[u8]) -> Option<u32> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (connect, port) = (words.next()?, words.next()?);
    let plain = connect.eq_ignore_ascii_case(b"CONNECT") && words.next().is_none();
    plain.then(|| number(port, 10)).flatten()
}

/// A number without a sign.
fn number(digits: &[u8], radix: u32) -> Option<u32> {
    let digits = str::from_utf8(digits).ok()?;
    let plain = digits.chars().all(|digit| digit.is_digit(radix));
    plain.then(|| u32::from_str_radix(digits, radix).ok()).flatten()
}

/// The handshakes under way, each in a numbered slot.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    slots: Vec<Option<Handshake>>,
    free: Vec<usize>,
}

impl Handshakes {
    /// Most at a time.
    pub const MOST: usize = 256;

    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() == Self::MOST
    }

    /// The number of the slot that comes next. There is one, unless it [is full](Self::is_full).
    pub fn next(&self) -> usize {
        self.free.last().copied().unwrap_or(self.slots.len())
    }

    /// Puts one into the [`next`](Self::next) slot.
    pub fn insert(&mut self, handshake: Handshake) {
        match self.free.pop() {
            Some(slot) => {
                if let Some(place) = self.slots.get_mut(slot) {
                    *place = Some(handshake);
                }
            }
            None => self.slots.push(Some(handshake)),
        }
    }

    pub fn get_mut(&mut self, slot: usize) -> Option<&mut Handshake> {
        self.slots.get_mut(slot)?.as_mut()
    }

    pub fn remove(&mut self, slot: usize) -> Option<Handshake> {
        let handshake = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(handshake)
    }

    /// When the first of them has taken too long.
    pub fn deadline(&self) -> Option<Instant> {
        self.slots.iter().flatten().map(|handshake| handshake.until).min()
    }

    /// One that has taken too long by `now`.
    pub fn expired(&self, now: Instant) -> Option<usize> {
        let late = |slot: &Option<Handshake>| slot.as_ref().is_some_and(|slot| slot.until <= now);
        self.slots.iter().position(late)
    }
}
