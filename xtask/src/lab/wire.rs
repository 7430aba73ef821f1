//! What passes between xtask and the first process of the lab's machine.
//!
//! One byte stream in each direction, a virtio-serial port on one side and a socket on the other,
//! carries frames: a kind, a length, and that many bytes. A port of that sort has no line
//! discipline, so bytes stay what they are; frames keep the command's streams apart and let the end
//! of its input be said.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

/// No frame is longer than this; what is, comes from something that is not speaking this.
const LIMIT: usize = 8 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// From the lab: it is up, and wants a [`Job`].
    Hello = 1,
    /// From the lab: the command runs.
    Started,
    /// From the lab: the command cannot be started; the text says why.
    Failed,
    Stdout,
    Stderr,
    /// From the lab: the command has ended; its exit status, one byte.
    Exit,
    /// From the lab, each second: it is not hung.
    Alive,
    /// To the lab: a [`Job`].
    Job,
    /// To the lab: standard input; no bytes mean its end.
    Stdin,
    /// To the lab: the terminal's columns and rows.
    Window,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        use Kind::{Alive, Exit, Failed, Hello, Job, Started, Stderr, Stdin, Stdout, Window};
        let all = [Hello, Started, Failed, Stdout, Stderr, Exit, Alive, Job, Stdin, Window];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

pub fn send(to: &mut impl Write, kind: Kind, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut frame = vec![kind as u8];
    frame.extend(length.to_le_bytes());
    frame.extend(bytes);
    to.write_all(&frame)
}

pub fn receive(from: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let mut header = [0; 5];
    from.read_exact(&mut header)?;
    let [kind, length @ ..] = header;
    let length = u32::from_le_bytes(length) as usize;
    let kind = Kind::of(kind).filter(|_| length <= LIMIT);
    let kind = kind.ok_or_else(|| io::Error::other("this is no frame"))?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok((kind, bytes))
}

/// Columns and rows.
pub type Window = (u16, u16);

pub fn window_to_bytes((columns, rows): Window) -> [u8; 4] {
    let ([a, b], [c, d]) = (columns.to_le_bytes(), rows.to_le_bytes());
    [a, b, c, d]
}

pub fn window_from_bytes(bytes: &[u8]) -> Option<Window> {
    let [a, b, c, d] = bytes.try_into().ok()?;
    Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
}

/// What the lab is asked to do.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Job {
    pub command: Vec<OsString>,
    pub environment: Vec<(OsString, OsString)>,
    pub directory: OsString,
    /// Folders that the lab can write to, each by its path.
    pub writable: Vec<OsString>,
    /// Which of the three standard streams are a terminal, one for all of them.
    pub terminals: [bool; 3],
    pub window: Window,
    /// The time, since 1970.
    pub time: Duration,
}

impl Job {
    /// Pairs of names and values, each ended by a zero byte, which none of them can hold.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |name: &str, value: &OsStr| {
            for text in [name.as_bytes(), value.as_bytes()] {
                bytes.extend(text);
                bytes.push(0);
            }
        };
        put("directory", &self.directory);
        put("columns", self.window.0.to_string().as_ref());
        put("rows", self.window.1.to_string().as_ref());
        put("time", self.time.as_nanos().to_string().as_ref());
        for stream in (0..3).filter(|stream| self.terminals[*stream]) {
            put("terminal", stream.to_string().as_ref());
        }
        for path in &self.writable {
            put("writable", path);
        }
        for (name, value) in &self.environment {
            put("variable", name);
            put("value", value);
        }
        for word in &self.command {
            put("word", word);
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Job> {
        let mut job = Job::default();
        let mut texts = bytes.strip_suffix(&[0])?.split(|&byte| byte == 0);
        while let Some(name) = texts.next() {
            let value = OsString::from_vec(texts.next()?.to_vec());
            let number = || value.to_str().and_then(|text| text.parse::<u64>().ok());
            match name {
                b"directory" => job.directory = value,
                b"columns" => job.window.0 = number()?.try_into().ok()?,
                b"rows" => job.window.1 = number()?.try_into().ok()?,
                b"time" => job.time = Duration::from_nanos(number()?),
                b"terminal" => *job.terminals.get_mut(usize::try_from(number()?).ok()?)? = true,
                b"writable" => job.writable.push(value),
                b"variable" => job.environment.push((value, OsString::new())),
                b"value" => job.environment.last_mut()?.1 = value,
                b"word" => job.command.push(value),
                _ => return None,
            }
        }
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_survives_the_wire() {
        let job = Job {
            command: vec!["sh".into(), "".into(), OsString::from_vec(vec![0xff, b'\n'])],
            environment: vec![("A".into(), "".into()), ("B".into(), "x=y\nz".into())],
            directory: "/some where".into(),
            writable: vec!["/a".into(), "/b".into()],
            terminals: [true, false, true],
            window: (132, 50),
            time: Duration::new(1_800_000_000, 123_456_789),
        };
        assert_eq!(Job::from_bytes(&job.to_bytes()), Some(job));
    }

    #[test]
    fn frames_keep_their_bytes_and_refuse_noise() {
        let mut stream = Vec::new();
        send(&mut stream, Kind::Stdout, b"a\0\r\n").unwrap();
        send(&mut stream, Kind::Stdin, b"").unwrap();
        let mut from = &stream[..];
        assert_eq!(receive(&mut from).unwrap(), (Kind::Stdout, b"a\0\r\n".to_vec()));
        assert_eq!(receive(&mut from).unwrap(), (Kind::Stdin, Vec::new()));
        assert!(receive(&mut from).is_err());
        assert!(receive(&mut &b"\x7fELF\x01\x01\x01"[..]).is_err());
        assert!(receive(&mut &[Kind::Stdout as u8, 255, 255, 255, 255][..]).is_err());
    }
}
