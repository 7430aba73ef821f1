//! Why a message is refused: Linux's numbers, which Rlerror has whatever the host is.

/// An error number of Linux, on x86 and arm64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct Errno(pub u32);

impl Errno {
    pub const NOENT: Self = Self(2);
    pub const TOOBIG: Self = Self(7);
    pub const BADF: Self = Self(9);
    pub const NOMEM: Self = Self(12);
    pub const BUSY: Self = Self(16);
    pub const INVAL: Self = Self(22);
    pub const NFILE: Self = Self(23);
    pub const RANGE: Self = Self(34);
    pub const NAMETOOLONG: Self = Self(36);
    /// The message makes no sense.
    pub const PROTO: Self = Self(71);
    /// The message, or the answer to it, is longer than it may be.
    pub const MSGSIZE: Self = Self(90);
    /// There is no such message in 9P2000.L.
    pub const OPNOTSUPP: Self = Self(95);
}
