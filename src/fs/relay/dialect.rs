//! What has to be known of a dialect to say "no" in it.

use crate::fs::envelope::{EIO, HEADER, Header, RERROR, rlerror};

/// A dialect, as far as its errors are concerned. Known from the version that the guest asks for, then from the one
/// that the server agrees to (version(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Dialect {
    /// 9P2000, and what nobody knows.
    #[default]
    Plain,
    /// 9P2000.u: errors have a number beside their text.
    Unix,
    /// 9P2000.L: errors are a number.
    Linux,
}

/// The text that Linux's client finds EIO by, and that people read.
const REFUSED: &[u8] = b"Input/output error";

/// Bytes of a Tversion or an Rversion that are looked at: `size[4] T tag[2] msize[4] version[s]`, with the longest
/// version there is.
pub(super) const VERSION: usize = HEADER + 4 + 2 + 8;

impl Dialect {
    /// The error reply to every request that cannot reach the server.
    pub fn refusal(self, tag: u16) -> Vec<u8> {
        if self == Self::Linux {
            return rlerror(tag, EIO).to_vec();
        }
        let number = EIO.to_le_bytes();
        let number = if self == Self::Unix { &number[..] } else { &[] };
        let size = HEADER + 2 + REFUSED.len() + number.len();
        let header = Header { size: size as u32, kind: RERROR, tag }.encode();
        [&header, &(REFUSED.len() as u16).to_le_bytes()[..], REFUSED, number].concat()
    }

    fn of(version: &[u8]) -> Self {
        match version {
            b"9P2000.L" => Self::Linux,
            b"9P2000.u" => Self::Unix,
            _ => Self::Plain,
        }
    }
}

/// The largest message and the dialect that a Tversion or an Rversion, or the beginning of one, names.
pub(super) fn version(message: &[u8]) -> Option<(u32, Dialect)> {
    let (_, rest) = message.split_at_checked(HEADER)?;
    let (msize, rest) = rest.split_first_chunk()?;
    let (len, text) = rest.split_first_chunk()?;
    let version = text.get(..u16::from_le_bytes(*len).into()).unwrap_or_default();
    Some((u32::from_le_bytes(*msize), Dialect::of(version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_as_each_dialect_has_them() {
        assert_eq!(Dialect::Linux.refusal(0x0201), [11, 0, 0, 0, 7, 1, 2, 5, 0, 0, 0]);
        let plain = Dialect::Plain.refusal(0x0201);
        assert_eq!(plain, [&[27, 0, 0, 0, 107, 1, 2, 18, 0][..], b"Input/output error"].concat());
        let unix = Dialect::Unix.refusal(0x0201);
        assert_eq!((unix[0], &unix[1..27]), (31, &plain[1..]));
        assert_eq!(unix[27..], [5, 0, 0, 0]);
    }

    #[test]
    fn versions_are_read_from_whatever_comes() {
        let message = |text: &[u8]| {
            [&[0; HEADER][..], &[0, 0x20, 0, 0], &(text.len() as u16).to_le_bytes(), text].concat()
        };
        for (text, dialect) in [
            (&b"9P2000.L"[..], Dialect::Linux),
            (b"9P2000.u", Dialect::Unix),
            (b"9P2000", Dialect::Plain),
            (b"unknown", Dialect::Plain),
            (b"9P2000.L and more", Dialect::Plain),
            (b"", Dialect::Plain),
        ] {
            let mut message = message(text);
            message.truncate(VERSION);
            assert_eq!(version(&message), Some((0x2000, dialect)));
        }
        let whole = message(b"9P2000.L");
        for len in 0..HEADER + 6 {
            assert_eq!(version(&whole[..len]), None);
        }
        assert_eq!(version(&whole[..20]), Some((0x2000, Dialect::Plain)));
    }
}
