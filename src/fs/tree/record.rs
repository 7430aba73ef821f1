//! What is kept beside a file of a mapped share: whose it is in the guest, and what.

use std::io::Write;

use super::kind;

/// The extended attribute that it is kept in.
pub(super) const NAME: &[u8] = b"user.hyperkit.owner";
/// What all attributes begin with that guests neither see nor set.
pub(super) const HIDDEN: &[u8] = b"user.hyperkit.";
/// More than any record has.
pub(super) const LONGEST: usize = 80;

/// Owner and mode, as the guest sees them. In text, so that it can be read with the host's tools: decimal, but for the
/// mode, which is octal.
///
/// ```text
/// UID:GID:MODE:MAJOR:MINOR
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub uid: u32,
    pub gid: u32,
    /// With the kind of file.
    pub mode: u32,
    /// Of a device node.
    pub device: (u32, u32),
}

impl Record {
    /// The text, and how long it is.
    pub fn to_text(self) -> ([u8; LONGEST], usize) {
        let Self { uid, gid, mode, device: (major, minor) } = self;
        let mut text = [0; LONGEST];
        let mut rest = &mut text[..];
        // Five numbers of 32 bits have 51 digits at most, and there is room for 80.
        let _ = write!(rest, "{uid}:{gid}:{mode:o}:{major}:{minor}");
        let len = LONGEST - rest.len();
        (text, len)
    }

    /// What a text says; nothing if it is none of ours.
    pub fn from_text(text: &[u8]) -> Option<Self> {
        let mut fields = std::str::from_utf8(text).ok()?.split(':');
        let mut next = |radix| u32::from_str_radix(fields.next()?, radix).ok();
        let record =
            Self { uid: next(10)?, gid: next(10)?, mode: next(8)?, device: (next(10)?, next(10)?) };
        (fields.next().is_none() && record.mode & !0o177_777 == 0).then_some(record)
    }

    /// The kind of a file that is `host` on the host: plain files only can be something else in the guest.
    pub fn kind(&self, host: u32) -> u32 {
        match (host, self.mode & kind::MASK) {
            (
                kind::FILE,
                other @ (kind::LINK | kind::FIFO | kind::SOCKET | kind::CHAR | kind::BLOCK),
            ) => other,
            _ => host,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let most = u32::MAX;
        for record in [
            Record { uid: 0, gid: 0, mode: 0o100_644, device: (0, 0) },
            Record { uid: 1000, gid: 50, mode: 0o020_666, device: (1, 3) },
            Record { uid: most, gid: most, mode: 0o177_777, device: (most, most) },
        ] {
            let (text, len) = record.to_text();
            assert_eq!(Record::from_text(&text[..len]), Some(record));
        }
        let record = Record { uid: 0, gid: 7, mode: 0o100_644, device: (1, 2) };
        assert_eq!(&record.to_text().0[..16], b"0:7:100644:1:2\0\0");
    }

    #[test]
    fn other_text_is_no_record() {
        let texts: [&[u8]; 8] = [
            b"",
            b"1",
            b"1:2:3:4",
            b"1:2:3:4:5:6",
            b"1:2:8:4:5",
            b"-1:2:3:4:5",
            b"1:2:1000000:4:5",
            b"\xff:2:3:4:5",
        ];
        for text in texts {
            assert_eq!(Record::from_text(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_folder_is_a_folder_and_a_link_a_link_whatever_a_record_says() {
        let record = |mode| Record { uid: 0, gid: 0, mode, device: (0, 0) };
        assert_eq!(record(kind::FILE).kind(kind::DIRECTORY), kind::DIRECTORY);
        assert_eq!(record(kind::DIRECTORY).kind(kind::FILE), kind::FILE);
        assert_eq!(record(kind::CHAR).kind(kind::LINK), kind::LINK);
        assert_eq!(record(kind::LINK).kind(kind::FILE), kind::LINK);
        assert_eq!(record(0).kind(kind::FILE), kind::FILE);
    }
}
